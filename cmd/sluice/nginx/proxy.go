package nginx

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// proxy makes the route of a location that passes requests on.
func (im *importer) proxy(s *site, l, pass *Directive, path string) {
	r, ok := im.base(s, l, path)
	if !ok {
		return
	}
	sc := &scope{block: l, captures: s.captures, scheme: s.scheme}
	scheme, host, uri, hasURI, err := splitPass(pass.arg(0))
	rawHost := host
	if err == nil {
		host, err = sc.template(host)
	}
	if err != nil {
		im.lost(pass, err.Error(), "write the route by hand")
		return
	}
	port := map[string]string{"http": "80", "https": "443", "grpc": "80", "grpcs": "443"}[scheme]
	if port == "" {
		im.lost(pass, fmt.Sprintf("%q is not a scheme of backends", scheme), "write the route by hand")
		return
	}
	b, err := im.backendOf(host, port, s.upstreams, false)
	if err != nil {
		im.lost(pass, err.Error(), "write the route by hand")
		return
	}
	if scheme == "https" || scheme == "grpcs" {
		b.TLS = im.backendTLS(l, sc)
	}
	b.H2C = scheme == "grpc"
	r.Backend = b.value()
	if hasURI {
		im.replace(pass, &r, path, uri, strings.Contains(pass.arg(0), "$"))
	}
	im.rewrites(l, &r, sc)
	im.timeouts(l, &r)
	im.requestHeaders(l, &r, sc, im.ownHost(s, pass, host))
	if strings.HasPrefix(rawHost, "$") {
		im.differs(pass, "where clients choose the whole host of a backend, it must not lead to this machine", "keep the expression narrow, and a literal part in the address")
	}
	im.put("routes/"+im.name(s.name, locationName(path), portsName(s)), r, l)
	if slashed := strings.TrimSuffix(path, "/"); slashed != path && slashed != "" && l.arg(0) != "~" && l.arg(0) != "~*" {
		// nginx sends who asks for /code to /code/.
		im.put("routes/"+im.name(s.name, locationName(path), "slash", portsName(s)), route{
			Host: s.hosts, Ports: s.ports, Path: slashed, Priority: s.priority, Redirect: &redirect{path, 301},
		}, l)
	}
}

// replace has the path change as the path of a proxy_pass says.
func (im *importer) replace(pass *Directive, r *route, path, uri string, variables bool) {
	before, after := strings.TrimSuffix(path, "/"), strings.TrimSuffix(uri, "/")
	switch {
	case strings.Contains(uri, "$"):
		if uri == "$request_uri" {
			return
		}
		im.lost(pass, "a path that is put together of variables has no counterpart; requests go on with their own", "see `rewrite` in KEYS.md")
		return
	case variables:
		im.differs(pass, fmt.Sprintf("with a variable in the address nginx asks the backend for %q whatever the path, and drops the query; "+
			"imported as what is likely meant and what nginx does without variables: %q takes the place of %q", uri, uri, path), "")
	case strings.HasSuffix(path, "/") != strings.HasSuffix(uri, "/") && path != "/":
		im.differs(pass, fmt.Sprintf("nginx puts %q in the place of %q letter by letter, here whole segments are replaced", uri, path), "")
	}
	switch {
	case before == after:
	case after == "":
		r.StripPrefix = true
	default:
		r.Rewrite = &rewrite{Prefix: after}
	}
}

// rewrites takes the rewrite directives of a location that do not redirect.
func (im *importer) rewrites(l *Directive, r *route, sc *scope) {
	for b := l; b != nil; b = b.parent {
		for _, d := range b.own("rewrite") {
			expr, to := d.arg(0), d.arg(1)
			kept := &scope{block: sc.block, captures: append([]string{"1", "2", "3", "4", "5", "6", "7", "8", "9"}, sc.captures...)}
			for i := 9; i > 0; i-- {
				kept.captures = append(kept.captures, "group"+strconv.Itoa(i))
			}
			text, err := kept.template(to)
			text = strings.ReplaceAll(text, "${group", "${")
			switch {
			case d.arg(2) == "permanent" || d.arg(2) == "redirect":
				im.lost(d, "a redirect of some paths is a route of its own", "write a route with that path and `redirect`")
			case err != nil || strings.ContainsAny(text, "?") || r.Rewrite != nil || r.StripPrefix:
				im.lost(d, "a route changes the path once, and not the query", "see `rewrite` in KEYS.md")
			default:
				if d.arg(2) != "break" && b == l {
					im.differs(d, "nginx looks for a location again with the new path; here the request goes to this route's backend", "")
				} else {
					d.done = true
				}
				if !strings.HasPrefix(expr, "^") || !strings.HasSuffix(expr, "$") {
					expr = "^.*?" + strings.TrimPrefix(expr, "^") // nginx replaces the whole path, wherever it is found
				}
				r.Rewrite = &rewrite{Regex: expr, To: text}
			}
		}
	}
}

func (im *importer) backendTLS(l *Directive, sc *scope) any {
	t := struct {
		ServerName string `json:"server_name,omitempty"`
		Insecure   bool   `json:"insecure_skip_verify,omitempty"`
	}{}
	if d := near(l, "proxy_ssl_name"); d != nil {
		if name, err := sc.template(d.arg(0)); err == nil && !strings.Contains(name, "${") {
			t.ServerName = name
		} else {
			im.lost(d, "the name of the backend's certificate cannot depend on the request", "write `tls.server_name` by hand")
		}
	}
	near(l, "proxy_ssl_server_name") // a name is sent always
	if d := near(l, "proxy_ssl_verify"); d == nil || d.arg(0) != "on" {
		t.Insecure = true
		from := d
		if from == nil {
			from = pass(l)
		}
		im.differs(from, "nginx accepts any certificate of the backend; imported so", "take `insecure_skip_verify` out if the certificate is good")
	}
	for _, name := range []string{"proxy_ssl_certificate", "proxy_ssl_certificate_key", "proxy_ssl_trusted_certificate"} {
		if d := near(l, name); d != nil {
			im.lost(d, "files for TLS with backends are named in sluice.yaml", "upstream_tls in sluice.yaml, and `tls.client` or `tls.ca` of the route")
		}
	}
	if t.ServerName == "" && !t.Insecure {
		return true
	}
	return t
}

func (im *importer) timeouts(l *Directive, r *route) {
	var t timeouts
	for _, f := range []struct {
		name string
		to   []*string
	}{
		{"proxy_connect_timeout", []*string{&t.Connect}}, {"proxy_read_timeout", []*string{&t.FirstByte, &t.Idle}},
		{"grpc_connect_timeout", []*string{&t.Connect}}, {"grpc_read_timeout", []*string{&t.FirstByte, &t.Idle}},
	} {
		d := near(l, f.name)
		if d == nil {
			continue
		}
		text, err := durationText(d.arg(0))
		if err != nil {
			im.lost(d, err.Error(), "write `timeouts` by hand")
			continue
		}
		for _, to := range f.to {
			*to = text
		}
	}
	if t != (timeouts{}) {
		r.Timeouts = &t
	}
}

// ownHost returns what the backend has to get as Host where nobody sets that: the
// name of a service elsewhere, which may have many. "" is for the client's own.
func (im *importer) ownHost(s *site, pass *Directive, host string) string {
	l := pass.parent
	for _, d := range nearAll(l, "proxy_set_header") {
		if strings.EqualFold(d.arg(0), "host") {
			return host
		}
	}
	name, _, _ := strings.Cut(host, ":")
	_, err := netip.ParseAddr(name)
	if s.upstreams[host] == nil && err != nil && strings.Contains(name, ".") && !strings.Contains(name, "$") {
		return host
	}
	im.differs(pass, fmt.Sprintf("nginx gives the backend %q as Host, here it gets the client's, so that its redirects and cookies are right", host),
		"if it minds, {\"request_headers\": {\"set\": {\"Host\": ...}}}")
	return ""
}

// ownHeaders are those that a node gives backends by itself, with the values
// that stand for the same in nginx.
var ownHeaders = map[string][]string{
	"x-real-ip":         {"$remote_addr"},
	"x-forwarded-for":   {"$proxy_add_x_forwarded_for", "$remote_addr"},
	"x-forwarded-proto": {"$scheme", "https", "http"},
	"x-forwarded-host":  {"$host", "$http_host"},
}

// requestHeaders takes proxy_set_header.
func (im *importer) requestHeaders(l *Directive, r *route, sc *scope, passHost string) {
	set, remove := map[string]string{}, []string(nil)
	host := passHost
	all := nearAll(l, "proxy_set_header")
	for _, d := range append(all, nearAll(l, "grpc_set_header")...) {
		name, value := d.arg(0), d.arg(1)
		lower := strings.ToLower(name)
		if lower == "x-forwarded-for" && value == "$proxy_add_x_forwarded_for" {
			im.differs(d, "what a client says of itself in X-Forwarded-For is dropped, rather than passed on before its address", "")
			continue
		}
		switch {
		case lower == "upgrade" || lower == "connection" || slices.Contains([]string{"te", "keep-alive", "transfer-encoding", "content-length"}, lower):
			im.note(Unneeded, d, "connections and upgrades (WebSocket) are looked after by themselves", "")
		case lower == "host" && (value == "$host" || value == "$http_host"):
			host = ""
		case slices.Contains(ownHeaders[lower], value):
			im.note(Unneeded, d, "backends get it by themselves", "")
		case value == "":
			remove = append(remove, name)
		default:
			if value == "$proxy_host" {
				value = passHost
			}
			text, err := sc.template(value)
			if err != nil {
				im.lost(d, err.Error(), "write `request_headers` by hand")
				continue
			}
			if lower == "host" {
				host = text
				continue
			}
			set[name] = text
		}
	}
	if host != "" {
		set["Host"] = host
	}
	if len(set) > 0 || len(remove) > 0 {
		r.RequestHeaders = &headerEdit{Set: set, Remove: remove}
	}
}

// responseHeaders takes what is done to responses.
func (im *importer) responseHeaders(s *site, l *Directive, r *route) {
	sc := &scope{block: l, captures: s.captures, scheme: s.scheme}
	edit := headerEdit{Add: map[string]string{}}
	for _, d := range nearAll(l, "add_header") {
		text, err := sc.template(d.arg(1))
		switch name := strings.ToLower(d.arg(0)); {
		case err != nil:
			im.lost(d, err.Error(), "write `response_headers` by hand")
		case name == "alt-svc":
			im.note(Unneeded, d, "https listeners announce HTTP/3 by themselves", "")
		case name == "strict-transport-security":
			r.HSTS = im.hsts(d)
		case text == "":
			d.done = true
		default:
			if d.arg(2) != "always" {
				im.differs(d, "nginx adds it to successful answers and redirects only, here every answer has it", "")
			}
			edit.Add[d.arg(0)] = text
		}
	}
	for _, d := range nearAll(l, "proxy_hide_header") {
		edit.Remove = append(edit.Remove, d.arg(0))
	}
	if len(edit.Add) > 0 || len(edit.Remove) > 0 {
		r.ResponseHeaders = &edit
	}
	r.Compress = im.compression(l)
}

func (im *importer) hsts(d *Directive) *hsts {
	h := hsts{MaxAge: "0s"}
	for part := range strings.SplitSeq(d.arg(1), ";") {
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(part)), "=")
		switch name {
		case "max-age":
			n, err := strconv.Atoi(strings.Trim(value, `"`))
			if err != nil {
				im.lost(d, fmt.Sprintf("%q is no number of seconds", value), "write `hsts` by hand")
				return nil
			}
			h.MaxAge = router.DurationText(time.Duration(n) * time.Second)
		case "includesubdomains":
			h.IncludeSubdomains = true
		case "preload":
			h.Preload = true
		}
	}
	return &h
}

func (im *importer) compression(l *Directive) *compress {
	d := near(l, "gzip")
	types, size := near(l, "gzip_types"), near(l, "gzip_min_length")
	if d == nil || d.arg(0) != "on" {
		return nil
	}
	c := &compress{Types: []string{"text/html"}}
	if types != nil {
		c.Types = append(c.Types, types.Args...)
	}
	if slices.Contains(c.Types, "*") {
		c.Types = []string{"*/*"}
	}
	slices.Sort(c.Types)
	c.Types = slices.Compact(c.Types)
	if size != nil {
		c.MinSize, _ = bytesText(size.arg(0))
	}
	return c
}
