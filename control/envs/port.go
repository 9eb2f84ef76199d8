package envs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// Alloc gives an environment the ports of one service, and makes the environment
// if there is none: mappings are somebody else's affair. Asked again for the
// same, it returns what it gave.
func (m *Manager) Alloc(ctx context.Context, r portpool.Request) (s *Service, rev int64, err error) {
	defer func(start time.Time) { m.cfg.Metrics.done("alloc", start, err) }(time.Now())
	if err := CheckID(r.Env); err != nil {
		return nil, 0, err
	}
	rev, err = m.change(ctx, func(d *draft) error {
		e := &Env{ID: r.Env, CreatedAt: d.now, Services: map[string]*Service{}}
		there, err := m.env(r.Env)
		switch {
		case err == nil:
			e = there.clone()
		case !errors.As(err, new(*NotFoundError)):
			return err
		}
		if s = e.Services[r.Service]; s != nil {
			d.same = true
			if r.Port != 0 && r.Port != s.Port || max(r.Span, 1) != max(s.Span, 1) {
				ports, _ := s.ports()
				return &ExistsError{r.Env, fmt.Sprintf("with %v for %s; release that first", ports, r.Service)}
			}
			return nil
		}
		p, err := m.reg.pool(r.Service)
		if err != nil {
			return Within("service", err)
		}
		m.checkPool(d, r.Service)
		if err := m.allocate(d, e, p, ServiceSpec{Port: r.Port, Span: r.Span}); err != nil {
			return err
		}
		g := d.grants[0]
		for _, c := range g.Claims { // nobody may have mapped one meanwhile
			key := router.MappingKey(c.Proto, c.Port)
			d.edits = append(d.edits, etcd.Edit{Key: key, Check: true, Since: m.reg.rev(key)})
		}
		s = &Service{Port: g.Ports.First, Protocol: p.Protocol}
		if g.Ports.Size() > 1 {
			s.Span = g.Ports.Size()
		}
		e.Services[r.Service] = s
		if err := e.checkSize(); err != nil {
			return err
		}
		return m.putEnv(d, e)
	})
	return s, rev, err
}

// Release takes a service away from an environment; its ports rest, its mappings
// go. An environment that Alloc made goes with its last service. So do ports that
// are held for a service of which the environment says nothing, or which is gone
// itself. What is gone already is no error: the revision is 0 then.
func (m *Manager) Release(ctx context.Context, env, service string) (rev int64, err error) {
	defer func(start time.Time) { m.cfg.Metrics.done("release", start, err) }(time.Now())
	return m.change(ctx, func(d *draft) error {
		there, err := m.env(env)
		if errors.As(err, new(*NotFoundError)) || err == nil && there.Services[service] == nil {
			held := m.reg.book.Held(env, service)
			for _, c := range held[:min(len(held), maxKeys/2)] {
				m.free(d, env, service, c.Proto, c.Port)
			}
			d.same = len(held) == 0
			return nil
		}
		if err != nil {
			return err
		}
		e := there.clone()
		m.drop(d, e, service)
		if len(e.Services) == 0 && e.Backend == "" {
			m.delete(d, envsFolder+env)
			return nil
		}
		return m.put(d, envsFolder+env, e)
	})
}

// Reserve sets ports aside, saying what for; Unreserve ends that.
func (m *Manager) Reserve(ctx context.Context, protos []router.Proto, ports router.PortRange, what string) (rev int64, err error) {
	if what == "" {
		return 0, &router.FieldError{Path: "reserved", Msg: "say what the ports are reserved for: whoever wants them will read it"}
	}
	return m.each(ctx, protos, ports, func(d *draft, proto router.Proto, port int, a *portpool.Allocation) error {
		if a != nil && a.Reserved == what {
			return nil
		}
		if a != nil && a.State(d.now) == portpool.Allocated {
			return &portpool.TakenError{Proto: proto, Port: port, State: portpool.Allocated, Allocation: a}
		}
		return m.put(d, portpool.Key(proto, port), &portpool.Allocation{Reserved: what, Since: d.now})
	})
}

// Unreserve makes ports available that Reserve has set aside, or that rest.
func (m *Manager) Unreserve(ctx context.Context, protos []router.Proto, ports router.PortRange) (rev int64, err error) {
	return m.each(ctx, protos, ports, func(d *draft, proto router.Proto, port int, a *portpool.Allocation) error {
		if a == nil {
			return nil
		}
		if a.State(d.now) == portpool.Allocated {
			return &portpool.TakenError{Proto: proto, Port: port, State: portpool.Allocated, Allocation: a}
		}
		m.delete(d, portpool.Key(proto, port))
		return nil
	})
}

// each has edits made for each of ports, in one transaction.
func (m *Manager) each(ctx context.Context, protos []router.Proto, ports router.PortRange, edit func(*draft, router.Proto, int, *portpool.Allocation) error) (int64, error) {
	if ports.Size()*len(protos) > maxKeys {
		return 0, &router.FieldError{Path: "ports", Msg: fmt.Sprintf("are %d; give at most %d at once, or set them aside with reserved of the pool", ports.Size(), maxKeys/len(protos))}
	}
	return m.change(ctx, func(d *draft) error {
		for port := ports.First; port <= ports.Last; port++ {
			for _, proto := range protos {
				a, _ := m.reg.book.Allocation(proto, port)
				if err := edit(d, proto, port, a); err != nil {
					return err
				}
			}
		}
		d.same = len(d.edits) == 0
		return nil
	})
}

// Held is a port with an allocation, for a list.
type Held struct {
	Proto    string         `json:"proto"`
	Port     int            `json:"port"`
	State    portpool.State `json:"state"`
	Env      string         `json:"env,omitempty"`
	Service  string         `json:"service,omitempty"`
	Since    time.Time      `json:"since,omitzero"`
	Released time.Time      `json:"released,omitzero"`
	Until    time.Time      `json:"until,omitzero"`
	Reserved string         `json:"reserved,omitempty"`
}

// Ports returns the ports of a service, or of all, that have an allocation.
func (m *Manager) Ports(ctx context.Context, service string) ([]Held, error) {
	if _, err := m.current(ctx); err != nil {
		return nil, err
	}
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	now := m.cfg.Now()
	var list []Held
	m.reg.book.All(func(proto router.Proto, port int, a *portpool.Allocation, _ int64) bool {
		p := m.reg.book.Pool(service)
		if service == "" || a.Service == service || a.Reserved != "" && p != nil && p.Ports.Contains(port) {
			list = append(list, Held{proto.String(), port, a.State(now), a.Env, a.Service, a.Since, a.Released, a.Until, a.Reserved})
		}
		return true
	})
	return list, nil
}

const (
	// remember is how long after its rest a port's last holder is remembered,
	// so that the same environment may get the same port again.
	remember = 24 * time.Hour
	// sweepBatch is how many of them are forgotten in a transaction.
	sweepBatch = 100
)

// Sweep ends environments that have expired, and forgets who had which port long
// ago. Several at once, on several nodes, do no harm.
func (m *Manager) Sweep(ctx context.Context) error {
	if err := m.reg.ready(ctx); err != nil {
		return err
	}
	var errs []error
	for _, e := range m.expired() {
		// As of that revision: somebody may be about to renew it.
		_, err := m.Delete(ctx, e.ID, e.Rev)
		if err != nil && !errors.As(err, new(*StaleError)) && !errors.As(err, new(*NotFoundError)) {
			errs = append(errs, fmt.Errorf("end the expired environment %s: %w", e.ID, err))
		}
	}
	for more := true; more; {
		_, err := m.change(ctx, func(d *draft) error {
			m.reg.book.All(func(proto router.Proto, port int, a *portpool.Allocation, rev int64) bool {
				if a.State(d.now) == portpool.Available && d.now.Sub(a.Until) > remember {
					d.edits = append(d.edits, etcd.Edit{Key: portpool.Key(proto, port), Delete: true, Since: rev})
				}
				return len(d.edits) < sweepBatch
			})
			d.same, more = len(d.edits) == 0, len(d.edits) == sweepBatch
			return nil
		})
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("forget ports released long ago: %w", err))...)
		}
		if more && m.cfg.Refresh != nil {
			if err := m.cfg.Refresh(ctx); err != nil {
				return err
			}
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) expired() []*Env {
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	now := m.cfg.Now()
	var list []*Env
	for _, e := range m.reg.envs {
		if !e.ExpiresAt.IsZero() && !now.Before(e.ExpiresAt) {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *Env) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	return list
}

// Stats returns the numbers of all pools at the time now.
func (m *Manager) Stats(ctx context.Context, now time.Time) (map[string]portpool.Stats, error) {
	if _, err := m.current(ctx); err != nil {
		return nil, err
	}
	return m.reg.Stats(now), nil
}
