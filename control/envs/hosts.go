package envs

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
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
type HostError struct {
	Service   string // of the environment that was to be made or changed
	Host, Key string // the name, and the route that answers at it
	Env       string // whose that is; "": nobody's, it was put by hand
}

func (e *HostError) Error() string {
	whose := ""
	if e.Env != "" {
		whose = ", of the environment " + e.Env + ","
	}
	return fmt.Sprintf("services.%s: %s%s answers at %s already; give the environment another id, or the pool another route.host", e.Service, e.Key, whose, e.Host)
}

// place is where a route of an environment answers that has an exact name.
type place struct {
	host, path string
	alone      bool // at the name: a pool without ${env} in its host means to share it
}

// placeOf returns where the routes of p answer, with values. The error is a
// *router.FieldError.
func placeOf(p *portpool.Pool, values portpool.Values) (place, error) {
	host, err := values.Expand(p.Route.Host)
	if err != nil {
		return place{}, &router.FieldError{Path: "route.host", Msg: err.Error()}
	}
	path, err := values.Expand(p.Route.Path)
	if err != nil {
		return place{}, &router.FieldError{Path: "route.path", Msg: err.Error()}
	}
	return place{strings.ToLower(host), rootOf(path), strings.Contains(p.Route.Host, "${env}")}, nil
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
				return r.taken(p, host, other)
			}
		}
		return nil
	}
	at, err := placeOf(p, values)
	if err != nil {
		return err
	}
	others := func(_ string, there routeAt) bool { return there.env != e.ID && (at.alone || there.path == at.path) }
	if other := r.first(r.hosts[at.host], others); other != "" {
		return r.taken(p, at.host, other)
	}
	return r.checkInner(e, p, at.host)
}

// taken says that the route key answers at a name already.
func (r *Registry) taken(p *portpool.Pool, host, key string) error {
	return &HostError{p.Service, host, key, r.routes[key].env}
}

// checkInner refuses the exact name of a route of e at which clients reach a port
// inside of another environment.
func (r *Registry) checkInner(e *Env, p *portpool.Pool, host string) error {
	for _, service := range r.book.Services() {
		q := r.book.Pool(service)
		if !q.Route.Inner() {
			continue
		}
		holders := q.HoldersAt(host, "")
		ids := []string{holders.First}
		if holders.Any {
			ids = slices.Sorted(maps.Keys(r.envs))
		}
		for _, id := range ids {
			other := r.envs[id]
			if id == e.ID || other == nil || other.Services[service] == nil {
				continue
			}
			if s := other.Services[service]; q.Route.Answers(valuesOf(other, q, s), s.InnerPorts, host) {
				return r.taken(p, host, routesFolder+s.Route)
			}
		}
	}
	return nil
}

// checkMeanwhile makes it a condition that no other environment has got a route
// that answers where the one of e does, but for those that are known, at which
// checkHost has looked. Mostly there is none that could: the names of two pools,
// and of two environments of a pool, are different whatever the environments are.
func (m *Manager) checkMeanwhile(d *draft, e *Env, p *portpool.Pool, s *Service, values portpool.Values) {
	var at place
	if !p.Route.Inner() {
		if at, _ = placeOf(p, values); at.alone { // checkHost has seen the error
			at.path = ""
		}
	}
	for _, service := range slices.Sorted(maps.Keys(m.reg.pools)) {
		q := m.reg.pools[service].pool
		if q == nil || q.Route.Host == "" {
			continue
		}
		var may portpool.Holders
		switch {
		case !p.Route.Inner():
			may = q.HoldersAt(at.host, at.path)
		case !q.Route.Inner():
			may = q.HoldersAmong(p.Route, values, s.InnerPorts)
		}
		const all = routesFolder + routePrefix
		switch {
		case may.Any:
			m.checkRange(d, all, all[:len(all)-1]+"/")
		case may.First == "" || may.First == may.Last && may.First == e.ID:
		case may.First == may.Last:
			m.check(d, all+may.First+"."+service)
		default:
			m.checkRange(d, all+may.First+".", all+may.Last+"/")
		}
	}
	// Nor may there be a pool by now of whose names nobody here knows.
	m.checkRange(d, poolsFolder, poolsFolder[:len(poolsFolder)-1]+"0")
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
