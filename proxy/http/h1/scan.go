package h1

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"github.com/remotegpu/sluice/proxy/http/field"
)

const maxTrailers = 64

// str returns b as a string that shares its bytes.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// line returns the line that begins at from, without its end, and where the next
// begins; 0 where there is no end yet.
func line(buf []byte, from int) (text []byte, next int, err error) {
	n := bytes.IndexByte(buf[from:], '\n')
	if n < 0 {
		return nil, 0, nil
	}
	end := from + n
	if n == 0 || buf[end-1] != '\r' {
		return nil, 0, errLineEnd
	}
	return buf[from : end-1], end + 1, nil
}

// fieldLine parses a field line (RFC 9112 section 5).
func fieldLine(text []byte) (field.Line, error) {
	if text[0] == ' ' || text[0] == '\t' {
		return field.Line{}, errFolded
	}
	colon := 0
	for colon < len(text) && isToken[text[colon]] {
		colon++
	}
	if colon == 0 || colon == len(text) || text[colon] != ':' {
		return field.Line{}, errFieldName
	}
	value := text[colon+1:]
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for n := len(value); n > 0 && (value[n-1] == ' ' || value[n-1] == '\t'); n-- {
		value = value[:n-1]
	}
	if !isText(value) {
		return field.Line{}, errControl
	}
	name := str(text[:colon])
	return field.Line{Name: name, Value: str(value), ID: field.Identify(name)}, nil
}

// appendLine parses a field line and appends it to the fields of a head, where it
// is. It is for the caller to see what the line means for framing.
func appendLine(fields *field.List, text []byte) (*field.Line, error) {
	l, err := fieldLine(text)
	if err != nil {
		return nil, err
	}
	n := fields.Len()
	if n == field.MaxLines {
		return nil, errFieldCount
	}
	fields.Append(l)
	return &fields.Lines()[n], nil
}

// ValidMethod reports whether a method that did not come by Parse can be written
// in a request line: it is a token (RFC 9110 section 9.1).
func ValidMethod(method string) bool {
	for i := 0; i < len(method); i++ {
		if !isToken[method[i]] {
			return false
		}
	}
	return method != ""
}

// isText reports whether b may be a field value: no control characters but tab
// (RFC 9110 section 5.5).
func isText(b []byte) bool {
	const ones = 0x0101010101010101
	i := 0
	for ; i+8 <= len(b); i += 8 {
		// Eight bytes at once: the high bit of each that is below 0x20 or is 0x7f.
		x := binary.LittleEndian.Uint64(b[i:])
		y := x ^ 0x7f*ones
		if ((x-0x20*ones)&^x|(y-ones)&^y)&(0x80*ones) != 0 && !isTextSlow(b[i:i+8]) {
			return false
		}
	}
	return isTextSlow(b[i:])
}

func isTextSlow(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isToken has the characters of tokens (RFC 9110 section 5.6.2).
var isToken = func() (is [256]bool) {
	for c := range 128 {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		is[c] = letter || c >= '0' && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
	}
	return is
}()

// isAuthority has the characters of a host name and its port; what NormalizeHost
// of package router makes of them is another matter.
var isAuthority = func() (is [256]bool) {
	for c := range 128 {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		is[c] = letter || c >= '0' && c <= '9' || bytes.IndexByte([]byte("-._~%!$&'()*+,;=:[]"), byte(c)) >= 0
	}
	return is
}()

func validAuthority(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isAuthority[s[i]] {
			return false
		}
	}
	// The port is digits behind the last colon that is not inside brackets.
	host := s
	for i := len(s) - 1; i >= 0 && s[i] != ']'; i-- {
		if s[i] == ':' {
			host = s[:i]
			break
		}
		if s[i] < '0' || s[i] > '9' {
			break
		}
	}
	if len(host) > 0 && host[0] == '[' {
		return len(host) > 2 && host[len(host)-1] == ']' && bracketed(host[1:len(host)-1])
	}
	for i := 0; i < len(host); i++ {
		if c := host[i]; c == ':' || c == '[' || c == ']' {
			return false
		}
	}
	return true
}

func bracketed(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isHex(c) && c != ':' && c != '.' {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// parseLength reads a Content-Length (RFC 9110 section 8.6).
func parseLength(s string) (int64, error) {
	if s == "" || len(s) > 18 { // what fits an int64 without counting
		return 0, errLength
	}
	n := int64(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < '0' || c > '9' {
			return 0, errLength
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// framing is what the fields of a head say of its body and its connection.
type framing struct {
	lengths, codings   int
	length             int64
	chunked            bool
	closing, keepAlive bool
}

// note takes up a line that matters to framing.
func (f *framing) note(l *field.Line) (err error) {
	switch l.ID {
	case field.ContentLength:
		f.lengths++
		f.length, err = parseLength(l.Value)
	case field.TransferEncoding:
		f.codings++
		if f.chunked = field.EqualFold(l.Value, "chunked"); !f.chunked {
			err = errCoding
		}
	case field.Connection:
		f.closing = f.closing || field.ListHas(l.Value, "close")
		f.keepAlive = f.keepAlive || field.ListHas(l.Value, "keep-alive")
	}
	return err
}

// check refuses what two readers could frame in two ways (RFC 9112 section 6.3).
func (f *framing) check(minor int) error {
	switch {
	case f.codings > 0 && minor == 0:
		return errCoding10
	case f.codings > 0 && f.lengths > 0:
		return errTwoLengths
	case f.codings > 1:
		return errCodingTwice
	case f.lengths > 1:
		return errLengthTwice
	}
	return nil
}

// persists reports whether the connection may go on after the message (RFC 9112
// section 9.3).
func (f *framing) persists(minor int) bool {
	return !f.closing && (minor == 1 || f.keepAlive)
}
