package http

import (
	"strings"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// coding is a content coding that the node can apply.
type coding uint8

const (
	identity coding = iota
	codingGzip
	codingZstd
	numCodings
)

var codingNames = [numCodings]string{"identity", "gzip", "zstd"}

func (c coding) String() string { return codingNames[c] }

// negotiate returns the coding of those offered, the preferred one first, that
// the client wants most by its Accept-Encoding (RFC 9110 section 12.5.3). A
// client that says nothing gets no coding, and so does one that would rather
// have none.
func negotiate(h *field.List, offered []string) coding {
	var want weights
	for _, l := range h.Lines() {
		if l.ID == field.Other && field.EqualFold(l.Name, "Accept-Encoding") {
			want.add(l.Value)
		}
	}
	best, weight := identity, 0
	for _, name := range offered {
		c := codingOf(name)
		if q := want.of(c); q > weight {
			best, weight = c, q
		}
	}
	if want.named[identity] && int(want.q[identity]) > weight {
		return identity
	}
	return best
}

func codingOf(name string) coding {
	switch {
	case field.EqualFold(name, "gzip"), field.EqualFold(name, "x-gzip"):
		return codingGzip
	case field.EqualFold(name, "zstd"):
		return codingZstd
	}
	return identity
}

// weights are how much a client wants each coding, in thousandths.
type weights struct {
	q     [numCodings]uint16
	named [numCodings]bool
	any   uint16 // for what is not named
}

func (w *weights) of(c coding) int {
	if w.named[c] {
		return int(w.q[c])
	}
	return int(w.any)
}

// add reads a field line. An element that is not well formed counts for nothing.
func (w *weights) add(line string) {
	for more := true; more; {
		var element string
		element, line, more = strings.Cut(line, ",")
		name, parameter, weighted := strings.Cut(element, ";")
		name = strings.Trim(name, " \t")
		q := uint16(1000)
		if weighted {
			var ok bool
			if q, ok = parseWeight(parameter); !ok {
				continue
			}
		}
		switch c := codingOf(name); {
		case name == "*":
			w.any = q
		case c != identity || field.EqualFold(name, "identity"):
			w.q[c], w.named[c] = q, true
		}
	}
}

// parseWeight reads q=0.5 (RFC 9110 section 12.4.2) in thousandths.
func parseWeight(s string) (q uint16, ok bool) {
	name, value, _ := strings.Cut(s, "=")
	name = strings.Trim(name, " \t")
	value = strings.TrimRight(value, " \t")
	if name != "q" && name != "Q" || value == "" || len(value) > 5 || value[0] != '0' && value[0] != '1' {
		return 0, false
	}
	q = uint16(value[0]-'0') * 1000
	if len(value) > 1 && value[1] != '.' {
		return 0, false
	}
	unit := uint16(100)
	for i := 2; i < len(value); i++ {
		if value[i] < '0' || value[i] > '9' {
			return 0, false
		}
		q += uint16(value[i]-'0') * unit
		unit /= 10
	}
	return q, q <= 1000
}

// compressing returns how the responses of x are to be compressed, or nil.
func (x *exchange) compressing() *router.Compress {
	c := x.conn.server.cfg.Policy.Compress
	if r := x.hop.route; r == nil {
		return nil
	} else if r.Compress != nil {
		c = r.Compress
	}
	if !c.On() {
		return nil
	}
	return c
}

// negotiateCoding notes which coding x's client wants, before the request is
// edited.
func (x *exchange) negotiateCoding() {
	c := x.compressing()
	if c == nil {
		return
	}
	x.hop.compress = c
	// Parts of a compressed response are not parts of the other one, and who
	// forbids transformations gets what the backend sends (RFC 9110 section 7.7).
	if x.req.header.Get("Range") != "" || x.req.header.HasToken(field.CacheControl, "no-transform") {
		return
	}
	x.hop.coding = negotiate(x.req.header, c.Offered())
}

// compress has the response whose final head is about to be sent compressed, if
// that is wanted, possible and of use.
func (x *exchange) compress(status int) {
	c, h := x.hop.compress, x.down.header()
	switch {
	case status == 304:
		weakenValidated(h, x.req.header)
		return
	case status < 200 || status == 204 || status == 205 || status == 206,
		!c.Wants(h.GetID(field.ContentType)), hasEncoding(h), h.Get("Content-Range") != "",
		h.HasToken(field.CacheControl, "no-transform"):
		return
	}
	length, known := contentLength(h)
	if known && length < c.Least() {
		return
	}
	varyBy(h, "Accept-Encoding")
	if x.hop.coding == identity || x.req.method == "HEAD" {
		return
	}
	x.encode(x.hop.coding, c.Least(), known)
}

// hasEncoding reports whether content is encoded already.
func hasEncoding(h *field.List) bool {
	e := h.Get("Content-Encoding")
	return e != "" && !field.EqualFold(e, "identity")
}

// contentLength returns the length that a head gives, if it does.
func contentLength(h *field.List) (n int64, known bool) {
	s := h.GetID(field.ContentLength)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || n > 1<<58 {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, s != ""
}

// varyBy says that the response depends on a request field.
func varyBy(h *field.List, name string) {
	for _, l := range h.Lines() {
		if l.ID == field.Other && field.EqualFold(l.Name, "Vary") && (field.ListHas(l.Value, name) || field.ListHas(l.Value, "*")) {
			return
		}
	}
	h.Add("Vary", name)
}

// weaken makes a strong entity tag a weak one: the compressed content is
// equivalent to the backend's, and not the same (RFC 9110 section 8.8.1).
func weaken(h *field.List) {
	if tag := h.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		h.Set("ETag", "W/"+tag)
	}
}

// weakenValidated has the tag of a 304 be the one that the client has, where
// that was weakened when the content was sent: it would find nothing to update
// by the strong one (RFC 9111 section 4.3.4).
func weakenValidated(h, asked *field.List) {
	tag := h.Get("ETag")
	if tag == "" || strings.HasPrefix(tag, "W/") {
		return
	}
	for _, l := range asked.Lines() {
		if l.ID == field.Other && field.EqualFold(l.Name, "If-None-Match") && strings.Contains(l.Value, "W/"+tag) {
			h.Set("ETag", "W/"+tag)
			varyBy(h, "Accept-Encoding")
			return
		}
	}
}
