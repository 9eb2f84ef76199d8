package sniff

import (
	"bytes"
)

// Kind is what a connection speaks, as far as its first bytes tell.
type Kind uint8

// What Classify answers. The zero value is that there is no answer yet.
const (
	NeedMore Kind = iota // too few bytes to tell
	TLS                  // the beginning of a TLS ClientHello
	HTTP                 // an HTTP/1 request line or the HTTP/2 preface
	Other                // neither
)

// String returns the kind in lower case, for logs and metrics.
func (k Kind) String() string {
	switch k {
	case TLS:
		return "tls"
	case HTTP:
		return "http"
	case Other:
		return "other"
	}
	return "unknown"
}

// MaxClassify is the number of bytes with which Classify always has an answer.
const MaxClassify = maxMethod + len(" ") + len("https://")

// maxMethod is the longest request method taken for one; the longest registered
// is UPDATEREDIRECTREF, 17 bytes.
const maxMethod = 20

// Classify tells what a connection that begins with p speaks. It answers at the
// first byte that decides, and NeedMore until then; it never needs more than
// MaxClassify bytes. It is meant for ports that serve TLS, HTTP and something
// else, so what is in doubt is Other.
func Classify(p []byte) Kind {
	if len(p) == 0 {
		return NeedMore
	}
	if p[0] == typeHandshake {
		return classifyTLS(p)
	}
	return classifyHTTP(p)
}

// classifyTLS wants the record header and the handshake type behind it: a
// single 0x16 could be anything.
func classifyTLS(p []byte) Kind {
	length, err := recordHeader(p, true)
	switch {
	case err != nil:
		return Other
	case length == 0 || len(p) == recordHeaderLen:
		return NeedMore
	case p[recordHeaderLen] != typeClientHello:
		return Other
	}
	return TLS
}

// classifyHTTP wants a method, a space and the beginning of a request target
// (RFC 9112 section 3).
func classifyHTTP(p []byte) Kind {
	// "SSH-2.0-x y" (RFC 4253 section 4.2) would pass for a method and a target
	// of a kind for a dozen bytes, all that the client sends before it waits.
	if bytes.HasPrefix(p, []byte("SSH-")) {
		return Other
	}
	for i, c := range p {
		switch {
		case c == ' ' && i > 0:
			return classifyTarget(p[:i], p[i+1:])
		case i == maxMethod || !isTokenByte(c):
			return Other
		}
	}
	return NeedMore
}

// classifyTarget tells a request target (RFC 9112 section 3.2) from what other
// protocols with a word and a space send: the path of a resource, the asterisk
// of OPTIONS and PRI, an absolute URL, or anything after CONNECT.
func classifyTarget(method, target []byte) Kind {
	if len(target) == 0 {
		return NeedMore
	}
	switch {
	case target[0] == '/' || string(method) == "CONNECT":
		return HTTP
	case target[0] == '*':
		return classifyPrefix(target, "* HTTP/")
	}
	if k := classifyPrefix(target, "http://"); k != Other {
		return k
	}
	return classifyPrefix(target, "https://")
}

// classifyPrefix compares p with a prefix, schemes being case-insensitive.
func classifyPrefix(p []byte, prefix string) Kind {
	n := min(len(p), len(prefix))
	switch {
	case !bytes.EqualFold(p[:n], []byte(prefix[:n])):
		return Other
	case n < len(prefix):
		return NeedMore
	}
	return HTTP
}

// isTokenByte reports whether c may be in a method (RFC 9110 section 5.6.2).
func isTokenByte(c byte) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return true
	}
	return bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}
