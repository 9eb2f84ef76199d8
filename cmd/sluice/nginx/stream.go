package nginx

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// mapping is the value of a key below ports/.
type mapping struct {
	Backend        any            `json:"backend"`
	Env            string         `json:"env,omitempty"`
	Service        string         `json:"service,omitempty"`
	ProxyProtocol  *proxyProtocol `json:"proxy_protocol,omitempty"`
	ConnectTimeout string         `json:"connect_timeout,omitempty"`
	IdleTimeout    string         `json:"idle_timeout,omitempty"`
	Limits         *flowLimits    `json:"limits,omitempty"`
	Allow          []string       `json:"allow,omitempty"`
	Deny           []string       `json:"deny,omitempty"`
}

type proxyProtocol struct {
	Accept bool   `json:"accept,omitempty"`
	Send   string `json:"send,omitempty"`
}

type flowLimits struct {
	Connections int `json:"connections,omitempty"`
	PerClient   int `json:"per_client,omitempty"`
}

// stream takes the servers of a stream block.
func (im *importer) stream(block *Directive) {
	block.done = true
	im.readZones(block)
	upstreams := named(block, "upstream")
	for _, d := range block.own("server") {
		d.done = true
		im.streamServer(d, block, upstreams)
	}
}

// named returns the blocks of a kind by their first argument.
func named(block *Directive, kind string) map[string]*Directive {
	all := map[string]*Directive{}
	for _, d := range block.own(kind) {
		all[d.arg(0)] = d
	}
	return all
}

func (im *importer) streamServer(server, block *Directive, upstreams map[string]*Directive) {
	pass := near(server, "proxy_pass")
	if pass == nil {
		im.lost(server, "it has no proxy_pass", "write the mapping by hand")
		dealtWith(server)
		return
	}
	preread := near(server, "ssl_preread")
	for _, l := range im.listens(server) {
		switch {
		case l.tls:
			im.rawTLS(server, l, pass, upstreams)
		case preread != nil && preread.arg(0) == "on" && strings.HasPrefix(pass.arg(0), "$"):
			im.preread(server, block, l, pass, upstreams)
		default:
			im.mappings(server, l, pass, upstreams)
		}
	}
}

// listens returns what a server listens on, and is to.
func (im *importer) listens(server *Directive) (all []listen) {
	for _, d := range server.own("listen") {
		d.done = true
		l, err := parseListen(d)
		if err != nil {
			im.lost(d, err.Error(), "write the key by hand")
			continue
		}
		if l.host != "" {
			im.differs(d, "nginx listens on one address, a node opens a port on all of them", "keep the others away by a firewall, or by `allow`")
		}
		// Of the same port at several addresses one is enough.
		same := func(o listen) bool { return o.first == l.first && o.last == l.last && o.udp == l.udp }
		if i := slices.IndexFunc(all, same); i >= 0 {
			all[i].tls, all[i].quic = all[i].tls || l.tls, all[i].quic || l.quic
			all[i].defaultsHere = all[i].defaultsHere || l.defaultsHere
			continue
		}
		all = append(all, l)
	}
	return all
}

var (
	commentEnv     = regexp.MustCompile(`(?i)\benv(?:ironment)?\s*[:=]\s*([A-Za-z0-9._-]+)`)
	commentService = regexp.MustCompile(`(?i)\bservice\s*[:=]\s*([A-Za-z0-9._-]+)`)
)

// firstGroup returns what the first group of re has in s, or "".
func firstGroup(re *regexp.Regexp, s string) string {
	if m := re.FindStringSubmatch(s); m != nil {
		return m[1]
	}
	return ""
}

// mappings makes those of a server that passes on whatever comes.
func (im *importer) mappings(server *Directive, l listen, pass *Directive, upstreams map[string]*Directive) {
	to := pass.arg(0)
	if strings.Contains(to, "$") {
		im.lost(pass, "where a mapping leads cannot depend on the connection", "give each port its own mapping, or each TLS name a route with \"tls\": \"passthrough\"")
		return
	}
	if strings.HasPrefix(to, "unix:") {
		im.lost(pass, "backends are reached by TCP or UDP, not by a socket of the machine", "have the service listen on an address")
		return
	}
	b, err := im.backendOf(to, "", upstreams, true)
	if err != nil {
		im.lost(pass, err.Error(), "write the mapping by hand")
		return
	}
	if d := near(server, "proxy_ssl"); d != nil && d.arg(0) == "on" {
		im.lost(d, "a mapping passes bytes on as they are, and adds no TLS; it is left out", "have the backend take connections without TLS, or the client speak it")
		return
	}
	m := mapping{Backend: b.value(), Env: firstGroup(commentEnv, server.Comment), Service: firstGroup(commentService, server.Comment)}
	m.IdleTimeout, m.ConnectTimeout = im.streamTimes(server)
	m.Allow, m.Deny = im.lists(server)
	m.Limits = im.flowLimits(server)
	m.ProxyProtocol = im.proxyProtocol(server, l)
	for _, d := range slices.Concat(nearAll(server, "proxy_responses"), nearAll(server, "proxy_requests")) {
		if l.udp {
			why := "a UDP session ends by idle_timeout alone, however many datagrams went either way"
			if d.arg(0) == "0" {
				why = "nginx ends a session at once where it expects no answers; here they go back to the client"
			}
			im.differs(d, why, "")
		}
	}
	proto := router.TCP
	if l.udp {
		proto = router.UDP
	}
	for port := l.first; port <= l.last; port++ {
		im.put(router.MappingKey(proto, port), m, server)
		im.Node.Ports = append(im.Node.Ports, port)
	}
}

// streamTimes returns idle_timeout, which nginx has by itself, and
// connect_timeout.
func (im *importer) streamTimes(server *Directive) (idle, connect string) {
	idle = "10m" // nginx's own default
	for _, of := range []struct {
		directive string
		to        *string
	}{{"proxy_timeout", &idle}, {"proxy_connect_timeout", &connect}} {
		d := near(server, of.directive)
		if d == nil {
			continue
		}
		text, err := durationText(d.arg(0))
		if err != nil {
			im.lost(d, err.Error(), "write it into the key by hand")
			continue
		}
		*of.to = text
	}
	return idle, connect
}

func (im *importer) proxyProtocol(server *Directive, l listen) *proxyProtocol {
	p := proxyProtocol{Accept: l.proxied}
	if tellsClient(server) {
		if p.Send = "v1"; l.udp {
			p.Send = "v2"
		}
	}
	if l.proxied {
		im.trust(server, l)
	}
	if p == (proxyProtocol{}) {
		return nil
	}
	return &p
}

// tellsClient reports whether the backends of a server get PROXY headers.
func tellsClient(server *Directive) bool {
	d := near(server, "proxy_protocol")
	return d != nil && d.arg(0) == "on"
}

// trust notes whose PROXY headers are believed.
func (im *importer) trust(server *Directive, l listen) {
	from := nearAll(server, "set_real_ip_from")
	for _, d := range from {
		im.Node.TrustedProxy = append(im.Node.TrustedProxy, d.arg(0))
	}
	if len(from) == 0 {
		im.differs(l.d, "nginx takes the PROXY header of whoever connects, here only networks in trusted_proxies may send one", "list them in sluice.yaml")
	}
	im.Node.Proxied = append(im.Node.Proxied, l.first)
}

func (im *importer) flowLimits(server *Directive) *flowLimits {
	var l flowLimits
	for _, d := range nearAll(server, "limit_conn") {
		n, err := strconv.Atoi(d.arg(1))
		switch z := im.zones["limit_conn_zone "+d.arg(0)]; {
		case err == nil && z.by == "client":
			l.PerClient = n
		case err == nil && z.by == "all":
			l.Connections = n
		default:
			im.lost(d, "connections are counted by client or all together", "write `limits` of the mapping by hand")
		}
	}
	if l == (flowLimits{}) {
		return nil
	}
	return &l
}

// rawTLS makes the route of a server that ends TLS and passes on what is inside.
func (im *importer) rawTLS(server *Directive, l listen, pass *Directive, upstreams map[string]*Directive) {
	if strings.Contains(pass.arg(0), "$") {
		im.lost(pass, "where it leads depends on the connection in a way that routes do not know", "write a route with \"protocol\": \"tcp\" for each name")
		return
	}
	b, err := im.backendOf(pass.arg(0), "", upstreams, true)
	if err != nil {
		im.lost(pass, err.Error(), "write the route by hand")
		return
	}
	if tellsClient(server) {
		b.ProxyProtocol = "v1"
	}
	r := route{Host: []string{"*"}, Ports: ports(l.first, l.last), Backend: b.value(), Protocol: "tcp"}
	r.Timeouts = im.connectionTimes(server)
	r.Allow, r.Deny = im.lists(server)
	im.put("routes/"+im.name("tls", r.Ports), r, server)
	im.listenRaw(l)
}

// listenRaw notes listeners that look at TLS and take no HTTP.
func (im *importer) listenRaw(l listen) {
	for port := l.first; port <= l.last; port++ {
		im.Node.HTTPS, im.Node.Raw = append(im.Node.HTTPS, port), append(im.Node.Raw, port)
	}
}

func (im *importer) connectionTimes(server *Directive) *timeouts {
	idle, connect := im.streamTimes(server)
	return &timeouts{Idle: idle, Connect: connect}
}

// preread makes routes of a server that looks at the TLS name and passes the
// connection on by a map.
func (im *importer) preread(server, block *Directive, l listen, pass *Directive, upstreams map[string]*Directive) {
	var table *Directive
	for _, d := range block.own("map") {
		if d.arg(1) == pass.arg(0) && d.arg(0) == "$ssl_preread_server_name" {
			table = d
		}
	}
	if table == nil {
		im.lost(pass, "there is no map from $ssl_preread_server_name to "+pass.arg(0), "write a route with \"tls\": \"passthrough\" for each name")
		return
	}
	table.done = true
	im.listenRaw(l)
	if l.proxied {
		im.trust(server, l)
	}
	all := route{Ports: ports(l.first, l.last), TLS: "passthrough", Timeouts: im.connectionTimes(server)}
	all.Allow, all.Deny = im.lists(server)
	for i, entry := range table.Block {
		entry.done = true
		if entry.Name == "hostnames" || entry.Name == "volatile" {
			continue
		}
		r := all
		if err := im.lead(&r, entry, server, upstreams); err != nil {
			im.lost(entry, err.Error(), "write the route by hand")
			continue
		}
		r.Priority = im.priority(r.Host, len(table.Block)-i)
		im.put("routes/"+im.name("tls", strconv.Itoa(l.first), expressionName(entry.Name)), r, entry)
	}
}

// lead gives a route the host and the backend of an entry of a map over names.
func (im *importer) lead(r *route, entry, server *Directive, upstreams map[string]*Directive) error {
	hosts, captures, err := hostPattern(entry.Name)
	if err != nil {
		return err
	}
	to, err := (&scope{block: server, captures: captures}).template(entry.arg(0))
	if err != nil {
		return err
	}
	b, err := im.backendOf(to, "", upstreams, true)
	if err != nil {
		return err
	}
	if tellsClient(server) {
		b.ProxyProtocol = "v1"
	}
	r.Host, r.Backend = hosts, b.value()
	return nil
}

// priority returns the priority of a route of patterns, among expressions of
// which the first goes first; left counts down.
func (im *importer) priority(patterns []string, left int) int {
	if slices.ContainsFunc(patterns, func(p string) bool { return strings.HasPrefix(p, "~") }) {
		return left
	}
	return 0
}

func ports(first, last int) string {
	if first == last {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}
