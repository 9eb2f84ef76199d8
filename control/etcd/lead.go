package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// leadTTL is how long after its death a leader is still one.
const leadTTL = 5 * time.Second

// Term is the time of one leader.
type Term struct {
	c     *Client
	guard clientv3.Cmp
}

// ErrDeposed says that somebody else leads by now.
var ErrDeposed = errors.New("another node leads by now, or has written in this one's place")

// Lead has one of all that call it with the same name in a cluster run f at a
// time, until ctx ends; it then returns nil. The context of f ends with the
// term, at the latest about when another one's begins: what f writes by
// Term.Commit is not written after that. f is run again if it returns. Call it
// with letters, digits and '-' for name, and the node's name for node.
func (c *Client) Lead(ctx context.Context, name, node string, f func(ctx context.Context, t *Term) error) error {
	pause := newPause(c.pace)
	var nag nag
	for {
		began := time.Now()
		err := c.lead(ctx, name, node, f)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > leadTTL {
			pause = newPause(c.pace)
		}
		if err != nil && nag.due() {
			c.log.Log(ctx, slog.LevelWarn, "lost the lead; trying to get it again", "of", name, "err", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// lead is one candidacy, and the term it wins.
func (c *Client) lead(ctx context.Context, name, node string, f func(context.Context, *Term) error) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	l, err := c.grant(ctx, conn, leadTTL)
	if err != nil {
		return err
	}
	defer l.giveBack(ctx) // so that others need not wait for its end
	seat := LockConfig{Key: "leaders/" + name, Holder: node}
	rev, err := c.occupy(l.ctx, l, seat)
	if err != nil {
		return l.orLost(fmt.Errorf("campaign to lead %s: %w", name, err))
	}
	c.log.Debug("this node leads", "what", name)
	return l.orLost(f(l.ctx, &Term{c, clientv3.Compare(clientv3.CreateRevision(c.prefix+seat.Key), "=", rev)}))
}

// Write is a key and what becomes of it, whatever it was before.
type Write struct {
	Key    string // below the prefix
	Value  string
	Delete bool
	Below  bool // with Delete: all keys below Key and a slash, and not Key itself
	// Since is the revision of the key's last change that a leader's write is based
	// on; 0: it is made whatever there is.
	Since int64
}

// ops returns writes as etcd takes them.
func (c *Client) ops(writes []Write) []clientv3.Op {
	ops := make([]clientv3.Op, len(writes))
	for i, w := range writes {
		switch {
		case w.Delete && w.Below:
			ops[i] = clientv3.OpDelete(c.prefix+w.Key+"/", clientv3.WithPrefix())
		case w.Delete:
			ops[i] = clientv3.OpDelete(c.prefix + w.Key)
		default:
			ops[i] = clientv3.OpPut(c.prefix+w.Key, w.Value)
		}
	}
	return ops
}

// Commit makes writes, at most MaxEdits, in one transaction if the term lasts and
// the keys are as Since says; else the error is ErrDeposed. It returns the revision.
// An etcd that was set back to an earlier copy may know the leader still, and not
// what that wrote.
func (t *Term) Commit(ctx context.Context, writes []Write) (rev int64, err error) {
	conn, err := t.c.connect(ctx)
	if err != nil {
		return 0, err
	}
	conds := []clientv3.Cmp{t.guard}
	for _, w := range writes {
		if w.Since != 0 {
			conds = append(conds, clientv3.Compare(clientv3.ModRevision(t.c.prefix+w.Key), "=", w.Since))
		}
	}
	resp, err := t.c.txn(ctx, conn, conds, t.c.ops(writes))
	if err != nil {
		return 0, fmt.Errorf("write %d keys, the first of them %s: %w", len(writes), t.c.prefix+writes[0].Key, err)
	}
	if !resp.Succeeded {
		return 0, ErrDeposed
	}
	return resp.Header.Revision, nil
}
