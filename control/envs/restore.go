package envs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// LeftOut is something of another time that is not brought back.
type LeftOut struct{ Key, Why string }

// Restore returns the keys that are to be, where those of now are to be as they
// were then: a snapshot's. Environments come back whole, each with its record, its
// allocations, mappings and routes, or are left out: where somebody else has one
// of their ports by now. What an environment has now that it had not then is taken
// away, its ports to rest. Environments that there are only now stay as they are
// or, with prune, end. Ports that rest now go on to do so, and keys that are no
// environment's are as they were, but for mappings of ports that one holds.
//
// Times are compared with at. The result is consistent if now and then are: the
// audit of it finds nothing.
func Restore(now, then map[string]string, at time.Time, prune bool) (wanted map[string]string, left []LeftOut) {
	r := &restoring{cur: map[string]string{}, then: then, at: at, owned: map[string]bool{}}
	for key, value := range now {
		if isRelated(key) {
			r.cur[key] = value
		}
	}
	ids, envs := envsOf(then)
	_, there := envsOf(now)
	if prune {
		for id, e := range there {
			if _, was := then[envsFolder+id]; !was {
				r.end(e)
			}
		}
	}
	r.bringBack(ids, envs, there)
	r.others(now, prune)
	for key, value := range then {
		if !isRelated(key) {
			r.cur[key] = value
		}
	}
	if !prune {
		for key, value := range now {
			if _, is := r.cur[key]; !is && !isRelated(key) {
				r.cur[key] = value
			}
		}
	}
	return r.cur, r.left
}

// isRelated reports whether a key may be an environment's.
func isRelated(key string) bool {
	return slices.Contains([]string{envsFolder, allocsFolder, portsFolder}, folderOf(key)) || strings.HasPrefix(key, routesFolder+routePrefix)
}

// envsOf returns the environments among keys that can be read, and their names in
// order.
func envsOf(keys map[string]string) (ids []string, all map[string]*Env) {
	all = map[string]*Env{}
	for key, value := range keys {
		if id, ok := strings.CutPrefix(key, envsFolder); ok {
			if e, err := ParseEnv(id, []byte(value)); err == nil {
				all[id] = e
			}
		}
	}
	return slices.Sorted(maps.Keys(all)), all
}

// restoring is a Restore under way.
type restoring struct {
	cur   map[string]string // the keys as they are to be, as far as that is decided
	then  map[string]string
	at    time.Time
	owned map[string]bool // keys of then that are an environment's
	left  []LeftOut
}

// heldPort is a port of an environment's service.
type heldPort struct {
	service string
	proto   router.Proto
	port    int
}

// ports returns all ports of e, in order.
func (e *Env) ports() (all []heldPort) {
	for _, name := range e.names() {
		s := e.Services[name]
		if ports, ok := s.ports(); ok {
			for _, proto := range s.protos() {
				for port := ports.First; port <= ports.Last; port++ {
					all = append(all, heldPort{name, proto, port})
				}
			}
		}
	}
	return all
}

// routes returns the keys of e's routes.
func (e *Env) routes() (all []string) {
	for _, name := range e.names() {
		if s := e.Services[name]; s.Route != "" {
			all = append(all, routesFolder+s.Route)
		}
	}
	return all
}

// bringBack brings back those environments that can be, until no other one can.
func (r *restoring) bringBack(ids []string, envs, there map[string]*Env) {
	why := map[string]string{}
	for progress := true; progress; {
		progress = false
		var waiting []string
		for _, id := range ids {
			if why[id] = r.blocked(envs[id]); why[id] != "" {
				waiting = append(waiting, id)
				continue
			}
			if e := there[id]; e != nil {
				r.end(e)
			}
			r.put(envs[id])
			progress = true
		}
		ids = waiting
	}
	for _, id := range ids {
		r.left = append(r.left, LeftOut{envsFolder + id, why[id]})
	}
	for _, e := range envs {
		r.own(e)
	}
}

// blocked says why an environment cannot come back; "": it can.
func (r *restoring) blocked(e *Env) string {
	for _, p := range e.ports() {
		key := portpool.Key(p.proto, p.port)
		if a := allocation(r.then, key); a == nil || a.Env != e.ID || a.Service != p.service || !a.Released.IsZero() {
			return fmt.Sprintf("it did not hold %s port %d then either", p.proto, p.port)
		}
		a := allocation(r.cur, key)
		switch {
		case a == nil || a.Reserved == "" && !a.Released.IsZero():
		case a.Reserved != "":
			return fmt.Sprintf("its %s port %d is reserved by now: %s", p.proto, p.port, a.Reserved)
		case a.Env != e.ID:
			return fmt.Sprintf("its %s port %d is held by %s of environment %s by now; end that first", p.proto, p.port, a.Service, a.Env)
		default:
			continue // its own, whatever is mapped there
		}
		mapping := router.MappingKey(p.proto, p.port)
		if value, mapped := r.cur[mapping]; mapped && envOf(mapping, value) != e.ID && value != r.then[mapping] {
			return fmt.Sprintf("its %s port %d has a mapping by now that was put by hand; remove %s first", p.proto, p.port, mapping)
		}
	}
	return ""
}

// allocation returns the value of an allocation, nil if there is none that can be
// read.
func allocation(keys map[string]string, key string) *portpool.Allocation {
	if value, is := keys[key]; is {
		if a, err := portpool.ParseAllocation([]byte(value)); err == nil {
			return a
		}
		return &portpool.Allocation{Reserved: "its allocation cannot be read"}
	}
	return nil
}

// envOf returns whose a mapping says it is.
func envOf(key, value string) string {
	k, err := router.ParseKey(key)
	if err != nil {
		return ""
	}
	m, err := router.ParseMapping(k.Proto, k.Port, []byte(value))
	if err != nil {
		return ""
	}
	return m.Env
}

// own notes which keys of then are an environment's.
func (r *restoring) own(e *Env) {
	r.owned[envsFolder+e.ID] = true
	for _, p := range e.ports() {
		r.owned[portpool.Key(p.proto, p.port)], r.owned[router.MappingKey(p.proto, p.port)] = true, true
	}
	for _, key := range e.routes() {
		r.owned[key] = true
	}
}

// end takes away what an environment has; its ports rest.
func (r *restoring) end(e *Env) {
	delete(r.cur, envsFolder+e.ID)
	for _, key := range e.routes() {
		delete(r.cur, key)
	}
	for _, p := range e.ports() {
		key, mapping := portpool.Key(p.proto, p.port), router.MappingKey(p.proto, p.port)
		if a := allocation(r.cur, key); a != nil && a.Env == e.ID && a.Service == p.service && a.Released.IsZero() {
			value, _ := a.Release(r.at, portpool.DefaultQuarantine).MarshalJSON() // its times are ones that JSON has
			r.cur[key] = string(value)
		}
		if value, mapped := r.cur[mapping]; mapped && envOf(mapping, value) == e.ID {
			delete(r.cur, mapping)
		}
	}
}

// put has all of an environment as it was.
func (r *restoring) put(e *Env) {
	keys := append(e.routes(), envsFolder+e.ID)
	for _, p := range e.ports() {
		keys = append(keys, portpool.Key(p.proto, p.port), router.MappingKey(p.proto, p.port))
	}
	for _, key := range keys {
		if value, was := r.then[key]; was {
			r.cur[key] = value
		} else {
			delete(r.cur, key)
		}
	}
}

// others decides on keys that may be an environment's and are not: ports that are
// reserved or rest, mappings and routes that were put by hand.
func (r *restoring) others(now map[string]string, prune bool) {
	for _, key := range slices.Sorted(maps.Keys(r.then)) {
		if !isRelated(key) || r.owned[key] || folderOf(key) == envsFolder {
			continue
		}
		if folderOf(key) == allocsFolder {
			r.otherAllocation(key)
		} else if a := r.holder(key); a != nil {
			if r.cur[key] != r.then[key] {
				r.left = append(r.left, LeftOut{key, fmt.Sprintf("the port is held by %s of environment %s by now", a.Service, a.Env)})
			}
		} else {
			r.cur[key] = r.then[key]
		}
	}
	for key := range now {
		_, was := r.then[key]
		if prune && !was && isRelated(key) && folderOf(key) != envsFolder && folderOf(key) != allocsFolder && r.holder(key) == nil && !r.madeFor(key) {
			delete(r.cur, key)
		}
	}
}

// holder returns the allocation of a mapping's port that somebody holds, else nil.
func (r *restoring) holder(key string) *portpool.Allocation {
	rest, isPort := strings.CutPrefix(key, portsFolder)
	if !isPort {
		return nil
	}
	if a := allocation(r.cur, allocsFolder+rest); a != nil && a.Reserved == "" && a.Released.IsZero() {
		return a
	}
	return nil
}

// madeFor reports whether a route was made for an environment that there is.
func (r *restoring) madeFor(key string) bool {
	id, _, _ := strings.Cut(strings.TrimPrefix(key, routesFolder+routePrefix), ".")
	_, is := r.cur[envsFolder+id]
	return is && strings.HasPrefix(key, routesFolder+routePrefix)
}

// otherAllocation decides on a port that was reserved or rested then.
func (r *restoring) otherAllocation(key string) {
	was, is := allocation(r.then, key), allocation(r.cur, key)
	switch {
	case was.Reserved == "" && was.Released.IsZero():
		r.left = append(r.left, LeftOut{key, "it was held by an environment that there was not"})
	case was.Reserved == "":
		if is == nil {
			r.cur[key] = r.then[key]
		}
	case is == nil || is.Reserved != "" || !is.Released.IsZero():
		r.cur[key] = r.then[key]
	default:
		r.left = append(r.left, LeftOut{key, fmt.Sprintf("it was reserved (%s), and is held by %s of environment %s by now", was.Reserved, is.Service, is.Env)})
	}
}
