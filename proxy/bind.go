package proxy

import (
	"context"
	"fmt"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// boundPorts has one socket for each port.
type boundPorts struct {
	engine  *Engine
	sockets [2]map[int]*boundPort // by router.Proto
}

// boundPort is the socket of a port.
type boundPort struct {
	listener *l4.Listener // nil: UDP
	end      func()       // stops serving a UDP socket and closes it
}

func newBoundPorts(e *Engine) *boundPorts {
	return &boundPorts{engine: e, sockets: [2]map[int]*boundPort{{}, {}}}
}

func (b *boundPorts) open(ports []portKey) (failed map[portKey]error) {
	for _, port := range ports {
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
	ctx, cancel := context.WithCancel(e.ctx)
	served := make(chan struct{})
	e.accepting.Go(func() {
		defer close(served)
		mapping := func() *router.Mapping { return e.mapping(router.UDP, port.number) }
		if _, err := e.l4.ServeUDP(ctx, pc, mapping, l4.UDPOptions{}); err != nil {
			e.cfg.Logger.Error("a mapped UDP port stopped", "port", port.label(), "err", err)
		}
	})
	return &boundPort{end: func() { cancel(); <-served }}, nil
}

func (b *boundPorts) close(port portKey) {
	p := b.sockets[port.proto][port.number]
	delete(b.sockets[port.proto], port.number)
	if p.listener == nil {
		p.end() // at once: an edit may open the port again right away
		return
	}
	p.listener.Close()
}

func (b *boundPorts) stop() {
	for _, p := range b.sockets[router.TCP] {
		p.listener.Close()
	}
}

func (b *boundPorts) release() {}

// mappingTCP returns the mapping in force of a TCP port. A connection whose
// mapping has gone while it was on its way is reset, as the closed port would do
// it.
func (e *Engine) mappingTCP(port int) *router.Mapping { return e.mapping(router.TCP, port) }
