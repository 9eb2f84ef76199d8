package router

import (
	"cmp"
	"strings"
)

// Table is an immutable set of compiled mappings and routes, as of one etcd
// revision. Tables come from a Builder; the zero value is empty and usable. A
// flow loads the current table once and keeps it to its end; HTTP loads it once
// per exchange, since a connection can outlive many revisions.
type Table struct {
	// Rev is the etcd revision that the table is as of.
	Rev int64

	ports       [numProtos]portIndex
	routes      *routeIndex
	clientAuths *clientAuths
	counts      counts
}

type counts struct {
	mappings, routes, connectionRoutes int
	checkedMappings, checkedRoutes     int // whose backends have Health
	namedRoutes                        int // with targets that are given by name
}

// portIndex finds a mapping by port in three steps. Branches and pages without a
// mapping are nil, and all are small, since an edit copies one of each: it costs
// 1.3 KB, where two steps cost 6.
type portIndex [1 << (16 - branchBits - pageBits)]*portBranch

type portBranch [1 << branchBits]*portPage

type portPage [1 << pageBits]*Mapping

const (
	branchBits = 5
	pageBits   = 6
)

// portPath splits a port into the places of its branch, its page and itself.
func portPath(port int) (branch, page, slot int) {
	return port >> (branchBits + pageBits), port >> pageBits & (1<<branchBits - 1), port & (1<<pageBits - 1)
}

// Mapping returns the mapping of a port, or nil. It neither locks nor allocates.
func (t *Table) Mapping(p Proto, port int) *Mapping {
	if port < 1 || port > MaxPort || p >= numProtos {
		return nil
	}
	i, j, k := portPath(port)
	branch := t.ports[p][i]
	if branch == nil {
		return nil
	}
	page := branch[j]
	if page == nil {
		return nil
	}
	return page[k]
}

// Len returns the number of mappings and of routes.
func (t *Table) Len() (mappings, routes int) { return t.counts.mappings, t.counts.routes }

// HasConnectionRoutes reports whether any route could be an answer of MatchTLS.
func (t *Table) HasConnectionRoutes() bool { return t.counts.connectionRoutes > 0 }

// EachMapping calls f for every mapping, TCP first, ports ascending.
func (t *Table) EachMapping(f func(*Mapping)) {
	t.DiffMappings(&noTable, func(_, is *Mapping) { f(is) })
}

// What is not there differs from nothing as little as these.
var (
	noTable  Table
	noBranch portBranch
	noPage   portPage
)

// DiffMappings calls f for every port whose mapping differs between old and t,
// with nil for absence, TCP first, ports ascending. Its cost follows the
// difference where t was built upon old. Either table may be the zero value.
func (t *Table) DiffMappings(old *Table, f func(was, is *Mapping)) {
	for p := range t.ports {
		for i, is := range t.ports[p] {
			if was := old.ports[p][i]; was != is {
				diffBranches(was, is, f)
			}
		}
	}
}

func diffBranches(was, is *portBranch, f func(was, is *Mapping)) {
	was, is = cmp.Or(was, &noBranch), cmp.Or(is, &noBranch)
	for i := range was {
		if was[i] != is[i] {
			diffPages(was[i], is[i], f)
		}
	}
}

func diffPages(was, is *portPage, f func(was, is *Mapping)) {
	was, is = cmp.Or(was, &noPage), cmp.Or(is, &noPage)
	for i := range was {
		if was[i] != is[i] {
			f(was[i], is[i])
		}
	}
}

// DiffNamedRoutes calls f for every name whose route differs between old and t,
// with nil for absence, or for a route whose targets are all IP addresses or have
// variables. It costs nothing where neither table has another, or the routes are
// the same, and else follows all routes.
func (t *Table) DiffNamedRoutes(old *Table, f func(was, is *Route)) {
	if t.routes == old.routes || t.counts.namedRoutes == 0 && old.counts.namedRoutes == 0 {
		return
	}
	was, is := old.routes.all(), t.routes.all()
	gone := map[string]*Route{}
	for r := range was {
		if !is[r] && r.isNamed() {
			gone[r.Name] = r
		}
	}
	for r := range is {
		if before := gone[r.Name]; !was[r] && (r.isNamed() || before != nil) {
			delete(gone, r.Name)
			if !r.isNamed() {
				r = nil
			}
			f(before, r)
		}
	}
	for _, r := range gone {
		f(r, nil)
	}
}

func (r *Route) isNamed() (named bool) {
	for _, b := range r.Backends() {
		b.EachName(func(string) { named = true })
	}
	return named
}

// EachName calls f for each target that is given by a name without variables.
func (b FieldBackend) EachName(f func(name string)) {
	if b.Backend == nil {
		return
	}
	for i := range b.Backend.Targets {
		if a := &b.Backend.Targets[i].Address; a.host.IsLiteral() && !a.ip.IsValid() {
			f(a.host.Expand(nil))
		}
	}
}

// Request is what a route may ask about an HTTP request.
type Request struct {
	Host   string // as by NormalizeHost
	Port   int    // of the listener
	Clear  bool   // the listener has no TLS
	Method string
	Path   string // decoded, as received
	Header Header // nil: no headers
}

// Header gives a request header's value, or "". http.Header is one.
type Header interface{ Get(name string) string }

// Match returns the first route, in the order that the package documents, whose
// conditions all hold, and the captures of its host pattern; nil where there is
// none.
//
// The order: exact hosts, then wildcards from the longest, then regular
// expressions by priority (highest first) and name, then "*". Within one host
// pattern: the longest path, then the highest priority, then the most
// conditions on method and headers, then the name.
func (t *Table) Match(req *Request) (*Route, Captures) {
	if t.routes == nil {
		return nil, Captures{}
	}
	return t.routes.find(&query{host: req.Host, path: cleanPath(req.Path), req: req, port: req.Port})
}

// MatchTLS returns the route that takes the whole TLS connection with the given
// server name (as by NormalizeHost, "" where the client sent none), and its
// captures. nil means that TLS ends here and HTTP routes decide per request.
//
// The route that comes first by host decides; within one host pattern such a
// route comes before the HTTP ones.
func (t *Table) MatchTLS(serverName string, port int) (*Route, Captures) {
	if t.routes == nil {
		return nil, Captures{}
	}
	r, captures := t.routes.find(&query{host: serverName, port: port})
	if r == nil || !r.ofConnection() {
		return nil, Captures{}
	}
	return r, captures
}

func (r *Route) onPort(port int, clear bool) bool {
	if len(r.Ports) == 0 {
		return !clear
	}
	return r.Ports.Contains(port)
}

func (r *Route) methodMatches(method string) bool {
	return len(r.Methods) == 0 || contains(r.Methods, method)
}

func (r *Route) headersMatch(h Header) bool {
	for name, want := range r.Headers {
		if h == nil {
			return false
		}
		if got := h.Get(name); got != want && (want != "*" || got == "") {
			return false
		}
	}
	return true
}

// StripPath returns path without the route's path prefix, where the route says
// so: /jupyter/tree becomes /tree. path may be in escaped form. ok is false
// where the prefix does not stand there literally (it was matched only after
// resolving dots or escapes); the caller then strips the decoded path instead.
func (r *Route) StripPath(path string) (stripped string, ok bool) {
	if !r.StripPrefix {
		return path, true
	}
	if !hasPathPrefix(path, r.Path) {
		return "", false
	}
	return "/" + strings.TrimPrefix(path[len(r.Path):], "/"), true
}
