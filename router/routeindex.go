package router

import "unsafe"

// routeIndex finds routes by host. It is immutable; with and without return
// changed copies that share what did not change.
type routeIndex struct {
	// names has exact names and, with the dot in front of them, the suffixes of
	// wildcards, both written backwards: on the way from a host's end to its
	// begin lie all that match.
	names   trie[routeList]
	regexes *regexIndex
	any     *routeList
}

// query is what a route is looked for with.
type query struct {
	host string
	path string // clean
	// req is what a route's own conditions are held against; nil where a whole
	// connection is asked for, of which the port is all there is to know.
	req  *Request
	port int
	// seen, where not nil, is shown every route that would be tried if none
	// before it held, and none holds.
	seen func(*Route)
}

// ok reports whether the conditions of r hold, but for its hosts.
func (q *query) ok(r *Route) bool {
	if q.seen != nil {
		q.seen(r)
		return false
	}
	if q.req == nil {
		return r.onPort(q.port, false)
	}
	return !r.ofConnection() && r.onPort(q.port, q.req.Clear) &&
		hasPathPrefix(q.path, r.Path) && r.methodMatches(q.req.Method) && r.headersMatch(q.req.Header)
}

// find returns the first route in order for which q.ok holds.
func (x *routeIndex) find(q *query) (*Route, Captures) {
	if r := x.byName(q); r != nil {
		return r, Captures{}
	}
	if x.regexes != nil {
		if r, captures := x.regexes.find(q); r != nil {
			return r, captures
		}
	}
	return x.any.find(q), Captures{}
}

func (x *routeIndex) byName(q *query) *Route {
	if x.names.root == nil || q.host == "" || len(q.host) > maxHost {
		return nil
	}
	var backwards [maxHost]byte
	for i := range len(q.host) {
		backwards[len(q.host)-1-i] = q.host[i]
	}
	var room [16]*routeList
	found := room[:0]
	for w := x.names.along(unsafe.String(&backwards[0], len(q.host))); ; {
		l := w.next()
		if l == nil {
			break
		}
		// A name is found on the way to longer ones, too.
		if w.rest == "" || backwards[len(q.host)-len(w.rest)-1] == '.' {
			found = append(found, l)
		}
	}
	for i := len(found) - 1; i >= 0; i-- {
		if r := found[i].find(q); r != nil {
			return r
		}
	}
	return nil
}

// with returns the index with r added. The route must not be there yet.
func (x *routeIndex) with(r *Route) *routeIndex {
	return x.edit(r, (*routeList).with, (*regexIndex).with)
}

// without returns the index with r, the very pointer, taken out.
func (x *routeIndex) without(r *Route) *routeIndex {
	return x.edit(r, (*routeList).without, (*regexIndex).without)
}

// edit returns a copy of the index in which the list of every host pattern of r
// was changed, once each.
func (x *routeIndex) edit(r *Route, list func(*routeList, *Route) *routeList,
	regex func(*regexIndex, HostPattern, *Route) *regexIndex) *routeIndex {
	c := *x
	done := map[string]bool{}
	for _, p := range r.Hosts {
		id := p.id()
		if done[id] {
			continue
		}
		done[id] = true
		switch p.kind {
		case hostAny:
			c.any = list(c.any, r)
		case hostRegex:
			if c.regexes == nil {
				c.regexes = &regexIndex{}
			}
			c.regexes = regex(c.regexes, p, r)
		default:
			key := reversed(p.name)
			c.names = c.names.with(key, list(c.names.get(key), r))
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

func reversed(s string) string {
	b := make([]byte, len(s))
	for i := range len(s) {
		b[len(s)-1-i] = s[i]
	}
	return string(b)
}
