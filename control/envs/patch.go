package envs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// maxKeys is how many keys an environment may have, so that it can be deleted in
// one transaction too.
const maxKeys = etcd.MaxEdits - 3

// Patch says what is to be changed of an environment. Absent fields leave things
// as they are.
type Patch struct {
	// Rev, unless 0, is the revision that the environment must be as of.
	Rev int64
	// Backend moves the services that listen at the environment's backend.
	Backend *string
	// ExpiresAt is when it ends; zero: never.
	ExpiresAt *time.Time
	// Services are added, changed or, where nil, dropped. Of one that is there
	// already, empty fields stay as they are, and its ports cannot be changed.
	Services map[string]*ServiceSpec
}

// StaleError says that an environment is no longer as of the revision that a
// change was meant for.
type StaleError struct {
	ID       string
	Rev, Now int64
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("environment %s is as of revision %d by now, not %d; look at it and try again", e.ID, e.Now, e.Rev)
}

// Patch changes an environment, or leaves all of it as it is. Ports of dropped
// services rest in quarantine. The errors are those of Create, a *NotFoundError
// and a *StaleError.
func (m *Manager) Patch(ctx context.Context, id string, p Patch) (e *Env, err error) {
	defer func(start time.Time) { m.cfg.Metrics.done("patch", start, err) }(time.Now())
	services := make(map[string]*ServiceSpec, len(p.Services))
	for name, s := range p.Services {
		if s != nil {
			c := *s
			if c.sealed, err = m.seal(ctx, id, c.Secrets); err != nil {
				return nil, Within("services."+name, err)
			}
			s = &c
		}
		services[name] = s
	}
	p.Services = services
	rev, err := m.change(ctx, func(d *draft) error {
		there, err := m.env(id)
		if err != nil {
			return err
		}
		if p.Rev != 0 && p.Rev != there.Rev {
			return &StaleError{id, p.Rev, there.Rev}
		}
		e = there.clone()
		return m.patch(d, e, p)
	})
	if err != nil {
		return nil, err
	}
	return withRev(e, rev), nil
}

func (m *Manager) patch(d *draft, e *Env, p Patch) error {
	was := e.Backend
	if p.Backend != nil {
		if err := checkHost(*p.Backend); err != nil {
			return err
		}
		e.Backend = *p.Backend
	}
	if p.ExpiresAt != nil {
		if err := checkExpiry(*p.ExpiresAt, d.now); err != nil {
			return err
		}
		e.ExpiresAt = p.ExpiresAt.UTC()
	}
	for _, name := range e.names() {
		change, said := p.Services[name]
		if said && change == nil {
			m.drop(d, e, name)
			continue
		}
		if err := m.changeService(d, e, name, was, change); err != nil {
			return Within("services."+name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if e.Services[name] != nil {
			continue
		}
		spec := p.Services[name]
		if spec == nil {
			if there := m.reg.envs[e.ID]; there.Services[name] == nil {
				return &NotFoundError{e.ID, name}
			}
			continue
		}
		if err := m.addService(d, e, name, *spec); err != nil {
			return err
		}
	}
	if err := e.checkSize(); err != nil {
		return err
	}
	return m.putEnv(d, e)
}

// checkSize refuses an environment that no transaction could delete.
func (e *Env) checkSize() error {
	keys := 1
	for _, s := range e.Services {
		if ports, ok := s.ports(); ok {
			keys += 2 * ports.Size() * len(s.protos())
		}
		if s.Route != "" {
			keys++
		}
	}
	if len(e.Services) > MaxServices || keys > maxKeys {
		return &router.FieldError{Path: "services", Msg: fmt.Sprintf("come to %d services with %d keys; an environment has at most %d with %d", len(e.Services), keys, MaxServices, maxKeys)}
	}
	return nil
}

// changeService brings a service that e keeps up to date: was is the backend that
// e had, and change what is asked for, nil being nothing.
func (m *Manager) changeService(d *draft, e *Env, name, was string, change *ServiceSpec) error {
	s := *e.Services[name]
	if host, port, err := net.SplitHostPort(s.Backend); err == nil && host == was && was != e.Backend {
		s.Backend = net.JoinHostPort(e.Backend, port)
		if err := cmp.Or(checkBackend(s.Backend), m.checkAddress(d, e.Backend)); err != nil {
			return err
		}
	}
	pool, err := m.reg.pool(name)
	if err != nil {
		if change != nil {
			return err
		}
		return m.carry(d, e, name, &s)
	}
	m.checkPool(d, name)
	if change != nil {
		if change.Port != 0 && change.Port != s.Port || change.Span != 0 && change.Span != max(s.Span, 1) {
			return &router.FieldError{Path: "port", Msg: fmt.Sprintf("cannot be changed from %d; drop the service and add it anew", s.Port)}
		}
		if err := m.applyChange(d, &s, e, pool, change); err != nil {
			return err
		}
	}
	e.Services[name] = &s
	if err := m.mapPorts(d, e, pool, &s); err != nil {
		return err
	}
	return m.addRoute(d, e, pool, &s)
}

// applyChange takes over what is said of a service.
func (m *Manager) applyChange(d *draft, s *Service, e *Env, pool *portpool.Pool, change *ServiceSpec) (err error) {
	if err := m.checkSpec(d, pool, *change); err != nil {
		return err
	}
	if change.Backend != "" {
		if s.Backend, err = m.backendFor(d, e, pool, change.Backend); err != nil {
			return err
		}
	}
	if change.Username != "" {
		s.Username = change.Username
	}
	if change.InnerPorts != nil {
		s.InnerPorts = change.InnerPorts
	}
	if change.Mapping != nil {
		s.Mapping = change.Mapping
	}
	if change.Secrets != nil {
		s.Secrets = change.sealed
	}
	return nil
}

// drop takes a service away from e: its ports rest, its mappings and its route
// are deleted.
func (m *Manager) drop(d *draft, e *Env, name string) {
	s := e.Services[name]
	delete(e.Services, name)
	if s.Route != "" {
		m.delete(d, routesFolder+s.Route)
	}
	ports, ok := s.ports()
	if !ok {
		return
	}
	for port := ports.First; port <= ports.Last; port++ {
		for _, proto := range s.protos() {
			m.free(d, e.ID, name, proto, port)
		}
	}
}

// free has a port rest that a service of an environment holds, and takes away its
// mapping. One that says it is another's, or nobody's, was put there by hand.
func (m *Manager) free(d *draft, id, service string, proto router.Proto, port int) {
	rest := portpool.DefaultQuarantine
	if p := m.reg.book.Pool(service); p != nil {
		rest = p.Rest()
	}
	if a, rev := m.reg.book.Allocation(proto, port); a != nil && a.Env == id && a.Service == service && a.Released.IsZero() {
		value, _ := a.Release(d.now, rest).MarshalJSON() // its times are ones that JSON has
		d.edits = append(d.edits, etcd.Edit{Key: portpool.Key(proto, port), Value: value, Since: rev})
	}
	if key := router.MappingKey(proto, port); m.reg.maps[key].env == id {
		m.delete(d, key)
	}
}

// Delete ends an environment: mappings and routes go, ports rest. rev, unless 0,
// is the revision that it must be as of.
func (m *Manager) Delete(ctx context.Context, id string, rev int64) (done int64, err error) {
	defer func(start time.Time) { m.cfg.Metrics.done("delete", start, err) }(time.Now())
	return m.change(ctx, func(d *draft) error {
		there, err := m.env(id)
		if err != nil {
			return err
		}
		if rev != 0 && rev != there.Rev {
			return &StaleError{id, rev, there.Rev}
		}
		e := there.clone()
		for _, name := range e.names() {
			m.drop(d, e, name)
		}
		m.delete(d, envsFolder+id)
		return nil
	})
}

// Get returns an environment. It must not be modified.
func (m *Manager) Get(ctx context.Context, id string) (*Env, error) {
	stale, err := m.current(ctx)
	if err != nil {
		return nil, err
	}
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	return m.envAsOf(id, stale)
}

// List returns at most limit environments whose names begin with prefix, in the
// order of names, from the one after the name after. They must not be modified.
// While etcd does not answer they are those that were last known.
func (m *Manager) List(ctx context.Context, prefix, after string, limit int) ([]*Env, error) {
	if _, err := m.current(ctx); err != nil {
		return nil, err
	}
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	ids := make([]string, 0, len(m.reg.envs))
	for id := range m.reg.envs {
		if id > after && len(id) >= len(prefix) && id[:len(prefix)] == prefix {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	list := make([]*Env, min(limit, len(ids)))
	for i := range list {
		list[i] = m.reg.envs[ids[i]]
	}
	return list, nil
}
