package field

// ID stands for a field name that a proxy looks at; 0 for any other.
type ID uint8

// The known names. Those up to ProxyAuthorization belong to a connection and not
// to the message that came by it (RFC 9110 section 7.6.1).
const (
	Other ID = iota
	Connection
	KeepAlive
	ProxyConnection
	TE
	Trailer
	TransferEncoding
	Upgrade
	ProxyAuthenticate
	ProxyAuthorization

	Host
	Forwarded
	XRealIP
	XForwardedFor
	XForwardedHost
	XForwardedPort
	XForwardedProto

	ContentLength
	ContentType
	Date
	Expect
	AltSvc
	UserAgent
	CacheControl
	Location
	numIDs
)

// NumIDs is how many IDs there are, Other included.
const NumIDs = int(numIDs)

// names in the spelling that we write, and in lower case for comparing.
var names = [numIDs]struct{ canonical, lower string }{
	Connection:         {"Connection", "connection"},
	KeepAlive:          {"Keep-Alive", "keep-alive"},
	ProxyConnection:    {"Proxy-Connection", "proxy-connection"},
	TE:                 {"TE", "te"},
	Trailer:            {"Trailer", "trailer"},
	TransferEncoding:   {"Transfer-Encoding", "transfer-encoding"},
	Upgrade:            {"Upgrade", "upgrade"},
	ProxyAuthenticate:  {"Proxy-Authenticate", "proxy-authenticate"},
	ProxyAuthorization: {"Proxy-Authorization", "proxy-authorization"},
	Host:               {"Host", "host"},
	Forwarded:          {"Forwarded", "forwarded"},
	XRealIP:            {"X-Real-Ip", "x-real-ip"},
	XForwardedFor:      {"X-Forwarded-For", "x-forwarded-for"},
	XForwardedHost:     {"X-Forwarded-Host", "x-forwarded-host"},
	XForwardedPort:     {"X-Forwarded-Port", "x-forwarded-port"},
	XForwardedProto:    {"X-Forwarded-Proto", "x-forwarded-proto"},
	ContentLength:      {"Content-Length", "content-length"},
	ContentType:        {"Content-Type", "content-type"},
	Date:               {"Date", "date"},
	Expect:             {"Expect", "expect"},
	AltSvc:             {"Alt-Svc", "alt-svc"},
	UserAgent:          {"User-Agent", "user-agent"},
	CacheControl:       {"Cache-Control", "cache-control"},
	Location:           {"Location", "location"},
}

// byLength has the known names of each length: few enough to try one by one.
var byLength = func() (by [maxKnown + 1][]ID) {
	for id := Other + 1; id < numIDs; id++ {
		n := len(names[id].lower)
		by[n] = append(by[n], id)
	}
	return by
}()

const maxKnown = len("Proxy-Authorization")

// Identify returns the ID of a name, whatever its case.
func Identify(name string) ID {
	if len(name) > maxKnown {
		return Other
	}
	for _, id := range byLength[len(name)] {
		if isFold(name, names[id].lower) {
			return id
		}
	}
	return Other
}

// isFold reports whether s, of the same length, is lower but for its case.
// Field names are ASCII.
func isFold(s, lower string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// EqualFold reports whether a and b are the same but for the case of ASCII
// letters.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// Name returns the spelling that we write; "" for Other.
func (id ID) Name() string { return names[id].canonical }

// Lower returns the name in lower case, as HTTP/2 and 3 write it; "" for Other.
func (id ID) Lower() string { return names[id].lower }

// IsHopByHop reports whether the field belongs to the connection.
func (id ID) IsHopByHop() bool { return id != Other && id <= ProxyAuthorization }
