package router

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Route is a rule for TLS server names and HTTP requests. Exactly one of
// Backend, Respond and Redirect says what happens. Routes are immutable once
// parsed.
type Route struct {
	Name string `json:"-"`
	Rev  int64  `json:"-"` // etcd revision of the value

	// Hosts are the host patterns, any of which must match.
	Hosts Hosts `json:"host"`
	// Ports are the listener ports the route answers on. Empty means every
	// HTTPS listener; a clear-text listener answers only routes that name its
	// port and redirects everything else to HTTPS.
	Ports Ports `json:"ports"`
	// Path is a prefix of the request path, matched at segment boundaries:
	// /jupyter matches /jupyter and /jupyter/tree but not /jupyterlab. ""
	// means /.
	Path string `json:"path"`
	// Methods are the request methods, in capitals; empty: any.
	Methods []string `json:"methods"`
	// Headers are request headers that must be there with the very value, or
	// with any where the value is "*".
	Headers map[string]string `json:"headers"`
	// Priority orders host regular expressions, and routes that are otherwise
	// equal; the highest comes first.
	Priority int `json:"priority"`

	Backend  *Backend  `json:"backend"`
	Respond  *Respond  `json:"respond"`
	Redirect *Redirect `json:"redirect"`

	// TLS is "passthrough" where the bytes of the TLS connection go to the
	// backend untouched; "" where TLS ends here.
	TLS string `json:"tls"`
	// Protocol is what is inside TLS: "tcp" for raw bytes, "" or "http".
	Protocol string `json:"protocol"`

	// StripPrefix takes Path off the request path before it goes upstream.
	StripPrefix bool `json:"strip_prefix"`
	// Rewrite, where not nil, changes the path before it goes upstream.
	Rewrite *Rewrite `json:"rewrite"`
	// HTTPSOnly has requests in clear text sent to the same place with TLS.
	HTTPSOnly       bool       `json:"https_only"`
	RequestHeaders  HeaderEdit `json:"request_headers"`
	ResponseHeaders HeaderEdit `json:"response_headers"`
	Timeouts        Timeouts   `json:"timeouts"`
	Compress        *Compress  `json:"compress"`    // nil: as the node has it
	HSTS            *HSTS      `json:"hsts"`        // nil: as the node has it
	CORS            *CORS      `json:"cors"`        // nil: the backend's own affair
	Events          *Events    `json:"events"`      // nil: event streams are passed on and nothing more
	ErrorPages      ErrorPages `json:"error_pages"` // what these lack is as the node has it
	// Limits bound what requests may take.
	Limits RouteLimits `json:"limits"`
	// BasicAuth, where not nil, says who is let in.
	BasicAuth *BasicAuth `json:"basic_auth"`
	// ForwardAuth, where not nil, is asked then.
	ForwardAuth *ForwardAuth `json:"forward_auth"`

	Allow []netip.Prefix `json:"allow"` // clients that may use the route; empty: all
	Deny  []netip.Prefix `json:"deny"`  // clients that may not, even if allowed

	// Env and Service name the environment and its service in logs. An empty
	// Env stands for the capture called env, env_id or id, if there is one.
	Env     Template `json:"env"`
	Service string   `json:"service"`

	admission *Admission // nil: none
}

// Respond is an answer the node gives by itself.
type Respond struct {
	Status  int                 `json:"status" range:"200,599"` // 0, which a value cannot give, means 200
	Body    Template            `json:"body"`
	Headers map[string]Template `json:"headers"` // Content-Type defaults to text/plain
}

// HeaderEdit changes headers: Remove first, then Set, then Add.
type HeaderEdit struct {
	Set    map[string]Template `json:"set"` // in the place of what is there
	Add    map[string]Template `json:"add"` // beside what is there
	Remove []string            `json:"remove"`
}

// Timeouts bound the phases of an exchange. Zero means the default: Connect
// DefaultConnectTimeout, the others none.
type Timeouts struct {
	Connect   time.Duration `json:"connect"`    // dialling one target
	FirstByte time.Duration `json:"first_byte"` // from the request sent to the response head
	Idle      time.Duration `json:"idle"`       // without a byte, of a body, or either way on upgraded and raw connections
	Body      time.Duration `json:"body"`       // that the client may have the node wait for a request's body, all in all
	Total     time.Duration `json:"total"`      // from the request's head to the response's last byte; not of upgrades and event streams
}

// Key returns the route's key, below the prefix.
func (r *Route) Key() string { return "routes/" + r.Name }

// Passthrough reports whether the route sends TLS connections on untouched.
func (r *Route) Passthrough() bool { return r.TLS == "passthrough" }

// RawTCP reports whether TLS ends here and raw bytes go on.
func (r *Route) RawTCP() bool { return r.Protocol == "tcp" }

// ofConnection reports whether the route decides for a whole TLS connection by
// its server name, rather than for each HTTP request in it.
func (r *Route) ofConnection() bool { return r.Passthrough() || r.RawTCP() }

// EnvName returns the environment a flow belongs to, for logs, or "".
func (r *Route) EnvName(v *Vars) string {
	if r.Env.source != "" {
		return r.Env.Expand(v)
	}
	for _, name := range []string{"env", "env_id", "id"} {
		if value := v.Captures.Get(name); value != "" {
			return value
		}
	}
	return ""
}

// ParseRoute reads the value of the key routes/<name>, a JSON route. The error,
// a *FieldError, is for the person who wrote it.
func ParseRoute(name string, value []byte) (*Route, error) {
	r := &Route{Name: name}
	if err := CheckSize(value); err != nil {
		return nil, err
	}
	if len(strings.TrimSpace(string(value))) == 0 {
		return nil, fieldErrorf("", "the value is empty; put a JSON route such as {\"host\": \"www.x-gpu.com\", \"backend\": \"10.0.0.7:80\"}")
	}
	if err := Decode(value, r); err != nil {
		return nil, err
	}
	return r, r.check()
}

func (r *Route) check() error {
	if len(r.Hosts) == 0 {
		return fieldErrorf("host", "is missing; give a name, \"*.wildcard\", \"~regex\", or \"*\" for any")
	}
	for _, check := range []func() error{r.checkNames, r.checkAction, r.checkConnection, r.checkConditions, r.checkTemplates, r.checkResponsePolicy, r.checkAdmission} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Route) checkNames() error {
	if r.Env.source != "" {
		markOwned(r.Backends())
	}
	if err := checkPrintable("env", r.Env.source); err != nil {
		return err
	}
	return checkPrintable("service", r.Service)
}

func (r *Route) checkAction() error {
	var given []string
	if r.Backend != nil {
		given = append(given, "backend")
	}
	if r.Respond != nil {
		given = append(given, "respond")
	}
	if r.Redirect != nil {
		given = append(given, "redirect")
		if err := r.Redirect.check(); err != nil {
			return err
		}
	}
	switch len(given) {
	case 0:
		return fieldErrorf("backend", "is missing; give backend, respond or redirect")
	case 1:
		return nil
	}
	return fieldErrorf("", "%s exclude each other; keep one", strings.Join(given, " and "))
}

// checkConnection refuses HTTP conditions and edits where no HTTP is seen.
func (r *Route) checkConnection() error {
	switch r.TLS {
	case "", "passthrough":
	default:
		return fieldErrorf("tls", "%q is not known; write \"passthrough\", or leave it out to have TLS end here", r.TLS)
	}
	switch r.Protocol {
	case "", "http", "tcp":
	default:
		return fieldErrorf("protocol", "%q is not known; write \"tcp\", or leave it out for HTTP", r.Protocol)
	}
	if !r.ofConnection() {
		return nil
	}
	why := "\"tls\": \"passthrough\""
	if r.RawTCP() {
		why = "\"protocol\": \"tcp\""
		if r.Passthrough() {
			return fieldErrorf("protocol", "has no meaning with \"tls\": \"passthrough\"; leave one out")
		}
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"respond", r.Respond != nil}, {"redirect", r.Redirect != nil}, {"path", r.Path != ""},
		{"methods", len(r.Methods) > 0}, {"headers", len(r.Headers) > 0}, {"strip_prefix", r.StripPrefix},
		{"rewrite", r.Rewrite != nil}, {"https_only", r.HTTPSOnly},
		{"request_headers", !r.RequestHeaders.empty()}, {"response_headers", !r.ResponseHeaders.empty()},
		{"timeouts.first_byte", r.Timeouts.FirstByte != 0}, {"timeouts.body", r.Timeouts.Body != 0},
		{"timeouts.total", r.Timeouts.Total != 0}, {"limits", !r.Limits.empty()}, {"basic_auth", r.BasicAuth != nil}, {"forward_auth", r.ForwardAuth != nil},
		{"backend.h2c", r.Backend != nil && r.Backend.H2C},
		{"backend.tls", r.Backend != nil && r.Backend.TLS != nil},
	} {
		if f.set {
			return fieldErrorf(f.name, "has no meaning with %s, which sees no HTTP; leave one out", why)
		}
	}
	if r.Backend != nil {
		if field := r.Backend.onlyHTTP(); field != "" {
			return fieldErrorf("backend."+field, "has no meaning with %s, which sees no HTTP; leave one out", why)
		}
	}
	return nil
}

func (r *Route) checkConditions() error {
	if r.Path != "" && (r.Path[0] != '/' || strings.ContainsAny(r.Path, "?#%") || r.Path != cleanPath(r.Path)) {
		return fieldErrorf("path", "%q is not a path prefix; write it decoded and in its shortest form, such as /jupyter", r.Path)
	}
	if r.StripPrefix && (r.Path == "" || r.Path == "/") {
		return fieldErrorf("strip_prefix", "has nothing to take off; give path")
	}
	if r.Rewrite != nil {
		switch {
		case r.StripPrefix:
			return fieldErrorf("rewrite", "excludes strip_prefix; to replace the prefix write \"rewrite\": {\"prefix\": \"/new\"} alone")
		case r.Backend == nil:
			return fieldErrorf("rewrite", "has no meaning without a backend; leave it out")
		}
		if err := r.Rewrite.check(); err != nil {
			return err
		}
	}
	for i, m := range r.Methods {
		if !isToken(m) || strings.ToUpper(m) != m {
			return fieldErrorf(fmt.Sprintf("methods[%d]", i), "%q is not a method; write it in capitals, such as \"GET\"", m)
		}
	}
	for name := range r.Headers {
		if !isToken(name) {
			return fieldErrorf("headers", "%q is not a header name", name)
		}
	}
	for _, e := range []struct {
		path string
		edit HeaderEdit
	}{{"request_headers", r.RequestHeaders}, {"response_headers", r.ResponseHeaders}} {
		if err := e.edit.check(e.path); err != nil {
			return err
		}
	}
	return nil
}

func (e HeaderEdit) empty() bool { return len(e.Set) == 0 && len(e.Add) == 0 && len(e.Remove) == 0 }

// framingHeaders are the codec's own: an edit to one of them would let bytes of
// one exchange pass for another's (RFC 9112 section 6).
var framingHeaders = []string{"connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive",
	"proxy-connection", "http2-settings", "expect"}

// singleHeaders are there once: a second value would make a message that its
// readers understand in different ways.
var singleHeaders = []string{"host", "content-type", "content-location", "content-range", "date", "location", "authorization", "etag",
	"last-modified", "retry-after", "user-agent", "age"}

func (e HeaderEdit) check(path string) error {
	one := func(path, name string) error {
		if !isToken(name) {
			return fieldErrorf(path, "%q is not a header name", name)
		}
		if contains(framingHeaders, strings.ToLower(name)) {
			return fieldErrorf(path, "%q frames messages and belongs to the connection; it cannot be edited", name)
		}
		return nil
	}
	for name := range e.Set {
		if err := one(path+".set", name); err != nil {
			return err
		}
	}
	for name := range e.Add {
		if err := one(path+".add", name); err != nil {
			return err
		}
		if contains(singleHeaders, strings.ToLower(name)) {
			return fieldErrorf(path+".add", "%q has one value only; use set", name)
		}
	}
	for _, name := range e.Remove {
		if err := one(path+".remove", name); err != nil {
			return err
		}
	}
	return nil
}

func (r *Route) checkTemplates() error {
	captures := r.Hosts.commonCaptures()
	if r.Backend != nil {
		r.Backend.ofRoute = true
		if err := r.Backend.check("backend", captures); err != nil {
			return err
		}
	}
	if err := r.Env.check("env", captures); err != nil {
		return err
	}
	if r.Redirect != nil {
		if err := r.Redirect.To.check("redirect.to", captures); err != nil {
			return err
		}
	}
	type group struct {
		path string
		set  map[string]Template
	}
	groups := []group{
		{"request_headers.set", r.RequestHeaders.Set}, {"response_headers.set", r.ResponseHeaders.Set},
		{"request_headers.add", r.RequestHeaders.Add}, {"response_headers.add", r.ResponseHeaders.Add},
	}
	if r.Respond != nil {
		if err := r.Respond.Body.check("respond.body", captures); err != nil {
			return err
		}
		groups = append(groups, group{"respond.headers", r.Respond.Headers})
		if err := (HeaderEdit{Set: r.Respond.Headers}).check("respond.headers"); err != nil {
			return err
		}
	}
	for _, g := range groups {
		for name, t := range g.set {
			if err := t.check(join(g.path, name), captures); err != nil {
				return err
			}
			if strings.ContainsAny(t.source, "\r\n\x00") {
				return fieldErrorf(join(g.path, name), "holds a line break, which would end the header")
			}
			if strings.IndexFunc(t.source, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) >= 0 {
				return fieldErrorf(join(g.path, name), "holds a control character, which no header can")
			}
		}
	}
	return nil
}

// isToken reports whether s is a token of RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
