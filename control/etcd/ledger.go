package etcd

import (
	"context"
	"slices"
	"sync"
	"time"
)

// ledger holds what keys under the lease should be, and what etcd is known to
// have of them. Writing a value twice costs nothing, and a key that changes
// faster than it is written is written once, with its latest value.
type ledger struct {
	first string        // the key that is written before all others
	wake  chan struct{} // holds a token while there may be something to write

	mu    sync.Mutex       // guards the following fields
	lines map[string]*line // by key below the prefix
	queue []*line          // those that differ, oldest first
}

// line is one key of a ledger.
type line struct {
	key    string
	want   string // what it should be
	wanted bool   // whether it should be at all

	have   string // what etcd has, if known
	known  bool   // whether that is known: not so between a write and its answer
	stored bool   // whether etcd has the key, if known
	queued bool
	// behind says that it is written after what was queued before it, even if it
	// is the first key.
	behind bool
	base   string // what it was to be when it was last set otherwise
	// leaving says that want is to be seen, and the key is not to be after that.
	leaving bool
}

func newLedger(first string) *ledger {
	return &ledger{first: first, wake: make(chan struct{}, 1), lines: map[string]*line{}}
}

// differs reports whether l has to be written.
func (l *line) differs() bool {
	if !l.known {
		return true
	}
	return l.wanted != l.stored || l.wanted && l.want != l.have
}

// set notes what key should be.
func (g *ledger) set(key, value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[key]
	if l == nil {
		l = &line{key: key, known: true}
		g.lines[key] = l
	}
	l.want, l.wanted, l.behind, l.base, l.leaving = value, true, false, value, false
	g.enqueueLocked(l)
}

// setBehind is set of a value that is to be written after all that was set
// before, if at all: it says that the rest is done.
func (g *ledger) setBehind(key, value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[key]
	if l == nil {
		l = &line{key: key, known: true}
		g.lines[key] = l
	}
	l.want, l.wanted, l.behind = value, true, true
	if l.queued {
		g.queue = slices.DeleteFunc(g.queue, func(other *line) bool { return other == l })
		l.queued = false
	}
	g.enqueueLocked(l)
}

// drop notes that key should not be.
func (g *ledger) drop(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.lines[key]; l != nil {
		l.want, l.wanted, l.leaving = "", false, false
		g.enqueueLocked(l)
	}
}

// leave is drop of a key that etcd has with value for a moment before, so that
// who follows it can tell this from drop. A key that etcd never had just is not
// written.
func (g *ledger) leave(key, value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[key]
	if l == nil {
		return
	}
	l.leaving = !l.known || l.stored && l.have != value
	if l.want, l.wanted = value, l.leaving; !l.leaving {
		l.want = ""
	}
	g.enqueueLocked(l)
}

func (g *ledger) enqueueLocked(l *line) {
	if l.queued || !l.differs() {
		return
	}
	l.queued = true
	if l.key == g.first && !l.behind {
		g.queue = slices.Insert(g.queue, 0, l)
	} else {
		g.queue = append(g.queue, l)
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// await blocks until something has to be written, or for so long; false: ctx ended
// before.
func (g *ledger) await(ctx context.Context, most time.Duration) bool {
	late := time.NewTimer(most)
	defer late.Stop()
	for g.backlog() == 0 {
		select {
		case <-g.wake:
		case <-late.C:
			return ctx.Err() == nil
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// write is one key to be written: put, or delete if drop is set.
type write struct {
	key, value string
	drop       bool
}

// next takes the writes that are due off the queue: at most ops of them, and
// no more once they hold size bytes. Each must be given to done or again.
func (g *ledger) next(ops, size int) []write {
	g.mu.Lock()
	defer g.mu.Unlock()
	var due []write
	bytes := 0
	for len(g.queue) > 0 && len(due) < ops && bytes < size {
		l := g.queue[0]
		g.queue[0] = nil
		g.queue = g.queue[1:]
		l.queued = false
		if !l.differs() {
			g.forgetLocked(l)
			continue
		}
		l.known = false
		due = append(due, write{l.key, l.want, !l.wanted})
		bytes += len(l.key) + len(l.want)
	}
	return due
}

// done notes that etcd has what ws say.
func (g *ledger) done(ws []write) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range ws {
		l := g.lines[w.key]
		l.known, l.stored, l.have = true, !w.drop, w.value
		if l.leaving && l.stored && l.have == l.want {
			l.want, l.wanted, l.leaving = "", false, false // it was there to be seen
		}
		g.enqueueLocked(l) // it may have changed meanwhile
		g.forgetLocked(l)
	}
}

// again queues ws anew, which may or may not have reached etcd.
func (g *ledger) again(ws []write) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Where they were: what is to be written behind them has to stay there.
	rest := g.queue
	g.queue = nil
	for _, w := range ws {
		g.enqueueLocked(g.lines[w.key])
	}
	if len(rest) > 0 && rest[0].key == g.first && !rest[0].behind {
		g.queue = slices.Insert(g.queue, 0, rest[0])
		rest = rest[1:]
	}
	g.queue = append(g.queue, rest...)
}

// forgetLocked removes a line that neither is nor should be.
func (g *ledger) forgetLocked(l *line) {
	if l.known && !l.stored && !l.wanted && !l.queued {
		delete(g.lines, l.key)
	}
}

// startOver notes that etcd has none of the keys, as after the lease was lost.
func (g *ledger) startOver() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = g.queue[:0]
	for _, l := range g.lines {
		l.queued = false
	}
	over := func(l *line) {
		l.known, l.stored, l.have = true, false, ""
		if l.leaving {
			l.want, l.wanted, l.leaving = "", false, false
		}
		g.enqueueLocked(l)
		g.forgetLocked(l)
	}
	for key, l := range g.lines {
		if key != g.first {
			over(l)
		}
	}
	if l := g.lines[g.first]; l != nil {
		over(l)
	}
}

// claim returns what the first key is to be before anything else is there, ""
// where that is not known: nothing that says that the rest is done.
func (g *ledger) claim() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[g.first]
	switch {
	case l == nil:
		return ""
	case l.base == "":
		return l.want
	}
	return l.base
}

// backlog returns how many keys wait.
func (g *ledger) backlog() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue)
}
