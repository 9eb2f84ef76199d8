package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Past is a change, and what there was before it.
type Past struct {
	Change
	Existed bool   // whether there was such a key
	Before  []byte // its value
}

// ErrCompacted says that etcd no longer has the revisions that were asked for.
var ErrCompacted = rpctypes.ErrCompacted

// ReadRecorded returns all keys whose changes are wishes of somebody's, as of
// revision at, or of the newest if that is 0, and the revision they are of.
func (c *Client) ReadRecorded(ctx context.Context, at int64) (kvs []KV, rev int64, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, 0, err
	}
	return c.read(ctx, conn, recorded(c.prefix), at)
}

// ChangesSince returns the changes of those keys after revision rev, in their
// order, the revision until which they are complete, and etcd's own at the time
// of the call, now. until is now or later, but for an etcd before 3.4.25 or 3.5.8
// whose newest changes are outside the prefix: that does not tell how far it is.
// The error is ErrCompacted where etcd has forgotten some.
func (c *Client) ChangesSince(ctx context.Context, rev int64) (changes []Past, until, now int64, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, 0, 0, err
	}
	at, err := c.get(ctx, conn, c.prefix+NoteKey, clientv3.WithCountOnly())
	if err != nil {
		return nil, 0, 0, fmt.Errorf("ask etcd for its revision: %w", err)
	}
	if now = at.Header.Revision; now <= rev {
		return nil, now, now, nil
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), 3*c.pace.request)
	defer cancel()
	look := &lookBack{c: c, conn: conn, spans: recorded(c.prefix), since: rev, until: now, asks: true}
	err = look.run(ctx)
	if errors.Is(err, errEarly) {
		// What comes of one watcher comes in order, so that each change proves
		// that there is none before it. Of all that happens below the prefix, one
		// is the newest.
		look = &lookBack{c: c, conn: conn, spans: without(c.prefix, nil), since: rev, until: now}
		err = look.run(ctx)
	}
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil, 0, 0, ErrCompacted
	}
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read the changes after revision %d: %w", rev, err)
	}
	changes, until = look.complete()
	return changes, until, now, nil
}

// lookBack reads what happened between two revisions, and what happens meanwhile.
type lookBack struct {
	c            *Client
	conn         *clientv3.Client
	spans        []span
	since, until int64
	// asks says that etcd is asked how far its watchers are. Else that follows
	// from what they bring, and where that ends before until, from silence.
	asks bool

	reached []int64 // by span
	changes []Past
}

// silence is how long nothing comes of a watcher that is taken to have told all
// that there is.
const silence = time.Second

// run returns once all spans have reached until, or nothing more comes.
func (l *lookBack) run(ctx context.Context) error {
	l.reached = slices.Repeat([]int64{l.since}, len(l.spans))
	arrivals := make(chan arrival)
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := l.c.newFeed(l.conn, l.spans, l.since, func(a arrival) {
		select {
		case arrivals <- a:
		case <-ctx.Done():
		}
	})
	f.before, f.exact = true, l.asks
	running.Go(func() { f.run(ctx) })
	running.Go(func() { f.sendQuestions(ctx) })
	// etcd leaves a question unanswered while a watcher is behind.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for slices.Min(l.reached) < l.until {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			if l.asks {
				f.askProgress()
			}
		case <-quiet.C:
			if !l.asks {
				return nil
			}
		case a := <-arrivals:
			if a.err != nil {
				return a.err
			}
			l.changes = l.c.appendPast(l.changes, a.events)
			if l.asks || a.span != allSpans {
				advance(l.reached, a)
			}
			quiet.Reset(silence)
		}
	}
	return nil
}

// complete returns the changes of keys that are recorded up to the revision that
// all spans have reached, in their order, and that.
func (l *lookBack) complete() ([]Past, int64) {
	until := slices.Min(l.reached)
	slices.SortStableFunc(l.changes, func(a, b Past) int { return cmp.Compare(a.ModRev, b.ModRev) })
	return slices.DeleteFunc(l.changes, func(p Past) bool { return p.ModRev > until || !isRecorded(p.Key) }), until
}

func (c *Client) appendPast(to []Past, events []*mvccpb.Event) []Past {
	for i, ch := range c.appendChanges(nil, events) {
		p := Past{Change: ch}
		if prev := events[i].PrevKv; prev != nil {
			p.Existed, p.Before = true, prev.Value
		}
		to = append(to, p)
	}
	return to
}

// advance notes in reached, by span, what an arrival says of progress.
func advance(reached []int64, a arrival) {
	rev := a.rev
	if n := len(a.events); n > 0 {
		// The header of a watcher that is catching up names etcd's revision,
		// which may be beyond what this answer holds.
		rev = a.events[n-1].Kv.ModRevision
	}
	for i := range reached {
		if i == a.span || a.span == allSpans {
			reached[i] = max(reached[i], rev)
		}
	}
}
