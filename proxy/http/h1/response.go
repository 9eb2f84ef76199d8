package h1

import (
	"github.com/remotegpu/sluice/proxy/http/field"
)

// Response is the head of a response. The zero value is ready to parse one into
// Fields, which the caller sets.
type Response struct {
	Status int
	Minor  int
	Fields *field.List

	// Length is that of the body; 0: none, Chunked and UntilEnd: not known
	// before its end. It is that of the body to come, and not of the one that a
	// response to HEAD speaks of.
	Length    int64
	KeepAlive bool // the server would go on with the connection

	pos     int
	framing framing
}

// Reset makes r ready for the next response, into fields.
func (r *Response) Reset(fields *field.List) {
	fields.Reset()
	r.Fields = fields
	r.Status, r.Minor, r.Length, r.KeepAlive = 0, 0, 0, false
	r.pos, r.framing = 0, framing{}
}

// Size returns the length of the head once it is complete.
func (r *Response) Size() int { return r.pos }

// Parse goes on with a head of which buf has come so far, as Request.Parse does.
// toHead says that the request was a HEAD, which no body answers.
func (r *Response) Parse(buf []byte, toHead bool) (complete bool, err error) {
	for {
		text, next, err := line(buf, r.pos)
		if err != nil || next == 0 {
			return false, err
		}
		switch {
		case r.pos == 0:
			err = r.statusLine(text)
		case len(text) == 0:
			r.pos = next
			return true, r.finish(toHead)
		default:
			err = r.fieldLine(text)
		}
		if err != nil {
			return false, err
		}
		r.pos = next
	}
}

// statusLine parses version, status and reason (RFC 9112 section 4). Servers
// that leave out the space before an empty reason are common, and there is but
// one way to understand them.
func (r *Response) statusLine(text []byte) error {
	const begin = "HTTP/1.1 200"
	if len(text) < len(begin) || string(text[:7]) != "HTTP/1." || text[8] != ' ' {
		return errStatusLine
	}
	switch text[7] {
	case '1':
		r.Minor = 1
	case '0':
	default:
		return errStatusLine
	}
	for _, c := range text[9:12] {
		if c < '0' || c > '9' {
			return errStatusLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	reason := text[12:]
	if r.Status < 100 || len(reason) > 0 && reason[0] != ' ' || !isText(reason) {
		return errStatusLine
	}
	return nil
}

func (r *Response) fieldLine(text []byte) error {
	l, err := appendLine(r.Fields, text)
	if err != nil {
		return err
	}
	return r.framing.note(l)
}

// finish draws the conclusions from the whole head (RFC 9112 section 6.3).
func (r *Response) finish(toHead bool) error {
	if err := r.framing.check(r.Minor); err != nil {
		return err
	}
	switch {
	case toHead || r.Status < 200 || r.Status == 204 || r.Status == 304:
		r.Length = 0
	case r.framing.chunked:
		r.Length = Chunked
	case r.framing.lengths > 0:
		r.Length = r.framing.length
	default:
		r.Length = UntilEnd
	}
	r.KeepAlive = r.framing.persists(r.Minor) && r.Length != UntilEnd
	return nil
}
