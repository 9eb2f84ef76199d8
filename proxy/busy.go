package proxy

import (
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/sluice/proxy/listen"
)

// A port that another program holds is tried again after this long, doubling
// up to the maximum.
const (
	reopenBackoffMin = 500 * time.Millisecond
	reopenBackoffMax = 30 * time.Second
)

// ownerMemory is how long the owner of a busy port is taken to be the same.
const ownerMemory = time.Minute

// owners is listen.Owners, but in tests.
var owners = listen.Owners

// busyPort is a port of a mapping in force that could not be opened.
type busyPort struct {
	port    portKey
	since   time.Time
	err     error
	backoff time.Duration
	retry   *time.Timer
	owner   string    // "" until it is found
	asked   time.Time // when it was asked for
}

// isBusy notes why a port could not be opened, says so, and tries again later.
// p.mu is held.
func (p *mappedPorts) isBusy(port portKey, err error) {
	b := p.busy[port]
	if b == nil {
		b = &busyPort{port: port, since: time.Now(), backoff: reopenBackoffMin}
		p.busy[port] = b
		p.engine.metrics.busyPorts.Inc()
		if !isTaken(err) { // else the owner is to be named
			p.engine.cfg.Logger.Warn("cannot open a mapped port; trying again", "port", port.label(), "err", err)
		}
	} else {
		b.retry.Stop()
	}
	b.err = err
	b.retry = time.AfterFunc(b.backoff, func() { p.reopen(b) })
	b.backoff = min(b.backoff*2, reopenBackoffMax)
	p.tellBusy(b)
	if now := time.Now(); isTaken(err) && now.Sub(b.asked) > ownerMemory {
		b.asked = now
		p.findOwner(b)
	}
}

func isTaken(err error) bool {
	var busy *listen.BusyError
	return errors.As(err, &busy)
}

// tellBusy reports what is known of a busy port. p.mu is held.
func (p *mappedPorts) tellBusy(b *busyPort) {
	p.tell(b.port, fmt.Errorf("port_busy: %w", b.known()))
}

// known returns why the port could not be opened, with the owner if it is known.
func (b *busyPort) known() error {
	var busy *listen.BusyError
	if errors.As(b.err, &busy) && b.owner != "" {
		return &listen.BusyError{Network: busy.Network, Addr: busy.Addr, Owner: b.owner}
	}
	return b.err
}

// forgetBusy ends the retries of a port, if there are any. p.mu is held.
func (p *mappedPorts) forgetBusy(port portKey) {
	if b := p.busy[port]; b != nil {
		b.retry.Stop()
		delete(p.busy, port)
		p.engine.metrics.busyPorts.Dec()
	}
}

// noteOpened says so where a port was opened that had been busy. p.mu is held.
func (p *mappedPorts) noteOpened(port portKey) {
	if b := p.busy[port]; b != nil {
		p.engine.cfg.Logger.Info("opened a mapped port", "port", port.label(), "after", time.Since(b.since).Round(time.Millisecond))
		p.forgetBusy(port)
	}
}

func (p *mappedPorts) reopen(b *busyPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[b.port] == b && !p.left {
		p.open([]portKey{b.port})
	}
}

// findOwner has the owner of a busy port looked for. That takes a look at every
// process, so it happens apart, and once for all ports that turn out busy
// meanwhile. p.mu is held.
func (p *mappedPorts) findOwner(b *busyPort) {
	p.searches = append(p.searches, b)
	if !p.search {
		p.search = true
		p.engine.accepting.Go(p.findOwners)
	}
}

func (p *mappedPorts) findOwners() {
	for {
		p.mu.Lock()
		ports := p.searches
		p.searches = nil
		if len(ports) == 0 || p.stopped {
			p.search = false
			p.mu.Unlock()
			return
		}
		errs := make([]*listen.BusyError, len(ports))
		for i, b := range ports {
			errors.As(b.err, &errs[i])
		}
		p.mu.Unlock()
		p.noteOwners(ports, owners(p.engine.ctx, errs...))
	}
}

func (p *mappedPorts) noteOwners(ports []*busyPort, owners []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, b := range ports {
		if p.busy[b.port] == b && !p.stopped && b.owner != owners[i] {
			b.owner = owners[i]
			p.engine.cfg.Logger.Warn("cannot open a mapped port; trying again", "port", b.port.label(), "err", b.known())
			p.tellBusy(b)
		}
	}
}
