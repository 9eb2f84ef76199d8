package proxy

import (
	"iter"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Flows gives every live TCP connection and UDP session of mappings, and of
// routes that take connections whole, and every HTTP exchange of https and http
// listeners, in no order.
func (e *Engine) Flows() iter.Seq[l4.FlowInfo] {
	return func(yield func(l4.FlowInfo) bool) {
		for f := range e.l4.Flows() {
			if !yield(f) {
				return
			}
		}
		for f := range e.http.Flows() {
			if !yield(exchangeInfo(f)) {
				return
			}
		}
	}
}

// Cut ends the flows that match picks and returns how many it ended.
func (e *Engine) Cut(match func(l4.FlowInfo) bool) int {
	return e.l4.Cut(match) + e.http.Cut(func(f proxyhttp.FlowInfo) bool { return match(exchangeInfo(f)) })
}

// exchangeInfo describes an HTTP exchange as a flow.
func exchangeInfo(f proxyhttp.FlowInfo) l4.FlowInfo {
	proto := router.TCP
	if f.UDP {
		proto = router.UDP
	}
	return l4.FlowInfo{
		ID: f.ID, Proto: proto, Listener: f.Listener, Port: f.Port, Client: f.Client, Local: f.Local, Backend: f.Backend, Address: f.Address,
		Route: f.Route, Env: f.Env, Service: f.Service, HTTP: f.Backend == "", Up: f.Up, Down: f.Down, Since: f.Since,
	}
}

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

// IsOpen reports whether the port of a mapping in force is open.
func (e *Engine) IsOpen(proto router.Proto, port int) bool {
	if e.mapping(proto, port) == nil {
		return false
	}
	e.mapped.mu.Lock()
	defer e.mapped.mu.Unlock()
	return e.mapped.isOpen[proto].has(port)
}

// Table returns the table in force.
func (e *Engine) Table() *router.Table { return e.table.Load() }

// Health gives what health checks know of the targets of backends that want them.
func (e *Engine) Health() []upstream.TargetHealth { return e.dialer.Health() }
