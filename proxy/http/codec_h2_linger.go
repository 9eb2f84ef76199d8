package http

import (
	"time"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// What a client may still send of a body whose request has been answered, before
// it is told to stop.
const (
	h2LingerBytes = 1 << 20
	h2LingerTime  = 5 * time.Second
)

// linger keeps a stream open whose answer is complete, and whose body is not: what
// comes of that is let go of, and the client gets leave to send on. It may be told
// at once to stop, by RST_STREAM (RFC 9113 section 8.1), but then some clients lose
// the answer, curl before 8.1 among them, which comes upon the reset while it
// sends. The stream counts as one of the client's until it is over, but no more as
// an exchange. c.mu is held.
func (s *h2DownStream) linger() {
	c := s.c
	s.tainted, s.concluded, s.lingering, s.patience = true, true, true, h2LingerBytes
	s.blocked, s.firstBy = time.Time{}, time.Now().Add(h2LingerTime)
	c.lingering++
	if increment := s.recv.ReleaseAll(); increment > 0 {
		c.out.set(h2.AppendWindowUpdate(c.out.buffer(), s.id, increment))
	}
	c.watch.arm(s.firstBy)
}

// lingered ends a stream that lingers, as its client has said all. c.mu is held.
func (s *h2DownStream) lingered() {
	s.lose(errBodyOver)
	s.c.remember(s.id, endBoth)
}

// tire has the client of a stream that lingers be told to stop. c.mu is held.
func (s *h2DownStream) tire() { s.c.reset(s.id, h2.NoError, errBodyOver) }

// passOver takes DATA of size bytes for a stream that lingers. c.mu is held.
func (s *h2DownStream) passOver(size int) {
	c := s.c
	c.release(size)
	if s.body.ended {
		s.lingered()
		return
	}
	if s.patience -= size; s.patience <= 0 {
		s.tire()
		return
	}
	if increment := s.recv.Release(size); increment > 0 {
		c.out.set(h2.AppendWindowUpdate(c.out.buffer(), s.id, increment))
	}
}
