package http

import (
	"strconv"

	"github.com/remotegpu/sluice/router"
)

// SentTarget returns the request target that r's backend gets for uri, path and
// query as a client sends them: without a prefix, or rewritten, where r says so.
func SentTarget(r *router.Route, uri string) string {
	t, ok := parseTarget(uri)
	switch {
	case !ok:
		return uri
	case r.StripPrefix:
		t = t.stripped(r)
	case r.Rewrite != nil && t.path != "*":
		t = t.rewritten(r)
	}
	return t.String()
}

// OtherReading returns the path of uri as a backend of r may read it that takes
// dots and escaped slashes for ordinary characters. ambiguous is whether that
// is another one: if it belongs to another route, the answer is 400.
func OtherReading(r *router.Route, uri string) (path string, ambiguous bool) {
	t, ok := parseTarget(uri)
	if !ok || !t.sentAsWritten(r) {
		return "", false
	}
	return t.otherReading()
}

// HTTPSLocation returns the URL over TLS to which a request in clear text for
// host and uri is sent, on a listener with a port.
func HTTPSLocation(host string, port int, uri string) string {
	location := "https://" + urlHost(host)
	if port != 443 {
		location += ":" + strconv.Itoa(port)
	}
	if uri != "*" {
		location += uri
	}
	return location
}
