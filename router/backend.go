package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Backend is where traffic goes: one or more targets and how to speak to them.
// In a value it may be written as "host:port", as a URL such as
// "https://api.example.com", as a list of either, or as an object.
type Backend struct {
	Targets []Target `json:"targets"`
	// Balance is how a target is chosen: one of the constants below; "" is
	// RoundRobin.
	Balance string `json:"balance"`
	// Hash is what HashBalance goes by; nil with all others.
	Hash *Hash `json:"hash"`
	// Sticky, where not nil, has clients stay at a target while it is well.
	Sticky *Sticky `json:"sticky"`
	// PreferZone has targets of the node's own zone come first while enough of
	// them are well.
	PreferZone bool `json:"prefer_zone"`
	// Retry, where not nil, has failed requests sent again. Without it only those
	// are that could not be sent at all.
	Retry *Retry `json:"retry"`
	// Eject, where not nil, has targets passed over whose exchanges fail.
	Eject *Eject `json:"eject"`
	// TLS, where not nil, has connections to the targets encrypted.
	TLS *BackendTLS `json:"tls"`
	// H2C has HTTP requests sent by HTTP/2 without TLS (RFC 9113 section 3.3),
	// as gRPC servers expect it.
	H2C bool `json:"h2c"`
	// Health, where not nil, has the targets checked.
	Health *Health `json:"health"`
	// ProxyProtocol is the version of the PROXY header that opens every
	// connection to a target: "v1", "v2", or "" for none.
	ProxyProtocol string `json:"proxy_protocol"`

	ofRoute, ofEnvironment bool
}

// OfRoute reports whether b belongs to a route rather than to a mapping.
func (b *Backend) OfRoute() bool { return b.ofRoute }

// OfEnvironment reports whether b belongs to a mapping or a route that says whose
// it is.
func (b *Backend) OfEnvironment() bool { return b.ofEnvironment }

// markOwned notes of all that they belong to an environment.
func markOwned(all []FieldBackend) {
	for _, b := range all {
		if b.Backend != nil {
			b.Backend.ofEnvironment = true
		}
	}
}

// What Backend.Balance may be. Weights count in each.
const (
	RoundRobin       = "round_robin"       // each in turn
	LeastConnections = "least_connections" // the one with the fewest flows
	LeastRequests    = "least_requests"    // the same, of HTTP, where a flow is a request
	PowerOfTwo       = "p2c"               // of two at random the one with fewer flows
	SourceHash       = "source_hash"       // by the client's address, always the same
	HashBalance      = "hash"              // by what Backend.Hash says, always the same
)

// BackendTLS says how connections to targets are encrypted and verified. The
// zero value verifies against the system's roots by the target's host name.
type BackendTLS struct {
	// ServerName is the name sent as SNI and verified; "" means the target's
	// host, or the request's host where the target is an IP address.
	ServerName Template `json:"server_name"`
	// VerifyName is the name verified where that is not the one sent; "": it is.
	VerifyName string `json:"verify_name"`
	// CA are the authorities that the certificate must come from.
	CA Authorities `json:"ca"`
	// Client is what the node's own file calls the certificate that it shows; "":
	// none.
	Client string `json:"client"`
	// Insecure accepts any certificate.
	Insecure bool `json:"insecure_skip_verify"`
}

// Longhand lets "tls": true stand for "tls": {}.
func (t *BackendTLS) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch string(raw) {
	case "true":
		return json.RawMessage("{}"), nil
	case "false":
		return nil, errors.New("is on when present; leave it out for no TLS")
	}
	if raw[0] != '{' {
		return nil, fieldErrorf("", "must be true or an object in { }, not %s", describe(raw))
	}
	return raw, nil
}

// Target is one address of a backend.
type Target struct {
	Address Address `json:"address"`
	// Weight is the target's share; 0, which a value cannot give, counts as 1.
	Weight int `json:"weight" range:"1,1000" zero:"; to drain a target leave it out"`
	// Zone is where the target stands, in the words of the nodes' own zone; "":
	// nowhere in particular.
	Zone string `json:"zone"`
}

// Longhand lets "host:port" stand for {"address": "host:port"}.
func (t *Target) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch raw[0] {
	case '"':
		return json.Marshal(map[string]json.RawMessage{"address": raw})
	case '{':
		return raw, nil
	}
	return nil, fieldErrorf("", "must be \"host:port\" or an object in { }, not %s", describe(raw))
}

// setPlain reads a mere address, as most backends are, and reports whether raw is
// one. What is not, the long way knows, or what is wrong with it.
func (b *Backend) setPlain(raw json.RawMessage) bool {
	s, ok := plainString(raw)
	if !ok || strings.Contains(s, "//") {
		return false
	}
	var a Address
	if a.UnmarshalText([]byte(s)) != nil {
		return false
	}
	b.Targets = []Target{{Address: a}}
	return true
}

// Longhand lets an address or a list of targets stand for the whole backend. A
// URL becomes its address, and https:// turns TLS on.
func (b *Backend) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch raw[0] {
	case '"':
		raw = json.RawMessage("[" + string(raw) + "]")
	case '[':
	case '{':
		return raw, nil
	default:
		return nil, fieldErrorf("", "must be \"host:port\", a list of those in [ ], or an object in { }, not %s", describe(raw))
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, err
	}
	https := 0
	for i, item := range items {
		var s string
		if json.Unmarshal(item, &s) != nil {
			continue // an object, which knows no URLs
		}
		address, isHTTPS, err := addressOfURL(s)
		if err != nil {
			return nil, err
		}
		if isHTTPS {
			https++
		}
		items[i], _ = json.Marshal(address)
	}
	long := map[string]any{"targets": items}
	if https > 0 {
		if https < len(items) {
			return nil, errors.New("some targets are https:// and some are not; put them into backends of their own")
		}
		long["tls"] = true
	}
	return json.Marshal(long)
}

// addressOfURL turns http://host[:port] and https://host[:port] into host:port;
// anything else is returned as it is.
func addressOfURL(s string) (address string, https bool, err error) {
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		return s, false, nil
	}
	port := "80"
	switch scheme {
	case "http":
	case "https":
		https, port = true, "443"
	default:
		return "", false, fieldErrorf("", "%q: the scheme %q is not known; write http://, https:// or host:port", s, scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	if strings.ContainsAny(rest, "/?#@") {
		return "", false, fieldErrorf("", "%q: a backend has no path, query or user; use the route's path, strip_prefix and request_headers", s)
	}
	if i := strings.LastIndexByte(rest, ':'); i <= strings.LastIndexByte(rest, ']') {
		rest += ":" + port
	}
	return rest, https, nil
}

// maxTargets bounds the targets of a backend.
const maxTargets = 1024

func (b *Backend) check(path string, captures []string) error {
	if len(b.Targets) == 0 {
		return fieldErrorf(join(path, "targets"), "is empty; give at least one \"host:port\"")
	}
	if n := len(b.Targets); n > maxTargets {
		return fieldErrorf(join(path, "targets"), "are %d; at most %d are allowed: a name that has several addresses is one target", n, maxTargets)
	}
	for i, t := range b.Targets {
		at := fmt.Sprintf("%s.targets[%d]", path, i)
		if t.Address.host.source == "" {
			return fieldErrorf(at+".address", "is missing; give \"host:port\"")
		}
		if err := t.Address.check(at+".address", captures); err != nil {
			return err
		}
	}
	if err := b.checkBalance(path); err != nil {
		return err
	}
	if err := b.checkFailing(path); err != nil {
		return err
	}
	if err := b.checkHealth(join(path, "health")); err != nil {
		return err
	}
	switch b.ProxyProtocol {
	case "", "v1", "v2":
	default:
		return fieldErrorf(join(path, "proxy_protocol"), "%q is not known; write \"v1\" or \"v2\"", b.ProxyProtocol)
	}
	if b.TLS != nil && b.H2C {
		return fieldErrorf(join(path, "h2c"), "is HTTP/2 without TLS, and tls is on; leave one out")
	}
	if b.TLS != nil {
		return b.TLS.check(join(path, "tls"), captures)
	}
	return nil
}

func (b *Backend) checkHealth(path string) error {
	if b.Health == nil {
		return nil
	}
	if err := b.checkNoVariables(path); err != nil {
		return err
	}
	if b.Health.Path != "" && b.TLS != nil && !b.TLS.ServerName.IsLiteral() {
		return fieldErrorf(join(path, "path"), "cannot be asked for where a variable in tls.server_name makes another name for every request")
	}
	return b.Health.check(path)
}

// Address is the host and port of a target. Both may hold variables, whose
// values can never leave their place: Expand refuses a value that is not a
// plain DNS label (RFC 1123 section 2.1) in the host, or not a port number.
type Address struct {
	host, port Template

	// What flows would otherwise read out of the text each time: the port, and
	// the host if it is an IP address; zero where variables decide.
	number uint16
	ip     netip.Addr
}

// UnmarshalText reads "host:port", "[v6]:port" or either with ${name} in it.
func (a *Address) UnmarshalText(text []byte) error {
	s := string(text)
	host, port, ok := cutAddress(s)
	if !ok {
		return fieldErrorf("", "%q is not an address; write host:port, such as 10.0.0.7:22, web-3:8080 or [2001:db8::1]:22", s)
	}
	var err error
	if a.host, err = ParseTemplate(host); err != nil {
		return err
	}
	if a.port, err = ParseTemplate(port); err != nil {
		return err
	}
	if a.port.IsLiteral() {
		number, err := ParsePort(port)
		if err != nil {
			return fieldErrorf("", "%q: %v", s, err)
		}
		a.number = uint16(number)
	}
	if a.host.IsLiteral() {
		if !validHost(host) {
			return fieldErrorf("", "%q: %q is neither an IP address nor a host name", s, host)
		}
		a.ip, _ = netip.ParseAddr(host) // a name: the zero Addr
	}
	return nil
}

// broadcast is every machine of a link (RFC 919).
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// cutAddress splits "host:port" at its last colon and takes the brackets off an
// IPv6 host.
func cutAddress(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || i == len(s)-1 {
		return "", "", false
	}
	host, port = s[:i], s[i+1:]
	if strings.HasPrefix(host, "[") {
		if !strings.HasSuffix(host, "]") {
			return "", "", false
		}
		host = host[1 : len(host)-1]
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() {
			return "", "", false
		}
		return host, port, true
	}
	if strings.Contains(host, ":") {
		return "", "", false
	}
	return host, port, host != ""
}

func (a Address) check(path string, captures []string) error {
	if a.ip.IsMulticast() || a.ip.Unmap() == broadcast {
		return fieldErrorf(path, "%q is no address of one machine; give the address at which the service listens", a)
	}
	if a.ip.IsUnspecified() {
		return fieldErrorf(path, "%q stands for every address of this node; write 127.0.0.1 or [::1] for a service on it", a)
	}
	if err := a.host.check(path, captures); err != nil {
		return err
	}
	return a.port.check(path, captures)
}

// String returns the address as it was written.
func (a Address) String() string { return joinHostPort(a.host.source, a.port.source) }

// MarshalText writes the address as it was read.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// IsLiteral reports whether the address holds no variable.
func (a Address) IsLiteral() bool { return a.host.IsLiteral() && a.port.IsLiteral() }

// HasLiteralHost reports whether the host holds no variable.
func (a *Address) HasLiteralHost() bool { return a.host.IsLiteral() }

// IP returns an address that is an IP address and a port, as written; ok is
// false where the host is a name or anything is variable. It costs nothing.
func (a *Address) IP() (addr netip.AddrPort, ok bool) {
	return netip.AddrPortFrom(a.ip, a.number), a.ip.IsValid() && a.number > 0
}

// Expand returns the address with its variables replaced, and refuses values
// that would make it another address than its author meant.
func (a *Address) Expand(v *Vars) (host string, port int, err error) {
	if a.number > 0 && a.host.IsLiteral() {
		return a.host.Expand(v), int(a.number), nil // as UnmarshalText checked it
	}
	for _, p := range a.host.parts {
		if p.name == "" {
			continue
		}
		if value := v.get(p.name); !isLabelPart(value) && !isWholeHost(a.host, p.name, value) {
			return "", 0, fmt.Errorf("backend %s: the value %q of ${%s} is not a plain DNS label", a, value, p.name)
		}
	}
	host = a.host.Expand(v)
	if !validHost(host) {
		return "", 0, fmt.Errorf("backend %s: %q is not a host", a, host)
	}
	if !a.host.IsLiteral() && IsLocalhost(host) {
		return "", 0, fmt.Errorf("backend %s: %q is this node itself, which only an address without variables may name", a, host)
	}
	port, err = ParsePort(a.port.Expand(v))
	if err != nil {
		return "", 0, fmt.Errorf("backend %s: %w", a, err)
	}
	return host, port, nil
}

// isWholeHost allows ${host} and ${sni}, when they are all of a host, to be a
// name of several labels: the author asked for the name that the client asked
// for, and an address literal is still refused.
func isWholeHost(t Template, name, value string) bool {
	if len(t.parts) != 1 || name != "host" && name != "sni" {
		return false
	}
	_, err := netip.ParseAddr(value)
	return err != nil && validName(value)
}

// IsLocalhost reports whether host is a name of the loopback interface (RFC 6761
// section 6.3).
func IsLocalhost(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// isLabelPart reports whether s may stand inside a DNS label without ending it.
// Digits alone are refused only by what they make of the host as a whole.
func isLabelPart(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// validHost reports whether s is an IP address or a host name.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	s = strings.TrimSuffix(s, ".") // a fully qualified name is welcome
	return validName(s) && !lastLabelIsNumeric(s)
}

// validName reports whether s is a host name: labels of letters, digits,
// hyphens and underscores (container names have them), 1 to 63 characters each,
// 253 in all (RFC 1035 section 2.3.4).
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabelPart(label) || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

// lastLabelIsNumeric tells names from malformed IPv4 addresses such as 10.0.0
// or 256.1.1.1: no top-level domain is all digits (RFC 3696 section 2).
func lastLabelIsNumeric(s string) bool {
	label := s[strings.LastIndexByte(s, '.')+1:]
	_, err := strconv.ParseUint(label, 10, 64)
	return err == nil
}

func joinHostPort(host, port string) string {
	if strings.Contains(host, ":") && !strings.Contains(host, "${") {
		return "[" + host + "]:" + port
	}
	return host + ":" + port
}
