package envs

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

const (
	envsFolder   = "envs/"
	allocsFolder = "allocations/"
	poolsFolder  = "pools/"
	portsFolder  = "ports/"
	routesFolder = "routes/"

	// routePrefix is what the names of environments' routes begin with. After it
	// come the environment, in which there is no dot, and the service.
	routePrefix = "env."
)

// Env is an environment: the value of the key envs/<id>.
type Env struct {
	ID  string `json:"-"`
	Rev int64  `json:"-"` // etcd revision of the value; 0: not read from etcd

	size int // bytes that key and value take

	// Backend is the host where the services listen that do not say otherwise.
	Backend   string    `json:"backend"`
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt, unless zero, is when all of it ends by itself.
	ExpiresAt time.Time `json:"expires_at"`
	// Services are what the environment has, by the names of their pools.
	Services map[string]*Service `json:"services"`
}

// Service is one service of an environment.
type Service struct {
	// Port is the first of its public ports and Span how many there are in a
	// row, 0 meaning one. Port is 0 where the service is reached by name.
	Port int `json:"port,omitempty"`
	Span int `json:"span,omitempty"`
	// Protocol is what the ports are held for, as Pool.Protocol has it.
	Protocol string `json:"protocol,omitempty"`
	// Backend is the host:port behind Port, that behind the next port being the
	// next one. Empty: ports are held, and mappings are somebody else's affair.
	Backend string `json:"backend,omitempty"`
	// Route is the name of the route that was made for it; empty: none.
	Route string `json:"route,omitempty"`
	// Username takes the place of the pool's.
	Username string `json:"username,omitempty"`
	// InnerPorts are those inside that clients may name.
	InnerPorts router.Ports `json:"inner_ports,omitempty"`
	// Mapping are further fields of its mappings.
	Mapping json.RawMessage `json:"mapping,omitempty"`
	// Secrets are what people need to log in, sealed with the cluster key, in
	// base64.
	Secrets string `json:"secrets,omitempty"`
}

// ports returns the public ports, and false where there are none.
func (s *Service) ports() (router.PortRange, bool) {
	return router.PortRange{First: s.Port, Last: s.Port + max(s.Span, 1) - 1}, s.Port != 0
}

// protos returns what the ports are held for.
func (s *Service) protos() []router.Proto {
	return (&portpool.Pool{Protocol: s.Protocol}).Protos()
}

// Keys returns the keys that nodes have e's ports and names from, in order: those
// of its mappings and routes.
func (e *Env) Keys() []string {
	var all []string
	for _, name := range e.names() {
		s := e.Services[name]
		if ports, ok := s.ports(); ok && s.Backend != "" {
			for _, proto := range s.protos() {
				for port := ports.First; port <= ports.Last; port++ {
					all = append(all, router.MappingKey(proto, port))
				}
			}
		}
		if s.Route != "" {
			all = append(all, "routes/"+s.Route)
		}
	}
	return all
}

// MarshalJSON writes what is set, as ParseEnv reads it.
func (e *Env) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Backend   string              `json:"backend,omitempty"`
		CreatedAt time.Time           `json:"created_at"`
		ExpiresAt time.Time           `json:"expires_at,omitzero"`
		Services  map[string]*Service `json:"services"`
	}{e.Backend, e.CreatedAt, e.ExpiresAt, e.Services})
}

// View is an environment as people and programs are shown it: without secrets.
type View struct {
	ID        string              `json:"id"`
	Revision  int64               `json:"revision"` // of etcd; changes can be made to depend on it
	Backend   string              `json:"backend,omitempty"`
	CreatedAt time.Time           `json:"created_at"`
	ExpiresAt time.Time           `json:"expires_at,omitzero"`
	Services  map[string]*Service `json:"services"`
}

// View returns e as it may be shown.
func (e *Env) View() View {
	services := make(map[string]*Service, len(e.Services))
	for name, s := range e.Services {
		bare := *s
		bare.Secrets = ""
		services[name] = &bare
	}
	return View{e.ID, e.Rev, e.Backend, e.CreatedAt, e.ExpiresAt, services}
}

// ParseEnv reads the value of the key envs/<id>. The error is a
// *router.FieldError.
func ParseEnv(id string, value []byte) (*Env, error) {
	e := &Env{ID: id}
	if err := router.Decode(value, e); err != nil {
		return nil, err
	}
	for _, name := range e.names() {
		s := e.Services[name]
		if s == nil {
			return nil, &router.FieldError{Path: "services." + name, Msg: "is empty"}
		}
		if ports, ok := s.ports(); ok && (ports.First < 1 || ports.Last > router.MaxPort || s.Span < 0 || s.Span > portpool.MaxSpan) {
			return nil, &router.FieldError{Path: "services." + name + ".port", Msg: fmt.Sprintf("%v are no ports; they run from 1 to %d", ports, router.MaxPort)}
		}
		if !slices.Contains([]string{"", "tcp", "udp", "tcp+udp"}, s.Protocol) {
			return nil, &router.FieldError{Path: "services." + name + ".protocol", Msg: fmt.Sprintf(`%q is none; write "tcp", "udp" or "tcp+udp"`, s.Protocol)}
		}
	}
	return e, nil
}

// names returns the names of the services, in order.
func (e *Env) names() []string { return slices.Sorted(maps.Keys(e.Services)) }

// clone returns a copy that may be changed. What services point to is shared and
// never modified in place.
func (e *Env) clone() *Env {
	c := *e
	c.Services = maps.Clone(e.Services)
	return &c
}

// CheckID refuses what cannot be an environment's name: it becomes part of host
// names, so it is one label (RFC 1123 section 2.1).
func CheckID(id string) error {
	if id == "" || len(id) > 63 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || id[0] == '-' || id[len(id)-1] == '-' {
		return &router.FieldError{Path: "id", Msg: fmt.Sprintf("%q is not the name of an environment; it becomes part of host names: 1 to 63 of a-z, 0-9 and hyphens, neither first nor last a hyphen", id)}
	}
	return nil
}
