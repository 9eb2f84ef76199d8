package proxy

import (
	"fmt"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// boundPorts has one socket for each port.
type boundPorts struct {
	engine  *Engine
	sockets [2]map[int]*boundPort // by router.Proto
	// left are the datagrams that a UDP socket had when it was given up, for the
	// one that takes its place. Guarded by mappedPorts.mu.
	left []l4.Datagram
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
	ln, err := listen.TCP(e.ctx, fmt.Sprintf(":%d", port.number))
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
	pc, err := listen.UDP(e.ctx, fmt.Sprintf(":%d", port.number))
	if err != nil {
		return nil, err
	}
	p, first := &boundPort{}, b.left
	e.accepting.Go(func() {
		mapping := func() *router.Mapping { return e.mappingUDP(port.number) }
		left, err := e.l4.ServeUDP(e.ctx, pc, mapping, l4.UDPOptions{First: first})
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
	if p.closing || m.stopped {
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

func (b *boundPorts) stop() {
	for _, p := range b.sockets[router.TCP] {
		p.listener.Close()
	}
}

func (b *boundPorts) release() {}

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
