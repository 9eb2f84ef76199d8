package proxy

import (
	"fmt"
	"net/netip"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// chains follows the mappings in force, with the names on their way as lookup
// says.
func (e *Engine) chains(lookup func(string) []netip.Addr) router.Chains {
	return router.Chains{Own: e.cfg.Own, Mapping: e.table.Load().Mapping, Lookup: lookup}
}

// forbid says why nobody is to be connected to an address, or nil. It goes by the
// address itself, so that it holds for whatever name led there.
func (e *Engine) forbid(to upstream.Connecting, lookup func(string) []netip.Addr) error {
	at := netip.AddrPortFrom(to.Addr.Addr().Unmap().WithZone(""), to.Addr.Port())
	if !e.cfg.Own(at.Addr()) {
		return nil
	}
	m := e.table.Load().Mapping(to.Proto, int(at.Port()))
	if to.Proto == router.TCP {
		if what := e.cfg.Private(at); what != "" {
			return fmt.Errorf("%v is %s of this node, to which nobody is connected", at, what)
		}
		if to.Endpoint.NamedByClient {
			return fmt.Errorf("%v is this node itself, which only an address without variables may name", at)
		}
		if to.Routed {
			if err := e.forbidReturn(at, m, lookup); err != nil {
				return err
			}
		}
	}
	if m == nil {
		return nil
	}
	if loop := e.chains(lookup).Loop(m); loop != nil {
		return fmt.Errorf("%v is the mapped port %s of this node itself: %w", at, m.Label(), loop)
	}
	return nil
}

// forbidReturn says why a route must not lead to at, where m listens unless it is
// nil: it would be routed again, as often as there is room for. A loop that
// passes a route goes by one such step.
func (e *Engine) forbidReturn(at netip.AddrPort, m *router.Mapping, lookup func(string) []netip.Addr) error {
	const right = "where it would be routed again, without end; give the address at which the service itself listens"
	if what := e.cfg.Public(at); what != "" {
		return fmt.Errorf("%v is %s of this node, %s", at, what, right)
	}
	if m == nil {
		return nil
	}
	if what := e.chains(lookup).LeadsTo(m, e.cfg.Public); what != "" {
		return fmt.Errorf("%v is the mapped port %s of this node, which leads to %s, %s", at, m.Label(), what, right)
	}
	return nil
}
