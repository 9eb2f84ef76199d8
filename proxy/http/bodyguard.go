package http

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// bodyPatience is how long the client may have the node wait for a body whose
// rate is bounded, where the route says nothing else.
const bodyPatience = 10 * time.Second

const sayBodySize = "the request's body is too large\n"

var (
	errBodySize = errors.New("the request's body is larger than limits.body")
	errBodyIdle = errors.New("nothing came of the request's body for too long (timeouts.idle, or the node's own limit)")
	errBodySlow = errors.New("the request's body comes too slowly (timeouts.body)")
)

// bodyLimits bound a request's body. Zero: no limit.
type bodyLimits struct {
	size int64         // in bytes
	idle time.Duration // of silence while the body is waited for, until there is a response head
	wait time.Duration // of waiting for it, all in all
	rate int64         // so many bytes have wait be a second longer
}

// bodyGuard is a body that is bounded, whichever the codec. Only time that is
// spent waiting for the client counts: one that sends faster than the backend
// takes is not slow.
type bodyGuard struct {
	body
	limits  bodyLimits
	headed  *atomic.Bool // there is a response head
	active  atomic.Bool  // whoever else looks after the body need not
	got     atomic.Int64
	heard   atomic.Int64 // when something came last, in nanoseconds since the epoch
	waited  atomic.Int64 // nanoseconds, without the wait under way
	waiting atomic.Int64 // since when there is one, in nanoseconds since the epoch; 0: there is none

	mu     sync.Mutex // guards the following fields
	timer  *time.Timer
	over   bool
	failed *failure
}

// guardBody bounds x's body from now on until x.guard.end, if there is anything to
// bound.
func (x *exchange) guardBody(l bodyLimits) (bounded bool) {
	if l == (bodyLimits{}) || x.body.size() == 0 || x.req.upgrade != "" {
		return false
	}
	g := &x.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	g.body, g.limits, g.over, g.failed = x.body, l, false, nil
	g.got.Store(0)
	g.heard.Store(0)
	g.waited.Store(0)
	g.waiting.Store(0)
	g.headed = &x.life.headed
	g.active.Store(true)
	x.body = g
	return true
}

// end lets go of the body: nobody reads it any more.
func (g *bodyGuard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over, g.body = true, nil
	g.active.Store(false)
	if g.timer != nil {
		g.timer.Stop()
	}
}

// atHand gives away only what is within the limit.
func (g *bodyGuard) atHand() ([]byte, bool) {
	content, whole := g.body.atHand()
	if whole && g.limits.size > 0 && int64(len(content)) > g.limits.size {
		return nil, false // for Read to find out
	}
	return content, whole
}

// Read is called by one goroutine at a time.
func (g *bodyGuard) Read(p []byte) (int, error) {
	if room := g.limits.size - g.got.Load() + 1; g.limits.size > 0 && int64(len(p)) > room {
		p = p[:room] // one more than there may be, to see whether there is
	}
	began := time.Now().UnixNano()
	g.waiting.Store(began)
	g.watch()
	n, err := g.body.Read(p)
	g.waiting.Store(0)
	now := time.Now().UnixNano()
	g.waited.Add(now - began)
	if n > 0 {
		g.heard.Store(now)
	}
	if total := g.got.Add(int64(n)); g.limits.size > 0 && total > g.limits.size {
		g.fail(&failure{class: endBodySize, status: 413, say: sayBodySize, err: errBodySize})
		return 0, errBodySize
	}
	if err != nil {
		if failed := g.ownFailure(); failed != nil {
			err = failed.err // and not that of the stop
		}
	}
	return n, err
}

// watch has time be looked at, from the first Read on.
func (g *bodyGuard) watch() {
	if g.limits.idle == 0 && g.limits.wait == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.over, g.got.Load() > 0, g.waited.Load() > 0:
	case g.timer == nil:
		g.timer = time.AfterFunc(g.pause(), g.look)
	default:
		g.timer.Reset(g.pause())
	}
}

// pause returns how long nothing need be looked at. g.mu is held.
func (g *bodyGuard) pause() time.Duration {
	now := time.Now().UnixNano()
	var since time.Duration
	if w := g.waiting.Load(); w != 0 {
		since = time.Duration(now - w)
	}
	left := time.Duration(1<<63 - 1)
	if l := &g.limits; l.idle > 0 && !g.headed.Load() {
		left = min(left, l.idle-since)
	}
	if l := &g.limits; l.wait > 0 {
		left = min(left, g.mayWait()-time.Duration(g.waited.Load())-since)
	}
	return left
}

// mayWait returns how long the client may have the node wait all in all.
func (g *bodyGuard) mayWait() time.Duration {
	if g.limits.rate == 0 {
		return g.limits.wait
	}
	return g.limits.wait + time.Duration(float64(g.got.Load())/float64(g.limits.rate)*float64(time.Second))
}

func bodyTooSlow(why error) *failure {
	return &failure{class: endBodySlow, status: 408, say: "the request's body comes too slowly\n", err: why}
}

// look ends a body that comes too slowly.
func (g *bodyGuard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over || g.failed != nil {
		return
	}
	waiting := g.waiting.Load()
	left := g.pause()
	if waiting == 0 || left > 0 {
		if waiting == 0 { // the backend has the word
			left = max(left, 50*time.Millisecond)
		}
		g.timer.Reset(left)
		return
	}
	why := errBodySlow
	if g.limits.idle > 0 && !g.headed.Load() && time.Duration(time.Now().UnixNano()-waiting) >= g.limits.idle {
		why = errBodyIdle
	}
	g.failed = bodyTooSlow(why)
	g.body.stop()
}

// fail ends the body.
func (g *bodyGuard) fail(f *failure) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		g.failed = f
	}
	if !g.over {
		g.body.stop()
	}
}

func (g *bodyGuard) ownFailure() *failure {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// failure returns how reading from the client failed, or nil.
func (g *bodyGuard) failure() *failure {
	if failed := g.ownFailure(); failed != nil {
		return failed
	}
	return g.body.failure()
}
