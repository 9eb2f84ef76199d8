package v1

import (
	"maps"
	"slices"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
)

// What other packages know, in the words of the API. The commands of sluice use
// them too, where they go to etcd themselves.

// EnvironmentOf returns an environment as it may be shown: without secrets.
func EnvironmentOf(e *envs.Env) wire.Environment {
	v := wire.Environment{ID: e.ID, Revision: e.Rev, Backend: e.Backend, CreatedAt: e.CreatedAt, ExpiresAt: e.ExpiresAt, Services: map[string]*wire.Service{}}
	for name, s := range e.Services {
		v.Services[name] = ServiceOf(s)
	}
	return v
}

// ServiceOf returns a service as it may be shown.
func ServiceOf(s *envs.Service) *wire.Service {
	return &wire.Service{
		Port: s.Port, Span: s.Span, Protocol: s.Protocol, Backend: s.Backend, Route: s.Route, Username: s.Username, InnerPorts: s.InnerPorts, Mapping: s.Mapping,
	}
}

// AccessOf returns how services are reached.
func AccessOf(all map[string]envs.Access) map[string]wire.Access {
	to := make(map[string]wire.Access, len(all))
	for name, a := range all {
		to[name] = wire.Access(a)
	}
	return to
}

// KeyOf returns a key and what the nodes make of it.
func KeyOf(e keys.Entry) wire.Key {
	return wire.Key{Key: e.Key, Value: wire.ValueOf(e.Value), Revision: e.Rev, Verdicts: e.Verdicts}
}

// PlanOf returns what wishes come to.
func PlanOf(p *keys.Plan) wire.KeyPlan {
	return wire.KeyPlan{Revision: p.Rev, Changes: p.Changes, Same: p.Same, Findings: p.Findings, Missing: p.Missing}
}

// PastOf returns a change that was made.
func PastOf(c history.Change) wire.PastChange {
	return wire.PastChange{Revision: c.Rev, Time: c.Time, By: c.By, Key: c.Key, Before: c.Before, After: c.After, Omitted: c.Omitted}
}

// StatusOf returns a cluster at a glance. What a node derives secrets of is not in
// it.
func StatusOf(st *keys.Status) wire.Status {
	to := wire.Status{Revision: st.Revision, Keys: st.Keys, Nodes: []wire.Node{}, Absent: st.Absent, Troubles: st.Troubles}
	for _, n := range st.Nodes {
		to.Nodes = append(to.Nodes, wire.Node{
			Name: n.Name, Version: n.Version, State: string(n.State), Addresses: n.Addresses, Region: n.Region, Weight: n.Weight, Started: n.Started, Applied: n.Applied, Fingerprint: n.Fingerprint,
			Older:  (*wire.Older)(n.Older),
			Behind: n.Behind, AppliedKeys: n.AppliedKeys, RefusedKeys: n.RefusedKeys, DegradedKeys: n.DegradedKeys, HeldKeys: n.HeldKeys,
		})
	}
	return to
}

// TokenOf returns a token as it is shown.
func TokenOf(t *tokens.Token) wire.Token {
	return wire.Token{
		Name: t.Name, Role: string(t.Role), Envs: t.Envs, Pools: t.Pools, Certificate: t.Certificate,
		CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, FormerUntil: t.FormerUntil, Note: t.Note,
	}
}

// PortsOf returns ports in their order.
func PortsOf(all []envs.Held) []wire.Port {
	to := make([]wire.Port, len(all))
	for i, h := range all {
		to[i] = wire.Port(h)
	}
	return to
}

// FindingsOf returns what does not fit together.
func FindingsOf(all []envs.Finding) []wire.PortFinding {
	to := make([]wire.PortFinding, len(all))
	for i, f := range all {
		to[i] = wire.PortFinding(f)
	}
	return to
}

// UsageOf returns the numbers of pools in the order of their names.
func UsageOf(all map[string]portpool.Stats) []wire.PoolUsage {
	to := []wire.PoolUsage{}
	for _, service := range slices.Sorted(maps.Keys(all)) {
		to = append(to, wire.PoolUsage{Service: service, Stats: all[service]})
	}
	return to
}
