package router

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// hostKind orders host patterns: the smaller one is tried first.
type hostKind uint8

const (
	hostExact hostKind = iota
	hostWildcard
	hostRegex
	hostAny
)

// HostPattern is one pattern of a route's host field.
type HostPattern struct {
	source string
	kind   hostKind
	name   string    // exact: the name; wildcard: the suffix with its dot
	re     *hostExpr // regex
}

// Hosts are the host patterns of a route; any of them must match. In a value
// they are one pattern or a list: an exact name, *.x-gpu.com (any name that
// ends in .x-gpu.com, however deep), ~regex, or * for every name.
type Hosts []HostPattern

func (h *Hosts) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	if raw[0] == '"' {
		return json.RawMessage("[" + string(raw) + "]"), nil
	}
	var all []string
	if json.Unmarshal(raw, &all) == nil { // else the decoder says where it is wrong
		exprs, size := 0, 0
		for _, text := range all {
			if strings.HasPrefix(text, "~") {
				exprs++
				size += len(text)
			}
		}
		if len(all) > maxHosts || exprs > maxHostExprs {
			return nil, fieldErrorf("", "has %d patterns, %d of them regular expressions; at most %d and %d are allowed: write several routes", len(all), exprs, maxHosts, maxHostExprs)
		}
		if size > maxExprs {
			return nil, fieldErrorf("", "has regular expressions of %d characters in all; at most %d are allowed: write several routes", size, maxExprs)
		}
	}
	return raw, nil
}

// A route has so many hosts at most, and so many of them regular expressions, of
// so many bytes in all: a class of characters can take a hundredth of a second to
// read, during which no other key is looked at.
const (
	maxHosts     = 4096
	maxHostExprs = 64
	maxExprs     = 4096
)

// String returns the pattern as it was written.
func (p HostPattern) String() string { return p.source }

// MarshalText writes the pattern as it was read.
func (p HostPattern) MarshalText() ([]byte, error) { return []byte(p.source), nil }

// UnmarshalText reads one pattern as described at Hosts.
func (p *HostPattern) UnmarshalText(text []byte) (err error) {
	s := string(text)
	p.source = s
	switch {
	case s == "*":
		p.kind = hostAny
		return nil
	case strings.HasPrefix(s, "~"):
		p.kind = hostRegex
		p.re, err = parseHostExpr(s[1:])
		return err
	case strings.HasPrefix(s, "*."):
		p.kind, s = hostWildcard, s[2:]
	default:
		p.kind = hostExact
	}
	name, ok := NormalizeHost(s)
	if !ok || strings.Contains(name, ":") && p.kind == hostWildcard {
		return fieldErrorf("", "%q is not a host; write a name without port such as www.x-gpu.com, \"*.x-gpu.com\", \"~regex\", or \"*\"", p.source)
	}
	p.name = name
	if p.kind == hostWildcard {
		p.name = "." + name
	}
	return nil
}

// captures returns the names of the pattern's groups.
func (p HostPattern) captures() []string {
	if p.re == nil {
		return nil
	}
	return p.re.groups
}

// commonCaptures returns the names that every pattern captures: only those have
// a value whichever pattern matches.
func (h Hosts) commonCaptures() []string {
	var common []string
	for i, p := range h {
		names := p.captures()
		if i == 0 {
			common = names
			continue
		}
		var both []string
		for _, n := range common {
			if contains(names, n) {
				both = append(both, n)
			}
		}
		common = both
	}
	return common
}

// NormalizeHost returns a host in the form tables are indexed by: lower case,
// without port and final dot, an IPv6 literal without brackets and in its
// shortest form. ok is false where s is no host at all.
func NormalizeHost(s string) (host string, ok bool) {
	if strings.HasPrefix(s, "[") {
		inner, _, closed := strings.Cut(s[1:], "]")
		a, err := netip.ParseAddr(inner)
		if !closed || err != nil || !a.Is6() || a.Zone() != "" {
			return "", false
		}
		return a.String(), true
	}
	if strings.IndexByte(s, ':') >= 0 {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return a.String(), true
		}
		return "", false
	}
	host = toLowerASCII(strings.TrimSuffix(s, "."))
	return host, validName(host)
}

// toLowerASCII returns s itself, without allocating, where it has no capitals.
func toLowerASCII(s string) string {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}
