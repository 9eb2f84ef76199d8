package http

import (
	"github.com/remotegpu/sluice/proxy/http/field"
)

// preflight returns the node's answer to a browser that asks whether a page may
// send a request; nil where it does not ask that.
func (x *exchange) preflight() *answer {
	if x.req.method != "OPTIONS" || x.hop.origin == "" || x.req.header.Get("Access-Control-Request-Method") == "" {
		return nil
	}
	c := x.hop.route.CORS
	if c.Allow(x.hop.origin) == "" {
		return plain(403, "pages of this origin may not ask this route\n")
	}
	a := &answer{status: 204}
	add := func(name, value string) {
		if value != "" {
			a.fields = append(a.fields, field.Line{Name: name, Value: value})
		}
	}
	add("Access-Control-Allow-Methods", c.AllowMethods())
	add("Access-Control-Allow-Headers", c.AllowHeaders())
	add("Access-Control-Max-Age", c.MaxAgeSeconds())
	add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	return a
}

// tellOrigin says in a response's head which pages may read it.
func (x *exchange) tellOrigin(h *field.List) {
	c := x.hop.route.CORS
	// What there is was said by the backend or by respond.headers, unless it is
	// our own answer to a preflight.
	if x.req.method != "OPTIONS" || x.out.target != "" {
		h.DelFunc(func(l *field.Line) bool { return l.ID == field.Other && ofOrigins(l.Name) })
	}
	if c.Varies() {
		varyBy(h, "Origin")
	}
	allowed := c.Allow(x.hop.origin)
	if allowed == "" {
		return
	}
	h.Add("Access-Control-Allow-Origin", allowed)
	if c.Credentials {
		h.Add("Access-Control-Allow-Credentials", "true")
	}
	if list := c.ExposeHeaders(); list != "" && x.req.method != "OPTIONS" {
		h.Add("Access-Control-Expose-Headers", list)
	}
}

// ofOrigins reports whether a response field is of the CORS protocol.
func ofOrigins(name string) bool {
	const prefix = "access-control-"
	return len(name) > len(prefix) && field.EqualFold(name[:len(prefix)], prefix)
}
