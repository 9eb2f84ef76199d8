package http

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// maxH2Conns bounds the connections of one kind to a target that speaks HTTP/2.
// Where all have as many exchanges as they may, others wait.
const maxH2Conns = 128

// errChoseHTTP1 is what a target comes to that chose HTTP/2 once and does not any
// more.
var errChoseHTTP1 = errors.New("the backend speaks HTTP/2 no more")

// h2Pool is a site's connections that speak HTTP/2.
type h2Pool struct {
	conns   atomic.Pointer[[]*h2Conn] // replaced with site.mu held
	waiting atomic.Int32              // how many wait for a slot

	// Guarded by site.mu.
	waiters []*h2Waiter
	giveUp  context.CancelFunc // of the dial under way; nil: there is none
}

// h2Waiter is an exchange that waits for a slot.
type h2Waiter struct {
	got    chan h2Slot   // has room for one
	cut    chan struct{} // told when the exchange is given up; has room for one
	limit  time.Duration // bounds connecting
	header upstream.ProxyHeader
}

type h2Slot struct {
	c   *h2Conn
	err error
}

func (w *h2Waiter) interrupt() { signal(w.cut) }

// reserveH2 takes a slot on any connection, or returns nil.
func (s *site) reserveH2() *h2Conn {
	conns := s.conns.Load()
	if conns == nil {
		return nil
	}
	for _, c := range *conns {
		if c.reserve() {
			return c
		}
	}
	return nil
}

// takeH2 takes a slot for x. Where there is none it waits for one, for as long
// as connecting may take, and has a connection made if there may be one more.
func (s *site) takeH2(x *exchange) (*h2Conn, *failure) {
	if c := s.reserveH2(); c != nil {
		return c, nil
	}
	w := &h2Waiter{got: make(chan h2Slot, 1), cut: make(chan struct{}, 1), limit: x.hop.connect, header: x.proxyHeader()}
	s.mu.Lock()
	s.waiters = append(s.waiters, w)
	s.waiting.Add(1)
	s.serveWaitersLocked()
	s.mu.Unlock()

	x.life.attach(w)
	patience := time.NewTimer(2 * x.hop.connect) // TCP and TLS have that much each
	defer patience.Stop()
	var err error
	select {
	case slot := <-w.got:
		x.life.detach()
		if slot.err != nil {
			return nil, x.failureOf(slot.err)
		}
		return slot.c, nil
	case <-w.cut:
		err = errGivenUp
	case <-patience.C:
		err = &dialError{err: fmt.Errorf("wait for a stream on one of the connections to the backend: %w", context.DeadlineExceeded)}
	}
	x.life.detach()
	s.leave(w)
	return nil, x.failureOf(err)
}

// leave takes w out of those who wait. A dial for nobody is given up.
func (s *site) leave(w *h2Waiter) {
	s.mu.Lock()
	for i, other := range s.waiters {
		if other == w {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			s.waiting.Add(-1)
			break
		}
	}
	if len(s.waiters) == 0 && s.giveUp != nil {
		s.giveUp()
	}
	s.mu.Unlock()
	select {
	case slot := <-w.got: // came too late
		if slot.c != nil {
			slot.c.giveBack()
		}
	default:
	}
}

// giveBack gives back a slot that was not used.
func (c *h2Conn) giveBack() {
	c.mu.Lock()
	c.release(1)
	c.changed = false
	c.mu.Unlock()
	c.site.serveWaiters()
}

// mayDial reports whether a connection is to be made: somebody waits, and there
// is none on its way to say how many it has room for. s.mu is held.
func (s *site) mayDial() bool {
	if len(s.waiters) == 0 || s.giveUp != nil {
		return false
	}
	conns := s.conns.Load()
	if conns == nil {
		return true
	}
	for _, c := range *conns {
		if c.isNew() {
			return false
		}
	}
	return len(*conns) < maxH2Conns
}

// serveWaiters hands out slots that have come free.
func (s *site) serveWaiters() {
	if s.waiting.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serveWaitersLocked()
}

// serveWaitersLocked hands out slots, and where there are not enough it has a
// connection made. s.mu is held.
func (s *site) serveWaitersLocked() {
	for len(s.waiters) > 0 {
		c := s.reserveH2()
		if c == nil {
			break
		}
		s.hand(h2Slot{c: c})
	}
	if s.mayDial() {
		ctx, cancel := context.WithCancel(context.Background())
		s.giveUp = cancel
		go s.dialH2(ctx, s.waiters[0].limit, s.waiters[0].header)
	}
}

// hand gives the slot to who has waited longest. s.mu is held.
func (s *site) hand(slot h2Slot) {
	w := s.waiters[0]
	s.waiters = append(s.waiters[:0], s.waiters[1:]...)
	s.waiting.Add(-1)
	w.got <- slot
}

// dialH2 makes a connection for those who wait.
func (s *site) dialH2(ctx context.Context, limit time.Duration, header upstream.ProxyHeader) {
	u, err := s.connect(ctx, limit, header, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveUp()
	s.giveUp = nil
	switch {
	case err == errChoseHTTP2, err == nil && s.key.h2c:
		c := newH2Conn(s, u)
		if len(s.waiters) > 0 {
			c.slots = 1
			s.hand(h2Slot{c: c})
		}
		s.addH2(c)
		s.serveWaitersLocked()
		return
	case err == nil:
		s.http2.Store(false)
		u.close()
		err = errChoseHTTP1
	}
	for len(s.waiters) > 0 {
		s.hand(h2Slot{err: err})
	}
}

// adoptH2 takes a connection over that the target has chosen HTTP/2 for, and
// returns one with a slot for the caller; nil where there are too many already:
// before anybody knew what the target speaks, each made its own.
func (s *site) adoptH2(u *upConn) *h2Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.reserveH2(); c != nil {
		u.close()
		return c
	}
	if conns := s.conns.Load(); conns != nil && len(*conns) >= maxH2Conns {
		u.close()
		return nil
	}
	c := newH2Conn(s, u)
	c.slots = 1
	s.addH2(c)
	return c
}

// addH2 adds c to the site. s.mu is held.
func (s *site) addH2(c *h2Conn) {
	s.http2.Store(true)
	s.pool.h2.Add(1)
	var conns []*h2Conn
	if old := s.conns.Load(); old != nil {
		conns = append(conns, *old...)
	}
	conns = append(conns, c)
	s.conns.Store(&conns)
	if s.closed {
		c.mu.Lock()
		c.retire()
		c.mu.Unlock()
	}
	go c.read()
}

// dropH2 forgets c, which has ended.
func (s *site) dropH2(c *h2Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool.h2.Add(-1)
	var left []*h2Conn
	for _, other := range *s.conns.Load() {
		if other != c {
			left = append(left, other)
		}
	}
	s.conns.Store(&left)
	s.serveWaitersLocked()
}

// sweepH2 looks after the connections, and returns how many there are. s.mu is
// held.
func (s *site) sweepH2(now time.Time) (left int) {
	if conns := s.conns.Load(); conns != nil {
		for _, c := range *conns {
			if !c.sweep(now) {
				left++
			}
		}
	}
	return left
}

// closeH2 closes connections once nobody uses them, and makes no more of them.
// s.mu is held.
func (s *site) closeH2() {
	if s.giveUp != nil {
		s.giveUp()
	}
	if conns := s.conns.Load(); conns != nil {
		for _, c := range *conns {
			c.mu.Lock()
			c.retire()
			c.mu.Unlock()
		}
	}
}
