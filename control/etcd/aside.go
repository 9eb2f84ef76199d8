package etcd

import (
	"cmp"
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Aside are subtrees that a watch passes to a handler of their own, on the same
// stream. They lie among those that a node does not watch otherwise.
//
// What handler promises holds, with two differences. The load comes after that
// of the watch itself, which it does not delay, though of the same revision; and
// the revision passed with changes is one that its ranges are known to have
// reached, which nobody is asked for: it may lag behind, and no batch without
// changes follows. The changes of one transaction below one folder arrive in one
// batch. The handler is called by the goroutine that passes configuration too,
// so it must return at once.
type Aside struct {
	Folders []string // below the prefix, such as acme/shared/
	Handler handler
}

// spans returns the ranges of the folders.
func (a Aside) spans(prefix string) []span {
	spans := make([]span, len(a.Folders))
	for i, folder := range a.Folders {
		spans[i] = span{prefix + folder, clientv3.GetPrefixRangeEnd(prefix + folder)}
	}
	return spans
}

// asideStream is what a stream has to do for an Aside.
type asideStream struct {
	h      handler // nil: there is none
	first  int     // of the stream's spans, the first that is its
	loaded bool
	early  []Change // what has come before the load
	now    []Change // what has come in the batch at hand
	rev    int64    // last revision passed
}

// loadAside reads the keys as of the revision that the stream begins after, and
// puts them in the inbox.
func (s *stream) loadAside(ctx context.Context, conn *clientv3.Client, spans []span, rev int64) {
	kvs, _, err := s.c.read(ctx, conn, spans, rev)
	if ctx.Err() == nil {
		s.inbox.put(arrival{span: s.aside.first, rev: rev, err: err, load: true, kvs: kvs})
	}
}

// take takes an arrival that is of a span of its own, or its load.
func (a *asideStream) take(c *Client, got arrival) {
	if !got.load {
		a.now = c.appendChanges(a.now, got.events)
		return
	}
	a.loaded, a.rev = true, got.rev
	a.h.Load(got.rev, got.kvs)
}

// deliver passes what has come.
func (a *asideStream) deliver(reached []int64) {
	a.early, a.now = append(a.early, a.now...), nil
	if !a.loaded || len(a.early) == 0 {
		return
	}
	changes := a.early
	a.early = nil
	slices.SortStableFunc(changes, func(x, y Change) int { return cmp.Compare(x.ModRev, y.ModRev) })
	a.rev = max(a.rev, slices.Min(reached[a.first:]))
	a.h.Change(a.rev, changes)
}
