package http

import (
	"cmp"
	"net/url"
	"path"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// target is a request target (RFC 9112 section 3.2) taken apart, byte for byte
// as received.
type target struct {
	path  string // escaped; "*" in OPTIONS *
	query string // with its question mark, or ""
	whole string // both, where they are what was received
}

// parseTarget takes origin-form, absolute-form and "*". ok is false for what no
// target can hold: codecs refuse most of it, but not all of it, and not all
// alike.
func parseTarget(s string) (t target, ok bool) {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || c == '#' {
			return target{}, false
		}
	}
	if s == "*" {
		return target{path: s}, true
	}
	if !strings.HasPrefix(s, "/") {
		_, rest, absolute := strings.Cut(s, "://")
		if !absolute {
			return target{}, false
		}
		s = rest[indexOr(rest, "/?"):]
	}
	at := indexOr(s, "?")
	t = target{path: s[:at], query: s[at:], whole: s}
	if t.path == "" {
		t.path, t.whole = "/", ""
	}
	return t, true
}

// indexOr returns where in s the first of chars stands, or its length.
func indexOr(s, chars string) int {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return i
	}
	return len(s)
}

func (t target) String() string {
	if t.whole != "" || t.query == "" {
		return cmp.Or(t.whole, t.path)
	}
	return t.path + t.query
}

// decoded returns the path without escapes.
func (t target) decoded() (string, bool) {
	if strings.IndexByte(t.path, '%') < 0 {
		return t.path, true
	}
	p, err := url.PathUnescape(t.path)
	return p, err == nil
}

// otherReading returns the path as it is for a backend that resolves no dot
// segments and takes escaped slashes, backslashes and dots for ordinary
// characters. ambiguous is whether there are any of these.
func (t target) otherReading() (path string, ambiguous bool) {
	if strings.IndexByte(t.path, '%') < 0 && !strings.Contains(t.path, "/.") {
		return "", false
	}
	kept := keepEscaped.Replace(t.path)
	if strings.Contains(kept, "/.") {
		segments := strings.Split(kept, "/")
		for i, s := range segments {
			if s == "." || s == ".." {
				segments[i] = strings.Repeat("%252e", len(s))
			}
		}
		kept = strings.Join(segments, "/")
	}
	if kept == t.path {
		return "", false
	}
	path, err := url.PathUnescape(kept)
	return path, err == nil
}

// sentAsWritten reports whether r has a backend that gets the path as the client
// wrote it. It gets it as it was matched where the prefix that comes off stands
// there only after resolving dots.
func (t target) sentAsWritten(r *router.Route) bool {
	if r == nil || r.Backend == nil {
		return false
	}
	if r.Rewrite != nil {
		return false // nor what stays as it is: it may be what a rewritten one becomes
	}
	_, literal := r.StripPath(t.path)
	return literal
}

// keepEscaped has what otherReading is about outlive one unescaping.
var keepEscaped = strings.NewReplacer("%2f", "%252f", "%2F", "%252F", "%2e", "%252e", "%2E", "%252E", "%5c", "%255c", "%5C", "%255C")

// stripped returns the target without the path prefix of r, where r says so.
func (t target) stripped(r *router.Route) target {
	t.whole = ""
	if p, ok := r.StripPath(t.path); ok {
		t.path = p
		return t
	}
	// The prefix was matched behind dots, doubled slashes or escapes; it comes
	// off the path that was matched.
	decoded, _ := t.decoded()
	clean := path.Clean("/" + decoded)
	if strings.HasSuffix(decoded, "/") && clean != "/" {
		clean += "/"
	}
	if p, ok := r.StripPath(clean); ok {
		t.path = (&url.URL{Path: p}).EscapedPath()
	}
	return t
}

// rewritten returns the target with the path that r makes of it.
func (t target) rewritten(r *router.Route) target {
	decoded, _ := t.decoded()
	t.whole, t.path = "", r.RewritePath(t.path, decoded)
	return t
}

// parseAuthority splits Host or :authority (RFC 9110 section 7.2) and returns
// the host in the form that routes are found by.
func parseAuthority(s string) (host string, ok bool) {
	port := ""
	if end := strings.LastIndexByte(s, ']'); end >= 0 {
		s, port = s[:end+1], s[end+1:]
		if !strings.HasPrefix(s, "[") {
			return "", false
		}
	} else if colon := strings.IndexByte(s, ':'); colon >= 0 {
		s, port = s[:colon], s[colon:]
	}
	if port != "" && !isPortSuffix(port) {
		return "", false
	}
	return router.NormalizeHost(s)
}

// isPortSuffix reports whether s is ":" and digits, if any.
func isPortSuffix(s string) bool {
	if s[0] != ':' || len(s) > 6 {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// urlHost writes a host as a URL wants it.
func urlHost(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}
