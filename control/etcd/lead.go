package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// leadTTL is how long after its death, in seconds, a leader is still one.
const leadTTL = 10

// Term is the time of one leader.
type Term struct {
	c     *Client
	guard clientv3.Cmp
}

// ErrDeposed says that somebody else leads by now.
var ErrDeposed = errors.New("another node leads by now")

// Lead has one of all that call it with the same name in a cluster run f at a
// time, until ctx ends; it then returns nil. The context of f ends with the
// term, at the latest about when another one's begins: what f writes by
// Term.Commit is not written after that. f is run again if it returns. Call it
// with letters, digits and '-' for name, and the node's name for node.
func (c *Client) Lead(ctx context.Context, name, node string, f func(ctx context.Context, t *Term) error) error {
	pause := newPause(c.pace)
	var nag nag
	for {
		led, err := c.lead(ctx, name, node, f)
		if ctx.Err() != nil {
			return nil
		}
		if led {
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
func (c *Client) lead(ctx context.Context, name, node string, f func(context.Context, *Term) error) (led bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return false, err
	}
	life, end := context.WithCancel(ctx)
	defer end()
	session, err := concurrency.NewSession(conn, concurrency.WithTTL(leadTTL), concurrency.WithContext(life))
	if err != nil {
		return false, fmt.Errorf("take a lease to lead %s: %w", name, err)
	}
	defer func() {
		// Others need not wait for the lease to run out.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.pace.revoke)
		defer cancel()
		_, _ = conn.Revoke(ctx, session.Lease())
		session.Orphan()
	}()
	running, stop := context.WithCancel(life)
	defer stop()
	go func() {
		select {
		case <-session.Done():
			stop()
		case <-running.Done():
		}
	}()
	election := concurrency.NewElection(session, c.prefix+"leaders/"+name)
	if err := election.Campaign(running, node); err != nil {
		return false, fmt.Errorf("campaign to lead %s: %w", name, err)
	}
	c.log.Debug("this node leads", "what", name)
	return true, f(running, &Term{c, clientv3.Compare(clientv3.CreateRevision(election.Key()), "=", election.Rev())})
}

// Write is a key and what becomes of it, whatever it was before.
type Write struct {
	Key    string // below the prefix
	Value  string
	Delete bool
}

// Commit makes writes, at most MaxEdits, in one transaction if the term lasts;
// else the error is ErrDeposed. It returns the revision.
func (t *Term) Commit(ctx context.Context, writes []Write) (rev int64, err error) {
	conn, err := t.c.connect(ctx)
	if err != nil {
		return 0, err
	}
	ops := make([]clientv3.Op, len(writes))
	for i, w := range writes {
		ops[i] = clientv3.OpPut(t.c.prefix+w.Key, w.Value)
		if w.Delete {
			ops[i] = clientv3.OpDelete(t.c.prefix + w.Key)
		}
	}
	resp, err := t.c.txn(ctx, conn, []clientv3.Cmp{t.guard}, ops)
	if err != nil {
		return 0, fmt.Errorf("write %d keys, the first of them %s: %w", len(writes), t.c.prefix+writes[0].Key, err)
	}
	if !resp.Succeeded {
		return 0, ErrDeposed
	}
	return resp.Header.Revision, nil
}
