package proxy

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/router"
)

// boundPorts has one socket for each port.
type boundPorts struct {
	engine  *Engine
	sockets [2]map[int]*boundPort // by router.Proto
	// left are the datagrams that a UDP socket had when it was given up, for the
	// one that takes its place. Guarded by mappedPorts.mu.
	left []l4.Datagram
	// taken are the sessions of a process before this one, by port. Guarded by
	// mappedPorts.mu.
	taken map[int]l4.UDPPort
}

// boundPort is the socket of a port.
type boundPort struct {
	listener *l4.Listener // nil: UDP
	// closing says that only its sessions still need a UDP socket: it closes
	// with the last of them. Guarded by mappedPorts.mu.
	closing bool
}

func newBoundPorts(e *Engine) *boundPorts {
	return &boundPorts{engine: e, sockets: [2]map[int]*boundPort{{}, {}}}
}

func (b *boundPorts) open(ports []portKey) (failed map[portKey]error) {
	for _, port := range ports {
		if p := b.sockets[port.proto][port.number]; p != nil {
			p.closing = false
			continue
		}
		open := b.openTCP
		if port.proto == router.UDP {
			open = b.openUDP
		}
		socket, err := open(port)
		if err != nil {
			if failed == nil {
				failed = map[portKey]error{}
			}
			failed[port] = err
			continue
		}
		b.sockets[port.proto][port.number] = socket
	}
	return failed
}

func (b *boundPorts) openTCP(port portKey) (*boundPort, error) {
	e := b.engine
	ln, err := e.cfg.Inherited.TCP(e.ctx, port.addr())
	if err != nil {
		return nil, err
	}
	l, err := e.l4.ListenTCP(ln, e.mappingTCP)
	if err != nil {
		return nil, err
	}
	return &boundPort{listener: l}, nil
}

func (b *boundPorts) openUDP(port portKey) (*boundPort, error) {
	e := b.engine
	pc, err := e.cfg.Inherited.UDP(e.ctx, port.addr())
	if err != nil {
		return nil, err
	}
	p, first := &boundPort{}, b.left
	e.udpServing.Add(1)
	e.accepting.Go(func() {
		defer e.udpServing.Done()
		if !e.mayRead() {
			pc.Close()
			return
		}
		taken := b.take(port.number)
		mapping := func() *router.Mapping { return e.mappingUDP(port.number) }
		left, err := e.l4.ServeUDP(e.ctx, pc, mapping, l4.UDPOptions{
			First: append(taken.First, first...), Sessions: taken.Sessions, Leave: e.leaving, Left: e.takeLeft, Shared: true,
		})
		b.ended(port, p, left, err)
	})
	return p, nil
}

func (b *boundPorts) close(port portKey) {
	p := b.sockets[port.proto][port.number]
	if p.listener == nil {
		p.closing = true
		return
	}
	delete(b.sockets[port.proto], port.number)
	p.listener.Close()
}

// ended takes a UDP socket that is no longer served out of the books. Where the
// port is wanted, since its mapping was put again in that very moment or the
// socket failed, it is opened anew, and left, what had come to it, served there.
func (b *boundPorts) ended(port portKey, p *boundPort, left []l4.Datagram, err error) {
	m := &b.engine.mapped
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(b.sockets[port.proto], port.number)
	if p.closing || m.left {
		return
	}
	m.isOpen[port.proto].remove(port.number)
	if err != nil {
		m.isBusy(port, err)
		return
	}
	b.left = left
	m.open([]portKey{port})
	b.left = nil
}

func (b *boundPorts) stop(forAll bool) {
	for _, p := range b.sockets[router.TCP] {
		if forAll {
			p.listener.Close()
		} else {
			p.listener.Leave()
		}
	}
}

// each has one descriptor at a time: there may be too many sockets to have all of
// them twice.
func (b *boundPorts) each(visit func(Socket, *os.File) error) error {
	m := &b.engine.mapped
	m.mu.Lock()
	listeners := make(map[int]*l4.Listener, len(b.sockets[router.TCP]))
	for number, p := range b.sockets[router.TCP] {
		listeners[number] = p.listener
	}
	m.mu.Unlock()
	for number, l := range listeners {
		f, err := l.File()
		if errors.Is(err, net.ErrClosed) {
			continue // since
		}
		if err != nil {
			return err
		}
		if err := visit(Socket{Network: "tcp", Address: portKey{router.TCP, number}.addr()}, f); err != nil {
			return err
		}
	}
	return b.engine.l4.EachUDPSocket(func(number int, f *os.File) error {
		return visit(Socket{Network: "udp", Address: portKey{router.UDP, number}.addr()}, f)
	})
}

func (b *boundPorts) release() {}

func (b *boundPorts) accept() error { return nil }

func (b *boundPorts) adopt(from []l4.UDPPort) {
	b.taken = make(map[int]l4.UDPPort, len(from))
	for _, p := range from {
		if b.sockets[router.UDP][p.Number] == nil {
			p.Close()
			continue
		}
		p.CloseSocket() // there is another descriptor, which was given before
		b.taken[p.Number] = p
	}
}

// take returns what another process has left of a port.
func (b *boundPorts) take(number int) l4.UDPPort {
	m := &b.engine.mapped
	m.mu.Lock()
	defer m.mu.Unlock()
	p := b.taken[number]
	delete(b.taken, number)
	return p
}

// mappingTCP returns the mapping in force of a TCP port. A connection whose
// mapping has gone while it was on its way, or which comes as the engine begins to
// rest, is reset, as the closed port would do it.
func (e *Engine) mappingTCP(port int) *router.Mapping {
	if e.resting.Load() {
		return nil
	}
	return e.mapping(router.TCP, port)
}

// mappingUDP returns the mapping in force of a UDP port, nil if it has expired or
// the engine rests.
func (e *Engine) mappingUDP(port int) *router.Mapping {
	m := e.mapping(router.UDP, port)
	if m == nil || e.resting.Load() || hasExpired(m, time.Now()) {
		return nil
	}
	return m
}
