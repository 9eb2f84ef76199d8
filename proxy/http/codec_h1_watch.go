package http

import (
	"sync"
	"time"
)

// watchAfter is how long an exchange takes before its client's connection is
// watched for its end. Most are over by then, and need no watching.
const watchAfter = 25 * time.Millisecond

// h1Phase is what a connection over HTTP/1.1 is at.
type h1Phase uint8

const (
	phaseIdle     h1Phase = iota // no request has begun
	phaseHead                    // a head has begun and not ended
	phaseExchange                // an exchange is under way
	phaseOver
)

// h1Watch bounds how long a connection may stay in a phase, and notices a client
// that leaves during an exchange. Its timer is not set for each request, which
// would cost more than parsing one, but looks, when it fires, at what there is
// to wait for then.
type h1Watch struct {
	c       *h1Conn
	oweFunc func(time.Duration)
	cutFunc func(time.Duration)

	mu      sync.Mutex // guards the following fields
	timer   *time.Timer
	due     time.Time // when timer fires; zero: it is not set
	phase   h1Phase
	since   time.Time
	x       *exchange     // in phaseExchange
	firstBy time.Time     // when a response head is due; zero: never
	reader  chan struct{} // closed when the client's watcher is gone; nil: there is none
	leaving bool          // it is to go
	watched bool          // there is or was one in this exchange
	loose   bool          // in phaseIdle: the client may have spoken unnoticed
	poked   bool          // a read deadline was set to have somebody look
}

func (w *h1Watch) init(c *h1Conn) {
	w.c, w.oweFunc, w.cutFunc = c, w.owe, w.cut
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.due = w.since.Add(w.limit())
	w.timer = time.AfterFunc(w.limit(), w.fire)
}

// limit returns how long the phase lasts before there is something to do. w.mu
// is held.
func (w *h1Watch) limit() time.Duration {
	l := &w.c.conn.server.cfg.Limits
	switch w.phase {
	case phaseIdle:
		if w.loose {
			return min(watchAfter, l.Idle)
		}
		return l.Idle
	case phaseHead:
		return l.Head
	}
	return watchAfter
}

// enter begins a phase.
func (w *h1Watch) enter(phase h1Phase, now time.Time, x *exchange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase, w.since, w.x, w.firstBy, w.watched, w.loose = phase, now, x, time.Time{}, false, false
	w.unpoke()
	w.arm(now.Add(w.limit()), now)
}

// arm has the timer fire at t, unless it fires before that anyway. w.mu is held.
func (w *h1Watch) arm(t, now time.Time) {
	if w.due.IsZero() || t.Before(w.due) {
		w.due = t
		w.timer.Reset(t.Sub(now))
	}
}

// owe is life.owe.
func (w *h1Watch) owe(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if limit == 0 || w.phase != phaseExchange {
		w.firstBy = time.Time{}
		return
	}
	now := time.Now()
	w.firstBy = now.Add(limit)
	w.arm(w.firstBy, now)
}

// cut is life.cut.
func (w *h1Watch) cut(time.Duration) {
	if w.c.conn.socket.stalled(time.Now()) > 0 {
		w.c.conn.hangUp()
	}
}

// fire does what is due.
func (w *h1Watch) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.due = time.Time{}
	now := time.Now()
	switch w.phase {
	case phaseOver:
	case phaseExchange:
		w.check(now)
	default:
		if end := w.since.Add(w.limit()); now.Before(end) {
			w.arm(end, now)
			return
		}
		w.c.conn.socket.SetReadDeadline(time.Unix(1, 0))
		if w.loose {
			w.loose, w.poked = false, true
			w.arm(w.since.Add(w.limit()), now)
		}
	}
}

// check looks at the exchange under way. w.mu is held.
func (w *h1Watch) check(now time.Time) {
	if begin := w.since.Add(watchAfter); now.Before(begin) {
		w.arm(begin, now)
		return
	}
	if !w.firstBy.IsZero() {
		if !now.Before(w.firstBy) {
			w.firstBy = time.Time{}
			w.x.life.tooSlow()
		} else {
			w.arm(w.firstBy, now)
		}
	}
	patience := w.c.conn.server.cfg.Limits.Idle
	body := &w.c.work.body
	switch {
	case body.complete.Load():
		if !w.watched {
			w.watched = true
			w.reader = make(chan struct{})
			go w.read(w.x, w.reader)
		}
	case !w.x.guard.active.Load() && !w.x.life.headed.Load() && body.silence(now) >= patience:
		body.tooSlow()
	default:
		w.arm(now.Add(4*watchAfter), now) // the body will have come at some time
	}
	if w.c.conn.socket.stalled(now) >= patience {
		w.x.life.abandon(errTakesNothing)
		w.c.conn.hangUp()
	}
	w.arm(now.Add(patience/4), now)
}

// read waits for the client to say more, or to leave: the exchange is given up
// then.
func (w *h1Watch) read(x *exchange, done chan struct{}) {
	defer close(done)
	n, err := w.c.io.Read(w.c.room())
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > 0 {
		w.c.early = w.c.spare[:n]
	}
	if err != nil && !w.leaving {
		x.life.abandon(errClientLeft)
	}
}

// handOver ends the watch for an exchange that has become a tunnel.
func (w *h1Watch) handOver() {
	w.quiet()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase = phaseOver
}

// quiet has nobody but the connection's own goroutine read from the client, for
// what is left of the exchange. A watcher that began after this would wait for
// that goroutine's read to end, and it for the watcher.
func (w *h1Watch) quiet() {
	w.mu.Lock()
	w.watched = true
	reader := w.reader
	w.leaving = reader != nil
	w.mu.Unlock()
	if reader == nil {
		return
	}
	socket := w.c.conn.socket
	socket.SetReadDeadline(time.Unix(1, 0))
	<-reader
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving, w.reader = false, nil
	if w.phase == phaseExchange { // and nothing else has set a deadline
		socket.SetReadDeadline(time.Time{})
	}
}

// leave ends an exchange: the connection is idle from now on. loose says that
// nobody has looked whether the client has spoken meanwhile, or left.
func (w *h1Watch) leave(now time.Time, loose bool) {
	w.mu.Lock()
	if w.reader != nil {
		w.mu.Unlock()
		w.quiet()
		w.mu.Lock()
	}
	defer w.mu.Unlock()
	w.phase, w.since, w.x, w.firstBy, w.loose = phaseIdle, now, nil, time.Time{}, loose
	w.arm(now.Add(w.limit()), now)
}

// wasPoked reports whether a read failed only so that one would look once more.
func (w *h1Watch) wasPoked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unpoke()
}

// unpoke takes back a poke. w.mu is held.
func (w *h1Watch) unpoke() bool {
	if !w.poked {
		return false
	}
	w.poked = false
	w.c.conn.socket.SetReadDeadline(time.Time{})
	return true
}

// abandon gives up the exchange under way, if there is one.
func (w *h1Watch) abandon(cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.x != nil {
		w.x.life.abandon(cause)
	}
}

func (w *h1Watch) inHead() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.phase == phaseHead
}

// stop ends the watch.
func (w *h1Watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase = phaseOver
	w.timer.Stop()
}
