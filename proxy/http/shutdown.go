package http

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errCut is why an exchange ended that the node itself cut.
var errCut = errors.New("the server is shutting down")

// errEnded is why an exchange ended whose connection somebody else ended.
var errEnded = errors.New("the node has ended the connection")

const (
	reapInterval = 20 * time.Millisecond
	// goAwayTime is how long a connection without exchange stays open once the
	// client has been told to go: a request that crossed the GOAWAY is then
	// rejected rather than lost, and a response's last bytes still get out.
	goAwayTime = time.Second
)

// Shutdown stops taking up connections, tells clients to go (Connection: close,
// GOAWAY) and closes connections without an exchange. It waits for exchanges,
// upgraded ones included, until ctx ends, then cuts the rest and returns how
// many there were. When it returns, ServeConn has let go of every connection,
// ServeQUIC of every socket, and no connection to a backend is left. UDP
// sockets must stay open until then.
func (s *Server) Shutdown(ctx context.Context) (cut int) {
	s.shutdown.Lock()
	defer s.shutdown.Unlock()

	var helpers sync.WaitGroup
	sockets := s.registry.drain()
	for _, q := range sockets {
		helpers.Go(q.drain)
	}
	cut = s.waitForExchanges(ctx)
	helpers.Wait()
	s.forward.close()
	return cut
}

// waitForExchanges returns when no connection is left, having cut those that
// outlast ctx.
func (s *Server) waitForExchanges(ctx context.Context) (cut int) {
	tick := time.NewTicker(reapInterval)
	defer tick.Stop()
	began := time.Now()
	for ctx.Err() == nil {
		s.registry.each(func(c *conn) {
			if c.over(began) {
				c.hangUp()
			}
		})
		select {
		case <-s.registry.empty:
			return 0
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	s.registry.each(func(c *conn) {
		active, _, _ := c.load()
		cut += active
		c.sever()
	})
	s.cut()
	<-s.registry.empty
	return cut
}
