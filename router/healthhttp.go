package router

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Statuses is a set of HTTP statuses from 100 to 599. Values are comparable; the
// zero value is empty.
type Statuses struct{ bits [8]uint64 }

// UnmarshalText reads "200", "200-299" or several of either, such as
// "200-299,404".
func (s *Statuses) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(string(text), ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || first < 100 || last > 599 || first > last {
			return fieldErrorf("", "%q is not a set of statuses; write them as \"200\", \"200-299\" or \"200-299,404\"", text)
		}
		for status := first; status <= last; status++ {
			s.bits[(status-100)/64] |= 1 << ((status - 100) % 64)
		}
	}
	return nil
}

// Longhand lets a number stand for one status.
func (s *Statuses) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	if describe(raw) == "a number" {
		return json.Marshal(string(raw))
	}
	return raw, nil
}

// Has reports whether status is in the set.
func (s Statuses) Has(status int) bool {
	return status >= 100 && status <= 599 && s.bits[(status-100)/64]&(1<<((status-100)%64)) != 0
}

// IsZero reports whether the set is empty.
func (s Statuses) IsZero() bool { return s == Statuses{} }

// String returns the set in its shortest form, such as 200-299,404.
func (s Statuses) String() string {
	var parts []string
	for status := 100; status <= 599; status++ {
		if !s.Has(status) {
			continue
		}
		first := status
		for s.Has(status + 1) {
			status++
		}
		if first == status {
			parts = append(parts, strconv.Itoa(first))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", first, status))
		}
	}
	return strings.Join(parts, ",")
}

// MarshalText writes the set in its shortest form.
func (s Statuses) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// checkHTTP checks what is asked of the targets.
func (h Health) checkHTTP(path string) error {
	if h.Path == "" {
		for _, f := range []struct {
			name string
			set  bool
		}{{"method", h.Method != ""}, {"host", h.Host != ""}, {"status", !h.Status.IsZero()}} {
			if f.set {
				return fieldErrorf(join(path, f.name), "has no meaning without path, which has the targets asked by HTTP; add it, or leave this out")
			}
		}
		return nil
	}
	if h.Path[0] != '/' || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) {
		return fieldErrorf(join(path, "path"), "%q is not a path; write it as it stands in a request, such as /healthz", h.Path)
	}
	if h.Method != "" && h.Method != "GET" && h.Method != "HEAD" {
		return fieldErrorf(join(path, "method"), "%q does more than ask; write \"GET\" or \"HEAD\"", h.Method)
	}
	host, port, hasPort := cutAddress(h.Host)
	if !hasPort {
		host, port = h.Host, "80"
	}
	if _, err := ParsePort(port); h.Host != "" && (err != nil || !validHost(host)) {
		return fieldErrorf(join(path, "host"), "%q is not a host; write a name, with or without a port", h.Host)
	}
	return nil
}
