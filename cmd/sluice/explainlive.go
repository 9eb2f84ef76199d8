package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/api"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
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
		e.Outcome = l.unmapped(q)
		return
	}
	e.Key, e.Limits = m.Key(), fieldsSet(m.Limits)
	health := healthOf(l.n.engine.Health())
	raw, web := health.targets(m.Backend), health.targets(m.HTTP)
	e.Targets = slices.Concat(raw, web)
	switch {
	case m.Backend == nil:
		e.Outcome = "HTTP, in clear or over TLS, goes to " + goesTo(web) + "; anything else is refused"
	case m.HTTP != nil:
		e.Outcome = fmt.Sprintf("what opens as HTTP or TLS goes to %s as HTTP, all else goes raw to %s", goesTo(web), goesTo(raw))
	default:
		e.Outcome = "goes raw to " + goesTo(raw)
	}
	if a := m.Requests; a != nil {
		e.First = firstAsked(a, &router.Vars{})
		if limits := fieldsSet(a.Limits); limits != nil {
			e.Limits = withoutZeros(map[string]any{"connections": e.Limits, "requests": limits})
		}
	}
	refuse(e, q, m.Allow, m.Deny)
}

// unmapped says what answers at a port without a mapping.
func (l live) unmapped(q api.Question) string {
	listeners := &l.n.cfg.Listeners
	for i := range listeners.HTTPS {
		if at := &listeners.HTTPS[i]; config.Port(at.Address) == q.Port && (q.Proto == "tcp" || at.ServesHTTP3()) {
			return fmt.Sprintf("%s port %d is the https listener at %s, which answers by routes: ask about a URL, such as https://www.x-gpu.com:%d/",
				q.Proto, q.Port, at, q.Port)
		}
	}
	for i := range listeners.HTTP {
		if at := &listeners.HTTP[i]; config.Port(at.Address) == q.Port && q.Proto == "tcp" {
			return fmt.Sprintf("tcp port %d is the http listener at %s, which answers by routes: ask about a URL, such as http://www.x-gpu.com:%d/",
				q.Port, at, q.Port)
		}
	}
	if q.Proto == "tcp" && config.Port(l.n.cfg.Admin) == q.Port {
		return fmt.Sprintf("tcp port %d is the node's admin address %s, which serves no clients", q.Port, l.n.cfg.Admin)
	}
	say := fmt.Sprintf("%s port %d is not mapped: the node does not answer there", q.Proto, q.Port)
	if !l.n.cfg.Ports.Contains(q.Port) {
		say += fmt.Sprintf(", and it lies outside the node's ports (%v)", l.n.cfg.Ports)
	}
	return say
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
	e.Note = l.reaches(table, q)
	if !req.Clear {
		if r, captures := table.MatchTLS(host, req.Port); r != nil {
			if r.RawTCP() {
				e.Certificate, e.ClientAuth = l.certificate(host), l.clientAuth(table, host)
			}
			l.takesConnection(e, r, l.found(e, r, &req, captures, q), q)
			return
		}
		e.Certificate, e.ClientAuth = l.certificate(host), l.clientAuth(table, host)
	}
	if e.Outcome = byItself(&req); e.Outcome != "" {
		return
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
		vars := l.found(e, r, &req, captures, q)
		if other, ambiguous := proxyhttp.OtherReading(r, vars.URI); ambiguous {
			asked := req
			asked.Path = other
			if o, _ := table.Match(&asked); o != r {
				e.Outcome = "400: the path holds dots or escaped slashes, and a backend that reads them another way would be reached past another route"
				return
			}
		}
		l.takes(e, r, &req, vars, q)
	case req.Clear && len(l.n.cfg.Listeners.HTTPS) > 0:
		e.Outcome = "no route names this port: " + l.sentToHTTPS(&req, q)
	default:
		e.Outcome = "no route answers: 404"
	}
}

// reaches says why a request does not come to this node, "" if it does: where
// nothing listens at the port, or a mapping has it.
func (l live) reaches(table *router.Table, q api.Question) string {
	scheme, port, listeners := "https", 443, l.n.cfg.Listeners.HTTPS
	if q.URL.Scheme == "http" {
		scheme, port, listeners = "http", 80, l.n.cfg.Listeners.HTTP
	}
	if named, err := strconv.Atoi(q.URL.Port()); err == nil {
		port = named
	}
	var at []string
	for i := range listeners {
		if config.Port(listeners[i].Address) == port {
			return ""
		}
		at = append(at, listeners[i].Address)
	}
	if table.Mapping(router.TCP, port) != nil {
		return fmt.Sprintf("port %d is mapped, and no route is asked there: ask about tcp/%d", port, port)
	}
	if len(at) == 0 {
		return fmt.Sprintf("this node has no %s listener", scheme)
	}
	return fmt.Sprintf("this node does not listen at port %d for %s, but at %s: so it is where something in front brings clients there",
		port, scheme, strings.Join(at, ", "))
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

// clientAuth says which certificate clients of host have to show, or may; nil: none
// is asked for.
func (l live) clientAuth(table *router.Table, host string) *api.ClientAuth {
	asks := table.ClientAuth(host)
	if asks == nil {
		return nil
	}
	mode := router.ClientAuthIfGiven
	if asks.Required() {
		mode = router.ClientAuthRequire
	}
	return &api.ClientAuth{CA: asks.CA, Mode: mode, Err: l.n.engine.TLSTerms().Trouble(asks)}
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
			if n, is := field.(float64); is && name == "per" { // nanoseconds, which nobody writes
				field = router.DurationText(time.Duration(n))
			}
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
		for i := range v {
			v[i] = withoutZeros(v[i])
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
