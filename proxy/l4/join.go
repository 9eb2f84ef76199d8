package l4

import (
	"errors"
	"net"
	"time"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

// Joint is a client's connection and a backend's that somebody else has opened,
// has spoken on, and wants to be relayed from here on: both after a change of
// protocols.
type Joint struct {
	// Client is a *net.TCPConn, one in an upstream.ReplayConn whose bytes were
	// taken off it, or what Config.HTTP was given; Backend is a bare connection.
	// No other goroutine may be using them.
	Client  net.Conn
	Backend *net.TCPConn
	// ToBackend and ToClient were read already, and are sent first. Who read the
	// former has counted it; the latter counts. They must not be modified from
	// here on.
	ToBackend, ToClient []byte
	// IdleTimeout is how long no byte may move; 0 means for ever.
	IdleTimeout time.Duration
	// Ended is told once, by the loop, what became of it, when both connections
	// are closed. It must not block. Until it returns the Flow goes on to tell
	// what the report says.
	Ended func(loop.Report)
}

// errEnded says that the node ended the connection just then.
var errEnded = errors.New("the node has ended the connection")

// Join has an event loop relay a joint. Where it reports false, the connections
// are as they were, for the caller to go on with: the client's is of another kind,
// or the server stops. Else they are the loop's, and Shutdown waits for their end,
// which the caller brings about by Flow.Cut; on error both are reset, and Ended
// hears nothing.
//
// A joint is no flow of the server's own: it has no record and is in no list. One
// whose client was handed to Config.HTTP stays part of that flow, which counts
// what passes, bounds how fast it does, and ends the joint when it is stopped.
func (s *Server) Join(j Joint) (relayed loop.Flow, taken bool, err error) {
	handed, isHanded := j.Client.(*handedConn)
	var client *net.TCPConn
	if isHanded {
		client = handed.tcp
	} else {
		bare, _ := unwrap(j.Client, nil)
		if client, taken = bare.(*net.TCPConn); !taken {
			return loop.Flow{}, false, nil
		}
	}
	if !s.expect() {
		return loop.Flow{}, false, nil
	}
	group, err := s.loops.start()
	if err != nil {
		s.running.Done()
		return loop.Flow{}, false, nil
	}
	t := loop.Terms{
		IdleTimeout: j.IdleTimeout, StallTimeout: stallTimeout,
		First: j.ToBackend, Header: len(j.ToBackend), Answer: j.ToClient,
	}
	if isHanded {
		relayed, err = handed.join(group, j, t)
	} else {
		t.Owner = joined{server: s, ended: j.Ended}
		relayed, err = group.Relay(client, j.Backend, t)
	}
	if err != nil {
		s.running.Done()
	}
	return relayed, true, err
}

// expect has Shutdown wait for one more, unless it has begun.
func (s *Server) expect() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.draining {
		return false
	}
	s.running.Add(1)
	return true
}

// join is Join for a connection that was handed to Config.HTTP.
func (c *handedConn) join(group *loop.Group, j Joint, t loop.Terms) (loop.Flow, error) {
	f := c.flow
	t.Owner, t.Pace = joined{server: f.server, flow: f, ended: j.Ended}, f
	p := f.lockPort()
	defer p.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		reset(j.Backend)
		return loop.Flow{}, errEnded // the client's is reset
	}
	f.conns[0] = nil // the loop's, also on error
	relayed, err := group.Relay(c.tcp, j.Backend, t)
	f.relayed = relayed
	return relayed, err
}

// joined is a joint as its loop sees it.
type joined struct {
	server *Server
	flow   *flow // nil: it is part of none
	ended  func(loop.Report)
}

// Dialed implements loop.Owner.
func (joined) Dialed(time.Duration, error) loop.Next { return loop.Next{} }

// Ended implements loop.Owner.
func (j joined) Ended(r loop.Report) {
	if f := j.flow; f != nil {
		p := f.lockPort()
		f.mu.Lock()
		f.up.Add(r.Up)
		f.down.Add(r.Down)
		f.relayed = loop.Flow{}
		f.mu.Unlock()
		p.mu.Unlock()
	}
	j.ended(r)
	j.server.running.Done()
}
