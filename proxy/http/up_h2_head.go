package http

import (
	"github.com/remotegpu/sluice/proxy/http/field"
)

// Requests are written with the static table of HPACK alone (RFC 7541 appendix
// A): what a dynamic one would save in bytes on the way to a backend nearby,
// keeping it costs in time on both sides. So a head depends on no connection and
// is good for any.
const (
	hpackIndexed  = 0x80
	hpackLiteral  = 0x00 // without indexing
	hpackNever    = 0x10 // never to be indexed
	hpackNoTable  = 0x20 // the dynamic table has size 0 (section 6.3)
	hpackGet      = 2
	hpackPost     = 3
	hpackMethod   = 2
	hpackRoot     = 4
	hpackPath     = 4
	hpackHTTP     = 6
	hpackHTTPS    = 7
	hpackHost     = 1
	hpackAuthCred = 23
	hpackCookie   = 32
)

// staticNames says where the static table holds known names; 0: nowhere.
var staticNames = [256]uint8{
	field.ProxyAuthorization: 49, field.ContentLength: 28, field.ContentType: 31, field.Date: 33, field.Expect: 35,
	field.UserAgent: 58, field.CacheControl: 24, field.Location: 46,
}

// appendPseudo appends the pseudo-header fields of a request.
func appendPseudo(b []byte, method, scheme, authority, path string) []byte {
	switch method {
	case "GET":
		b = append(b, hpackIndexed|hpackGet)
	case "POST":
		b = append(b, hpackIndexed|hpackPost)
	default:
		b = appendNamed4(b, hpackLiteral, hpackMethod, method)
	}
	if scheme == "https" {
		b = append(b, hpackIndexed|hpackHTTPS)
	} else {
		b = append(b, hpackIndexed|hpackHTTP)
	}
	if path == "/" {
		b = append(b, hpackIndexed|hpackRoot)
	} else {
		b = appendNamed4(b, hpackLiteral, hpackPath, path)
	}
	return appendNamed4(b, hpackLiteral, hpackHost, authority)
}

// appendLines appends the fields of l, with names in lower case as RFC 9113
// section 8.2 wants them.
func appendLines(b []byte, l *field.List) []byte {
	lines := l.Lines()
	for i := range lines {
		line := &lines[i]
		if at := staticNames[line.ID]; at != 0 {
			b = appendNamed4(b, hpackLiteral, at, line.Value)
			continue
		}
		// Who reads them must not put secrets into a table that others can probe
		// (RFC 7541 section 7.1.3).
		switch {
		case len(line.Name) == len("authorization") && field.EqualFold(line.Name, "authorization"):
			b = appendNamed4(b, hpackNever, hpackAuthCred, line.Value)
		case len(line.Name) == len("cookie") && field.EqualFold(line.Name, "cookie"):
			b = appendNamed4(b, hpackNever, hpackCookie, line.Value)
		default:
			b = appendText(appendLower(append(b, hpackLiteral), line.Name), line.Value)
		}
	}
	return b
}

// appendNamed4 appends a literal whose name is in the static table.
func appendNamed4(b []byte, kind, at uint8, value string) []byte {
	return appendText(appendInteger(b, kind, 4, int(at)), value)
}

func appendText(b []byte, s string) []byte { return append(appendInteger(b, 0, 7, len(s)), s...) }

func appendLower(b []byte, name string) []byte {
	b = appendInteger(b, 0, 7, len(name))
	for i := range len(name) {
		c := name[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// appendInteger appends an integer that begins in the lowest bits of a byte
// whose others are those of high (RFC 7541 section 5.1).
func appendInteger(b []byte, high uint8, bits, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		return append(b, high|byte(n))
	}
	b = append(b, high|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}
