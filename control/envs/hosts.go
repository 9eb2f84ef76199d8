package envs

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// routeAt is what is known of a route: enough to tell who answers at which name.
type routeAt struct {
	rev   int64
	env   string   // whose it says it is
	hosts []string // the exact names among its patterns, in small letters
	path  string
	size  int // bytes that an environment takes with it
}

// hostIndex has the keys of the routes that answer at an exact name.
type hostIndex map[string]map[string]struct{}

// putRoute notes a route, be it one that nodes refuse.
func (r *Registry) putRoute(key string, value []byte, rev int64) {
	r.removeRoute(key)
	at := routeAt{rev: rev}
	var v struct {
		Host json.RawMessage `json:"host"`
		Path string          `json:"path"`
		Env  string          `json:"env"`
	}
	// What cannot be read answers nowhere; nodes say so in its verdict.
	if json.Unmarshal(value, &v) == nil {
		at.env, at.path = v.Env, rootOf(v.Path)
		var one string
		var several []string
		if json.Unmarshal(v.Host, &one) == nil {
			several = []string{one}
		} else {
			_ = json.Unmarshal(v.Host, &several)
		}
		for _, host := range several {
			if host = strings.ToLower(host); !strings.HasPrefix(host, "~") && !strings.Contains(host, "*") {
				at.hosts = append(at.hosts, host)
			}
		}
	}
	if strings.HasPrefix(key, routesFolder+routePrefix) {
		at.size = len(key) + len(value)
	}
	r.routes[key] = at
	r.space += at.size
	for _, host := range at.hosts {
		if r.hosts[host] == nil {
			r.hosts[host] = map[string]struct{}{}
		}
		r.hosts[host][key] = struct{}{}
	}
}

func (r *Registry) removeRoute(key string) {
	at := r.routes[key]
	r.space -= at.size
	for _, host := range at.hosts {
		delete(r.hosts[host], key)
		if len(r.hosts[host]) == 0 {
			delete(r.hosts, host)
		}
	}
	delete(r.routes, key)
}

// rootOf returns a path prefix in one form.
func rootOf(path string) string {
	if path == "" {
		return "/"
	}
	return path
}

// HostError says that an environment's name would lead to somebody else, or
// somebody else's to it.
type HostError struct{ Host, Key string }

func (e *HostError) Error() string {
	return fmt.Sprintf("%s answers at %s already; give the environment another id, or the pool another route.host", e.Key, e.Host)
}

// checkHost refuses a route of e where another one answers at the same name: that
// of another environment, or one that somebody put by hand. values are those that
// the texts of the pool are filled in with.
func (r *Registry) checkHost(e *Env, p *portpool.Pool, s *Service, values portpool.Values) error {
	if p.Route.Inner() {
		for host, keys := range r.hosts {
			if !p.Route.Answers(values, s.InnerPorts, host) {
				continue
			}
			// One that was put by hand is meant to go before.
			made := func(key string, at routeAt) bool {
				return at.env != e.ID && strings.HasPrefix(key, routesFolder+routePrefix)
			}
			if other := r.first(keys, made); other != "" {
				return &HostError{host, other}
			}
		}
		return nil
	}
	host, err := values.Expand(p.Route.Host)
	if err != nil {
		return &router.FieldError{Path: "route.host", Msg: err.Error()}
	}
	path, err := values.Expand(p.Route.Path)
	if err != nil {
		return &router.FieldError{Path: "route.path", Msg: err.Error()}
	}
	host = strings.ToLower(host)
	// A pool without ${env} in its host means to share it.
	alone := strings.Contains(p.Route.Host, "${env}")
	if other := r.first(r.hosts[host], func(key string, at routeAt) bool { return at.env != e.ID && (alone || at.path == rootOf(path)) }); other != "" {
		return &HostError{host, other}
	}
	return r.checkInner(e, host)
}

// checkInner refuses the exact name of a route of e at which clients reach a port
// inside of another environment.
func (r *Registry) checkInner(e *Env, host string) error {
	for _, service := range r.book.Services() {
		p := r.book.Pool(service)
		if !p.Route.Inner() {
			continue
		}
		id := p.Route.EnvAt(host)
		if other := r.envs[id]; id != e.ID && other != nil && other.Services[service] != nil {
			s := other.Services[service]
			if p.Route.Answers(valuesOf(other, p, s), s.InnerPorts, host) {
				return &HostError{host, routesFolder + s.Route}
			}
		}
	}
	return nil
}

// first returns the first of keys, of routes, for which is holds; "": none.
func (r *Registry) first(keys map[string]struct{}, is func(key string, at routeAt) bool) (first string) {
	for key := range keys {
		if (first == "" || key < first) && is(key, r.routes[key]) {
			first = key
		}
	}
	return first
}
