package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen/steer"
	"github.com/remotegpu/sluice/router"
)

// udpRest is how long a steered UDP port keeps its own socket after its last
// session.
var udpRest = 10 * time.Second

const (
	// maxUDPSockets bounds the UDP ports that have a socket of their own at a
	// time, unless an eighth of the files that the process may open is less:
	// sessions may take half.
	maxUDPSockets = 8192
	// maxFirst and maxFirstBytes bound what waits for the socket of one port.
	maxFirst      = 256
	maxFirstBytes = 256 << 10
	// maxRound bounds the datagrams that are taken in before the ports among
	// them are served.
	maxRound = 1024
	// warnInterval is how often at most a want of sockets is logged.
	warnInterval = time.Second
)

// steeredUDP gives steered UDP ports sockets of their own while there are
// sessions on them. The first datagrams of a port come to the common socket; if
// their sender may be served, the port is bound, and from then on client and
// port speak as if there were no steering. When the port has rested, its
// datagrams come to the common socket again.
type steeredUDP struct {
	engine  *Engine
	steerer *steer.Steerer
	max     int           // sockets
	rested  chan struct{} // closed when the common socket is not read from any more

	mu      sync.Mutex // guards the following fields
	ports   map[int]*ownSocket
	warned  time.Time
	stopped bool
}

// ownSocket is the socket of a steered port. The fields are guarded by
// steeredUDP.mu, or fixed.
type ownSocket struct {
	port   int
	socket *net.UDPConn
	// closing says that only its sessions still need the socket: it closes with
	// the last of them.
	closing bool
	// first are datagrams from the common socket, to be served before those of
	// the own one. More are taken while collecting is set: before the serving
	// begins, and when the port has rested and the socket is about to close.
	first      []l4.Datagram
	bytes      int
	collecting bool
	// sessions are those of a process before this one, for the goroutine that
	// serves the port.
	sessions []l4.UDPSession
}

func newSteeredUDP(e *Engine, s *steer.Steerer) *steeredUDP {
	u := &steeredUDP{engine: e, steerer: s, max: maxUDPSockets, ports: map[int]*ownSocket{}, rested: make(chan struct{})}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		u.max = int(min(files.Cur/8, maxUDPSockets))
	}
	return u
}

// run takes in the datagrams of the common socket until it is closed.
func (u *steeredUDP) run() {
	defer close(u.rested)
	if !u.engine.mayRead() {
		return
	}
	in, err := newIntake(u.steerer.UDP())
	for err == nil {
		if err = in.wait(); err == nil {
			u.round(in)
		}
	}
}

// round takes in what there is at the common socket, in has the first of it,
// and then begins to serve the ports that it found: by then they have all that
// came before their own sockets were there.
func (u *steeredUDP) round(in *intake) {
	var begun []*ownSocket
	for range maxRound {
		if s := u.take(in.to.Port(), in.datagram()); s != nil {
			begun = append(begun, s)
		}
		if !in.more() {
			break
		}
	}
	for _, s := range begun {
		u.begun(s)
	}
}

// begun begins to serve the port of s.
func (u *steeredUDP) begun(s *ownSocket) {
	u.engine.udpServing.Add(1)
	u.engine.accepting.Go(func() {
		defer u.engine.udpServing.Done()
		u.serve(s)
	})
}

// take puts a datagram to one of the ports among the first of its socket. It
// returns the socket if it has opened it, for the caller to serve.
func (u *steeredUDP) take(port uint16, d l4.Datagram) (begun *ownSocket) {
	e, number := u.engine, int(port)
	m := e.mappingUDP(number)
	if m == nil {
		e.metrics.firstUnmapped.Inc()
		return nil
	}
	if !u.mayComeFrom(d.From.Addr(), m) {
		e.metrics.firstDenied.Inc()
		e.l4.CountRefused(m)
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.ports[number]
	if s == nil {
		s = &ownSocket{port: number}
		if !u.bind(s) {
			return nil
		}
		u.ports[number] = s
		e.metrics.udpSockets.Inc()
		begun = s
	}
	u.keep(s, d)
	return begun
}

// mayComeFrom reports whether the lists of m let peer in, as far as the address
// tells: a trusted proxy speaks for others, whom it names later.
func (u *steeredUDP) mayComeFrom(peer netip.Addr, m *router.Mapping) bool {
	if m.ProxyProtocol.Accept {
		for _, p := range u.engine.cfg.TrustedProxies {
			if p.Contains(peer) {
				return true
			}
		}
	}
	return router.Allowed(peer, m.Allow, m.Deny)
}

// keep adds d to the first datagrams of s. u.mu is held.
func (u *steeredUDP) keep(s *ownSocket, d l4.Datagram) {
	if !s.collecting || len(s.first) == maxFirst || s.bytes+len(d.Payload) > maxFirstBytes {
		u.engine.metrics.firstLate.Inc()
		return
	}
	d.Payload = bytes.Clone(d.Payload)
	s.first = append(s.first, d)
	s.bytes += len(d.Payload)
}

// bind opens the socket of s, or counts what it was for as lost: s.first, or the
// datagram to come. Where the trouble is the port's own, the port is closed and
// tried again as others are that cannot be opened. u.mu is held.
func (u *steeredUDP) bind(s *ownSocket) bool {
	err := error(nil)
	switch {
	case u.stopped:
		u.engine.metrics.firstUnmapped.Inc()
		return false
	case u.ports[s.port] == nil && len(u.ports) >= u.max:
		err = fmt.Errorf("%d ports have one already; raise LimitNOFILE or ulimit -n if that is less than %d", u.max, maxUDPSockets)
	default:
		s.socket, err = u.steerer.Bind(u.engine.ctx, s.port)
	}
	if err == nil {
		s.collecting = true
		return true
	}
	u.engine.metrics.firstSockets.Add(float64(max(1, len(s.first))))
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		if u.steerer.Steered(steer.UDP, s.port) { // else it is closed already
			u.steerer.Remove(steer.UDP, s.port)
			u.engine.accepting.Go(func() { u.giveUp(s.port, err) })
		}
		return false
	}
	if now := time.Now(); now.Sub(u.warned) >= warnInterval {
		u.warned = now
		u.engine.cfg.Logger.Warn("cannot open the socket of a mapped port for the datagram that came to it",
			"port", portKey{router.UDP, s.port}.label(), "err", err)
	}
	return false
}

// giveUp has a port that bind has closed be one that could not be opened, unless
// somebody has opened or closed it since.
func (u *steeredUDP) giveUp(port int, err error) {
	u.engine.mapped.failed(portKey{router.UDP, port}, err, func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.ports[port] == nil && !u.steerer.Steered(steer.UDP, port)
	})
}

// serve serves the port of s until it has rested, or is closed and its sessions
// are over.
func (u *steeredUDP) serve(s *ownSocket) {
	mapping := func() *router.Mapping { return u.engine.mappingUDP(s.port) }
	for {
		socket, first := u.begin(s)
		sessions := s.sessions
		s.sessions = nil
		left, err := u.engine.l4.ServeUDP(u.engine.ctx, socket, mapping, l4.UDPOptions{
			First: first, Rest: udpRest, Resting: func() { u.rest(s) },
			Sessions: sessions, Leave: u.engine.leaving, Left: u.engine.takeLeft,
		})
		if err != nil {
			u.engine.cfg.Logger.Error("the socket of a mapped UDP port failed; the next datagram opens another",
				"port", portKey{router.UDP, s.port}.label(), "err", err)
		}
		if !u.again(s, left) {
			return
		}
	}
}

// begin ends the collecting for s and returns what to serve.
func (u *steeredUDP) begin(s *ownSocket) (*net.UDPConn, []l4.Datagram) {
	u.mu.Lock()
	defer u.mu.Unlock()
	first := s.first
	s.first, s.bytes, s.collecting = nil, 0, false
	return s.socket, first
}

// rest has new datagrams of a port that has rested come to the common socket,
// unless it is closed.
func (u *steeredUDP) rest(s *ownSocket) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !s.closing && !u.stopped {
		s.collecting = true
		u.steerer.Unbind(s.port)
	}
}

// again looks after a port whose socket is closed, of which left is unserved.
// It reports whether there are datagrams to serve, with a new socket.
func (u *steeredUDP) again(s *ownSocket, left []l4.Datagram) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !s.closing && !u.stopped {
		u.steerer.Unbind(s.port) // unless rest did; the socket may have failed, or resume come late
		s.first = slices.Concat(left, s.first)
		if len(s.first) > 0 && u.bind(s) {
			return true
		}
	} else {
		u.steerer.Release(s.port)
	}
	delete(u.ports, s.port)
	u.engine.metrics.udpSockets.Dec()
	return false
}

// adopt takes over ports that had a socket of their own in a process before this
// one, as far as they are wanted here.
func (u *steeredUDP) adopt(from []l4.UDPPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range from {
		s := &ownSocket{port: p.Number, first: p.First, sessions: p.Sessions, collecting: true}
		err := errNoSocket
		switch {
		case p.Socket != nil:
			s.socket, err = u.steerer.Adopt(p.Number, p.Socket)
			p.Socket = nil
		case len(p.Sessions) == 0:
			if u.engine.mappingUDP(p.Number) == nil || !u.bind(s) {
				continue
			}
			err = nil
		}
		if err != nil {
			u.engine.cfg.Logger.Error("cannot go on with the sessions of a mapped UDP port", "port", portKey{router.UDP, p.Number}.label(), "err", err)
			p.Close()
			continue
		}
		u.ports[p.Number] = s
		s.closing = u.engine.mappingUDP(p.Number) == nil
		u.engine.metrics.udpSockets.Inc()
		u.begun(s)
	}
}

var errNoSocket = errors.New("it came without its socket")

// pause has the common socket not be read from any more. What had come to it is
// served when it returns.
func (u *steeredUDP) pause() {
	u.steerer.UDP().SetReadDeadline(time.Unix(1, 0))
	<-u.rested
}

// close closes a port to all but its sessions.
func (u *steeredUDP) close(port int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.steerer.Remove(steer.UDP, port)
	if s := u.ports[port]; s != nil {
		s.closing = true
	}
}

// resume opens a port that was closed and still has its socket, and reports
// whether there was one.
func (u *steeredUDP) resume(port int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.ports[port]
	if s == nil {
		return false
	}
	s.closing = false
	return true
}

// stop closes all ports to those who have no session.
func (u *steeredUDP) stop(all []int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stopped = true
	u.steerer.Remove(steer.UDP, all...)
}
