package envs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// Finding is something that does not fit together.
type Finding struct {
	// Kind is unmapped (held without a mapping), unheld (mapped in a pool without
	// being held), orphaned (held by an environment that is gone or knows nothing
	// of it), foreign (held, with a mapping that is somebody else's), unowned (an
	// environment's port that it does not hold), stranded (held outside of the
	// pool), shared (a name at which two environments answer), refused (a pool that
	// is not in force), or unreadable.
	Kind    string `json:"kind"`
	Key     string `json:"key"`
	Env     string `json:"env,omitempty"`
	Service string `json:"service,omitempty"`
	Text    string `json:"text"`
}

// Audit compares allocations, mappings and environments as of one moment.
func (m *Manager) Audit(ctx context.Context) ([]Finding, error) {
	if _, err := m.current(ctx); err != nil {
		return nil, err
	}
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	found := []Finding{}
	for _, look := range []func() []Finding{m.auditAllocations, m.auditMappings, m.auditEnvs, m.auditHosts} {
		found = append(found, look()...)
	}
	for _, service := range slices.Sorted(maps.Keys(m.reg.refused)) {
		found = append(found, Finding{Kind: "refused", Key: poolsFolder + service, Service: service, Text: fmt.Sprintf("is not in force: %v", m.reg.refused[service])})
	}
	for _, key := range slices.Sorted(maps.Keys(m.reg.broken)) {
		found = append(found, Finding{Kind: "unreadable", Key: key, Text: m.reg.broken[key].err.Error()})
	}
	slices.SortStableFunc(found, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Env, b.Env)) })
	return found, nil
}

// auditAllocations looks at each port that is held.
func (m *Manager) auditAllocations() (found []Finding) {
	m.reg.book.All(func(proto router.Proto, port int, a *portpool.Allocation, _ int64) bool {
		if a.Reserved != "" || !a.Released.IsZero() {
			return true
		}
		add := func(kind, format string, args ...any) {
			found = append(found, Finding{kind, portpool.Key(proto, port), a.Env, a.Service, fmt.Sprintf(format, args...)})
		}
		e := m.reg.envs[a.Env]
		if e == nil {
			add("orphaned", "is held by environment %s, which is gone", a.Env)
		} else if s := e.Services[a.Service]; s == nil || !s.has(proto, port) {
			add("orphaned", "is held by %s of environment %s, which says nothing of it", a.Service, a.Env)
		}
		if p := m.reg.pools[a.Service].pool; p == nil {
			add("stranded", "is held for %s, which has no pool", a.Service)
		} else if !p.Ports.Contains(port) {
			add("stranded", "is held for %s, outside of its pool (%v)", a.Service, p.Ports)
		}
		if !m.reg.book.Mapped(proto, port) {
			add("unmapped", "is held by %s of environment %s, and has no mapping", a.Service, a.Env)
		} else if key := router.MappingKey(proto, port); m.reg.maps[key].env != a.Env {
			add("foreign", "is held by %s of environment %s, and its mapping (%s) is %s", a.Service, a.Env, key, whose(m.reg.maps[key].env))
		}
		return true
	})
	return found
}

// whose says in words whose a mapping is.
func whose(env string) string {
	if env == "" {
		return "nobody's: it was put there by hand"
	}
	return "that of environment " + env
}

// auditHosts looks at the names at which environments answer. Nodes take the
// older of two routes that are alike; no change of an environment makes such, but
// somebody may have put one by hand, or a pool's new route.host led to it.
func (m *Manager) auditHosts() (found []Finding) {
	for _, host := range slices.Sorted(maps.Keys(m.reg.hosts)) {
		first := map[string]string{} // keys by paths
		for _, key := range slices.Sorted(maps.Keys(m.reg.hosts[host])) {
			at := m.reg.routes[key]
			if !strings.HasPrefix(key, routesFolder+routePrefix) {
				continue
			}
			if other, taken := first[at.path]; !taken {
				first[at.path] = key
			} else if m.reg.routes[other].env != at.env {
				found = append(found, Finding{"shared", key, at.env, "", fmt.Sprintf("answers at %s%s, as %s does", host, at.path, other)})
			}
		}
	}
	return found
}

// has reports whether a port is one of the service's.
func (s *Service) has(proto router.Proto, port int) bool {
	ports, ok := s.ports()
	return ok && port >= ports.First && port <= ports.Last && slices.Contains(s.protos(), proto)
}

// auditMappings looks at each mapping on a port of a pool.
func (m *Manager) auditMappings() (found []Finding) {
	for _, key := range slices.Sorted(maps.Keys(m.reg.maps)) {
		k, err := router.ParseKey(key)
		if err != nil {
			continue
		}
		a, _ := m.reg.book.Allocation(k.Proto, k.Port)
		if a != nil && a.Released.IsZero() && a.Reserved == "" {
			continue
		}
		for _, service := range m.reg.book.Services() {
			p := m.reg.book.Pool(service)
			if p.Ports.Contains(k.Port) && slices.Contains(p.Protos(), k.Proto) {
				found = append(found, Finding{"unheld", key, m.reg.maps[key].env, service, fmt.Sprintf("is a mapping on a port of the pool %s that nobody holds", service)})
			}
		}
	}
	return found
}

// auditEnvs looks at what environments say they have.
func (m *Manager) auditEnvs() (found []Finding) {
	for _, id := range slices.Sorted(maps.Keys(m.reg.envs)) {
		e := m.reg.envs[id]
		for _, name := range e.names() {
			s := e.Services[name]
			ports, ok := s.ports()
			for port := ports.First; ok && port <= ports.Last; port++ {
				for _, proto := range s.protos() {
					a, _ := m.reg.book.Allocation(proto, port)
					if a == nil || a.Env != id || a.Service != name || !a.Released.IsZero() {
						found = append(found, Finding{"unowned", envsFolder + id, id, name, fmt.Sprintf("says it has %s port %d, and does not hold it", proto, port)})
					}
				}
			}
		}
	}
	return found
}
