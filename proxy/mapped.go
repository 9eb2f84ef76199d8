package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// A port that another program holds is tried again after this long, doubling
// up to the maximum.
const (
	reopenBackoffMin = 500 * time.Millisecond
	reopenBackoffMax = 30 * time.Second
)

var errExpired = errors.New("expired: expires_at has passed; put a later time or delete the key")

// mappedPorts keeps one socket open for each mapping.
type mappedPorts struct {
	engine *Engine

	mu      sync.Mutex // guards the following fields
	ports   [2]map[int]*mappedPort
	stopped bool
}

// mappedPort is a port that a mapping wants, open or not.
type mappedPort struct {
	mapping atomic.Pointer[router.Mapping] // in force for new flows
	socket  interface{ Close() error }     // nil: not open
	end     func()                         // stops serving a UDP socket and closes it
	backoff time.Duration
	retry   *time.Timer // set while not open
	expiry  *time.Timer // set while the mapping has an expires_at to come
}

func (p *mappedPorts) init(e *Engine) {
	p.engine = e
	for proto := range p.ports {
		p.ports[proto] = map[int]*mappedPort{}
	}
}

// open opens the ports that are in t and not in was, and gives those that are
// in both their new mapping.
func (p *mappedPorts) open(t, was *router.Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	t.DiffMappings(was, func(_, is *router.Mapping) {
		if is != nil {
			p.set(is)
		}
	})
}

// set makes m the mapping of its port and sees that the port is open. p.mu is
// held.
func (p *mappedPorts) set(m *router.Mapping) {
	port := p.ports[m.Proto][m.Port]
	if port == nil {
		port = &mappedPort{backoff: reopenBackoffMin}
		p.ports[m.Proto][m.Port] = port
	}
	was := port.mapping.Swap(m)
	if !p.scheduleExpiry(port, m) {
		p.closeSocket(port)
		p.engine.cfg.PortState(m.Key(), errExpired)
		if was != nil {
			p.engine.l4.Withdraw(was, nil)
		}
		return
	}
	if port.socket == nil {
		p.openSocket(port, m)
	} else if was != nil {
		p.engine.l4.Withdraw(was, m)
	}
}

// scheduleExpiry arranges for m to end at its expires_at, and reports whether
// that lies ahead. p.mu is held.
func (p *mappedPorts) scheduleExpiry(port *mappedPort, m *router.Mapping) (ahead bool) {
	if port.expiry != nil {
		port.expiry.Stop()
		port.expiry = nil
	}
	if m.ExpiresAt.IsZero() {
		return true
	}
	left := time.Until(m.ExpiresAt)
	if left > 0 {
		port.expiry = time.AfterFunc(left, func() { p.expire(port, m) })
	}
	return left > 0
}

func (p *mappedPorts) expire(port *mappedPort, m *router.Mapping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if port.mapping.Load() != m || p.ports[m.Proto][m.Port] != port || p.stopped {
		return // edited or deleted in the meantime
	}
	p.closeSocket(port)
	p.engine.l4.Withdraw(m, nil)
	p.engine.cfg.PortState(m.Key(), errExpired)
}

// openSocket tries to open the port and, where that fails, again later. p.mu
// is held.
func (p *mappedPorts) openSocket(port *mappedPort, m *router.Mapping) {
	if port.retry != nil {
		port.retry.Stop()
	}
	var err error
	if m.Proto == router.UDP {
		err = p.openUDP(port, m)
	} else {
		err = p.openTCP(port, m)
	}
	if err == nil {
		if port.retry != nil {
			p.engine.metrics.busyPorts.Dec()
		}
		port.retry, port.backoff = nil, reopenBackoffMin
		p.engine.cfg.PortState(m.Key(), nil)
		return
	}
	err = listen.WithOwner(p.engine.ctx, err)
	if port.retry == nil {
		p.engine.metrics.busyPorts.Inc()
		p.engine.cfg.Logger.Warn("cannot open a mapped port; trying again", "port", m.Label(), "err", err)
	}
	p.engine.cfg.PortState(m.Key(), fmt.Errorf("port_busy: %w", err))
	port.retry = time.AfterFunc(port.backoff, func() { p.reopen(port) })
	port.backoff = min(port.backoff*2, reopenBackoffMax)
}

func (p *mappedPorts) reopen(port *mappedPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := port.mapping.Load()
	if port.socket == nil && port.retry != nil && p.ports[m.Proto][m.Port] == port && !p.stopped {
		p.openSocket(port, m)
	}
}

func (p *mappedPorts) openTCP(port *mappedPort, m *router.Mapping) error {
	ln, err := listen.TCP(p.engine.ctx, fmt.Sprintf(":%d", m.Port))
	if err != nil {
		return err
	}
	port.socket = ln
	e := p.engine
	e.accepting.Go(func() {
		acceptLoop(ln, e.cfg.Logger, e.metrics.acceptErrors.Inc, func(c *net.TCPConn) {
			m := port.mapping.Load()
			e.accepting.Go(func() { e.l4.HandleTCP(c, m) })
		})
	})
	return nil
}

func (p *mappedPorts) openUDP(port *mappedPort, m *router.Mapping) error {
	e := p.engine
	pc, err := listen.UDP(e.ctx, fmt.Sprintf(":%d", m.Port))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	served := make(chan struct{})
	// At once: an edit may open the port again right away.
	port.socket, port.end = pc, func() { cancel(); <-served }
	e.accepting.Go(func() {
		defer close(served)
		if _, err := e.l4.ServeUDP(ctx, pc, port.mapping.Load, l4.UDPOptions{}); err != nil {
			e.cfg.Logger.Error("a mapped UDP port stopped", "port", m.Label(), "err", err)
		}
	})
	return nil
}

// closeSocket closes the port's socket, if it is open, and forgets retries. TCP
// flows that were accepted go on; UDP sessions end, having no socket to answer
// through. p.mu is held.
func (p *mappedPorts) closeSocket(port *mappedPort) {
	if port.retry != nil {
		port.retry.Stop()
		port.retry = nil
		p.engine.metrics.busyPorts.Dec()
	}
	if port.socket == nil {
		return
	}
	if port.end != nil {
		port.end()
		port.end = nil
	}
	port.socket.Close()
	port.socket = nil
}

// close closes the ports that are in was and no longer in t, then deals with
// their flows.
func (p *mappedPorts) close(t, was *router.Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.DiffMappings(was, func(was, is *router.Mapping) {
		if is != nil {
			return
		}
		port := p.ports[was.Proto][was.Port]
		if port == nil {
			return // stopped
		}
		delete(p.ports[was.Proto], was.Port)
		if port.expiry != nil {
			port.expiry.Stop()
		}
		p.closeSocket(port)
		p.engine.l4.Withdraw(was, nil)
	})
}

// stop closes the TCP ports for good and opens none any more. UDP sockets stay
// open, since their sessions answer through them, until the engine's context
// ends.
func (p *mappedPorts) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for proto := range p.ports {
		for _, port := range p.ports[proto] {
			if port.expiry != nil {
				port.expiry.Stop()
			}
			if port.end == nil {
				p.closeSocket(port)
			}
		}
	}
}
