package nginx

import (
	"cmp"
	"fmt"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// site makes the routes of a server, for one group of its hosts.
func (im *importer) site(s *site) {
	if im.guarded(s, s.server) {
		return
	}
	if d := answer(s.server); d != nil { // before any location is looked for
		im.answer(s, s.server, d, "", "")
		for _, l := range s.server.own("location") {
			im.note(Unneeded, l, fmt.Sprintf("nginx never gets there: the %s on line %d answers first", d.Name, d.Line), "")
			dealtWith(l)
		}
		return
	}
	locations := flatten(s.server)
	for _, l := range locations {
		im.location(s, l)
	}
	if len(locations) == 0 {
		if pass(s.server) != nil {
			im.location(s, &Directive{Name: "location", Args: []string{"/"}, IsBlock: true, parent: s.server, File: s.server.File, Line: s.server.Line})
			return
		}
		im.lost(s.server, "it has neither a location nor an answer; nginx would serve files", "have a web server of your own serve them, and route to it")
	}
}

// dealtWith marks all that is in the block of d.
func dealtWith(d *Directive) {
	d.done = true
	for _, sub := range d.Block {
		dealtWith(sub)
	}
}

// flatten returns the locations in a block, and those within them.
func flatten(block *Directive) (all []*Directive) {
	for _, l := range block.own("location") {
		all = append(all, l)
		all = append(all, flatten(l)...)
	}
	return all
}

// answer returns the directive by which nginx answers by itself in a block, or
// nil.
func answer(block *Directive) *Directive {
	for _, d := range block.Block {
		if d.Name == "return" {
			return d
		}
		if d.Name == "rewrite" && (d.arg(2) == "permanent" || d.arg(2) == "redirect") && (d.arg(0) == "^" || d.arg(0) == "^/" || d.arg(0) == ".*" || strings.HasPrefix(d.arg(0), "^(.*)") || strings.HasPrefix(d.arg(0), "^/(.*)")) {
			return d
		}
	}
	return nil
}

func pass(block *Directive) *Directive {
	for _, d := range block.Block {
		if d.Name == "proxy_pass" || d.Name == "grpc_pass" {
			d.done = true
			return d
		}
	}
	return nil
}

// location makes the routes of one location.
func (im *importer) location(s *site, l *Directive) {
	l.done = true
	paths, exact, err := locationPaths(l)
	if err != nil {
		im.lost(l, err.Error(), "write the route by hand")
		dealtWith(l)
		return
	}
	if d := near(l, "internal"); d != nil && d.parent == l {
		im.lost(d, "no client gets there, only nginx itself", "see what leads there")
		dealtWith(l)
		return
	}
	if im.guarded(s, l) {
		dealtWith(l)
		return
	}
	for _, path := range paths {
		if exact && path != "/" && path != "/health-proxy" {
			im.differs(l, fmt.Sprintf("a route for %s also takes what lies below it, %s/...", path, path), "")
		} else if !exact && !strings.HasSuffix(path, "/") && l.arg(0) != "~" && l.arg(0) != "~*" {
			im.differs(l, fmt.Sprintf("nginx has %smore match too; a route matches whole segments: %s and %s/...", path, path, path), "")
		}
		if d := answer(l); d != nil {
			im.answer(s, l, d, path, locationName(path))
		} else if p := pass(l); p != nil {
			im.proxy(s, l, p, path)
		} else if len(l.own("location")) == 0 {
			im.lost(l, "it serves files, or passes requests on by another protocol than HTTP", "have a web server of your own do that, and route to it")
			dealtWith(l)
		}
	}
}

// locationPaths returns the paths that a location stands for.
func locationPaths(l *Directive) (paths []string, exact bool, err error) {
	first, second := l.arg(0), l.arg(1)
	switch {
	case strings.HasPrefix(first, "@"):
		return nil, false, fmt.Errorf("a location with a name is where nginx goes after an error or by try_files")
	case first == "=":
		return []string{second}, true, nil
	case first == "^~":
		return []string{second}, false, nil
	case first == "~" || first == "~*":
		paths, err := alternatives(second)
		return paths, false, err
	case strings.HasPrefix(first, "="):
		return []string{first[1:]}, true, nil
	case strings.HasPrefix(first, "^~"):
		return []string{first[2:]}, false, nil
	case strings.HasPrefix(first, "~"):
		paths, err := alternatives(strings.TrimPrefix(first[1:], "*"))
		return paths, false, err
	}
	return []string{first}, false, nil
}

// alternatives returns the prefixes that an expression of a location comes to,
// if that is what it is: ^/api, ^/(api|v1)/, ^/app(/.*)?$.
func alternatives(expr string) ([]string, error) {
	no := fmt.Errorf("paths are matched by prefix, and %q is more than some prefixes", expr)
	for _, tail := range []string{"/.*$", "/.*", "(/.*)$", "(/.*)?$", "(/|$)", "(?:/|$)", "/(.*)$", "/(.*)"} {
		if rest, has := strings.CutSuffix(expr, tail); has {
			expr = rest
			if strings.HasPrefix(tail, "/") {
				expr += "/"
			}
			break
		}
	}
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil || !strings.HasPrefix(expr, "^/") {
		return nil, no
	}
	words, ok := spell(tree.Simplify())
	if !ok || len(words) == 0 || len(words) > 32 {
		return nil, no
	}
	return words, nil
}

// spell returns the words that an expression begins with, if they are few.
func spell(re *syntax.Regexp) (words []string, ok bool) {
	switch re.Op {
	case syntax.OpBeginText, syntax.OpEmptyMatch:
		return []string{""}, true
	case syntax.OpLiteral:
		return []string{string(re.Rune)}, true
	case syntax.OpCapture:
		return spell(re.Sub[0])
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				if words = append(words, string(r)); len(words) > 32 {
					return nil, false
				}
			}
		}
		return words, true
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			some, ok := spell(sub)
			if words = append(words, some...); !ok || len(words) > 32 {
				return nil, false
			}
		}
		return words, true
	case syntax.OpConcat:
		words = []string{""}
		for _, sub := range re.Sub {
			tails, ok := spell(sub)
			if !ok || len(words)*len(tails) > 32 {
				return nil, false
			}
			var longer []string
			for _, w := range words {
				for _, t := range tails {
					longer = append(longer, w+t)
				}
			}
			words = longer
		}
		return words, true
	}
	return nil, false
}

func locationName(path string) string {
	return cmp.Or(strings.Trim(strings.ReplaceAll(path, "/", "-"), "-"), "root")
}

// guards keep requests away in ways that routes do not know. Without them
// everybody would get in, so no route is made.
var guards = []string{"auth_request", "auth_jwt", "limit_except", "satisfy", "secure_link", "access_by_lua_block", "access_by_lua_file", "js_access"}

// guarded reports whether a block has such a thing, and says so.
func (im *importer) guarded(s *site, block *Directive) bool {
	var found *Directive
	for _, name := range guards {
		if d := near(block, name); d != nil && d.arg(0) != "off" && !(name == "satisfy" && d.arg(0) == "all") {
			found = d
		}
	}
	for b := block; b != nil; b = b.parent {
		for _, d := range b.own("if") {
			if r := answer(d); r != nil && strings.Trim(r.arg(0), "45") != r.arg(0) {
				found = d
			}
		}
	}
	if found == nil && s.scheme == "https" {
		v := near(block, "ssl_verify_client")
		named := func(h string) bool { return h == "*" || strings.HasPrefix(h, "~") }
		if v != nil && v.arg(0) == "on" && (near(block, "ssl_client_certificate") == nil || slices.ContainsFunc(s.hosts, named)) {
			found = v
		}
	}
	if found == nil {
		return false
	}
	todo := "write the routes by hand"
	if found.Name == "auth_request" {
		todo = "write the routes with `forward_auth` by hand"
	}
	im.lost(found, "it keeps requests away in a way that routes do not know; what it guards is left out, lest everybody get in", todo)
	dealtWith(found)
	return true
}

// base returns what all routes of a location have in common. ok is false where
// none is to be made.
func (im *importer) base(s *site, l *Directive, path string) (r route, ok bool) {
	if path == "/" {
		path = ""
	}
	r = route{Host: s.hosts, Ports: s.ports, Path: path, Priority: s.priority}
	r.Allow, r.Deny = im.lists(l)
	r.Limits = im.limits(l)
	r.BasicAuth, ok = im.basicAuth(l)
	im.responseHeaders(s, l, &r)
	return r, ok
}

// answer makes the route of a return, or of a rewrite that redirects.
func (im *importer) answer(s *site, block, d *Directive, path, name string) {
	d.done = true
	r, ok := im.base(s, block, path)
	if !ok {
		return
	}
	r.Limits = nil             // nothing of a request is read
	r.Allow, r.Deny = nil, nil // return goes before them in nginx
	r.BasicAuth = nil
	status, text := 302, d.arg(0)
	if d.Name == "rewrite" {
		text = d.arg(1)
		if d.arg(2) == "permanent" {
			status = 301
		}
		if strings.HasSuffix(text, "$1") {
			text = strings.TrimSuffix(strings.TrimSuffix(text, "$1"), "/") + "$request_uri"
		}
	} else if n, err := strconv.Atoi(text); err == nil {
		status, text = n, d.arg(1)
	}
	sc := &scope{block: block, captures: s.captures, scheme: s.scheme}
	text, err := sc.template(text)
	if err != nil {
		im.lost(d, err.Error(), "write the route by hand")
		return
	}
	switch {
	case status == 444:
		im.lost(d, "a node answers, be it with 404, and does not close the connection without a word", "leave the hosts without a route, or let them have `respond` with 404")
		return
	case slices.Contains([]int{301, 302, 303, 307, 308}, status):
		r.Redirect = &redirect{text, status}
	default:
		r.Respond = &respond{Status: status, Body: text}
		if t := near(block, "default_type"); t != nil {
			r.Respond.Headers = map[string]string{"Content-Type": t.arg(0)}
		}
	}
	im.put("routes/"+im.name(s.name, name, portsName(s)), r, d)
}

func portsName(s *site) string {
	if s.ports == "" {
		return ""
	}
	return strings.ReplaceAll(s.ports, ",", "-")
}
