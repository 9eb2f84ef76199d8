package http

import (
	"errors"
	"net"
	"time"
)

// Upgraded is a client's connection and a backend's, both of bare TCP, that have
// changed protocols: what is left to do is to copy bytes.
type Upgraded struct {
	// Client is what ServeConn was given; Backend is bare.
	Client  net.Conn
	Backend *net.TCPConn
	// ToBackend and ToClient were read already, and go first. The former was
	// counted when it was read, by Client too if that counts; the latter was not.
	ToBackend, ToClient []byte
	// IdleTimeout is how long no byte may move; 0: for ever.
	IdleTimeout time.Duration
	// Ended is to be called once, when both connections are closed, from any
	// goroutine. It does not block.
	Ended func(RelayEnd)
}

// RelayEnd is what became of an upgraded pair that was handed over.
type RelayEnd struct {
	Up, Down int64 // bytes copied, ToBackend not among them
	Idle     bool  // no byte moved for IdleTimeout
	Stalled  bool  // one side took none of the bytes that waited for it, for too long
	Stopped  bool  // who copied had to stop
}

// Relayed is an upgraded pair that was handed over and has not ended. Its methods
// may be called from any goroutine, and do nothing once it has.
type Relayed interface {
	// Moved returns the bytes copied so far, as RelayEnd has them; 0 once Ended
	// has returned.
	Moved() (up, down int64)
	// Cut resets both connections. It does not wait for that: Ended tells.
	Cut()
}

var (
	errStalled      = errors.New("one side of an upgraded connection took none of the bytes that waited for it")
	errRelayStopped = errors.New("what relays upgraded connections has stopped")
)

// handOver has x's connections relayed by Config.Relay, where that takes them and
// no TLS is in the way, and returns how that ended. Else taken is false, and the
// connections are as they were.
//
// The exchange's goroutine waits meanwhile, and does no more than that: it has
// the exchange listed, cut and logged like any other.
func (x *exchange) handOver(client *h1Upgraded, backend *changed) (failed *failure, taken bool) {
	cfg, socket := &x.conn.server.cfg, client.c.conn.socket
	if cfg.Relay == nil || client.c.secured != nil || socket.raw == nil || backend.u.tls != nil {
		return nil, false
	}
	ended := make(chan RelayEnd, 1)
	first := append(client.early, socket.rest...)
	relayed, taken, err := cfg.Relay(Upgraded{
		Client: socket.Conn, Backend: backend.u.raw.tcp, ToBackend: first, ToClient: backend.early,
		IdleTimeout: x.hop.idle, Ended: func(e RelayEnd) { ended <- e },
	})
	if !taken {
		return nil, false
	}
	if err != nil {
		if end, why := x.cutBy(); end != "" {
			return &failure{class: end, err: why}, true
		}
		return &failure{class: endExhausted, err: err}, true
	}
	client.early, socket.rest, backend.early = nil, nil, nil
	x.bytes.up.Add(int64(len(first)))
	w := &client.c.watch
	w.mu.Lock()
	x.relayed = relayed
	w.mu.Unlock()
	x.life.attach(interrupted{relayed})
	e := <-ended
	x.life.detach()
	w.mu.Lock()
	x.relayed = nil
	x.bytes.up.Add(e.Up)
	x.bytes.down.Add(e.Down)
	w.mu.Unlock()
	return x.relayFailure(e), true
}

// interrupted is an interrupter of what was handed over.
type interrupted struct{ Relayed }

func (i interrupted) interrupt() { i.Cut() }

// relayFailure returns what e makes of x: as with tunnel, how the ends part is
// theirs to know.
func (x *exchange) relayFailure(e RelayEnd) *failure {
	switch {
	case e.Idle:
		return &failure{class: endIdle, err: errIdle}
	case e.Stalled:
		return &failure{class: endStalled, err: errStalled}
	case e.Stopped:
		return &failure{class: endCut, err: errRelayStopped}
	}
	if end, why := x.cutBy(); end != "" {
		return &failure{class: end, err: why}
	}
	return nil
}

// moved returns the bytes of bodies, or of what the upgraded connection carried, so
// far. It needs the lock by which x is listed.
func (x *exchange) moved() (up, down int64) {
	up, down = x.bytes.up.Load(), x.bytes.down.Load()
	if x.relayed != nil {
		more, back := x.relayed.Moved()
		up, down = up+more, down+back
	}
	return up, down
}
