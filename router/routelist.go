package router

import (
	"cmp"
	"strings"
)

// routeList holds the routes that share one host pattern, in order. It is
// immutable; nil is empty.
type routeList struct {
	// one is the only route; nil where there are more. What it asks is beside it,
	// where it asks for no more than a path: a Route is large, and of thousands
	// hardly one is in a cache.
	one      *Route
	onlyPath bool
	path     string

	routes *ordered[*Route]
	// paths has the same routes by path, once they are too many to be tried one
	// after the other.
	paths trie[ordered[*Route]]
}

const fewRoutes = 8

// find returns the first route in order for which q.ok holds.
func (l *routeList) find(q *query) *Route {
	if l == nil {
		return nil
	}
	if l.one != nil {
		if l.holds(q) {
			return l.one
		}
		return nil
	}
	if l.routes.n <= fewRoutes || q.req == nil || q.seen != nil {
		return first(l.routes, q)
	}
	var room [16]*ordered[*Route]
	found := room[:0]
	for w := l.paths.along(q.path); ; {
		routes := w.next()
		if routes == nil {
			break
		}
		found = append(found, routes)
	}
	for i := len(found) - 1; i >= 0; i-- {
		if r := first(found[i], q); r != nil {
			return r
		}
	}
	return nil
}

// holds is q.ok of the only route.
func (l *routeList) holds(q *query) bool {
	if !l.onlyPath || q.seen != nil {
		return q.ok(l.one)
	}
	if q.req == nil {
		return true
	}
	return !q.req.Clear && hasPathPrefix(q.path, l.path)
}

func (l *routeList) setOne(r *Route) {
	l.one, l.path = r, r.Path
	l.onlyPath = !r.ofConnection() && len(r.Ports) == 0 && len(r.Methods) == 0 && len(r.Headers) == 0
}

func first(routes *ordered[*Route], q *query) *Route {
	for _, chunk := range routes.chunks {
		for _, r := range chunk {
			if q.ok(r) {
				return r
			}
		}
	}
	return nil
}

func (l *routeList) with(r *Route) *routeList {
	if l == nil {
		l = &routeList{}
	}
	c := &routeList{routes: l.routes.with(r, compareRoutes), paths: l.paths}
	switch {
	case c.routes.n == 1:
		c.setOne(r)
	case c.routes.n == fewRoutes+1 && c.paths.root == nil:
		for r := range c.routes.all() {
			c.editPath(r, true)
		}
	case c.routes.n > fewRoutes:
		c.editPath(r, true)
	}
	return c
}

// without returns nil where nothing is left.
func (l *routeList) without(r *Route) *routeList {
	c := &routeList{routes: l.routes.without(r, compareRoutes), paths: l.paths}
	switch {
	case c.routes == nil:
		return nil
	case c.routes.n <= fewRoutes:
		c.paths = trie[ordered[*Route]]{}
		if c.routes.n == 1 {
			c.setOne(c.routes.chunks[0][0])
		}
	default:
		c.editPath(r, false)
	}
	return c
}

func (l *routeList) editPath(r *Route, add bool) {
	routes := l.paths.get(r.Path)
	if add {
		routes = routes.with(r, compareRoutes)
	} else {
		routes = routes.without(r, compareRoutes)
	}
	l.paths = l.paths.with(r.Path, routes)
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
