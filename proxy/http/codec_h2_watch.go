package http

import (
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// h2DrainPing marks the PING that follows the first GOAWAY of two.
const h2DrainPing = "draining"

// parkTime is how long a connection that has become quiet keeps its workers.
const parkTime = time.Second

// h2Watch bounds how long a client may take over things. Its timer is not set for
// each of them, but looks, when it fires, at what there is to wait for then.
type h2Watch struct {
	c       *h2DownConn
	begun   bool        // of who reads: a frame or field block has begun
	leaving atomic.Bool // the connection is being closed for want of use

	// The following are guarded by the connection's mutex.
	timer *time.Timer
	due   time.Time // when timer fires; zero: it is not set
	hello bool      // the client has sent its preface
	head  time.Time // since when a frame is on its way that is no DATA; zero: none is
	quiet time.Time // since when there is no exchange
	over  bool
}

// start begins to watch. The preface is like the head of a request.
func (w *h2Watch) start() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.head = time.Now()
	w.begun = true
	w.due = w.head.Add(w.c.conn.server.cfg.Limits.Head)
	w.timer = time.AfterFunc(w.c.conn.server.cfg.Limits.Head, w.fire)
}

// greeted says that the client has sent its preface.
func (w *h2Watch) greeted() {
	w.c.conn.socket.spoke.Store(true) // it may have come with the end of the handshake
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.hello, w.quiet, w.head, w.begun = true, time.Now(), time.Time{}, false
	w.arm(w.quiet.Add(w.c.conn.server.cfg.Limits.Idle))
}

// partial says whether something has begun to come that is to end soon. It is
// called by who reads.
func (w *h2Watch) partial(begun bool) {
	if w.begun == begun || !begun && !w.hello {
		return
	}
	w.begun = begun
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.head = (time.Time{}); begun {
		w.head = time.Now()
		w.arm(w.head.Add(w.c.conn.server.cfg.Limits.Head))
	}
}

// arm has the timer fire at t, unless it fires before that anyway. c.mu is held.
func (w *h2Watch) arm(t time.Time) {
	if !w.over && (w.due.IsZero() || t.Before(w.due)) {
		w.due = t
		w.timer.Reset(time.Until(t))
	}
}

// rest says that there is no exchange any more. c.mu is held.
func (w *h2Watch) rest(now time.Time) {
	w.quiet = now
	if w.c.drain == h2Closed {
		w.leave()
	}
}

// leave has the connection closed, gently. c.mu is held.
func (w *h2Watch) leave() {
	w.leaving.Store(true)
	w.c.conn.socket.SetReadDeadline(time.Unix(1, 0))
}

func (w *h2Watch) stop() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.over = true
	w.timer.Stop()
}

// fire does what is due.
func (w *h2Watch) fire() {
	c, limits := w.c, &w.c.conn.server.cfg.Limits
	c.mu.Lock()
	now := time.Now()
	w.due = time.Time{}
	slow := w.streams(now)
	switch {
	case w.over:
	case c.conn.socket.stalled(now) >= limits.Idle:
		slow = w.all(errTakesNothing)
		c.conn.hangUp()
	case !w.head.IsZero() && now.Sub(w.head) >= limits.Head:
		c.conn.hangUp()
	case c.drain == h2Asked && now.Sub(c.drained) >= goAwayTime:
		c.closeDrain()
	case c.active == 0 && w.hello && now.Sub(w.quiet) >= limits.Idle:
		w.leave()
	}
	if c.active == 0 {
		w.letWorkersGo(now)
	}
	w.plan(now)
	c.mu.Unlock()
	for _, s := range slow {
		s.giveUp()
	}
}

// plan sets the timer for what comes next. c.mu is held.
func (w *h2Watch) plan(now time.Time) {
	c, limits := w.c, &w.c.conn.server.cfg.Limits
	if !w.head.IsZero() {
		w.arm(w.head.Add(limits.Head))
	}
	if c.drain == h2Asked {
		w.arm(c.drained.Add(goAwayTime))
	}
	switch {
	case c.active > 0:
		w.arm(now.Add(limits.Idle / 4))
	case len(c.parked) > 0:
		w.arm(now.Add(parkTime))
	case w.leaving.Load():
	default:
		w.arm(w.quiet.Add(limits.Idle))
	}
}

// letWorkersGo lets go of workers that a quiet connection does not need. c.mu is
// held.
func (w *h2Watch) letWorkersGo(now time.Time) {
	if now.Sub(w.quiet) < parkTime {
		return
	}
	for i, worker := range w.c.parked {
		worker.next <- nil
		w.c.parked[i] = nil
	}
	w.c.parked = w.c.parked[:0]
}

// slowStream is a stream whose time is over.
type slowStream struct {
	s     *h2DownStream
	cause error
}

func (s slowStream) giveUp() {
	if s.cause == errFirstByte {
		s.s.x.life.tooSlow()
	} else {
		s.s.x.life.abandon(s.cause)
	}
}

// streams returns those that are to be given up. c.mu is held.
func (w *h2Watch) streams(now time.Time) (slow []slowStream) {
	c, patience := w.c, w.c.conn.server.cfg.Limits.Idle
	for id, s := range c.streams {
		if s.lingering {
			if now.Before(s.firstBy) {
				w.arm(s.firstBy)
			} else {
				s.tire()
				c.out.later()
			}
			continue
		}
		if !s.firstBy.IsZero() {
			if now.Before(s.firstBy) {
				w.arm(s.firstBy)
			} else {
				s.firstBy, s.tainted = time.Time{}, true
				slow = append(slow, slowStream{s, errFirstByte})
			}
		}
		if !s.blocked.IsZero() && now.Sub(s.blocked) >= patience {
			c.reset(id, h2.Cancel, errTakesNothing)
			c.out.later()
			slow = append(slow, slowStream{s, errTakesNothing})
		}
	}
	return slow
}

// all returns the streams whose exchange is under way, to be given up. c.mu is
// held.
func (w *h2Watch) all(cause error) (all []slowStream) {
	for _, s := range w.c.streams {
		if !s.lingering {
			s.tainted = true
			s.lose(cause)
			all = append(all, slowStream{s, cause})
		}
	}
	return all
}

// over is conn.over: it has the client be told to go, and reports whether one that
// was told does not.
func (c *h2DownConn) over(began time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.conn.socket.spoke.Load():
		return true
	case !c.watch.hello:
		return time.Since(began) >= goAwayTime+goAwayTime/2
	case c.drain == h2Open:
		c.beginDrain()
	}
	return c.drain == h2Closed && c.active == 0 && time.Since(c.drained) >= 4*goAwayTime
}

// beginDrain has the client be told to go. The first GOAWAY has it send no more;
// what it had sent by then is still taken up (RFC 9113 section 6.8). c.mu is held.
func (c *h2DownConn) beginDrain() {
	c.drain, c.drained = h2Asked, time.Now()
	b := h2.AppendGoAway(c.out.buffer(), h2.MaxStream, h2.NoError, "")
	c.out.set(h2.AppendPing(b, false, []byte(h2DrainPing)))
	c.out.later()
	c.watch.arm(c.drained.Add(goAwayTime))
}

// closeDrain says which streams are the last. c.mu is held.
func (c *h2DownConn) closeDrain() {
	c.drain = h2Closed
	c.out.set(h2.AppendGoAway(c.out.buffer(), c.last, h2.NoError, ""))
	c.out.later()
	if c.active == 0 {
		c.watch.leave()
	}
}
