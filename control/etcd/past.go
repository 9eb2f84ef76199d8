package etcd

import (
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
// order, and the revision up to which they are complete: the newest at the time
// of the call, or a later one. The error is ErrCompacted where etcd has
// forgotten some.
func (c *Client) ChangesSince(ctx context.Context, rev int64) (changes []Past, until int64, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, 0, err
	}
	now, err := c.get(ctx, conn, c.prefix+NoteKey, clientv3.WithCountOnly())
	if err != nil {
		return nil, 0, fmt.Errorf("ask etcd for its revision: %w", err)
	}
	if until = now.Header.Revision; until <= rev {
		return nil, until, nil
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), 3*c.pace.request)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	spans := recorded(c.prefix)
	reached := make([]int64, len(spans))
	arrivals := make(chan arrival)
	f := newFeed(conn, spans, rev, func(a arrival) {
		select {
		case arrivals <- a:
		case <-ctx.Done():
		}
	})
	f.before = true
	running.Go(func() { f.run(ctx) })
	running.Go(func() { f.sendQuestions(ctx) })
	// etcd leaves a question unanswered while a watcher is behind.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for slices.Min(reached) < until {
		select {
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("read the changes after revision %d: %w", rev, ctx.Err())
		case <-again.C:
			f.askProgress()
		case a := <-arrivals:
			if a.err != nil {
				if errors.Is(a.err, rpctypes.ErrCompacted) {
					return nil, 0, ErrCompacted
				}
				return nil, 0, fmt.Errorf("read the changes after revision %d: %w", rev, a.err)
			}
			changes = c.appendPast(changes, a.events)
			advance(reached, a)
		}
	}
	until = slices.Min(reached)
	slices.SortStableFunc(changes, func(a, b Past) int { return int(a.ModRev - b.ModRev) })
	// Some spans may be further.
	whole, _ := slices.BinarySearchFunc(changes, until+1, func(p Past, rev int64) int { return int(p.ModRev - rev) })
	return changes[:whole], until, nil
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
