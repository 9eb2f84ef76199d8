package proxy

import (
	"iter"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Flows gives every live TCP connection and UDP session of mappings, and of
// routes that take connections whole, in no order. HTTP exchanges of https and
// http listeners are not among them.
func (e *Engine) Flows() iter.Seq[l4.FlowInfo] { return e.l4.Flows() }

// Cut ends the flows that match picks and returns how many it ended.
func (e *Engine) Cut(match func(l4.FlowInfo) bool) int { return e.l4.Cut(match) }

// Mappings gives every mapping in force and the account of its port, TCP first,
// ports ascending.
func (e *Engine) Mappings() iter.Seq2[*router.Mapping, l4.PortTally] {
	type key struct {
		proto router.Proto
		port  int
	}
	return func(yield func(*router.Mapping, l4.PortTally) bool) {
		tallies := map[key]l4.PortTally{}
		for _, t := range e.l4.Tallies() {
			tallies[key{t.Proto, t.Port}] = t
		}
		over := false
		e.table.Load().EachMapping(func(m *router.Mapping) {
			over = over || !yield(m, tallies[key{m.Proto, m.Port}])
		})
	}
}

// Table returns the table in force.
func (e *Engine) Table() *router.Table { return e.table.Load() }

// Health gives what health checks know of the targets of backends that want them.
func (e *Engine) Health() []upstream.TargetHealth { return e.dialer.Health() }
