package envs

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// Spec says what an environment is to be.
type Spec struct {
	ID string `json:"id"`
	// Backend is the host of its services; empty: the pools say, or each service
	// does.
	Backend string `json:"backend"`
	// ExpiresAt is when all of it ends; zero: it does not.
	ExpiresAt time.Time              `json:"expires_at"`
	Services  map[string]ServiceSpec `json:"services"` // by the names of their pools
}

// ServiceSpec says what a service of an environment is to be.
type ServiceSpec struct {
	Port int `json:"port"` // the very public port; 0: any of the pool
	Span int `json:"span"` // ports in a row; 0: one
	// Backend is a host, host:port or :port; what is missing the environment and
	// the pool say.
	Backend  string `json:"backend"`
	Username string `json:"username"` // empty: the pool says
	// InnerPorts are those inside that clients may name, where the pool's route
	// has them name one.
	InnerPorts router.Ports      `json:"inner_ports"`
	Mapping    json.RawMessage   `json:"mapping"` // further fields of its mappings
	Secrets    map[string]string `json:"secrets"` // what its users need to log in
	sealed     string            // Secrets, as etcd may have them
}

// ParseSpec reads a Spec from JSON. The error is a *router.FieldError.
func ParseSpec(value []byte) (Spec, error) {
	var s Spec
	err := router.Decode(value, &s)
	return s, err
}

// MaxServices is how many services an environment may have.
const MaxServices = 24

// Create makes an environment with all its ports, mappings and routes, or nothing
// at all. Asked again for the same, it returns what there is. The errors are
// *router.FieldError, *ExistsError, those of portpool, and etcd's.
func (m *Manager) Create(ctx context.Context, spec Spec) (e *Env, err error) {
	defer func(start time.Time) { m.cfg.Metrics.done("create", start, err) }(time.Now())
	if err := CheckID(spec.ID); err != nil {
		return nil, err
	}
	if len(spec.Services) == 0 || len(spec.Services) > MaxServices {
		return nil, &router.FieldError{Path: "services", Msg: fmt.Sprintf("give 1 to %d, by the names of their pools, not %d", MaxServices, len(spec.Services))}
	}
	// Before anything is locked: the cluster key may have to be waited for.
	services := make(map[string]ServiceSpec, len(spec.Services))
	for name, s := range spec.Services {
		if s.sealed, err = m.seal(ctx, spec.ID, s.Secrets); err != nil {
			return nil, Within("services."+name, err)
		}
		services[name] = s
	}
	rev, err := m.change(ctx, func(d *draft) error {
		there, err := m.env(spec.ID)
		if err == nil {
			e, d.same = there, true
			return m.sameAs(spec, there)
		}
		if !errors.As(err, new(*NotFoundError)) {
			return err
		}
		if err := checkExpiry(spec.ExpiresAt, d.now); err != nil {
			return err
		}
		if err := checkHost(spec.Backend); err != nil {
			return err
		}
		e = &Env{ID: spec.ID, Backend: spec.Backend, CreatedAt: d.now, ExpiresAt: spec.ExpiresAt.UTC(), Services: map[string]*Service{}}
		for _, name := range slices.Sorted(maps.Keys(services)) {
			if err := m.addService(d, e, name, services[name]); err != nil {
				return err
			}
		}
		return m.putEnv(d, e)
	})
	if err != nil {
		return nil, err
	}
	return withRev(e, rev), nil
}

// maxEnv bounds the record of an environment.
const maxEnv = 64 << 10

// putEnv adds the record of e, which is not to grow without bound.
func (m *Manager) putEnv(d *draft, e *Env) error {
	if err := m.put(d, envsFolder+e.ID, e); err != nil {
		return err
	}
	if n := len(d.edits[len(d.edits)-1].Value); n > maxEnv {
		return &router.FieldError{Path: "services", Msg: fmt.Sprintf("come to %d bytes with all that is said of them; an environment has at most %d", n, maxEnv)}
	}
	return nil
}

// withRev returns e as of the revision of its change; 0: there was none.
func withRev(e *Env, rev int64) *Env {
	if rev != 0 {
		e.Rev = rev
	}
	return e
}

func checkExpiry(at, now time.Time) error {
	if at.UTC().Year() > 9999 {
		return &router.FieldError{Path: "expires_at", Msg: "lies beyond the year 9999, in UTC; leave it out"}
	}
	if !at.IsZero() && !at.After(now) {
		return &router.FieldError{Path: "expires_at", Msg: fmt.Sprintf("%s is over; give a time to come, or leave it out", at.UTC().Format(time.RFC3339))}
	}
	return nil
}

// addService gives e a service: chooses its ports, and has them, its mappings and
// its route written.
func (m *Manager) addService(d *draft, e *Env, name string, spec ServiceSpec) (err error) {
	defer func() { err = Within("services."+name, err) }()
	p, err := m.reg.pool(name)
	if err != nil {
		return err
	}
	m.checkPool(d, name)
	if err := m.checkSpec(d, p, spec); err != nil {
		return err
	}
	if len(spec.InnerPorts) > 0 && !p.Route.Inner() {
		return &router.FieldError{Path: "inner_ports", Msg: fmt.Sprintf("mean nothing: the route of the pool %s has no ${inner} in its host", name)}
	}
	s := &Service{Username: spec.Username, Mapping: spec.Mapping, InnerPorts: spec.InnerPorts, Secrets: spec.sealed}
	if s.Backend, err = m.backendFor(d, e, p, spec.Backend); err != nil {
		return err
	}
	if len(p.Ports) == 0 && (spec.Port != 0 || spec.Span != 0) {
		return &router.FieldError{Path: "port", Msg: fmt.Sprintf("the pool %s has no ports: environments are reached at %s", name, p.Route.Host)}
	}
	if len(p.Ports) > 0 {
		if err := m.allocate(d, e, p, spec); err != nil {
			return err
		}
		g := d.grants[len(d.grants)-1]
		s.Port, s.Protocol = g.Ports.First, p.Protocol
		if g.Ports.Size() > 1 {
			s.Span = g.Ports.Size()
		}
		if err := m.mapPorts(d, e, p, s); err != nil {
			return err
		}
	}
	if err := m.addRoute(d, e, p, s); err != nil {
		return err
	}
	e.Services[name] = s
	return nil
}

// Within puts a *router.FieldError into its place; others say it themselves.
func Within(path string, err error) error {
	var fe *router.FieldError
	if !errors.As(err, &fe) {
		return err
	}
	at := path
	if fe.Path != "" {
		at += "." + fe.Path
	}
	return &router.FieldError{Path: at, Msg: fe.Msg}
}

// allocate chooses ports and adds the edits that make them e's.
func (m *Manager) allocate(d *draft, e *Env, p *portpool.Pool, spec ServiceSpec) error {
	g, err := m.reg.book.Choose(portpool.Request{Env: e.ID, Service: p.Service, Port: spec.Port, Span: spec.Span, Skip: d.skip}, d.now, rand.IntN)
	if err != nil {
		return err
	}
	m.reg.book.Claim(g)
	d.grants = append(d.grants, g)
	for _, c := range g.Claims {
		if old, _ := m.reg.book.Allocation(c.Proto, c.Port); old != nil {
			d.rested = append(d.rested, d.now.Sub(old.Released))
		}
		if err := m.put(d, portpool.Key(c.Proto, c.Port), &portpool.Allocation{Env: e.ID, Service: p.Service, Since: d.now}); err != nil {
			return err
		}
	}
	return nil
}

// checkHost refuses what is no host of an environment, whose services have the ports
// of their pools; "" is none.
func checkHost(at string) error {
	if host, port, err := net.SplitHostPort(at); err == nil {
		return &router.FieldError{Path: "backend", Msg: fmt.Sprintf("%q has a port; write the host alone, %q, and a service's port as its backend, such as \":%s\"", at, host, port)}
	}
	return nil
}

// backendFor returns the host:port of a service that is asked for, unless it must
// not be there.
func (m *Manager) backendFor(d *draft, e *Env, p *portpool.Pool, said string) (string, error) {
	at, err := backendOf(e, p, said)
	if err != nil || at == "" {
		return at, err
	}
	// What the pool has written out is its author's affair.
	if host := hostOf(at); host == e.Backend || host == hostOf(said) || strings.Contains(p.BackendHost, "${") {
		return at, m.checkAddress(d, host)
	}
	return at, nil
}

// backendOf returns the host:port of a service, or "" where nobody says a host.
func backendOf(e *Env, p *portpool.Pool, said string) (string, error) {
	host, port := said, strconv.Itoa(p.BackendPort)
	if h, prt, err := net.SplitHostPort(said); err == nil {
		host, port = h, prt
	}
	host = cmp.Or(host, e.Backend)
	if host == "" {
		var err error
		if host, err = (portpool.Values{"env": e.ID, "service": p.Service}).Expand(p.BackendHost); err != nil {
			return "", &router.FieldError{Path: "backend", Msg: fmt.Sprintf("the pool's backend_host: %v", err)}
		}
	}
	if host == "" {
		return "", &router.FieldError{Path: "backend", Msg: "is missing: give the environment's, or the pool a backend_host"}
	}
	at := net.JoinHostPort(host, port)
	return at, checkBackend(at)
}

// checkBackend refuses what is no host:port that a service could listen at.
func checkBackend(at string) error {
	var a router.Address
	if err := a.UnmarshalText([]byte(at)); err != nil {
		return &router.FieldError{Path: "backend", Msg: err.Error()}
	}
	if !a.IsLiteral() {
		return &router.FieldError{Path: "backend", Msg: fmt.Sprintf("%q has variables, for which nothing stands here; write an address or a name", at)}
	}
	return nil
}

// mapPorts adds the mappings of a service's ports.
func (m *Manager) mapPorts(d *draft, e *Env, p *portpool.Pool, s *Service) error {
	ports, ok := s.ports()
	if !ok || s.Backend == "" {
		return nil
	}
	host, first, err := net.SplitHostPort(s.Backend)
	if err != nil {
		return &router.FieldError{Path: "backend", Msg: err.Error()}
	}
	behind, err := router.ParsePort(first)
	if err != nil {
		return &router.FieldError{Path: "backend", Msg: err.Error()}
	}
	for i := range ports.Size() {
		value, err := p.MappingValue(e.ID, net.JoinHostPort(host, strconv.Itoa(behind+i)), s.Mapping)
		if err != nil {
			return err
		}
		if value, err = withExpiry(value, e.ExpiresAt); err != nil {
			return err
		}
		for _, proto := range s.protos() {
			if _, err := router.ParseMapping(proto, ports.First+i, value); err != nil {
				return Within("mapping", err)
			}
			key := router.MappingKey(proto, ports.First+i)
			d.edits = append(d.edits, etcd.Edit{Key: key, Value: value, Since: m.reg.rev(key)})
		}
	}
	return nil
}

// withExpiry adds expires_at to a mapping, so that nodes end it on time even
// while nobody can write to etcd.
func withExpiry(value []byte, at time.Time) ([]byte, error) {
	if at.IsZero() {
		return value, nil
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(value, &fields); err != nil {
		return nil, err
	}
	text, err := json.Marshal(at)
	if err != nil {
		return nil, err
	}
	fields["expires_at"] = text
	return json.Marshal(fields)
}

// addRoute adds the route of a service that is reached by name.
func (m *Manager) addRoute(d *draft, e *Env, p *portpool.Pool, s *Service) error {
	if p.Route.Host == "" {
		return nil
	}
	values := valuesOf(e, p, s)
	value, err := p.RouteValue(values, s.Backend, s.InnerPorts)
	if err != nil {
		return err
	}
	name := routePrefix + e.ID + "." + p.Service
	if _, err := router.ParseRoute(name, value); err != nil {
		return Within("route", err)
	}
	rev := m.reg.rev(routesFolder + name)
	if rev != 0 && s.Route != name {
		return &ExistsError{e.ID, fmt.Sprintf("as far as its route %s%s: somebody else has put that; delete it", routesFolder, name)}
	}
	if err := m.reg.checkHost(e, p, s, values); err != nil {
		return err
	}
	m.checkMeanwhile(d, e, p, s, values)
	s.Route = name
	d.edits = append(d.edits, etcd.Edit{Key: routesFolder + name, Value: value, Since: rev})
	return nil
}

// valuesOf are what the variables of the pool's texts stand for, but for secrets.
func valuesOf(e *Env, p *portpool.Pool, s *Service) portpool.Values {
	v := portpool.Values{"env": e.ID, "service": p.Service, "port": strconv.Itoa(s.Port), "username": cmp.Or(s.Username, p.Access.Username), "host": ""}
	if host, err := v.Expand(p.Access.Host); err == nil {
		v["host"] = host
	}
	return v
}

// maxSecrets bounds the secrets of a service.
const maxSecrets = 4 << 10

// seal returns secrets as etcd may have them.
func (m *Manager) seal(ctx context.Context, id string, secrets map[string]string) (string, error) {
	if len(secrets) == 0 {
		return "", nil
	}
	size := 0
	for name, value := range secrets {
		size += len(name) + len(value)
	}
	if size > maxSecrets {
		return "", &router.FieldError{Path: "secrets", Msg: fmt.Sprintf("have %d bytes; at most %d are kept", size, maxSecrets)}
	}
	if m.cfg.Seal == nil {
		return "", &router.FieldError{Path: "secrets", Msg: "cannot be kept: there is no cluster key (cluster_key_file in sluice.yaml) to seal them with; leave them out"}
	}
	plain, err := json.Marshal(secrets)
	if err != nil {
		return "", err
	}
	sealed, err := m.cfg.Seal(ctx, envsFolder+id, plain)
	if err != nil {
		return "", fmt.Errorf("seal the secrets of environment %s: %w", id, err)
	}
	return base64.StdEncoding.EncodeToString(sealed), nil
}

// Reason says in a word why a change came to nothing.
func Reason(err error) string {
	switch {
	case errors.As(err, new(*portpool.ExhaustedError)):
		return "exhausted"
	case errors.As(err, new(*portpool.TakenError)), errors.As(err, new(*HostError)):
		return "taken"
	case errors.As(err, new(*FullError)):
		return "full"
	case errors.As(err, new(*ExistsError)):
		return "exists"
	case errors.As(err, new(*NotFoundError)):
		return "not_found"
	case errors.As(err, new(*router.FieldError)):
		return "invalid"
	}
	return "etcd"
}
