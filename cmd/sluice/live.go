package main

import (
	"iter"
	"time"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/router"
)

// live shows the data plane to the admin address. The node has its engine before
// that is served.
type live struct{ n *node }

func (l live) Flows() iter.Seq[api.Flow] {
	return func(yield func(api.Flow) bool) {
		now := time.Now()
		for f := range l.n.engine.Flows() {
			if !yield(flowOf(f, now)) {
				return
			}
		}
	}
}

func (l live) Cut(match func(api.Flow) bool) int {
	now := time.Now()
	return l.n.engine.Cut(func(f l4.FlowInfo) bool { return match(flowOf(f, now)) })
}

func flowOf(f l4.FlowInfo, now time.Time) api.Flow {
	return api.Flow{
		ID: f.ID, Proto: f.Proto.String(), Listener: f.Listener, Port: f.Port, Client: f.Client, Backend: f.Backend,
		Route: f.Route, Env: f.Env, Service: f.Service, HTTP: f.HTTP,
		Since: f.Since.UTC().Truncate(time.Millisecond), Age: now.Sub(f.Since).Seconds(), Up: f.Up, Down: f.Down,
	}
}

func (l live) Mappings() iter.Seq[api.Mapping] {
	return func(yield func(api.Mapping) bool) {
		for m, t := range l.n.engine.Mappings() {
			if !yield(api.Mapping{
				Proto: m.Proto.String(), Port: m.Port, Backend: firstTarget(m.Backend), HTTP: firstTarget(m.HTTP),
				Env: m.Env, Service: m.Service, Live: t.Live,
				Started: t.Started, Refused: t.Refused, Unreachable: t.Unreachable, Up: t.Up, Down: t.Down,
			}) {
				return
			}
		}
	}
}

func firstTarget(b *router.Backend) string {
	if b == nil || len(b.Targets) == 0 {
		return ""
	}
	return b.Targets[0].Address.String()
}
