package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lease is a lease that is being kept alive.
type lease struct {
	c    *Client
	conn *clientv3.Client
	ttl  time.Duration // whole seconds
	id   clientv3.LeaseID
	ctx  context.Context // ends with the lease
	end  context.CancelCauseFunc
	wg   sync.WaitGroup // what runs for it
}

var errLeaseLost = errors.New("the lease was lost")

func (c *Client) grant(ctx context.Context, conn *clientv3.Client, ttl time.Duration) (*lease, error) {
	gctx, cancel := context.WithTimeout(ctx, c.pace.request)
	defer cancel()
	resp, err := conn.Grant(gctx, int64(ttl/time.Second))
	if err != nil {
		return nil, fmt.Errorf("take a lease: %w", c.explain(conn, err))
	}
	l := &lease{c: c, conn: conn, ttl: ttl, id: resp.ID}
	l.ctx, l.end = context.WithCancelCause(ctx)
	c.leases.add(l)
	alive, err := conn.KeepAlive(l.ctx, l.id)
	if err != nil {
		c.leases.remove(l)
		l.giveBack(ctx)
		return nil, fmt.Errorf("keep the lease alive: %w", err)
	}
	l.wg.Go(func() { l.watch(alive) })
	return l, nil
}

// watch ends l.ctx with the lease: alive is closed when etcd no longer knows
// it, when etcd could not be reached for as long as the lease lasts, and after
// l.ctx has ended for another reason.
func (l *lease) watch(alive <-chan *clientv3.LeaseKeepAliveResponse) {
	for range alive {
	}
	l.c.leases.remove(l)
	l.end(errLeaseLost)
}

// orLost replaces the error of a call that was cut off by the lease's end.
func (l *lease) orLost(err error) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("%w: %w", errLeaseLost, err)
	}
	if cause := context.Cause(l.ctx); cause != nil {
		return cause
	}
	return err
}

// leave ends the keeping alive, and lets the lease last for as long as it may.
func (l *lease) leave() {
	l.end(nil)
	l.wg.Wait()
}

// giveBack revokes the lease, and with it removes its keys, although ctx may
// have ended. What fails here ends by itself after the TTL.
func (l *lease) giveBack(ctx context.Context) {
	lost := errors.Is(context.Cause(l.ctx), errLeaseLost)
	l.end(nil)
	l.wg.Wait()
	if lost {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.c.pace.revoke)
	defer cancel()
	if _, err := l.conn.Revoke(ctx, l.id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		l.c.log.Warn("could not give back the lease; this node's keys in etcd stay until it ends", "ttl", l.ttl, "err", l.c.explain(l.conn, err))
	}
}
