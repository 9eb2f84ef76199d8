package router

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Chains follows mappings of one node that lead to ports of the same node. The
// zero value knows of no such port, so that nothing leads anywhere.
type Chains struct {
	// Own reports whether an address, IPv4 as IPv4 and without a zone, is one
	// of the node's own; nil: none is.
	Own func(netip.Addr) bool
	// Mapping gives the mapping of a port or nil, as Table.Mapping does; nil:
	// there are none.
	Mapping func(Proto, int) *Mapping
	// Lookup gives the addresses that a name is known to stand for; nil: names
	// lead nowhere, but for those of the loopback interface.
	Lookup func(name string) []netip.Addr
}

// maxChain bounds how many mappings one look for a loop goes through, and maxSteps
// how many targets of theirs it looks at. Chains of more than two or three have no
// use, and an edit is to cost little whatever the other mappings are.
const (
	maxChain = 256
	maxSteps = 4096
)

// Loop is the way on which a mapping leads back to itself.
type Loop struct {
	Proto Proto
	// Field is which field of the mapping leads there, such as
	// "backend.targets[0].address", and Target what it holds.
	Field, Target string
	// Ports are passed in this order. The first and the last is the mapping's
	// own. nil: there were so many that the search was given up.
	Ports []int
}

// Error says what the loop is and what would be right.
func (l *Loop) Error() string {
	return (&FieldError{Path: l.Field, Msg: l.Words()}).Error()
}

// Words is Error without the field.
func (l *Loop) Words() string {
	const right = "give the address at which the service itself listens"
	switch len(l.Ports) {
	case 0:
		return fmt.Sprintf("%s leads through more than %d mapped ports of this node, or %d targets of theirs; %s", l.Target, maxChain, maxSteps, right)
	case 2:
		return fmt.Sprintf("%s is this very port of this node, so that connections would come back without end; %s", l.Target, right)
	}
	way := make([]string, len(l.Ports))
	for i, port := range l.Ports {
		way[i] = fmt.Sprintf("%v/%d", l.Proto, port)
	}
	return fmt.Sprintf("%s is a mapped port of this node that leads back here (%s); %s", l.Target, strings.Join(way, " to "), right)
}

// Loop returns the way on which m leads back to its own port, by one target of
// each mapping that it passes, or nil if it does not; one too long to follow
// counts. m counts as the mapping of
// its port, whatever c.Mapping says. The cost is that of looking at m's targets
// unless one of them is a mapped port of this node.
func (c Chains) Loop(m *Mapping) *Loop {
	w := walk{Chains: c, proto: m.Proto, goal: m.Port, seen: map[int]bool{}}
	var found *Loop
	c.eachHere(m.Backends(), func(t here) (more bool) {
		if !w.from(t.port) {
			return true
		}
		if w.ports != nil {
			w.ports = append(w.ports, m.Port)
			slices.Reverse(w.ports)
		}
		found = &Loop{Proto: m.Proto, Field: t.field(), Target: t.address.String(), Ports: w.ports}
		return false
	})
	return found
}

// LeadsTo returns an address that m leads to, through further mappings too, of
// which public says what listens there, and what; what is "" where there is none.
func (c Chains) LeadsTo(m *Mapping, public func(netip.AddrPort) string) (what string) {
	seen := map[int]bool{}
	steps := 0
	var from func(m *Mapping)
	from = func(m *Mapping) {
		if m == nil || seen[m.Port] || len(seen) >= maxChain {
			return
		}
		seen[m.Port] = true
		c.eachHere(m.Backends(), func(t here) (more bool) {
			if what = c.at(t.address, t.port, public); what == "" && c.Mapping != nil {
				from(c.Mapping(m.Proto, t.port))
			}
			steps++
			return what == "" && steps < maxSteps
		})
	}
	from(m)
	return what
}

// at asks what is at the addresses that a is known to stand for, at port.
func (c Chains) at(a Address, port int, what func(netip.AddrPort) string) string {
	for _, addr := range c.addresses(a.host.source) {
		if it := what(netip.AddrPortFrom(addr, uint16(port))); it != "" {
			return it
		}
	}
	return ""
}

// addresses returns those that a host without variables is known to stand for.
func (c Chains) addresses(host string) []netip.Addr {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap().WithZone("")}
	}
	if IsLocalhost(host) {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	if c.Lookup == nil {
		return nil
	}
	var addrs []netip.Addr
	for _, addr := range c.Lookup(host) {
		addrs = append(addrs, addr.Unmap().WithZone(""))
	}
	return addrs
}

// Find returns the first literal target among backends that is an address of
// this node of which what says something, and what that is; ok is false where
// there is none.
func (c Chains) Find(backends []FieldBackend, what func(netip.AddrPort) string) (found Found, ok bool) {
	c.eachHere(backends, func(t here) (more bool) {
		if it := c.at(t.address, t.port, what); it != "" {
			found = Found{Field: t.field(), Target: t.address.String(), What: it}
		}
		return found.What == ""
	})
	return found, found.What != ""
}

// Found is a target that is something of the node itself.
type Found struct{ Field, Target, What string }

// FieldBackend is a backend and the field of a value that holds it.
type FieldBackend struct {
	Field   string
	Backend *Backend // nil: the field is not there
}

// Backends returns the backends of m, some of them nil.
func (m *Mapping) Backends() []FieldBackend {
	all := []FieldBackend{{"backend", m.Backend}, {"http", m.HTTP}}
	if m.Requests != nil && m.Requests.ForwardAuth != nil {
		all = append(all, FieldBackend{"requests.forward_auth.backend", m.Requests.ForwardAuth.Backend})
	}
	return all
}

// Backends returns the backends of r, some of them nil.
func (r *Route) Backends() []FieldBackend {
	all := []FieldBackend{{"backend", r.Backend}}
	if r.ForwardAuth != nil {
		all = append(all, FieldBackend{"forward_auth.backend", r.ForwardAuth.Backend})
	}
	return all
}

// LeadsHere reports whether a target of m is a port on this node that ports has.
func (c Chains) LeadsHere(m *Mapping, ports Ports) bool {
	leads := false
	c.eachHere(m.Backends(), func(t here) (more bool) {
		leads = ports.Contains(t.port)
		return !leads
	})
	return leads
}

// walk looks for a way to the port goal. It looks at each mapping once, from
// wherever it is come upon.
type walk struct {
	Chains
	proto  Proto
	goal   int
	seen   map[int]bool // ports that are looked at
	passed int          // mappings among them
	steps  int          // targets of theirs that were looked at
	ports  []int        // the way, the last port first, once there is one
}

// from reports whether there is a way from port, or no end of ways to look at.
func (w *walk) from(port int) bool {
	if port == w.goal {
		w.ports = []int{port}
		return true
	}
	if w.Mapping == nil || w.seen[port] {
		return false
	}
	w.seen[port] = true
	m := w.Mapping(w.proto, port)
	if m == nil {
		return false // another program's, or nobody's
	}
	w.passed++
	for _, b := range m.Backends() {
		if b.Backend != nil {
			w.steps += len(b.Backend.Targets)
		}
	}
	if w.passed > maxChain || w.steps > maxSteps {
		return true
	}
	found := false
	w.eachHere(m.Backends(), func(t here) bool {
		found = w.from(t.port)
		return !found
	})
	if w.ports != nil {
		w.ports = append(w.ports, port)
	}
	return found
}

// here is a target that is on this node.
type here struct {
	backend FieldBackend
	index   int // among the backend's
	address Address
	port    int
}

// field is which field of the value holds it.
func (t here) field() string { return fmt.Sprintf("%s.targets[%d].address", t.backend.Field, t.index) }

// eachHere calls f for every target that is on this node, until f wants no more.
func (c Chains) eachHere(backends []FieldBackend, f func(here) (more bool)) {
	for _, b := range backends {
		if b.Backend == nil {
			continue
		}
		for i := range b.Backend.Targets {
			a := b.Backend.Targets[i].Address
			host, port, err := a.Expand(&Vars{})
			if err != nil || !c.isOwn(host) {
				continue
			}
			if !f(here{b, i, a, port}) {
				return
			}
		}
	}
}

func (c Chains) isOwn(host string) bool {
	if c.Own == nil {
		return false
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return c.Own(addr.Unmap().WithZone(""))
	}
	if IsLocalhost(host) {
		return true
	}
	return c.Lookup != nil && slices.ContainsFunc(c.Lookup(host), func(a netip.Addr) bool {
		return c.Own(a.Unmap().WithZone(""))
	})
}
