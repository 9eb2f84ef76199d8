package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/router"
)

// Explain says what would become of a request or a connection, by the table in
// force and what is known of backends and certificates.
func (l live) Explain(q api.Question) api.Explanation {
	table := l.n.engine.Table()
	e := api.Explanation{Rev: table.Rev}
	if q.URL == nil {
		l.explainPort(&e, table, q)
	} else {
		l.explainRequest(&e, table, q)
	}
	if e.Key != "" {
		e.Verdict = l.n.control.Verdict(e.Key)
	}
	return e
}

func (l live) explainPort(e *api.Explanation, table *router.Table, q api.Question) {
	proto := router.TCP
	if q.Proto == "udp" {
		proto = router.UDP
	}
	m := table.Mapping(proto, q.Port)
	if m == nil {
		e.Outcome = fmt.Sprintf("%s port %d is not mapped: the node does not answer there", q.Proto, q.Port)
		if !l.n.cfg.Ports.Contains(q.Port) {
			e.Outcome += fmt.Sprintf(", and it lies outside the node's ports (%v)", l.n.cfg.Ports)
		}
		return
	}
	e.Key, e.Limits = m.Key(), fieldsSet(m.Limits)
	health := healthOf(l.n.engine.Health())
	e.Targets = append(health.targets(m.Backend), health.targets(m.HTTP)...)
	switch {
	case m.Backend == nil:
		e.Outcome = fmt.Sprintf("HTTP, in clear or over TLS, goes to %s; anything else is refused", firstTarget(m.HTTP))
	case m.HTTP != nil:
		e.Outcome = fmt.Sprintf("what opens as HTTP or TLS goes to %s as HTTP, all else goes raw to %s", firstTarget(m.HTTP), firstTarget(m.Backend))
	default:
		e.Outcome = "goes raw to " + firstTarget(m.Backend)
	}
	refuse(e, q, m.Allow, m.Deny)
}

func (l live) explainRequest(e *api.Explanation, table *router.Table, q api.Question) {
	host, ok := router.NormalizeHost(q.URL.Hostname())
	if !ok {
		e.Outcome = fmt.Sprintf("%q is not a host name: the request is answered with 400", q.URL.Hostname())
		return
	}
	req := router.Request{
		Host: host, Port: l.portOf(q), Clear: q.URL.Scheme == "http", Method: q.Method, Path: q.URL.Path, Header: q.Header,
	}
	if req.Path == "" {
		req.Path = "/"
	}
	if !req.Clear {
		if r, captures := table.MatchTLS(host, req.Port); r != nil {
			l.takes(e, r, &req, captures, q)
			e.Outcome = "the whole TLS connection goes to the backend, bytes untouched"
			if r.RawTCP() {
				e.Certificate = l.certificate(host)
				e.Outcome = "TLS ends here, and what is inside goes raw to the backend"
			}
			return
		}
		e.Certificate = l.certificate(host)
	}
	r, captures := table.Match(&req)
	for _, c := range table.Explain(&req) {
		if c.Route == r {
			e.Host = c.Host.String()
			continue
		}
		e.Others = append(e.Others, api.Loser{Route: c.Route.Name, Host: c.Host.String(), Why: c.Why})
	}
	switch {
	case r != nil:
		l.takes(e, r, &req, captures, q)
	case req.Clear && len(l.n.cfg.Listeners.HTTPS) > 0:
		e.Outcome = "no route names this port: the client is sent to https"
	default:
		e.Outcome = "no route answers: 404"
	}
}

// portOf returns the port that a request would come to: the URL's, or where that
// names none the node's own listener, as behind a firewall that redirects.
func (l live) portOf(q api.Question) int {
	if port, err := strconv.Atoi(q.URL.Port()); err == nil {
		return port
	}
	listeners, usual := l.n.cfg.Listeners.HTTPS, 443
	if q.URL.Scheme == "http" {
		listeners, usual = l.n.cfg.Listeners.HTTP, 80
	}
	for i := range listeners {
		if port := config.Port(listeners[i].Address); port == usual || len(listeners) == 1 {
			return port
		}
	}
	return usual
}

// takes says that route r takes a request.
func (l live) takes(e *api.Explanation, r *router.Route, req *router.Request, captures router.Captures, q api.Question) {
	vars := router.Vars{
		Host: req.Host, Port: strconv.Itoa(req.Port), SNI: req.Host, URI: q.URL.RequestURI(), Captures: captures,
	}
	if q.Client.IsValid() {
		vars.ClientIP = q.Client.String()
	}
	e.Key, e.Limits = "routes/"+r.Name, fieldsSet(r.Limits)
	captures.Each(func(name, value string) {
		if e.Captures == nil {
			e.Captures = map[string]string{}
		}
		e.Captures[name] = value
	})
	switch {
	case r.Respond != nil:
		e.Outcome = fmt.Sprintf("the node answers by itself: %d", max(r.Respond.Status, 200))
	case r.Redirect != nil:
		e.Outcome = "the client is sent to " + r.Redirect.To.Expand(&vars)
	default:
		e.Targets = healthOf(l.n.engine.Health()).targetsFor(r.Backend, &vars)
		addresses := make([]string, len(e.Targets))
		for i, t := range e.Targets {
			addresses[i] = t.Address
		}
		e.Outcome = "goes to " + strings.Join(addresses, " or ")
	}
	refuse(e, q, r.Allow, r.Deny)
}

// refuse notes whether lists keep the client out.
func refuse(e *api.Explanation, q api.Question, allow, deny []netip.Prefix) {
	if q.Client.IsValid() && !router.Allowed(q.Client, allow, deny) {
		e.Refused = fmt.Sprintf("the lists allow and deny keep %v out", q.Client)
	}
}

// certificate says what a client that asks for host would be shown.
func (l live) certificate(host string) *api.Certificate {
	if net.ParseIP(host) != nil {
		host = ""
	}
	cert, err := l.n.certs.GetCertificate(&tls.ClientHelloInfo{
		ServerName: host, SupportedVersions: []uint16{tls.VersionTLS13},
		CipherSuites:     []uint16{tls.TLS_AES_128_GCM_SHA256},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.Ed25519},
		SupportedCurves:  []tls.CurveID{tls.CurveP256, tls.X25519},
	})
	if err != nil {
		return &api.Certificate{Err: err.Error()}
	}
	if cert.Leaf == nil {
		return &api.Certificate{Err: "it cannot be read"}
	}
	return &api.Certificate{Names: cert.Leaf.DNSNames, Issuer: cert.Leaf.Issuer.String(), Until: cert.Leaf.NotAfter}
}

// fieldsSet returns v as JSON has it, without the fields that say nothing; nil if
// none says anything.
func fieldsSet(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var plain any
	if json.Unmarshal(text, &plain) != nil {
		return nil
	}
	return withoutZeros(plain)
}

func withoutZeros(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, field := range v {
			if v[name] = withoutZeros(field); v[name] == nil {
				delete(v, name)
			}
		}
		if len(v) > 0 {
			return v
		}
		return nil
	case []any:
		if len(v) == 0 {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	case string:
		if v == "" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}
