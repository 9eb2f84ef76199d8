package h3

import "github.com/remotegpu/sluice/proxy/http/field"

// entry is an entry of the static table (RFC 9204 appendix A).
type entry struct {
	name, value string
	id          field.ID
	pseudo      pseudo
}

// pseudo is a pseudo-header field of requests.
type pseudo uint8

const (
	notPseudo pseudo = iota
	pseudoMethod
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoProtocol
	pseudoOther // none that requests have
)

func pseudoOf(name string) pseudo {
	if name == "" || name[0] != ':' {
		return notPseudo
	}
	switch name {
	case ":method":
		return pseudoMethod
	case ":scheme":
		return pseudoScheme
	case ":authority":
		return pseudoAuthority
	case ":path":
		return pseudoPath
	case ":protocol":
		return pseudoProtocol
	}
	return pseudoOther
}

// staticTable is made once, with what is looked for in each name.
var staticTable = func() (t [len(staticLines)]entry) {
	for i, l := range staticLines {
		t[i] = entry{name: l[0], value: l[1], id: field.Identify(l[0]), pseudo: pseudoOf(l[0])}
	}
	return t
}()

// staticByLength has, for names of each length, the index of the first entry
// with each name.
var staticByLength = func() (by [maxStaticName + 1][]uint8) {
	for i, l := range staticLines {
		if n := len(l[0]); i == 0 || firstOf(l[0]) == i {
			by[n] = append(by[n], uint8(i))
		}
	}
	return by
}()

const maxStaticName = len("access-control-allow-credentials")

func firstOf(name string) int {
	for i, l := range staticLines {
		if l[0] == name {
			return i
		}
	}
	return -1
}

// nameIndex returns the first entry with a name, in any case, or -1.
func nameIndex(name string) int {
	if len(name) > maxStaticName {
		return -1
	}
	for _, i := range staticByLength[len(name)] {
		if field.EqualFold(name, staticLines[i][0]) {
			return int(i)
		}
	}
	return -1
}

// lineIndex returns the entry with the name of entry i and a value, or -1. But
// for a few, the entries of one name stand together.
func lineIndex(i int, value string) int {
	name := staticLines[i][0]
	for ; i < len(staticLines) && staticLines[i][0] == name; i++ {
		if staticLines[i][1] == value && value != "" {
			return i
		}
	}
	return -1
}

// statusIndex returns the entry with a status, or -1.
func statusIndex(status int) int {
	switch status {
	case 103:
		return 24
	case 200:
		return 25
	case 304:
		return 26
	case 404:
		return 27
	case 503:
		return 28
	case 100:
		return 63
	case 204:
		return 64
	case 206:
		return 65
	case 302:
		return 66
	case 400:
		return 67
	case 403:
		return 68
	case 421:
		return 69
	case 425:
		return 70
	case 500:
		return 71
	}
	return -1
}

// anyStatus is an entry with the name :status.
const anyStatus = 24

var staticLines = [...][2]string{
	{":authority", ""},
	{":path", "/"},
	{"age", "0"},
	{"content-disposition", ""},
	{"content-length", "0"},
	{"cookie", ""},
	{"date", ""},
	{"etag", ""},
	{"if-modified-since", ""},
	{"if-none-match", ""},
	{"last-modified", ""},
	{"link", ""},
	{"location", ""},
	{"referer", ""},
	{"set-cookie", ""},
	{":method", "CONNECT"},
	{":method", "DELETE"},
	{":method", "GET"},
	{":method", "HEAD"},
	{":method", "OPTIONS"},
	{":method", "POST"},
	{":method", "PUT"},
	{":scheme", "http"},
	{":scheme", "https"},
	{":status", "103"},
	{":status", "200"},
	{":status", "304"},
	{":status", "404"},
	{":status", "503"},
	{"accept", "*/*"},
	{"accept", "application/dns-message"},
	{"accept-encoding", "gzip, deflate, br"},
	{"accept-ranges", "bytes"},
	{"access-control-allow-headers", "cache-control"},
	{"access-control-allow-headers", "content-type"},
	{"access-control-allow-origin", "*"},
	{"cache-control", "max-age=0"},
	{"cache-control", "max-age=2592000"},
	{"cache-control", "max-age=604800"},
	{"cache-control", "no-cache"},
	{"cache-control", "no-store"},
	{"cache-control", "public, max-age=31536000"},
	{"content-encoding", "br"},
	{"content-encoding", "gzip"},
	{"content-type", "application/dns-message"},
	{"content-type", "application/javascript"},
	{"content-type", "application/json"},
	{"content-type", "application/x-www-form-urlencoded"},
	{"content-type", "image/gif"},
	{"content-type", "image/jpeg"},
	{"content-type", "image/png"},
	{"content-type", "text/css"},
	{"content-type", "text/html; charset=utf-8"},
	{"content-type", "text/plain"},
	{"content-type", "text/plain;charset=utf-8"},
	{"range", "bytes=0-"},
	{"strict-transport-security", "max-age=31536000"},
	{"strict-transport-security", "max-age=31536000; includesubdomains"},
	{"strict-transport-security", "max-age=31536000; includesubdomains; preload"},
	{"vary", "accept-encoding"},
	{"vary", "origin"},
	{"x-content-type-options", "nosniff"},
	{"x-xss-protection", "1; mode=block"},
	{":status", "100"},
	{":status", "204"},
	{":status", "206"},
	{":status", "302"},
	{":status", "400"},
	{":status", "403"},
	{":status", "421"},
	{":status", "425"},
	{":status", "500"},
	{"accept-language", ""},
	{"access-control-allow-credentials", "FALSE"},
	{"access-control-allow-credentials", "TRUE"},
	{"access-control-allow-headers", "*"},
	{"access-control-allow-methods", "get"},
	{"access-control-allow-methods", "get, post, options"},
	{"access-control-allow-methods", "options"},
	{"access-control-expose-headers", "content-length"},
	{"access-control-request-headers", "content-type"},
	{"access-control-request-method", "get"},
	{"access-control-request-method", "post"},
	{"alt-svc", "clear"},
	{"authorization", ""},
	{"content-security-policy", "script-src 'none'; object-src 'none'; base-uri 'none'"},
	{"early-data", "1"},
	{"expect-ct", ""},
	{"forwarded", ""},
	{"if-range", ""},
	{"origin", ""},
	{"purpose", "prefetch"},
	{"server", ""},
	{"timing-allow-origin", "*"},
	{"upgrade-insecure-requests", "1"},
	{"user-agent", ""},
	{"x-forwarded-for", ""},
	{"x-frame-options", "deny"},
	{"x-frame-options", "sameorigin"},
}
