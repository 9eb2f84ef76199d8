package router

import (
	"cmp"
	"strings"
	"unsafe"
)

// regexIndex finds the host expressions that could match a host by a literal
// that each demands. It is immutable; edit returns a changed copy.
//
// Each expression is filed under one set of its literals, the one under which
// the fewest others are filed when it comes. So ten thousand of them which end
// in .remotegpu.com are found by what else they hold, and only expressions that
// demand the same literals are tried one after the other.
type regexIndex struct {
	sources trie[regexRoutes] // all, by expression

	begins trie[regexBucket] // by what a host begins with
	ends   trie[regexBucket] // by what it ends with, written backwards
	inside trie[regexBucket] // by what it holds
	rest   regexList
}

// regexBucket holds what is filed under one literal. It is immutable.
type regexBucket struct {
	open  regexList
	whole regexList // the host is the literal
}

// regexList is a list in order, whose only element, if it has no more, can be
// had without looking into it.
type regexList struct {
	one *regexRoutes
	all *ordered[*regexRoutes]
}

func (l *regexList) cursor() regexCursor {
	if l.one != nil {
		return regexCursor{one: l.one}
	}
	return regexCursor{list: l.all}
}

func (l *regexList) edit(g *regexRoutes, add bool) {
	if add {
		l.all = l.all.with(g, compareRegex)
	} else {
		l.all = l.all.without(g, compareRegex)
	}
	if l.one = nil; l.all.len() == 1 {
		l.one = l.all.chunks[0][0]
	}
}

// regexRoutes are the routes that share one expression. It is immutable.
type regexRoutes struct {
	routes routeList
	re     hostExpr
	source string
	key    []literal // under which it is filed; nil: under none, empty: nowhere
	// The highest priority among the routes, and the alphabetically first name
	// among those that have it.
	priority int
	name     string
}

// compareRegex orders expressions: by the highest priority among their routes,
// then by the alphabetically first name among those that have it.
func compareRegex(a, b *regexRoutes) int {
	if a == b {
		return 0
	}
	return cmp.Or(cmp.Compare(b.priority, a.priority), strings.Compare(a.name, b.name), strings.Compare(a.source, b.source))
}

// find returns the first route in order whose expression matches and for which
// q.ok holds.
func (x *regexIndex) find(q *query) (*Route, Captures) {
	if x.sources.root == nil || !isHostText(q.host) {
		return nil, Captures{}
	}
	var room [16]regexCursor
	found := x.candidates(q.host, room[:0])
	captures := Captures{host: q.host}
	for {
		g := nextRegex(found)
		if g == nil {
			return nil, Captures{}
		}
		// What a route asks beside the host takes less time than an expression.
		r := g.routes.find(q)
		if r != nil && g.re.match(q.host, &captures.at) {
			captures.names = g.re.groups
			return r, captures
		}
	}
}

// candidates appends the lists of all expressions that could match host.
func (x *regexIndex) candidates(host string, found []regexCursor) []regexCursor {
	found = collect(x.begins, host, found)
	if x.ends.root != nil {
		var backwards [maxHost]byte
		for i := range len(host) {
			backwards[len(host)-1-i] = host[i]
		}
		found = collect(x.ends, unsafe.String(&backwards[0], len(host)), found)
	}
	if x.inside.root != nil {
		for i := range len(host) {
			found = collect(x.inside, host[i:], found)
		}
	}
	if x.rest.all != nil {
		found = append(found, x.rest.cursor())
	}
	return found
}

// regexCursor is a place in a list.
type regexCursor struct {
	one       *regexRoutes // or the only one
	list      *ordered[*regexRoutes]
	chunk, at int
}

// collect appends the lists filed under what text begins with.
func collect(t trie[regexBucket], text string, found []regexCursor) []regexCursor {
	for w := t.along(text); ; {
		b := w.next()
		if b == nil {
			return found
		}
		if b.open.all != nil {
			found = append(found, b.open.cursor())
		}
		if b.whole.all != nil && w.rest == "" {
			found = append(found, b.whole.cursor())
		}
	}
}

// nextRegex returns the first expression that no cursor has passed, in the order
// of all lists together, and passes it.
func nextRegex(cursors []regexCursor) *regexRoutes {
	if len(cursors) == 1 {
		next := cursors[0].head()
		if next != nil {
			cursors[0].pass()
		}
		return next
	}
	var next *regexRoutes
	for i := range cursors {
		if g := cursors[i].head(); g != nil && (next == nil || compareRegex(g, next) < 0) {
			next = g
		}
	}
	if next == nil {
		return nil
	}
	for i := range cursors { // it can be filed under several
		if cursors[i].head() == next {
			cursors[i].pass()
		}
	}
	return next
}

func (c *regexCursor) head() *regexRoutes {
	if c.list == nil || c.chunk == len(c.list.chunks) {
		return c.one
	}
	return c.list.chunks[c.chunk][c.at]
}

func (c *regexCursor) pass() {
	if c.list == nil {
		c.one = nil
	} else if c.at++; c.at == len(c.list.chunks[c.chunk]) {
		c.chunk, c.at = c.chunk+1, 0
	}
}

// with returns the index with r below p.
func (x *regexIndex) with(p HostPattern, r *Route) *regexIndex {
	c := *x
	g := &regexRoutes{source: p.source, re: *p.re, priority: r.Priority, name: r.Name}
	if old := x.sources.get(p.source); old != nil {
		*g = *old // the compiled expression in use stays
		c.file(old, false)
		if r.Priority > g.priority || r.Priority == g.priority && r.Name < g.name {
			g.priority, g.name = r.Priority, r.Name
		}
	} else {
		g.key = c.choose(p.re.needs)
	}
	g.routes = *g.routes.with(r)
	c.file(g, true)
	c.sources = c.sources.with(p.source, g)
	return &c
}

// without returns the index without r below p.
func (x *regexIndex) without(p HostPattern, r *Route) *regexIndex {
	old := x.sources.get(p.source)
	c := *x
	c.file(old, false)
	g := *old
	routes := old.routes.without(r)
	if routes == nil {
		c.sources = c.sources.with(p.source, nil)
		return &c
	}
	g.routes = *routes
	if r.Priority == g.priority && r.Name == g.name {
		g.rank()
	}
	c.file(&g, true)
	c.sources = c.sources.with(p.source, &g)
	return &c
}

func (g *regexRoutes) rank() {
	best := (*Route)(nil)
	for r := range g.routes.routes.all() {
		if best == nil || r.Priority > best.Priority || r.Priority == best.Priority && r.Name < best.Name {
			best = r
		}
	}
	g.priority, g.name = best.Priority, best.Name
}

// choose returns the set to file an expression under.
func (x *regexIndex) choose(needs [][]literal) []literal {
	var best []literal
	least := 0
	for _, set := range needs {
		cost := 0
		for _, l := range set {
			// How many are found there already, by how often hosts hold it.
			cost += (1 + x.bucket(l).len()) * 1024 / (1 + l.worth())
		}
		if best == nil || cost < least {
			best, least = set, cost
		}
	}
	return best
}

func (b *regexBucket) len() int {
	if b == nil {
		return 0
	}
	return b.open.all.len() + b.whole.all.len()
}

// shelf returns where l is filed, and under which key.
func (x *regexIndex) shelf(l literal) (t *trie[regexBucket], key string) {
	switch {
	case l.begin:
		return &x.begins, l.text
	case l.end:
		return &x.ends, reversed(l.text)
	}
	return &x.inside, l.text
}

func (x *regexIndex) bucket(l literal) *regexBucket {
	t, key := x.shelf(l)
	return t.get(key)
}

// file puts g where it is looked for, or takes it away. x is not shared yet.
func (x *regexIndex) file(g *regexRoutes, add bool) {
	if g.key == nil {
		x.rest.edit(g, add)
		return
	}
	for _, l := range g.key {
		t, key := x.shelf(l)
		b := regexBucket{}
		if old := t.get(key); old != nil {
			b = *old
		}
		if l.begin && l.end {
			b.whole.edit(g, add)
		} else {
			b.open.edit(g, add)
		}
		if b.len() == 0 {
			*t = t.with(key, nil)
		} else {
			*t = t.with(key, &b)
		}
	}
}
