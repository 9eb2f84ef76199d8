package h3

import "github.com/remotegpu/sluice/proxy/http/field"

const maxTrailers = 64

// NoLength is the length of a body that only its end tells.
const NoLength = -1

// Request is the head of a request. The zero value is ready for Parse.
type Request struct {
	Method    string // CONNECT only with a Protocol
	Authority string // of :authority or Host
	Path      string // :path
	Protocol  string // of extended CONNECT (RFC 9220), or ""
	Plain     bool   // CONNECT without a protocol: it has only Method and Authority
	Fields    field.List
	Length    int64 // by Content-Length; NoLength

	section Section
	scheme  string
	seen    [pseudoOther + 1]bool
	host    bool
	crumbs  []string // of cookies
}

// Parse reads the content of a HEADERS frame. Its fields may count for limit
// bytes (RFC 9114 section 4.2.2). Strings of r lie in b, or in r, and hold until
// Reset or Parse. Every error is an *Error.
func (r *Request) Parse(b []byte, limit int) error {
	r.Reset()
	if err := r.section.Begin(b, limit); err != nil {
		return err
	}
	for r.section.more() {
		line, p, err := r.section.next()
		switch {
		case err != nil:
			return err
		case p != notPseudo:
			err = r.takePseudo(p, line.Value)
		default:
			err = r.takeField(line)
		}
		if err != nil {
			return err
		}
	}
	r.joinCookies()
	return r.check()
}

// Reset lets go of what was parsed.
func (r *Request) Reset() {
	r.Method, r.Authority, r.Path, r.Protocol, r.scheme = "", "", "", "", ""
	r.Plain, r.host, r.Length, r.crumbs = false, false, NoLength, r.crumbs[:0]
	r.Fields.Reset()
	r.seen = [pseudoOther + 1]bool{}
}

// Section returns the buffer that r's strings lie in.
func (r *Request) Section() *Section { return &r.section }

func (r *Request) takePseudo(p pseudo, value string) error {
	switch {
	case p == pseudoOther:
		return errPseudoUnknown
	case r.Fields.Len() > 0 || r.host || len(r.crumbs) > 0:
		return errPseudoLate
	case r.seen[p]:
		return errPseudoTwice
	case !field.IsValue(value):
		return errValue
	}
	r.seen[p] = true
	switch p {
	case pseudoMethod:
		r.Method = value
	case pseudoScheme:
		r.scheme = value
	case pseudoAuthority:
		r.Authority = value
	case pseudoPath:
		r.Path = value
	case pseudoProtocol:
		r.Protocol = value
	}
	return nil
}

func (r *Request) takeField(line field.Line) error {
	if err := checkLine(&line); err != nil {
		return err
	}
	switch line.ID {
	case field.Host:
		if r.host || r.seen[pseudoAuthority] && r.Authority != line.Value {
			return errAuthority
		}
		r.host, r.Authority = true, line.Value
	case field.ContentLength:
		n, ok := Length(line.Value)
		if !ok || r.Length != NoLength {
			return errLength
		}
		r.Length = n
	}
	if r.Fields.Len()+len(r.crumbs) >= field.MaxLines {
		return ErrTooLarge
	}
	if line.ID == field.Other && line.Name == "cookie" {
		r.crumbs = append(r.crumbs, line.Value)
		return nil
	}
	r.Fields.Append(line)
	return nil
}

// joinCookies has the crumbs of a cookie that came in several lines be one again,
// for whoever does not speak HTTP/3 (RFC 9114 section 4.2.1).
func (r *Request) joinCookies() {
	switch len(r.crumbs) {
	case 0:
	case 1:
		r.Fields.Append(field.Line{Name: "cookie", Value: r.crumbs[0]})
	default:
		r.Fields.Append(field.Line{Name: "cookie", Value: r.section.join(r.crumbs, "; ")})
	}
}

// check looks at the head as a whole (RFC 9114 sections 4.3.1 and 4.4, RFC 9220).
func (r *Request) check() error {
	target := r.seen[pseudoScheme] && r.seen[pseudoPath]
	switch {
	case r.Method == "":
		return errPseudoMissing
	case r.Method == "CONNECT" && !r.seen[pseudoProtocol]:
		if r.seen[pseudoScheme] || r.seen[pseudoPath] || !r.seen[pseudoAuthority] {
			return errConnect
		}
		r.Plain = true
		return nil
	case r.seen[pseudoProtocol] && r.Method != "CONNECT":
		return errProtocol
	case r.seen[pseudoProtocol] && (!target || !r.seen[pseudoAuthority] || r.Protocol == ""):
		return errConnect
	case !target:
		return errPseudoMissing
	case !field.EqualFold(r.scheme, "https"):
		return errScheme
	case r.Authority == "":
		return errAuthority
	case r.Path == "" || r.Path[0] != '/' && (r.Path != "*" || r.Method != "OPTIONS"):
		return errPath
	}
	return nil
}

// checkLine refuses what a field of HTTP/3 cannot be (RFC 9114 section 4.2).
func checkLine(line *field.Line) error {
	switch {
	case !field.IsLowerName(line.Name):
		return errName
	case !field.IsValue(line.Value):
		return errValue
	case line.ID == field.TE:
		if !field.EqualFold(line.Value, "trailers") {
			return errConnectionName
		}
	case line.ID >= field.Connection && line.ID <= field.Upgrade && line.ID != field.Trailer:
		return errConnectionName
	}
	return nil
}

// Length reads the value of Content-Length (RFC 9110 section 8.6).
func Length(s string) (n int64, ok bool) {
	if s == "" || len(s) > 18 { // what fits an int64 without counting
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// Trailer is the trailer section of a request. The zero value is ready for Parse.
type Trailer struct {
	Fields  field.List
	section Section
}

// Parse reads the content of a HEADERS frame behind a body, as Request.Parse does.
func (t *Trailer) Parse(b []byte, limit int) error {
	t.Fields.Reset()
	if err := t.section.Begin(b, limit); err != nil {
		return err
	}
	for t.section.more() {
		line, p, err := t.section.next()
		if err == nil && p != notPseudo {
			err = errPseudoTrailer
		}
		if err == nil {
			err = checkLine(&line)
		}
		if err == nil && t.Fields.Len() >= maxTrailers {
			err = ErrTooLarge
		}
		if err != nil {
			return err
		}
		t.Fields.Append(line)
	}
	return nil
}
