package router

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxPort is the highest TCP or UDP port.
const MaxPort = 65535

// PortRange is a run of ports, both ends included. Ports are held as int so
// that a loop over a range that ends at 65535 ends.
type PortRange struct{ First, Last int }

// Size returns how many ports the range holds.
func (r PortRange) Size() int { return r.Last - r.First + 1 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Ports is a set of ports as ranges, in ascending order and without overlap.
// The zero value is the empty set. It must not be modified once built.
type Ports []PortRange

// ParsePorts reads a comma-separated list of ports and ranges such as
// "443,20000-20999". Ranges that overlap are refused, so that a typing error
// does not pass for a wish.
func ParsePorts(s string) (Ports, error) {
	var ports Ports
	for part := range strings.SplitSeq(s, ",") {
		r, err := parsePortRange(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		ports = append(ports, r)
	}
	return ports.normalized()
}

func (p Ports) normalized() (Ports, error) {
	slices.SortFunc(p, func(a, b PortRange) int { return a.First - b.First })
	for i := 1; i < len(p); i++ {
		if p[i].First <= p[i-1].Last {
			return nil, fieldErrorf("", "the ranges %v and %v overlap; give each port once", p[i-1], p[i])
		}
	}
	return p, nil
}

func parsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	var r PortRange
	var err error
	if r.First, err = ParsePort(strings.TrimSpace(first)); err != nil {
		return r, err
	}
	if r.Last, err = ParsePort(strings.TrimSpace(last)); err != nil {
		return r, err
	}
	if r.First > r.Last {
		return r, fieldErrorf("", "the range %q runs backwards; write %d-%d", s, r.Last, r.First)
	}
	return r, nil
}

// ParsePort reads one port in plain decimal digits, from 1 to 65535.
func ParsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || s[0] == '0' && len(s) > 1 || s[0] == '+' {
		return 0, fieldErrorf("", "%q is not a port; ports are plain numbers from 1 to %d", s, MaxPort)
	}
	if n < 1 || n > MaxPort {
		return 0, fieldErrorf("", "port %d does not exist; ports run from 1 to %d", n, MaxPort)
	}
	return int(n), nil
}

// Contains reports whether port is in the set.
func (p Ports) Contains(port int) bool {
	for _, r := range p {
		if port >= r.First && port <= r.Last {
			return true
		}
	}
	return false
}

// Size returns how many ports the set holds.
func (p Ports) Size() int {
	n := 0
	for _, r := range p {
		n += r.Size()
	}
	return n
}

func (p Ports) String() string {
	parts := make([]string, len(p))
	for i, r := range p {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// UnmarshalText reads the set as ParsePorts does.
func (p *Ports) UnmarshalText(text []byte) error {
	ports, err := ParsePorts(string(text))
	*p = ports
	return err
}

// MarshalText writes the set as ParsePorts reads it.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Longhand lets a set also be written as one bare number or as a list.
func (p *Ports) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch raw[0] {
	case '"':
		return raw, nil
	case '[':
		var items []json.RawMessage
		if err := json.Unmarshal(raw, &items); err != nil {
			return nil, err
		}
		parts := make([]string, len(items))
		for i, item := range items {
			parts[i] = strings.Trim(string(item), `"`)
		}
		return json.Marshal(strings.Join(parts, ","))
	}
	return json.Marshal(string(raw))
}
