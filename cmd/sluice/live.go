package main

import (
	"iter"
	"net"
	"strconv"
	"time"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// live shows the data plane to the admin address. The node has its engine before
// that is served.
type live struct{ n *node }

// Flows implements api.Live: those of older processes of the node come last.
func (l live) Flows() (flows iter.Seq[api.Flow], unseen string) {
	older, unseen := l.n.elders.flows()
	return func(yield func(api.Flow) bool) {
		for f := range l.own() {
			if !yield(f) {
				return
			}
		}
		for _, f := range older {
			if !yield(f) {
				return
			}
		}
	}, unseen
}

// own gives the flows of this process.
func (l live) own() iter.Seq[api.Flow] {
	return func(yield func(api.Flow) bool) {
		now := time.Now()
		for f := range l.n.engine.Flows() {
			if !yield(flowOf(f, now)) {
				return
			}
		}
	}
}

// Cut implements api.Live.
func (l live) Cut(match func(api.Flow) bool) (cut int, unseen string) {
	cut, unseen = l.n.elders.cut(match)
	return cut + l.cutOwn(match), unseen
}

// cutOwn ends flows of this process.
func (l live) cutOwn(match func(api.Flow) bool) int {
	now := time.Now()
	return l.n.engine.Cut(func(f l4.FlowInfo) bool { return match(flowOf(f, now)) })
}

func flowOf(f l4.FlowInfo, now time.Time) api.Flow {
	return api.Flow{
		ID: f.ID, Proto: f.Proto.String(), Listener: f.Listener, Port: f.Port, Client: f.Client, Backend: f.Backend, Address: f.Address,
		Route: f.Route, Env: f.Env, Service: f.Service, HTTP: f.HTTP,
		Since: f.Since.UTC().Truncate(time.Millisecond), Age: now.Sub(f.Since).Seconds(), Up: f.Up, Down: f.Down,
	}
}

func (l live) Mappings() iter.Seq[api.Mapping] {
	return func(yield func(api.Mapping) bool) {
		health := healthOf(l.n.engine.Health())
		for m, t := range l.n.engine.Mappings() {
			if !yield(api.Mapping{
				Proto: m.Proto.String(), Port: m.Port, Backend: firstTarget(m.Backend), HTTP: firstTarget(m.HTTP),
				Targets: health.targets(m.Backend), HTTPTargets: health.targets(m.HTTP), Verdict: l.n.control.Verdict(m.Key()),
				Env: m.Env, Service: m.Service, Live: t.Live,
				Started: t.Started, Refused: t.Refused, Unreachable: t.Unreachable, Up: t.Up, Down: t.Down,
			}) {
				return
			}
		}
	}
}

// targetHealth is what checks know of targets. Two backends may have the same
// address checked in different ways.
type targetHealth map[checkedTarget]upstream.TargetHealth

type checkedTarget struct {
	endpoint upstream.Endpoint
	health   router.Health
	asking   upstream.Asking
}

func healthOf(all []upstream.TargetHealth) targetHealth {
	known := make(targetHealth, len(all))
	for _, t := range all {
		known[checkedTarget{t.Endpoint, t.Health, t.Asking}] = t
	}
	return known
}

// targets describes the targets of b, which may be nil.
func (h targetHealth) targets(b *router.Backend) []api.Target {
	all, _ := h.targetsFor(b, &router.Vars{}) // as they are written, where they have variables
	return all
}

// targetsFor describes the targets of b for a request with the variables vars.
// The error says which of them these make no address of.
func (h targetHealth) targetsFor(b *router.Backend, vars *router.Vars) (all []api.Target, bad error) {
	if b == nil {
		return nil, nil
	}
	all = make([]api.Target, len(b.Targets))
	for i := range b.Targets {
		t := &b.Targets[i]
		all[i] = api.Target{Address: t.Address.String(), Weight: max(t.Weight, 1)}
		host, port, err := t.Address.Expand(vars)
		if err == nil {
			all[i].Address = net.JoinHostPort(host, strconv.Itoa(port))
		} else if bad == nil {
			bad = err
		}
		if b.Health == nil {
			continue
		}
		known, ok := h[checkedTarget{upstream.EndpointOf(b, i, host, port), b.Health.WithDefaults(), upstream.AskingOf(b, host)}]
		if err != nil || !ok { // the mapping has come or gone since
			continue
		}
		all[i].Health = "up"
		if !known.Up {
			all[i].Health = "down"
		}
		if known.Err != nil {
			all[i].HealthErr = known.Err.Error()
		}
	}
	return all, bad
}

func firstTarget(b *router.Backend) string {
	if b == nil || len(b.Targets) == 0 {
		return ""
	}
	return b.Targets[0].Address.String()
}
