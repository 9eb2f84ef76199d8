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

// maxChain bounds how many mappings one look for a loop goes through. Chains of
// more than two or three have no use.
const maxChain = 256

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
		return fmt.Sprintf("%s leads through more than %d mapped ports of this node; %s", l.Target, maxChain, right)
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
	var found *Loop
	c.EachHere(m, func(field string, a Address, port int) (more bool) {
		w := walk{Chains: c, proto: m.Proto, goal: m.Port}
		if !w.from(port) {
			return true
		}
		if w.ports != nil {
			w.ports = append(w.ports, m.Port)
			slices.Reverse(w.ports)
		}
		found = &Loop{Proto: m.Proto, Field: field, Target: a.String(), Ports: w.ports}
		return false
	})
	return found
}

// LeadsHere reports whether a target of m is on this node.
func (c Chains) LeadsHere(m *Mapping) bool {
	here := false
	c.EachHere(m, func(string, Address, int) bool {
		here = true
		return false
	})
	return here
}

// walk looks for a way to the port goal.
type walk struct {
	Chains
	proto Proto
	goal  int
	seen  []int
	ports []int // the way, the last port first, once there is one
}

// from reports whether there is a way from port, or no end of ways to look at.
func (w *walk) from(port int) bool {
	if port == w.goal {
		w.ports = []int{port}
		return true
	}
	if w.Mapping == nil || slices.Contains(w.seen, port) {
		return false
	}
	w.seen = append(w.seen, port)
	m := w.Mapping(w.proto, port)
	switch {
	case m == nil:
		return false // another program's, or nobody's
	case len(w.seen) > maxChain:
		return true
	}
	found := false
	w.EachHere(m, func(_ string, _ Address, next int) bool {
		found = w.from(next)
		return !found
	})
	if w.ports != nil {
		w.ports = append(w.ports, port)
	}
	return found
}

// EachHere calls f for every target of m that is on this node, until f wants no
// more. field is which field of the mapping holds a.
func (c Chains) EachHere(m *Mapping, f func(field string, a Address, port int) (more bool)) {
	for _, b := range [...]struct {
		name    string
		backend *Backend
	}{{"backend", m.Backend}, {"http", m.HTTP}} {
		if b.backend == nil {
			continue
		}
		for i := range b.backend.Targets {
			a := b.backend.Targets[i].Address
			host, port, err := a.Expand(&Vars{})
			if err != nil || !c.isOwn(host) {
				continue
			}
			if !f(fmt.Sprintf("%s.targets[%d].address", b.name, i), a, port) {
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
	if isLocalhost(host) {
		return true
	}
	return c.Lookup != nil && slices.ContainsFunc(c.Lookup(host), func(a netip.Addr) bool {
		return c.Own(a.Unmap().WithZone(""))
	})
}
