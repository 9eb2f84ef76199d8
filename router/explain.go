package router

import (
	"fmt"
	"slices"
	"strings"
)

// Candidate is a route whose host pattern matches a request's host.
type Candidate struct {
	Route *Route
	// Host is the pattern by which it matches, and Captures are its groups.
	Host     HostPattern
	Captures Captures
	// Why says why it is not the one that Match returns; "": it is.
	Why string
}

// maxCandidates bounds an explanation: people read it.
const maxCandidates = 100

// Explain returns the routes whose hosts match, in the order in which Match
// tries them, at most the first hundred of them, and what became of each. It is
// for people, and looks at more routes than Match does.
func (t *Table) Explain(req *Request) (all []Candidate) {
	if t.routes == nil {
		return nil
	}
	winner, _ := t.Match(req)
	q := &query{host: req.Host, path: cleanPath(req.Path), req: req, port: req.Port}
	conditions := *q
	had := map[*Route]bool{}
	q.seen = func(r *Route) {
		if had[r] || len(all) == maxCandidates {
			return
		}
		for _, h := range r.Hosts {
			c := Candidate{Route: r, Host: h}
			if !h.match(req.Host, &c.Captures) {
				continue
			}
			had[r] = true
			switch {
			case r == winner:
			case conditions.lacks(r) != "":
				c.Why = conditions.lacks(r)
			default:
				c.Why = fmt.Sprintf("%s comes before it", winner.Name)
			}
			all = append(all, c)
			return
		}
	}
	t.routes.find(q)
	// A route of two expressions is seen at the one that is tried first, though
	// it may match by the other one alone.
	won := slices.IndexFunc(all, func(c Candidate) bool { return c.Why == "" })
	first := slices.IndexFunc(all, func(c Candidate) bool { return c.Why != "" && conditions.lacks(c.Route) == "" })
	if first >= 0 && first < won {
		c := all[won]
		all = slices.Insert(slices.Delete(all, won, won+1), first, c)
	}
	return all
}

// match reports whether the pattern matches host, and notes its groups.
func (p HostPattern) match(host string, captures *Captures) bool {
	switch p.kind {
	case hostAny:
		return true
	case hostExact:
		return p.name == host
	case hostWildcard:
		return strings.HasSuffix(host, p.name) && len(host) > len(p.name)
	}
	if !isHostText(host) || !p.re.match(host, &captures.at) {
		return false
	}
	captures.host, captures.names = host, p.re.groups
	return true
}

// lacks says which condition of r does not hold, "" if all do.
func (q *query) lacks(r *Route) string {
	req := q.req
	switch {
	case r.ofConnection():
		return "it takes whole TLS connections, and another route was chosen for this one, or none"
	case !r.onPort(q.port, req.Clear) && len(r.Ports) == 0:
		return "it names no ports, and so does not answer without TLS"
	case !r.onPort(q.port, req.Clear):
		return fmt.Sprintf("ports: %v does not hold port %d", r.Ports, q.port)
	case !hasPathPrefix(q.path, r.Path):
		return fmt.Sprintf("path: %s does not begin with %s", q.path, r.Path)
	case !r.methodMatches(req.Method):
		return fmt.Sprintf("methods: %s is not among %s", req.Method, strings.Join(r.Methods, ", "))
	case !r.headersMatch(req.Header):
		return "headers: the request has not those of " + headerConditions(r)
	}
	return ""
}

func headerConditions(r *Route) string {
	var all []string
	for name, value := range r.Headers {
		all = append(all, name+": "+value)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
