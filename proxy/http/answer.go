package http

import (
	"strconv"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// answer is a response that the node gives by itself.
type answer struct {
	status int
	body   string
	fields []field.Line // beyond Content-Type and Content-Length
	edited bool         // the route's response_headers apply
	bare   bool         // no error page takes its place

	relayed bool     // it is another's, whose fields may be there more than once
	failed  *failure // there is nobody to answer
}

var noStore = []field.Line{{Name: "Cache-Control", Value: "no-store", ID: field.CacheControl}}

// plain returns an answer in words, which nobody must keep for later: routes
// change at any time.
func plain(status int, text string) *answer {
	return &answer{status: status, body: text, fields: noStore}
}

// responseOf is the respond action of a route.
func (x *exchange) responseOf(r *router.Route) *answer {
	a := &answer{status: r.Respond.Status, body: r.Respond.Body.Expand(&x.hop.vars), edited: true}
	if a.status == 0 {
		a.status = 200
	}
	for name, t := range r.Respond.Headers {
		a.fields = append(a.fields, field.Line{Name: name, Value: t.Expand(&x.hop.vars)})
	}
	return a
}

// redirectOf is the redirect action of a route.
func (x *exchange) redirectOf(r *router.Route) *answer {
	status := r.Redirect.Status
	if status == 0 {
		status = 302
	}
	return &answer{status: status, fields: []field.Line{{Name: "Location", Value: r.Redirect.Target(&x.hop.vars)}}, edited: true}
}

// toHTTPS sends the client to the same place with TLS. 308 has it repeat the
// method (RFC 9110 section 15.4.9).
func (x *exchange) toHTTPS(port int) *answer {
	status := 308
	if x.req.method == "GET" || x.req.method == "HEAD" {
		status = 301
	}
	location := HTTPSLocation(x.req.host, port, x.req.target.String())
	return &answer{status: status, fields: []field.Line{{Name: "Location", Value: location}}}
}

// answer sends a as the response to x.
func (x *exchange) answer(a *answer) {
	if a.failed != nil {
		x.fail(a.failed)
		return
	}
	if a.status >= 400 && !a.edited && !a.bare && x.pinger == nil {
		a = x.dressed(a)
	}
	h := x.down.header()
	for _, f := range a.fields {
		if a.relayed {
			addField(h, f.Name, f.Value)
		} else {
			setField(h, f.Name, f.Value)
		}
	}
	hasBody := a.status != 204 && a.status != 304
	if hasBody {
		if h.GetID(field.ContentType) == "" && a.body != "" {
			h.SetID(field.ContentType, "text/plain; charset=utf-8")
		}
		h.SetID(field.ContentLength, strconv.Itoa(len(a.body)))
	}
	x.editResponse(a.edited)
	if a.edited && x.hop.compress != nil {
		x.compress(a.status)
	}
	x.writeHead(a.status)
	if hasBody && a.body != "" && x.req.method != "HEAD" {
		if err := x.write([]byte(a.body)); err != nil && x.out.end == "" {
			x.lostClient(err)
		}
	}
}
