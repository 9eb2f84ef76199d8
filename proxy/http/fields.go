package http

import (
	"net/netip"
	"strconv"
	"strings"
)

// editRequest makes the request's fields those that the backend is to see:
// without those of the connection, with the client's address as this node knows
// it, and with the route's edits, which come last.
func (x *exchange) editRequest() {
	h := x.req.header
	wantsTrailers := hasToken(h.Values("Te"), "trailers")
	dropFields(h, isForwarding)
	if wantsTrailers {
		h.Set("Te", "trailers") // without it gRPC servers refuse to answer
	}
	x.setForwarding(h)
	if x.hop.route == nil {
		return
	}
	if x.hop.route.StripPrefix {
		x.req.target = x.req.target.stripped(x.hop.route)
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
}

// editResponse makes the fields of the final head those that the client is to
// see. routed has the route's edits apply.
func (x *exchange) editResponse(routed bool) {
	h := x.down.header()
	if r := x.hop.route; routed && r != nil {
		for _, name := range r.ResponseHeaders.Remove {
			h.Del(name)
		}
		for name, value := range r.ResponseHeaders.Set {
			setField(h, name, value.Expand(&x.hop.vars))
		}
	}
	if x.conn.altSvc != "" {
		h.Set("Alt-Svc", x.conn.altSvc)
	}
}

// setField sets a field to an expanded value. A value that would break out of
// its field is not sent, and neither is what the field held before.
func setField(h header, name, value string) {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			h.Del(name)
			return
		}
	}
	h.Set(name, value)
}

// dropFields deletes what belongs to the connection that a message came by (RFC
// 9110 section 7.6.1), and what also reports.
func dropFields(h header, also func(name string) bool) {
	connection := h.Values("Connection")
	h.DelFunc(func(name string) bool {
		return isHopByHop(name) || also(name) || len(connection) > 0 && hasToken(connection, name)
	})
}

func isHopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization":
		return true
	}
	return false
}

// isForwarding reports whether a request field tells of the client or of the
// host asked for: this node says so itself, and what a client says is forged.
// Many backends read _ in a name as -.
func isForwarding(name string) bool {
	switch name[0] {
	case 'X', 'F', 'H':
	default:
		return false
	}
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "x-forwarded-") || name == "x-real-ip" || name == "forwarded" || name == "host"
}

// isAdvertising reports whether a response field speaks for the backend's own
// address, which clients do not reach.
func isAdvertising(name string) bool { return name == "Alt-Svc" }

// setForwarding tells the backend who asks for what.
func (x *exchange) setForwarding(h header) {
	client, scheme := x.client.Addr().String(), "http"
	if x.conn.info.TLS {
		scheme = "https"
	}
	h.Set("X-Forwarded-For", client)
	h.Set("X-Real-Ip", client)
	h.Set("X-Forwarded-Proto", scheme)
	h.Set("X-Forwarded-Host", x.req.authority)
	h.Set("X-Forwarded-Port", strconv.Itoa(x.conn.info.Port))
	h.Set("Forwarded", "for="+forwardedNode(x.client.Addr())+";host="+quoted(x.req.authority)+";proto="+scheme)
}

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

// hasToken reports whether token is an element of a comma-separated list,
// whatever its case and parameters.
func hasToken(list []string, token string) bool {
	for _, line := range list {
		for element := range strings.SplitSeq(line, ",") {
			element, _, _ = strings.Cut(element, ";")
			if strings.EqualFold(strings.TrimSpace(element), token) {
				return true
			}
		}
	}
	return false
}

// upgradeOffer returns the protocol that a request asks to change to, or ""
// where it asks for none that may be tunnelled. A change to another version of
// HTTP, or to TLS, would carry requests past routes.
func upgradeOffer(h header) string {
	offer := h.Get("Upgrade")
	if offer == "" || !hasToken(h.Values("Connection"), "Upgrade") {
		return ""
	}
	lower := strings.ToLower(offer)
	if strings.Contains(lower, "h2c") || strings.Contains(lower, "http/") || strings.Contains(lower, "tls/") {
		return ""
	}
	return offer
}
