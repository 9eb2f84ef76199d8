package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lock is a key that one process of the cluster has at a time. It is under a
// lease of its own, which is kept alive until Release, and ends by itself when
// the process dies, freezes, or loses etcd for longer than the lease lasts. What
// is written with its Guard is not written after that. It is safe for
// concurrent use.
type Lock struct {
	c   *Client
	l   *lease
	key string // with the prefix
	rev int64  // at which it was created
}

// LockConfig says what to lock. All fields are required but Try.
type LockConfig struct {
	Key    string        // below the prefix
	Holder string        // the key's value, for people
	TTL    time.Duration // how long after its holder's death it is free; whole seconds, servers grant at least 2
	Try    bool          // not to wait where another one has it
}

// ErrLocked says that another process has a lock that was only tried.
var ErrLocked = errors.New("another process has the lock")

// Lock waits until the lock is free and takes it. The lock is not bound to ctx.
func (c *Client) Lock(ctx context.Context, cfg LockConfig) (*Lock, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	key := c.prefix + cfg.Key
	l, err := c.grant(context.WithoutCancel(ctx), conn, cfg.TTL)
	if err != nil {
		return nil, err
	}
	// Waiting ends with ctx, and with the lease.
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })()
	rev, err := c.occupy(wait, l, cfg)
	if err != nil {
		l.giveBack(ctx)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	return &Lock{c: c, l: l, key: key, rev: rev}, nil
}

// occupy creates the key of cfg under the lease once there is none, and returns the
// revision at which it did. A key without a lease is nobody's, and would stand for
// ever: a person wrote it, or put back a copy of all keys. It is deleted.
func (c *Client) occupy(ctx context.Context, l *lease, cfg LockConfig) (rev int64, err error) {
	key := c.prefix + cfg.Key
	free := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	put := []clientv3.Op{clientv3.OpPut(key, cfg.Holder, clientv3.WithLease(l.id))}
	for {
		resp, err := c.txn(ctx, l.conn, free, put, clientv3.OpGet(key))
		if err != nil {
			return 0, l.orLost(err)
		}
		if resp.Succeeded {
			return resp.Header.Revision, nil
		}
		held := resp.Responses[0].GetResponseRange().Kvs[0]
		switch {
		case held.Lease == 0:
			c.log.Warn("deleting a key without a lease: nobody holds what it stands for", "key", key, "value", string(held.Value))
			same := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", held.ModRevision)}
			_, err = c.txn(ctx, l.conn, same, []clientv3.Op{clientv3.OpDelete(key)})
		case cfg.Try:
			return 0, ErrLocked
		default:
			err = awaitChange(ctx, l.conn, key, resp.Header.Revision)
		}
		if err != nil {
			return 0, l.orLost(err)
		}
	}
}

// awaitChange waits until key is deleted or put after revision rev.
func awaitChange(ctx context.Context, conn *clientv3.Client, key string, rev int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range conn.Watch(ctx, key, clientv3.WithRev(rev+1)) {
		if err := resp.Err(); err != nil {
			return err
		}
		if len(resp.Events) > 0 {
			return nil
		}
	}
	return context.Cause(ctx)
}

// Guard is the condition that the lock is still held.
func (k *Lock) Guard() Guard {
	return Guard{clientv3.Compare(clientv3.CreateRevision(k.key), "=", k.rev)}
}

// Release gives the lock back, although ctx may have ended. One that was lost
// needs no giving back. With an error it ends by itself after its TTL. Call it
// once.
func (k *Lock) Release(ctx context.Context) error {
	lost := errors.Is(context.Cause(k.l.ctx), errLeaseLost)
	k.l.end(nil)
	k.l.wg.Wait()
	if lost {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.c.pace.revoke)
	defer cancel()
	if _, err := k.l.conn.Revoke(ctx, k.l.id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("release %s, which ends by itself within %v: %w", k.key, k.l.ttl, k.c.explain(k.l.conn, err))
	}
	return nil
}

// Guard is a condition of Transact.
type Guard struct{ cmp clientv3.Cmp }

// Unchanged is the condition that the last change of a key, below the prefix,
// was at revision since; 0: that there is no such key.
func (c *Client) Unchanged(key string, since int64) Guard {
	return Guard{clientv3.Compare(clientv3.ModRevision(c.prefix+key), "=", since)}
}

// Transact makes writes, at most MaxEdits of different keys, at one revision,
// which it returns, if all guards hold; else none of them, and done is false.
// With an error, they may have been made. Nothing is noted for history.
func (c *Client) Transact(ctx context.Context, guards []Guard, writes []Write) (rev int64, done bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return 0, false, err
	}
	conds := make([]clientv3.Cmp, len(guards))
	for i, g := range guards {
		conds[i] = g.cmp
	}
	resp, err := c.txn(ctx, conn, conds, c.ops(writes))
	if err != nil {
		return 0, false, fmt.Errorf("write %s: %w", c.first(writes), err)
	}
	return resp.Header.Revision, resp.Succeeded, nil
}

func (c *Client) first(writes []Write) string {
	switch len(writes) {
	case 0:
		return "nothing"
	case 1:
		return c.prefix + writes[0].Key
	}
	return fmt.Sprintf("%d keys, the first of them %s", len(writes), c.prefix+writes[0].Key)
}

// ReadKey returns a key, nil if there is none.
func (c *Client) ReadKey(ctx context.Context, key string) (*KV, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := c.get(ctx, conn, c.prefix+key)
	if err != nil {
		return nil, fmt.Errorf("read %s%s: %w", c.prefix, key, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return &c.appendKVs(nil, resp.Kvs)[0], nil
}

// ListKeys returns the keys below a folder, such as nodes/, in their order.
func (c *Client) ListKeys(ctx context.Context, folder string) ([]string, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	from := c.prefix + folder
	end := clientv3.GetPrefixRangeEnd(from)
	var keys []string
	for {
		page, err := c.get(ctx, conn, from, clientv3.WithRange(end), clientv3.WithLimit(pageKeys), clientv3.WithKeysOnly())
		if err != nil {
			return nil, fmt.Errorf("list %s%s: %w", c.prefix, folder, err)
		}
		for _, kv := range c.appendKVs(nil, page.Kvs) {
			keys = append(keys, kv.Key)
		}
		if !page.More {
			return keys, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}
