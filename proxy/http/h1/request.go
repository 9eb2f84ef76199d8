package h1

import (
	"github.com/remotegpu/sluice/proxy/http/field"
)

// Request is the head of a request. The zero value is ready to parse one.
type Request struct {
	Method string
	Target string // as received
	// Authority is that of an absolute-form target, or else Host: RFC 9112
	// section 3.2.2 has the former take the place of the latter.
	Authority string
	Minor     int // of the version, 1 or 0
	Fields    field.List

	Length    int64 // of the body; 0: none, Chunked: not known before its end
	KeepAlive bool  // the client would go on with the connection
	Expect    bool  // the client waits for 100 (Continue) before it sends the body

	pos     int // where the line to parse next begins
	hosts   int
	framing framing
}

// Lengths of bodies that no number says.
const (
	Chunked  = -1
	UntilEnd = -2 // of the connection; responses only
)

// Reset makes r ready for the next request and keeps its room.
func (r *Request) Reset() {
	r.Fields.Reset()
	r.Method, r.Target, r.Authority, r.Minor = "", "", "", 0
	r.Length, r.KeepAlive, r.Expect = 0, false, false
	r.pos, r.hosts, r.framing = 0, 0, framing{}
}

// Size returns the length of the head once it is complete.
func (r *Request) Size() int { return r.pos }

// Parse goes on with a head of which buf has come so far; it is given the same
// buffer each time, longer. complete is whether the head has ended: what follows
// it in buf, behind Size, is the body's. Any error is an *Error.
func (r *Request) Parse(buf []byte) (complete bool, err error) {
	for {
		text, next, err := line(buf, r.pos)
		if err != nil || next == 0 {
			return false, err
		}
		switch {
		case r.pos == 0:
			err = r.requestLine(text)
		case len(text) == 0:
			r.pos = next
			return true, r.finish()
		default:
			err = r.fieldLine(text)
		}
		if err != nil {
			return false, err
		}
		r.pos = next
	}
}

// requestLine parses method, target and version (RFC 9112 section 3).
func (r *Request) requestLine(text []byte) error {
	n := 0
	for n < len(text) && isToken[text[n]] {
		n++
	}
	const version = " HTTP/1.1"
	rest := len(text) - len(version)
	switch {
	case n == 0:
		return errMethod
	case n == len(text) || text[n] != ' ':
		return errRequestLine
	case rest <= n || string(text[rest:rest+6]) != " HTTP/" || text[rest+7] != '.':
		return errRequestLine
	}
	r.Method = str(text[:n])
	r.Target = str(text[n+1 : max(rest, n+1)])
	switch string(text[rest+6:]) {
	case "1.1":
		r.Minor = 1
	case "1.0":
		r.Minor = 0
	default:
		return errVersion
	}
	return r.checkTarget()
}

// checkTarget checks the target's form (RFC 9112 section 3.2), and takes the
// authority of an absolute-form.
func (r *Request) checkTarget() error {
	t := r.Target
	if t == "" {
		return errTarget
	}
	for i := 0; i < len(t); i++ {
		if c := t[i]; c <= ' ' || c == 0x7f || c == '#' {
			return errTarget
		}
	}
	switch {
	case t[0] == '/':
		return checkPath(t)
	case t == "*":
		if r.Method != "OPTIONS" {
			return errTarget
		}
		return nil
	case r.Method == "CONNECT":
		if !validAuthority(t) {
			return errTarget
		}
		return nil
	}
	return r.absoluteForm()
}

func (r *Request) absoluteForm() error {
	rest := r.Target
	switch {
	case len(rest) > 7 && field.EqualFold(rest[:7], "http://"):
		rest = rest[7:]
	case len(rest) > 8 && field.EqualFold(rest[:8], "https://"):
		rest = rest[8:]
	default:
		return errTarget
	}
	end := 0
	for end < len(rest) && rest[end] != '/' && rest[end] != '?' {
		end++
	}
	if end == 0 || !validAuthority(rest[:end]) {
		return errTarget
	}
	r.Authority = rest[:end]
	return checkPath(rest[end:])
}

// checkPath refuses a percent sign that begins no escape, in front of the query.
func checkPath(s string) error {
	for i := 0; i < len(s) && s[i] != '?'; i++ {
		if s[i] == '%' && (i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2])) {
			return errTarget
		}
	}
	return nil
}

func (r *Request) fieldLine(text []byte) error {
	l, err := appendLine(&r.Fields, text)
	if err != nil {
		return err
	}
	switch l.ID {
	case field.Other:
		return nil
	case field.Host:
		r.hosts++
		if r.hosts > 1 || !validAuthority(l.Value) {
			return errHost
		}
		if r.Authority == "" {
			r.Authority = l.Value
		}
		return nil
	case field.Expect:
		if r.Expect || !field.EqualFold(l.Value, "100-continue") {
			return errExpect
		}
		r.Expect = r.Minor == 1 // HTTP/1.0 has no 100 (RFC 9110 section 10.1.1)
		return nil
	}
	return r.framing.note(l)
}

// finish draws the conclusions from the whole head.
func (r *Request) finish() error {
	if r.hosts == 0 && r.Minor == 1 {
		return errHost
	}
	if err := r.framing.check(r.Minor); err != nil {
		return err
	}
	r.Length = r.framing.length
	if r.framing.chunked {
		r.Length = Chunked
	}
	r.KeepAlive = r.framing.persists(r.Minor)
	r.Expect = r.Expect && r.Length != 0
	return nil
}
