package router

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
)

// routeIndex finds routes by host. It is immutable; with and without return
// changed copies that share what did not change.
type routeIndex struct {
	names    shards // by exact name and, for wildcards, by suffix with its dot
	patterns []*regexRoutes
	any      []*Route
}

// shards is a map in pieces, so that an edit copies a small part of it.
type shards [256]map[string][]*Route

// regexRoutes are the routes that share one regular expression.
type regexRoutes struct {
	pattern HostPattern
	names   []string // of the groups, aligned with the submatches
	routes  []*Route // in order
}

var shardSeed = maphash.MakeSeed()

func shardOf(name string) int { return int(maphash.String(shardSeed, name) & 255) }

func (s *shards) get(name string) []*Route { return s[shardOf(name)][name] }

// find returns the first route in order for which ok holds.
func (x *routeIndex) find(host string, ok func(*Route) bool) (*Route, Captures) {
	if r := first(x.names.get(host), ok); r != nil {
		return r, Captures{}
	}
	for rest := host; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		if r := first(x.names.get(rest[i:]), ok); r != nil {
			return r, Captures{}
		}
		rest = rest[i+1:]
	}
	for _, p := range x.patterns {
		values := p.pattern.re.FindStringSubmatch(host)
		if values == nil {
			continue
		}
		if r := first(p.routes, ok); r != nil {
			return r, Captures{names: p.names, values: values}
		}
	}
	return first(x.any, ok), Captures{}
}

func first(routes []*Route, ok func(*Route) bool) *Route {
	for _, r := range routes {
		if ok(r) {
			return r
		}
	}
	return nil
}

// with returns the index with r added. The route must not be there yet.
func (x *routeIndex) with(r *Route) *routeIndex {
	return x.edit(r, func(routes []*Route) []*Route {
		at, _ := slices.BinarySearchFunc(routes, r, compareRoutes)
		return slices.Insert(slices.Clone(routes), at, r)
	})
}

// without returns the index with r, the very pointer, taken out.
func (x *routeIndex) without(r *Route) *routeIndex {
	return x.edit(r, func(routes []*Route) []*Route {
		return slices.DeleteFunc(slices.Clone(routes), func(have *Route) bool { return have == r })
	})
}

// edit returns a copy of the index in which change was applied to the list of
// every host pattern of r, once each.
func (x *routeIndex) edit(r *Route, change func([]*Route) []*Route) *routeIndex {
	c := *x
	done := map[string]bool{}
	for _, p := range r.Hosts {
		if id := p.id(); !done[id] {
			done[id] = true
			c.editPattern(p, change)
		}
	}
	return &c
}

// id is what makes two patterns the same one.
func (p HostPattern) id() string {
	if p.kind == hostRegex {
		return p.source
	}
	return string('0'+rune(p.kind)) + p.name
}

func (x *routeIndex) editPattern(p HostPattern, change func([]*Route) []*Route) {
	switch p.kind {
	case hostAny:
		x.any = change(x.any)
	case hostRegex:
		x.patterns = editRegex(x.patterns, p, change)
	default:
		i := shardOf(p.name)
		shard := make(map[string][]*Route, len(x.names[i])+1)
		for name, routes := range x.names[i] {
			shard[name] = routes
		}
		if routes := change(shard[p.name]); len(routes) > 0 {
			shard[p.name] = routes
		} else {
			delete(shard, p.name)
		}
		x.names[i] = shard
	}
}

func editRegex(patterns []*regexRoutes, p HostPattern, change func([]*Route) []*Route) []*regexRoutes {
	patterns = slices.Clone(patterns)
	next := &regexRoutes{pattern: p, names: p.re.SubexpNames()}
	if i := slices.IndexFunc(patterns, func(have *regexRoutes) bool { return have.pattern.source == p.source }); i >= 0 {
		// The compiled expression in use stays: it holds caches.
		next.pattern, next.routes = patterns[i].pattern, patterns[i].routes
		patterns = slices.Delete(patterns, i, i+1)
	}
	if next.routes = change(next.routes); len(next.routes) == 0 {
		return patterns
	}
	at, _ := slices.BinarySearchFunc(patterns, next, compareRegex)
	return slices.Insert(patterns, at, next)
}

// compareRegex orders expressions: by the highest priority among their routes,
// then by the alphabetically first name among those that have it.
func compareRegex(a, b *regexRoutes) int {
	aPriority, aName := a.rank()
	bPriority, bName := b.rank()
	return cmp.Or(cmp.Compare(bPriority, aPriority), strings.Compare(aName, bName),
		strings.Compare(a.pattern.source, b.pattern.source))
}

func (g *regexRoutes) rank() (priority int, name string) {
	best := slices.MinFunc(g.routes, func(a, b *Route) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), strings.Compare(a.Name, b.Name))
	})
	return best.Priority, best.Name
}

// compareRoutes orders the routes of one host pattern, as Match documents.
func compareRoutes(a, b *Route) int {
	return cmp.Or(
		compareBool(b.ofConnection(), a.ofConnection()),
		cmp.Compare(len(b.Path), len(a.Path)),
		cmp.Compare(b.Priority, a.Priority),
		cmp.Compare(len(b.Headers)+min(1, len(b.Methods)), len(a.Headers)+min(1, len(a.Methods))),
		strings.Compare(a.Name, b.Name),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
