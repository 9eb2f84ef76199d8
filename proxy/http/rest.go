package http

import (
	"context"
	"time"
)

// Rest tells clients to go, as Shutdown does, and takes up no connection, but cuts
// nothing, and keeps the QUIC sockets; /health-proxy says 503 meanwhile. Once ctx
// ends the server is as before, and Rest returns. It must not be called twice at a
// time.
func (s *Server) Rest(ctx context.Context) {
	if !s.registry.rest(true) {
		return
	}
	defer s.registry.rest(false)
	s.registry.each(func(c *conn) {
		if h3 := c.h3.Load(); h3 != nil {
			h3.goAway()
		}
	})
	tick := time.NewTicker(reapInterval)
	defer tick.Stop()
	for began := time.Now(); ctx.Err() == nil; {
		s.registry.each(func(c *conn) {
			if c.over(began) {
				c.hangUp()
			}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if time.Since(began) > restless {
			tick.Reset(restInterval) // whoever is left is at work
		}
	}
}

// After restless, connections that rest are looked at once in restInterval.
const (
	restless     = 10 * time.Second
	restInterval = time.Second
)

// BeginRest has nothing taken up from now on, as Rest does, before that is called.
func (s *Server) BeginRest() { s.registry.rest(true) }

// rest has nothing taken up, or everything again, and reports whether it could: not
// once the server is shutting down.
func (r *registry) rest(on bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return false
	}
	r.draining.Store(on)
	return true
}
