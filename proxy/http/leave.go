package http

import (
	"context"
	"time"
)

// lingerTick is how often connections are looked at whose clients are to go
// elsewhere. lingerFresh is how long one may be there without an exchange before
// its client is told so, who may be about to begin: told before its first
// request, it would count that as failed.
const (
	lingerTick  = 50 * time.Millisecond
	lingerFresh = 5 * time.Second
)

// Leave has clients go elsewhere, though the node serves on: another process has
// its sockets. Answers over HTTP/1.1 say that the connection closes, and
// connections over HTTP/2 and HTTP/3 get GOAWAY once they have had an exchange.
// None is closed at which a request could arrive: those that are idle over
// HTTP/1.1 end by their own time limit. Connections that were accepted before are
// still taken up, and served alike.
//
// UDP sockets are read no more when it returns: of each, it gives what the process
// that reads it from now on has to know. What cannot be left is logged, and its
// connections are lost.
func (s *Server) Leave() (elders []QUICElder) {
	s.registry.leaving.Store(true)
	for _, q := range s.registry.allSockets() {
		some, err := q.shared.leave()
		if err != nil {
			s.cfg.Logger.Error("cannot hand over an HTTP/3 socket; its connections end", "port", q.port, "err", err)
		}
		elders = append(elders, some...)
	}
	return elders
}

// Linger waits until no client connection is left after Leave, or ctx ends.
func (s *Server) Linger(ctx context.Context) {
	tick := time.NewTicker(lingerTick)
	defer tick.Stop()
	began := time.Now()
	for s.Connections() > 0 {
		s.registry.each(func(c *conn) {
			if c.gone(began) {
				c.hangUp()
			}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Connections returns how many client connections there are, and handshakes of
// QUIC.
func (s *Server) Connections() int {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	n := len(s.registry.conns)
	for q := range s.registry.sockets {
		n += int(q.unproven.Load())
	}
	return n
}

// gone has the client of c be told to go when that cannot cost it a request, and
// reports whether the connection is to be hung up because it was told and does
// not. The server has been leaving since began.
func (c *conn) gone(began time.Time) bool {
	active, had, since := c.load()
	if !had && time.Since(since) < lingerFresh {
		return false
	}
	if h2 := c.h2.Load(); h2 != nil {
		return h2.gone()
	}
	if h3 := c.h3.Load(); h3 != nil {
		return h3.gone(active, since)
	}
	return false
}

// gone is conn.gone over HTTP/2.
func (c *h2DownConn) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.watch.hello {
		return false
	}
	if c.drain == h2Open {
		c.beginDrain()
	}
	return c.drain == h2Closed && c.active == 0 && time.Since(c.drained) >= 4*goAwayTime
}

// gone is conn.gone over HTTP/3. A request counts from its stream's beginning: the
// rest of its head may be on the way again.
func (c *h3Conn) gone(active int, since time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.warned.IsZero():
		c.warn()
	case c.rejected < 0 && time.Since(c.warned) >= goAwayTime:
		c.goAwayLocked()
	}
	return c.rejected >= 0 && active == 0 && c.serving == 0 && time.Since(since) >= goAwayTime && time.Since(c.warned) >= 2*goAwayTime
}
