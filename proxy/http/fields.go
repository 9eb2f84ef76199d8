package http

import (
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// editRequest makes the request's fields those that the backend is to see:
// without those of the connection, with the client's address as this node knows
// it, and with the route's edits, which come last.
func (x *exchange) editRequest() {
	h := x.req.header
	wantsTrailers := h.HasToken(field.TE, "trailers")
	dropFields(h, isForwarding)
	// The codec answers 100 (Continue) once a backend has been found and its body
	// is first read. Backends that never do are out there, and waiting for them
	// would hold up every upload (RFC 9110 section 10.1.1).
	h.DelID(field.Expect)
	if wantsTrailers {
		h.AddID(field.TE, "trailers") // without it gRPC servers refuse to answer
	}
	if x.req.early {
		h.Set("Early-Data", "1") // the backend may rather be asked again (RFC 8470)
	}
	x.setForwarding(h)
	x.tellIdentity(h)
	if x.grant != nil {
		x.grant.apply(h) // last: by Connection, clients have fields dropped
	}
	if x.hop.route == nil {
		return
	}
	switch r := x.hop.route; {
	case r.StripPrefix:
		x.req.target = x.req.target.stripped(r)
	case r.Rewrite != nil && x.req.target.path != "*":
		x.req.target = x.req.target.rewritten(r)
	}
	edit := &x.hop.route.RequestHeaders
	for _, name := range edit.Remove {
		h.Del(name)
		if strings.EqualFold(name, "Host") {
			x.hop.hostName = ""
		}
	}
	for name, value := range edit.Set {
		if expanded := value.Expand(&x.hop.vars); !strings.EqualFold(name, "Host") {
			setField(h, name, expanded)
		} else if _, ok := parseAuthority(expanded); ok {
			x.hop.hostName = expanded
		}
	}
	for name, value := range edit.Add {
		addField(h, name, value.Expand(&x.hop.vars))
	}
}

// editResponse makes the fields of the final head those that the client is to
// see. routed has the route's edits apply.
func (x *exchange) editResponse(routed bool) { x.editHead(x.down.header(), routed) }

func (x *exchange) editHead(h *field.List, routed bool) {
	r := x.hop.route
	if r != nil && r.CORS != nil {
		x.tellOrigin(h)
	}
	if routed && r != nil {
		for _, name := range r.ResponseHeaders.Remove {
			h.Del(name)
		}
		for name, value := range r.ResponseHeaders.Set {
			setField(h, name, value.Expand(&x.hop.vars))
		}
		for name, value := range r.ResponseHeaders.Add {
			addField(h, name, value.Expand(&x.hop.vars))
		}
	}
	switch {
	case x.hop.hsts == "": // the backend's own affair
	case x.conn.info.TLS:
		h.Set("Strict-Transport-Security", x.hop.hsts)
	default: // RFC 6797 section 7.2
		h.Del("Strict-Transport-Security")
	}
	if x.conn.altSvc != "" {
		h.SetID(field.AltSvc, x.conn.altSvc)
	}
}

// setField sets a field to an expanded value. A value that would break out of
// its field is not sent, and neither is what the field held before.
func setField(h *field.List, name, value string) {
	if !staysInField(value) {
		h.Del(name)
		return
	}
	h.Set(name, value)
}

// addField adds a field with an expanded value, unless that would break out of
// its field.
func addField(h *field.List, name, value string) {
	if staysInField(value) {
		h.Add(name, value)
	}
}

func staysInField(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// dropFields deletes what belongs to the connection that a message came by (RFC
// 9110 section 7.6.1), and what also reports.
func dropFields(h *field.List, also func(l *field.Line) bool) {
	var named [4]string // by Connection, beyond its own options
	extra := appendNamed(named[:0], h)
	h.DelFunc(func(l *field.Line) bool {
		return l.ID.IsHopByHop() || also(l) || len(extra) > 0 && containsFold(extra, l.Name)
	})
}

// appendNamed appends the field names that Connection gives.
func appendNamed(names []string, h *field.List) []string {
	if !h.Has(field.Connection) {
		return names
	}
	for _, l := range h.Lines() {
		if l.ID != field.Connection {
			continue
		}
		for name := range strings.SplitSeq(l.Value, ",") {
			name, _, _ = strings.Cut(name, ";")
			name = strings.Trim(name, " \t")
			if name != "" && !field.EqualFold(name, "close") && !field.Identify(name).IsHopByHop() {
				names = append(names, name)
			}
		}
	}
	return names
}

func containsFold(list []string, name string) bool {
	for _, s := range list {
		if field.EqualFold(s, name) {
			return true
		}
	}
	return false
}

// isForwarding reports whether a request field tells of the client, of its
// certificate or of the host asked for: this node says so itself, and what a client says is forged.
// Many backends read _ in a name as -.
func isForwarding(l *field.Line) bool {
	switch {
	case l.ID >= field.Host && l.ID <= field.XForwardedProto:
		return true
	case l.ID != field.Other:
		return false
	}
	const prefix = "x-forwarded-"
	return len(l.Name) >= len(prefix) && likeName(l.Name[:len(prefix)], prefix) || likeName(l.Name, "x-real-ip") ||
		len(l.Name) >= len(certPrefix) && likeName(l.Name[:len(certPrefix)], certPrefix)
}

// likeName compares a name with one in lower case, taking _ for -.
func likeName(name, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '_':
			c = '-'
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// isAdvertising reports whether a response field speaks for the backend's own
// address, which clients do not reach.
func isAdvertising(l *field.Line) bool { return l.ID == field.AltSvc }

// setForwarding tells the backend who asks for what. What is the same for all
// requests of a connection was written when the first one came.
func (x *exchange) setForwarding(h *field.List) {
	told := x.conn.tell(x.client)
	h.AddID(field.XForwardedFor, told.client)
	h.AddID(field.XRealIP, told.client)
	h.AddID(field.XForwardedProto, told.scheme)
	h.AddID(field.XForwardedHost, x.req.authority)
	h.AddID(field.XForwardedPort, told.port)
	h.AddID(field.Forwarded, told.forwarded(x.req.authority))
}

// told is what backends are told of the requests of a connection.
type told struct {
	addr         netip.Addr
	client, port string
	scheme       string
	node         string // the client as Forwarded has it
	last         atomic.Pointer[toldLine]
}

// tell returns what backends are told of a request by client. Over QUIC, clients
// can move.
func (c *conn) tell(client netip.AddrPort) *told {
	if t := c.told.Load(); t != nil && t.addr == client.Addr() {
		return t
	}
	t := &told{addr: client.Addr(), client: client.Addr().String(), port: strconv.Itoa(c.info.Port),
		scheme: "http", node: forwardedNode(client.Addr())}
	if c.info.TLS {
		t.scheme = "https"
	}
	c.told.Store(t)
	return t
}

// forwarded returns the Forwarded field for a request to authority. Mostly it is
// the same as for the request before.
func (t *told) forwarded(authority string) string {
	if last := t.last.Load(); last != nil && last.authority == authority {
		return last.line
	}
	last := &toldLine{authority: strings.Clone(authority)}
	last.line = "for=" + t.node + ";host=" + quoted(authority) + ";proto=" + t.scheme
	t.last.Store(last)
	return last.line
}

type toldLine struct{ authority, line string }

// forwardedNode writes an address as RFC 7239 section 6 wants it.
func forwardedNode(a netip.Addr) string {
	if a.Is6() {
		return `"[` + a.String() + `]"`
	}
	return a.String()
}

// quoted writes an authority, which holds neither quote nor backslash, as a
// token or else a quoted string.
func quoted(authority string) string {
	if strings.ContainsAny(authority, ":[]") {
		return `"` + authority + `"`
	}
	return authority
}

// upgradeOffer returns the protocol that a request asks to change to, or ""
// where it asks for none that may be tunnelled. A change to another version of
// HTTP, or to TLS, would carry requests past routes.
func upgradeOffer(h *field.List) string {
	offer := h.GetID(field.Upgrade)
	if offer == "" || !h.HasToken(field.Connection, "Upgrade") {
		return ""
	}
	lower := strings.ToLower(offer)
	if strings.Contains(lower, "h2c") || strings.Contains(lower, "http/") || strings.Contains(lower, "tls/") {
		return ""
	}
	return offer
}
