package http

import (
	"github.com/remotegpu/sluice/proxy/http/h1"
	"github.com/remotegpu/sluice/router"
)

// healthPath is answered by the node itself on every public listener, whatever
// the host.
const healthPath = "/health-proxy"

// decide says where x goes: it fills x.hop, or returns the answer that the node
// gives by itself.
func (s *Server) decide(x *exchange) *answer {
	if x.conn.info.Mapping == nil && x.req.target.path == healthPath {
		return s.health()
	}
	if refusal := x.checkRequest(); refusal != nil {
		return refusal
	}
	table := s.cfg.Table()
	if m := x.conn.info.Mapping; m != nil {
		x.takeMapping(m)
		if refusal := s.identify(x, table); refusal != nil {
			return refusal
		}
		return s.admit(x, m.Requests)
	}
	if !x.conn.covers(x.req.host) {
		return plain(421, "this connection was opened for another host; open one for this host\n")
	}
	if x.conn.info.TLS {
		if refusal := s.identify(x, table); refusal != nil {
			return refusal
		}
	}
	return s.route(x, table)
}

func (s *Server) health() *answer {
	if s.registry.draining.Load() {
		return &answer{status: 503, body: "draining\n", fields: noStore, bare: true}
	}
	return plain(200, "ok\n")
}

// checkRequest refuses what no route could want.
func (x *exchange) checkRequest() *answer {
	// HTTP/2 leaves the method to whoever reads it. One with a space in it would
	// be a target of its own in the request line of HTTP/1.1, past all routes.
	if !h1.ValidMethod(x.req.method) {
		return plain(400, "the method is not a token\n")
	}
	if x.req.early && (!isSafe(x.req.method) || x.req.upgrade != "") {
		return tooEarly()
	}
	if x.req.method == "CONNECT" {
		return plain(501, "CONNECT is not served here; this is not a forward proxy\n")
	}
	if x.req.target.path == "" {
		return plain(400, "the request target holds a character that has no place there\n")
	}
	host, ok := parseAuthority(x.req.authority)
	if !ok {
		return plain(400, "the request names no host, or one that is not a host name\n")
	}
	x.req.host = host
	return nil
}

// tooEarly has the client send the request again behind the handshake (RFC 8470
// section 5.2).
func tooEarly() *answer {
	return plain(425, "this may be a replay; send it again, now that the handshake is complete\n")
}

// isSafe reports whether a request may be done twice (RFC 9110 section 9.2.1).
func isSafe(method string) bool {
	return method == "GET" || method == "HEAD" || method == "OPTIONS" || method == "TRACE"
}

// takeMapping sends x to the backend of a mapping.
func (x *exchange) takeMapping(m *router.Mapping) {
	x.hop = hop{
		backend: m.HTTP, vars: x.vars(router.Captures{}), connect: m.EffectiveConnectTimeout(),
		idle: m.IdleTimeout, hostName: x.req.authority,
	}
	x.out.env, x.out.service = m.Env, m.Service
	x.boundBody(m.Requests)
}

// route asks the table.
func (s *Server) route(x *exchange, table *router.Table) *answer {
	decoded, ok := x.req.target.decoded()
	if !ok {
		return plain(400, "the path holds a % that begins no escape\n")
	}
	clear := !x.conn.info.TLS
	asked := router.Request{
		Host: x.req.host, Port: x.conn.info.Port, Clear: clear,
		Method: x.req.method, Path: decoded, Header: x.req.header,
	}
	r, captures := table.Match(&asked)
	if other, ambiguous := x.req.target.otherReading(); ambiguous && x.req.target.sentAsWritten(r) {
		// A backend may read dots and escaped slashes either way: a request must
		// not get past the lists of one route by the path of another.
		asked.Path = other
		if o, _ := table.Match(&asked); o != r {
			return plain(400, "the path holds dots or escaped slashes that make it ambiguous\n")
		}
	}
	if r == nil {
		if clear && s.cfg.HTTPSPort != 0 {
			return x.toHTTPS(s.cfg.HTTPSPort)
		}
		return plain(404, "no route answers for this host and path\n")
	}
	x.takeRoute(r, captures)
	if clear {
		if a := s.inClear(x, table); a != nil {
			return a
		}
	}
	switch {
	case x.req.early && r.GoesByAddress():
		// Nobody has answered at that address yet: any may stand in a first packet.
		return tooEarly()
	case !router.Allowed(x.client.Addr(), r.Allow, r.Deny):
		return x.refuse(endDenied, plain(403, "this address may not come here\n"))
	case r.CORS != nil:
		if a := x.preflight(); a != nil {
			if wait := s.limiter.takeRates(x, r.Admission()); wait > 0 {
				return x.refuse(endRate, tooMany(sayRate, wait))
			}
			return a
		}
	}
	if refusal := s.admit(x, r.Admission()); refusal != nil {
		return refusal
	}
	switch {
	case r.Respond != nil:
		return x.responseOf(r)
	case r.Redirect != nil:
		return x.redirectOf(r)
	}
	return nil
}

// inClear returns the answer for a request in clear text that x's route or host
// takes over TLS only.
func (s *Server) inClear(x *exchange, table *router.Table) *answer {
	switch {
	case !x.hop.route.HTTPSOnly:
		return s.identify(x, table)
	case s.cfg.HTTPSPort == 0:
		return plain(403, "this is served over TLS only, which this node does not offer\n")
	}
	return x.toHTTPS(s.cfg.HTTPSPort)
}

// takeRoute sends x along r.
func (x *exchange) takeRoute(r *router.Route, captures router.Captures) {
	x.hop = hop{
		route: r, backend: r.Backend, vars: x.vars(captures), connect: r.Timeouts.Connect,
		first: r.Timeouts.FirstByte, idle: r.Timeouts.Idle, total: r.Timeouts.Total, hostName: x.req.authority,
	}
	x.hop.body.wait = r.Timeouts.Body
	if x.hop.connect == 0 {
		x.hop.connect = router.DefaultConnectTimeout
	}
	x.out.env, x.out.service = r.EnvName(&x.hop.vars), r.Service
	x.negotiateCoding()
	if r.CORS != nil {
		x.hop.origin = x.req.header.Get("Origin")
	}
	if e := r.Events; e != nil && e.Early {
		x.hop.events = x.req.upgrade == "" && x.req.method != "HEAD" && wantsEvents(x.req.header)
	}
	policy := r.HSTS
	if policy == nil {
		policy = x.conn.server.cfg.Policy.HSTS
	}
	x.hop.hsts = policy.Line()
	x.boundBody(r.Admission())
}

// boundBody fills in how x's body is bounded: by p, unless it is nil, and by the
// node.
func (x *exchange) boundBody(p *router.Admission) {
	l := &x.hop.body
	if l.idle = x.hop.idle; l.idle == 0 {
		l.idle = x.conn.server.cfg.Limits.Idle
	}
	if p == nil {
		return
	}
	l.size, l.rate = int64(p.Limits.Body), int64(p.Limits.BodyRate)
	if l.rate > 0 && l.wait == 0 {
		l.wait = bodyPatience
	}
}

func (x *exchange) vars(captures router.Captures) router.Vars {
	told := x.conn.tell(x.client)
	return router.Vars{
		Host: x.req.host, Port: told.port, SNI: x.conn.serverName,
		ClientIP: told.client, URI: x.req.target.String(), Captures: captures,
	}
}
