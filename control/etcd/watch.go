package etcd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Change is one change of a watched key.
type Change struct {
	Key     string // below the prefix
	Value   []byte // nil when Deleted; the receiver's to keep, not to modify
	ModRev  int64  // revision of this change
	Deleted bool
}

// handler takes what Watch reads. Its methods are called from one goroutine,
// one at a time, and whatever arrives while they run waits.
type handler interface {
	// Load passes all watched keys as of revision rev, in no particular order.
	// It is called first, and again whenever the thread was lost: keys that
	// are missing then have been deleted meanwhile, and a reload may be no
	// different from what the handler has. A later Load's rev is lower only
	// if etcd has been restored from a backup. kvs belongs to the handler.
	Load(rev int64, kvs []KV)

	// Change passes changes in the order of their revisions, that of each key
	// in the order etcd made them. rev never falls between two Loads: with
	// this call, every change up to and including rev has been passed, and
	// later ones may have been. Changes may be empty; only rev has risen then.
	// changes belongs to the handler.
	Change(rev int64, changes []Change)
}

// Watch passes the watched keys to h, and then their changes, until ctx ends;
// it then returns nil. Whatever else happens (etcd away, compaction, no leader,
// an expired token, a watch that has gone silent) it pauses and loads anew.
// Only one Watch can run on a Client at a time; a second one is an error.
func (c *Client) Watch(ctx context.Context, h handler) error { return c.WatchWith(ctx, h, Aside{}) }

// WatchWith is Watch, and passes what is aside to a handler of its own.
func (c *Client) WatchWith(ctx context.Context, h handler, aside Aside) error {
	if !c.watching.CompareAndSwap(false, true) {
		return errors.New("watch " + c.prefix + ": this client is watching already")
	}
	defer c.watching.Store(false)
	defer c.noteLost(nil)
	pause := newPause(c.pace)
	reason := "start"
	var nag nag
	for {
		loaded, err := c.follow(ctx, h, aside, reason)
		if ctx.Err() != nil {
			return nil
		}
		c.noteLost(err)
		reason = lossReason(err)
		if errors.Is(err, errSetBack) {
			c.leases.end(errSetBack)
		}
		if loaded {
			pause, nag.told = newPause(c.pace), time.Now()
			c.log.Warn("lost the watch on etcd; what was loaded stays in force", "err", err)
		} else if nag.due() {
			c.log.Warn("etcd cannot be read; trying on", "err", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// follow loads and watches once, until something goes wrong, and tells whether
// the load had succeeded.
func (c *Client) follow(ctx context.Context, h handler, aside Aside, reason string) (loaded bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return false, err
	}
	c.metrics.loads.WithLabelValues(reason).Inc()
	kvs, rev, err := c.load(ctx, conn)
	if err != nil {
		return false, err
	}
	newest := firstMark(c.prefix, watched(c.prefix), kvs, rev)
	h.Load(rev, kvs)
	c.noteHeard(rev)
	c.noteDelivered(rev)
	c.log.Debug("loaded all keys from etcd", "keys", len(kvs), "rev", rev, "reason", reason)
	s := newStream(c, conn, rev, newest, aside)
	return true, s.run(ctx, h)
}

// errFrozen is a watch that gave no sign of life.
var errFrozen = errors.New("the watch has gone silent")

// lossReason maps what ended a watch to a value of the loads metric.
func lossReason(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return "compacted"
	case errors.Is(err, rpctypes.ErrNoLeader):
		return "no_leader"
	case errors.Is(err, errSetBack):
		return "set_back"
	case errors.Is(err, errFrozen):
		return "frozen"
	}
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return "auth"
	}
	var known rpctypes.EtcdError
	if errors.As(err, &known) && (known.Code() == codes.Unauthenticated || known.Code() == codes.PermissionDenied) {
		return "auth"
	}
	return "error"
}

// pause spaces attempts: from min, doubling up to max, and each a random part
// of that, so that a fleet that lost etcd at one instant does not return at one.
type pause struct{ next, max time.Duration }

func newPause(p pace) *pause { return &pause{next: p.retryMin, max: p.retryMax} }

// wait sleeps, and reports false if ctx ended before.
func (p *pause) wait(ctx context.Context) bool {
	d := p.next/2 + rand.N(p.next/2+1)
	p.next = min(2*p.next, p.max)
	return sleep(ctx, d)
}

// nag lets a message through once a minute: an outage of hours is one thing to
// say, not thousands.
type nag struct{ told time.Time }

func (n *nag) due() bool {
	if time.Since(n.told) < time.Minute {
		return false
	}
	n.told = time.Now()
	return true
}

// sleep waits for d, and reports false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
