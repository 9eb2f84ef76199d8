package proxy

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen/handover"
	"github.com/remotegpu/sluice/proxy/listen/steer"
	"github.com/remotegpu/sluice/router"
)

// steeredPorts has what comes to all ports come to the sockets of a Steerer.
type steeredPorts struct {
	engine  *Engine
	steerer *steer.Steerer
	tcp     []*l4.Listener
	udp     *steeredUDP

	// While held is set another process reads the datagrams, and UDP ports wait
	// to be steered. Guarded by mappedPorts.mu.
	held    bool
	waiting []portKey
}

// newSteeredPorts begins to serve what s steers. It owns s, also on error.
func newSteeredPorts(e *Engine, s *steer.Steerer) (*steeredPorts, error) {
	p := &steeredPorts{engine: e, steerer: s, udp: newSteeredUDP(e, s), held: e.cfg.Held}
	if !e.cfg.Held {
		if err := p.accept(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	e.accepting.Go(p.udp.run)
	if len(e.cfg.Ports) > 0 {
		e.accepting.Go(p.watchForeign)
	}
	return p, nil
}

// accept begins to accept connections. Those that come before, when sockets are
// another process's as well, are that one's: here nothing is in force yet.
func (p *steeredPorts) accept() error {
	if len(p.tcp) > 0 {
		return nil
	}
	for _, ln := range p.steerer.TCP() {
		l, err := p.engine.l4.ListenTCP(ln, p.engine.mappingTCP)
		if err != nil {
			return err
		}
		p.tcp = append(p.tcp, l)
	}
	return nil
}

// steerProto returns what the steerer calls a protocol.
func steerProto(p router.Proto) steer.Proto {
	if p == router.UDP {
		return steer.UDP
	}
	return steer.TCP
}

func (p *steeredPorts) open(ports []portKey) (failed map[portKey]error) {
	failed = map[portKey]error{}
	var numbers [2][]int
	for _, port := range ports {
		if port.proto == router.UDP && p.held {
			p.waiting = append(p.waiting, port)
			continue
		}
		if port.proto == router.UDP && p.udp.resume(port.number) {
			continue
		}
		numbers[port.proto] = append(numbers[port.proto], port.number)
	}
	for _, proto := range []router.Proto{router.TCP, router.UDP} {
		if len(numbers[proto]) == 0 {
			continue
		}
		busy, err := p.steerer.Add(p.engine.ctx, steerProto(proto), numbers[proto]...)
		for number, err := range busy {
			failed[portKey{proto, number}] = err
		}
		if err != nil {
			for _, number := range numbers[proto] {
				failed[portKey{proto, number}] = err
			}
		}
	}
	return failed
}

func (p *steeredPorts) close(port portKey) {
	if port.proto == router.UDP && p.held {
		p.waiting = slices.DeleteFunc(p.waiting, func(w portKey) bool { return w == port })
		return
	}
	if port.proto == router.UDP {
		p.udp.close(port.number)
		return
	}
	p.steerer.Remove(steer.TCP, port.number)
}

func (p *steeredPorts) stop(forAll bool) {
	all := make([]int, router.MaxPort)
	for i := range all {
		all[i] = i + 1
	}
	if !forAll && !p.held {
		p.udp.pause()
	}
	p.steerer.Remove(steer.TCP, all...)
	p.udp.stop(all)
	for _, l := range p.tcp {
		if forAll {
			l.Close()
		} else {
			l.Leave()
		}
	}
}

func (p *steeredPorts) each(visit func(Socket, *os.File) error) error {
	files, err := p.steerer.Files()
	if err != nil {
		return err
	}
	for i, f := range files {
		if err := visit(Socket{Network: steeredNetwork}, f); err != nil {
			handover.CloseAll(files[i+1:])
			return err
		}
	}
	return nil
}

func (p *steeredPorts) adopt(from []l4.UDPPort) {
	p.udp.adopt(from)
	p.held = false
	p.open(p.waiting)
	p.waiting = nil
}

func (p *steeredPorts) release() {
	if err := p.steerer.Close(); err != nil {
		p.engine.cfg.Logger.Error("cannot close the sockets of the mapped ports in order", "err", err)
	}
}

// foreignInterval is how often other programs' sockets are looked for.
var foreignInterval = 30 * time.Second

// watchForeign reports sockets of other programs among the node's ports, until
// the engine's context ends or another process has the ports. They keep working
// where nothing is mapped, and keep a mapping from being opened where they were
// first; but one that came later than a mapping gets nothing, without knowing why.
// One of UDP that takes all addresses is in the way of the port's next client: see
// steeredUDP.bind.
func (p *steeredPorts) watchForeign() {
	if !p.engine.mayRead() { // until then the process before has sockets there
		return
	}
	var within []steer.Range
	for _, r := range p.engine.cfg.Ports {
		within = append(within, steer.Range{First: r.First, Last: r.Last})
	}
	tick := time.NewTicker(foreignInterval)
	defer tick.Stop()
	known := map[steer.Foreign]bool{}
	for {
		known = p.lookForForeign(p.engine.leaving, within, known)
		select {
		case <-tick.C:
		case <-p.engine.leaving.Done(): // what opens sockets there from now on is the node itself
			return
		}
	}
}

// lookForForeign logs what is not known yet, and returns all there is.
func (p *steeredPorts) lookForForeign(ctx context.Context, within []steer.Range, known map[steer.Foreign]bool) map[steer.Foreign]bool {
	found, err := p.steerer.Foreign(ctx, within...)
	if ctx.Err() != nil {
		return known
	}
	if err != nil {
		p.engine.cfg.Logger.Warn("cannot look for other programs' sockets among the mapped ports; trying again", "err", err)
		return known
	}
	now := make(map[steer.Foreign]bool, len(found))
	deaf := 0
	for _, f := range found {
		now[f] = true
		if f.Steered {
			deaf++
		}
		switch log := p.engine.cfg.Logger; {
		case known[f]:
		case f.Steered:
			log.Warn("another program listens on a mapped port and gets nothing; have it use another port, or delete the mapping",
				"proto", f.Proto, "addr", f.Local.String(), "owner", f.Owner)
		default:
			log.Info("another program listens on one of the node's ports, which cannot be mapped meanwhile",
				"proto", f.Proto, "addr", f.Local.String(), "owner", f.Owner)
		}
	}
	p.engine.metrics.foreignHearing.Set(float64(len(found) - deaf))
	p.engine.metrics.foreignDeaf.Set(float64(deaf))
	return now
}
