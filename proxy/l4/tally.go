package l4

import (
	"time"

	"github.com/remotegpu/sluice/router"
)

// Tally counts what happened on a port, or for a service. Bytes are those that
// passed on the client's side, whether raw or as HTTP.
type Tally struct {
	Started     int64 // flows that were let in
	Refused     int64 // flows (of UDP: datagrams) that were not: by allow and deny, by a limit, by the opening
	Unreachable int64 // flows that found no target of their backend
	Up, Down    int64 // bytes, from clients and to them
}

func (t *Tally) add(more Tally) {
	t.Started += more.Started
	t.Refused += more.Refused
	t.Unreachable += more.Unreachable
	t.Up += more.Up
	t.Down += more.Down
}

// serviceTally is what one service did on a port: the mapping of a port may
// come to serve another one.
type serviceTally struct {
	service string
	Tally
}

// serviceKey names a service by protocol.
type serviceKey struct {
	proto   router.Proto
	service string
}

// PortTally is the live account of one mapped port. It covers what happened
// since the port was mapped, edits included, or since the process began. It ends
// with the mapping.
type PortTally struct {
	Proto router.Proto
	Port  int
	Live  int // flows, connections handed to HTTP among them
	Tally
}

// Tallies returns the accounts of all ports on which anything has happened, in
// no order. What live flows have moved so far is in them.
func (s *Server) Tallies() []PortTally {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]PortTally, 0, len(s.ports)+len(s.kept))
	for key, p := range s.ports {
		if t := p.account(); t.Tally != (Tally{}) || t.Live > 0 {
			t.Proto, t.Port = key.proto, key.number
			all = append(all, t)
		}
	}
	for key, t := range s.kept {
		all = append(all, PortTally{Proto: key.proto, Port: key.number, Tally: t})
	}
	return all
}

// account sums the port's tallies and its live flows.
func (p *port) account() PortTally {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := PortTally{Tally: p.before}
	for _, s := range p.tallies {
		t.add(s.Tally)
	}
	for f := p.flows; f != nil; f = f.next {
		t.Live++
		moved := f.moved()
		t.Up += moved.up
		t.Down += moved.down
	}
	return t
}

// tally returns the account of a service on the port. p.mu is held.
func (p *port) tally(service string) *Tally {
	for i := range p.tallies {
		if p.tallies[i].service == service {
			return &p.tallies[i].Tally
		}
	}
	p.tallies = append(p.tallies, serviceTally{service: service})
	return &p.tallies[len(p.tallies)-1].Tally
}

// settle enters f, which has ended, into the accounts. p.mu is held.
func (p *port) settle(f *flow) {
	t, moved := p.tally(f.labels.service), f.moved()
	t.Up += moved.up
	t.Down += moved.down
	switch {
	case f.mapping != nil && !f.admitted:
		t.Refused++
	case f.end == connectFailed: // f.end is final, f having ended
		t.Unreachable++
	}
}

// bank puts what was counted on p, which is dropped, with the sums of its
// protocol and its services. s.mu and p.mu are held.
func (s *Server) bank(p *port) {
	s.past[p.key.proto].add(p.past)
	for _, t := range p.tallies {
		of := s.services[serviceKey{p.key.proto, t.service}]
		of.add(t.Tally)
		s.services[serviceKey{p.key.proto, t.service}] = of
	}
}

// CountRefused enters a UDP session of m into the accounts that was not let in,
// because of allow and deny: no flow is made for one, whose datagrams may come
// from anywhere.
func (s *Server) CountRefused(m *router.Mapping) {
	key := portKey{m.Proto, m.Port}
	s.mu.RLock()
	p := s.ports[key]
	if p != nil {
		p.refuse(m)
	}
	s.mu.RUnlock()
	if p != nil {
		return
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p = s.portLocked(key)
	p.refuse(m)
	s.retire(p, now)
}

// refuse counts a refusal by m, unless that was withdrawn. The server's mu is
// held, for reading at least.
func (p *port) refuse(m *router.Mapping) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if m = p.inForce(m, now); m == nil {
		return
	}
	p.adopt(m)
	p.tally(m.Service).Refused++
	p.lastUsed = now
}

// keep puts the account of the mapping of p, which is forgotten, where it costs
// little, if the mapping goes on. s.mu and p.mu are held.
func (s *Server) keep(p *port) {
	total := p.before
	for _, t := range p.tallies {
		total.add(t.Tally)
	}
	if p.mapped && total != (Tally{}) {
		s.kept[p.key] = total
	}
}

// serviceLive is the account of a service, and its live flows.
type serviceLive struct {
	Tally
	live int
}

// byService returns the account of each service since the process began. It
// never falls: what leaves one of the places summed here enters another in the
// same step.
func (s *Server) byService() map[serviceKey]serviceLive {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make(map[serviceKey]serviceLive, len(s.services))
	add := func(key serviceKey, t Tally, live int) {
		of := all[key]
		of.add(t)
		of.live += live
		all[key] = of
	}
	for key, t := range s.services {
		add(key, t, 0)
	}
	s.eachPort(func(p *port) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, t := range p.tallies {
			add(serviceKey{p.key.proto, t.service}, t.Tally, 0)
		}
		for f := p.flows; f != nil; f = f.next {
			moved := f.moved()
			add(serviceKey{p.key.proto, f.labels.service}, Tally{Up: moved.up, Down: moved.down}, 1)
		}
	})
	return all
}
