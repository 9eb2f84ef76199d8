package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// rest is whether the engine rests. One that does has its listening TCP sockets
// closed, and answers no new client over UDP.
type rest struct {
	mu  sync.Mutex // held by whoever changes which public listeners are open
	on  bool
	end bool // the engine has been shut down
}

// BeginRest has the engine take up nothing new from now on: ports and listeners
// close, and clients of HTTP are refused. Flows go on. Call Rest after it. Called
// before Listen, no listener opens.
func (e *Engine) BeginRest() {
	e.rest.mu.Lock()
	defer e.rest.mu.Unlock()
	if e.rest.on || e.rest.end {
		return
	}
	e.rest.on = true
	e.resting.Store(true)
	e.public.close()
	e.public.https, e.public.http = nil, nil
	e.mapped.rest()
	e.http.BeginRest()
}

// Rest does as BeginRest, unless that was done, and tells clients of HTTP to go
// elsewhere, until ctx ends; then everything is open again, and Rest returns. A
// listener whose port somebody else has taken meanwhile is tried again until the
// engine is shut down. Call it once at a time.
func (e *Engine) Rest(ctx context.Context) {
	e.BeginRest()
	e.http.Rest(ctx)
	for pause := reopenBackoffMin; ; pause = min(2*pause, reopenBackoffMax) {
		err := e.wake()
		if err == nil {
			return
		}
		e.cfg.Logger.Error("cannot serve again yet; trying on", "err", err, "in", pause)
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// wake opens what BeginRest closed.
func (e *Engine) wake() error {
	e.rest.mu.Lock()
	defer e.rest.mu.Unlock()
	if e.rest.end || !e.rest.on {
		return nil
	}
	var public publicListeners
	if err := public.openTCP(e.ctx, e.cfg); err != nil {
		public.close()
		return err
	}
	e.public.https, e.public.http = public.https, public.http
	e.rest.on = false
	e.resting.Store(false)
	e.acceptPublic()
	e.mapped.wake()
	return nil
}

// Left returns how many flows there are.
func (e *Engine) Left() int {
	n := 0
	for range e.Flows() {
		n++
	}
	return n
}

// openTCP opens the public addresses of TCP.
func (p *publicListeners) openTCP(ctx context.Context, cfg Config) error {
	for _, l := range cfg.HTTPS {
		ln, err := listen.TCP(ctx, l.Address)
		if err != nil {
			return fmt.Errorf("open the https listener %s: %w", l.Address, listen.WithOwner(ctx, err))
		}
		p.https = append(p.https, ln)
	}
	for _, l := range cfg.HTTP {
		ln, err := listen.TCP(ctx, l.Address)
		if err != nil {
			return fmt.Errorf("open the http listener %s: %w", l.Address, listen.WithOwner(ctx, err))
		}
		p.http = append(p.http, ln)
	}
	return nil
}

// rest closes all ports, and opens none until wake.
func (p *mappedPorts) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = true
	for port := range p.busy {
		p.forgetBusy(port)
	}
	for _, proto := range []router.Proto{router.TCP, router.UDP} {
		for number := 1; number <= router.MaxPort; number++ {
			if !p.isOpen[proto].has(number) {
				continue
			}
			if p.shut(portKey{proto, number}); proto == router.UDP {
				p.engine.l4.CloseUDP(number)
			}
		}
	}
}

// wake opens the ports of the table in force.
func (p *mappedPorts) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	p.resting = false
	now := time.Now()
	var wanted []portKey
	p.engine.table.Load().EachMapping(func(m *router.Mapping) {
		if port := keyOf(m); !hasExpired(m, now) && !p.isOpen[port.proto].has(port.number) {
			wanted = append(wanted, port)
		}
	})
	p.open(wanted)
}
