package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/api"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

// byItself says what the node answers whatever the routes are; "": nothing.
func byItself(req *router.Request) string {
	switch {
	case req.Path == "/health-proxy":
		return "the node answers by itself, for load balancers: 200, and 503 once it stops"
	case req.Method == "CONNECT":
		return "501: CONNECT is not served; this is not a forward proxy"
	}
	return ""
}

// found notes that the value of r decides, and returns the variables of the
// request.
func (l live) found(e *api.Explanation, r *router.Route, req *router.Request, captures router.Captures, q api.Question) *router.Vars {
	vars := &router.Vars{
		Host: req.Host, Port: strconv.Itoa(req.Port), SNI: req.Host, URI: q.URL.RequestURI(), Captures: captures,
	}
	if req.Clear {
		vars.SNI = ""
	}
	if q.Client.IsValid() {
		vars.ClientIP = q.Client.String()
	}
	e.Key, e.Limits = r.Key(), fieldsSet(r.Limits)
	captures.Each(func(name, value string) {
		if e.Captures == nil {
			e.Captures = map[string]string{}
		}
		e.Captures[name] = value
	})
	return vars
}

// takesConnection says where r sends a TLS connection.
func (l live) takesConnection(e *api.Explanation, r *router.Route, vars *router.Vars, q api.Question) {
	targets, err := healthOf(l.n.engine.Health()).targetsFor(r.Backend, vars)
	e.Targets = targets
	switch {
	case err != nil:
		e.Outcome, e.Targets = "the connection is closed: "+err.Error(), nil
	case r.RawTCP():
		e.Outcome = "TLS ends here, and what is inside goes raw to " + goesTo(targets)
	default:
		e.Outcome = "the whole TLS connection, bytes untouched, goes to " + goesTo(targets)
	}
	refuse(e, q, r.Allow, r.Deny)
}

// takes says what r does with a request, in the order in which a node does it.
func (l live) takes(e *api.Explanation, r *router.Route, req *router.Request, vars *router.Vars, q api.Question) {
	if r.HTTPSOnly && req.Clear {
		e.Outcome = "https_only: " + l.sentToHTTPS(req, q)
		return
	}
	refuse(e, q, r.Allow, r.Deny)
	if e.Outcome = preflight(r, req); e.Outcome != "" {
		return
	}
	if a := r.Admission(); a != nil {
		if a.BasicAuth != nil && !hasBasicCredentials(req) {
			e.Outcome = "401: basic_auth wants a name and a password, and the request has none (give them by -H 'Authorization: Basic ...')"
			return
		}
		e.First = firstAsked(a, vars)
	}
	switch {
	case r.Respond != nil:
		e.Outcome = fmt.Sprintf("the node answers by itself: %d", max(r.Respond.Status, 200))
	case r.Redirect != nil:
		status := r.Redirect.Status
		if status == 0 {
			status = 302
		}
		e.Outcome = fmt.Sprintf("the client is sent to %s (%d)", r.Redirect.Target(vars), status)
	default:
		l.forwards(e, r, vars)
	}
}

// forwards says where and how r's backend is sent a request.
func (l live) forwards(e *api.Explanation, r *router.Route, vars *router.Vars) {
	targets, err := healthOf(l.n.engine.Health()).targetsFor(r.Backend, vars)
	if err != nil {
		e.Outcome = "400: " + err.Error()
		return
	}
	e.Targets, e.Outcome = targets, "goes to "+goesTo(targets)
	if sent := proxyhttp.SentTarget(r, vars.URI); sent != vars.URI {
		e.Sent = sent
		e.Outcome += ", asking for " + sent
	}
}

// sentToHTTPS says where a request in clear text is sent instead.
func (l live) sentToHTTPS(req *router.Request, q api.Question) string {
	if len(l.n.cfg.Listeners.HTTPS) == 0 {
		return "403, since the node has no https listener to send the client to"
	}
	status := 308
	if req.Method == "GET" || req.Method == "HEAD" {
		status = 301
	}
	port := config.Port(l.n.cfg.Listeners.HTTPS[0].Address)
	return fmt.Sprintf("the client is sent to %s (%d)", proxyhttp.HTTPSLocation(req.Host, port, q.URL.RequestURI()), status)
}

// preflight says what a browser is answered that asks whether a page may send a
// request to r; "" where it does not ask that.
func preflight(r *router.Route, req *router.Request) string {
	origin := req.Header.Get("Origin")
	switch {
	case r.CORS == nil || req.Method != "OPTIONS" || origin == "" || req.Header.Get("Access-Control-Request-Method") == "":
		return ""
	case r.CORS.Allow(origin) == "":
		return fmt.Sprintf("403: cors lets no page of %s ask", origin)
	}
	return fmt.Sprintf("the node answers this preflight by itself: 204, pages of %s may ask", origin)
}

// hasBasicCredentials reports whether a request brings a name and a password.
func hasBasicCredentials(req *router.Request) bool {
	scheme, rest, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "basic") && rest != ""
}

// firstAsked says what is asked before a request goes on.
func firstAsked(a *router.Admission, vars *router.Vars) (all []string) {
	if a.BasicAuth != nil {
		all = append(all, "basic_auth: 401 without the name and password of a user; what is given is not verified here")
	}
	if f := a.ForwardAuth; f != nil {
		asked, err := targetHealth(nil).targetsFor(f.Backend, vars)
		if err != nil {
			return append(all, "forward_auth: 400: "+err.Error())
		}
		path, method := f.Path, f.Method
		if path == "" {
			path = "/"
		}
		if method == "" {
			method = "GET"
		}
		all = append(all, fmt.Sprintf("forward_auth: %s %s of %s, and only with 2xx the request goes on", method, path, goesTo(asked)))
	}
	return all
}

// goesTo names the targets that a flow may get: those that are down only where
// all are, since it is then tried with them.
func goesTo(targets []api.Target) string {
	var up, down []string
	for _, t := range targets {
		if t.Health == "down" {
			down = append(down, t.Address)
		} else {
			up = append(up, t.Address)
		}
	}
	switch {
	case len(down) == 0:
		return strings.Join(up, " or ")
	case len(up) == 0:
		return strings.Join(down, " or ") + ", though checks find all of it down"
	}
	return fmt.Sprintf("%s (not to %s: down)", strings.Join(up, " or "), strings.Join(slices.Sorted(slices.Values(down)), ", "))
}

// refuse notes whether lists keep the client out.
func refuse(e *api.Explanation, q api.Question, allow, deny []netip.Prefix) {
	if q.Client.IsValid() && !router.Allowed(q.Client, allow, deny) {
		e.Refused = fmt.Sprintf("the lists allow and deny keep %v out", q.Client)
	}
}
