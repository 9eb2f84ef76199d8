package l4

import (
	"reflect"
	"slices"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Withdraw tells the server that was no longer decides for its port: it was
// deleted or expired (is is nil), or replaced by is, the new mapping of the
// same port.
//
// Where the mapping is gone, on_delete decides what becomes of its flows. Those
// it lets live are the old mapping's until they end: the next mapping of the
// port begins with no flows, limits and account, but for what Resume gives it.
//
// An edit leaves limits, account and flows with the port: limits and lists of is
// hold for new flows at once, its bandwidth for live ones too. Where it takes
// targets away, the on_delete of is, which is the newer wish, decides about the
// flows that go to none of is's; the drain of a flow whose target has come back
// is called off if its env is that of is. A connection that was handed to
// Config.HTTP goes to any target of the http it was handed on with, and so is
// one of those flows when any of them was taken away.
func (s *Server) Withdraw(was, is *router.Mapping) {
	if is == nil {
		p := s.vacate(was)
		if was.Proto == router.UDP {
			defer s.udp.withdrawn(was.Port)
		}
		for _, f := range p.snapshot() {
			f.leave(was.OnDelete, withdrawnEnd(was))
		}
		return
	}
	p := s.succeed(was, is)
	s.Resume(is)
	if was.Env == is.Env && reflect.DeepEqual(was.Backend, is.Backend) && reflect.DeepEqual(was.HTTP, is.HTTP) {
		return
	}
	to := destinationsOf(is)
	raw, http := to.raw.haveAll(was.Backend), to.http.haveAll(was.HTTP)
	why := withdrawnEnd(was)
	for _, f := range p.snapshot() {
		switch {
		case f.goesTo(to):
			if f.labels.env == is.Env {
				f.stay()
			}
		case f.handed.Load() && !http, !f.handed.Load() && !raw:
			f.leave(is.OnDelete, why)
		}
	}
}

// CloseUDP has the socket of a UDP port close once it has no session, unless its
// mapping, as ServeUDP was given it, is there then. It is for a caller that has it
// say nil although the mapping stays in force.
func (s *Server) CloseUDP(port int) { s.udp.withdrawn(port) }

// Resume gives m, which comes to a port that had no mapping in force, the flows
// that on_delete let live there, if their env is that of m and m has their
// target: whoever deletes a mapping and puts it back has not meant to end them.
// Their drain is called off. It is for a caller that knows of m before new flows
// do; to give the flows to m twice does no harm.
func (s *Server) Resume(m *router.Mapping) {
	key, now := portKey{m.Proto, m.Port}, time.Now()
	s.mu.RLock()
	none := len(s.leaving[key]) == 0
	s.mu.RUnlock()
	if none || hasExpired(m, now) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dest, p := destinationsOf(m), s.portLocked(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.adopt(m)
	for _, from := range slices.Clone(s.leaving[key]) {
		from.mu.Lock()
		for f := from.flows; f != nil; {
			next := f.next
			if f.admitted && f.labels.env == m.Env && f.goesToLocked(dest) && f.stay() {
				f.move(from, p)
			}
			f = next
		}
		s.dissolve(from)
		from.mu.Unlock()
	}
	if p.flows == nil {
		p.lastUsed = now
		s.retire(p, now)
	}
}

// leave has the flow go by the rule of a mapping that is gone or took its
// target away.
func (f *flow) leave(rule router.OnDelete, why end) {
	switch {
	case rule.Keep:
	case rule.Drain > 0:
		f.stopAfter(rule.Drain, why)
	default:
		f.stop(why, nil)
	}
}

// targets are those of a backend, as flows call them.
type targets map[string]bool

// destinations are where the flows of a mapping may go.
type destinations struct{ raw, http targets }

func destinationsOf(m *router.Mapping) destinations {
	return destinations{targetsOf(m.Backend), targetsOf(m.HTTP)}
}

func targetsOf(b *router.Backend) targets {
	if b == nil {
		return nil
	}
	t := make(targets, len(b.Targets))
	for i := range b.Targets {
		t[targetName(&b.Targets[i].Address)] = true
	}
	return t
}

// targetName returns what flows that go to a call their target. One with
// variables, which only http may have, is called as it is written.
func targetName(a *router.Address) string {
	if a.IsLiteral() {
		if host, port, err := a.Expand(nil); err == nil {
			return upstream.Endpoint{Host: host, Port: port}.String()
		}
	}
	return a.String()
}

// haveAll reports whether all targets of b, nil for none, are among t.
func (t targets) haveAll(b *router.Backend) bool {
	if b == nil {
		return true
	}
	for i := range b.Targets {
		if !t[targetName(&b.Targets[i].Address)] {
			return false
		}
	}
	return true
}

// goesTo reports whether the flow goes nowhere but to the given targets.
func (f *flow) goesTo(d destinations) bool {
	p := f.lockPort()
	defer p.mu.Unlock()
	return f.goesToLocked(d)
}

// goesToLocked is goesTo for who holds the mu of the flow's port. A flow that is
// on its way may come to any target of its mapping.
func (f *flow) goesToLocked(d destinations) bool {
	if f.handed.Load() {
		return d.http.haveAll(f.mapping.HTTP)
	}
	f.mu.Lock()
	name := f.backendName()
	f.mu.Unlock()
	if name != "" {
		return d.raw[name]
	}
	return d.raw.haveAll(f.mapping.Backend)
}

// withdrawnEnd returns why the flows of a withdrawn mapping end.
func withdrawnEnd(m *router.Mapping) end {
	if hasExpired(m, time.Now()) {
		return expired
	}
	return deleted
}

func hasExpired(m *router.Mapping, now time.Time) bool {
	return !m.ExpiresAt.IsZero() && !now.Before(m.ExpiresAt)
}

// succeed notes that was has given way to is, and returns their port.
func (s *Server) succeed(was, is *router.Mapping) *port {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.portLocked(portKey{was.Proto, was.Port})
	p.mu.Lock()
	p.gone, p.successor, p.lastUsed = withdrawals(p.gone, was, now), is, now
	p.adopt(is)
	empty := p.flows == nil
	p.mu.Unlock()
	if empty {
		s.retire(p, now)
	}
	return p
}

// vacate notes that was is gone and puts a new port in the place of its own,
// which it returns: that goes on, with its account and limits, for as long as
// it has flows.
func (s *Server) vacate(was *router.Mapping) *port {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	key := portKey{was.Proto, was.Port}
	p := s.portLocked(key)
	next := &port{key: key, lastUsed: now}
	s.ports[key] = next
	p.mu.Lock()
	next.gone, p.gone, p.left = withdrawals(p.gone, was, now), nil, true
	s.leaving[key] = append(s.leaving[key], p)
	s.dissolve(p)
	p.mu.Unlock()
	s.retire(next, now)
	return p
}

// withdrawals adds m, withdrawn now, and drops those too old to matter.
func withdrawals(gone []withdrawal, m *router.Mapping, now time.Time) []withdrawal {
	for len(gone) > 0 && now.Sub(gone[0].at) > portMemory { // they are in the order of time
		gone[0] = withdrawal{}
		gone = gone[1:]
	}
	return append(gone, withdrawal{m, now})
}

// dissolve drops p, whose mapping is gone, if no flow is left on it. s.mu and
// p.mu are held.
func (s *Server) dissolve(p *port) {
	same := s.leaving[p.key]
	i := slices.Index(same, p)
	if p.flows != nil || i < 0 {
		return
	}
	if same = slices.Delete(same, i, i+1); len(same) > 0 {
		s.leaving[p.key] = same
	} else {
		delete(s.leaving, p.key)
	}
	s.bank(p)
}

// eachPort calls visit for all ports, those of mappings that are gone and that of
// the routes among them. s.mu is held.
func (s *Server) eachPort(visit func(*port)) {
	for _, p := range s.ports {
		visit(p)
	}
	for _, same := range s.leaving {
		for _, p := range same {
			visit(p)
		}
	}
	visit(s.routed)
}
