package router

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Bytes is a number of bytes, or of bytes per second where a field says so. In
// values it is a number or a string with a unit: "64KB", "10MB", "1GiB". KB, MB
// and GB are powers of 1000, KiB, MiB and GiB of 1024.
type Bytes int64

// maxBytes leaves sums of sizes within their type.
const maxBytes = 1 << 62

var byteUnits = []struct {
	suffix string
	factor int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1},
}

// UnmarshalText reads a size as described at Bytes.
func (b *Bytes) UnmarshalText(text []byte) error {
	s, factor := string(text), int64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case strings.HasPrefix(s, "-") && (err == nil || errors.Is(err, strconv.ErrRange)):
		return fieldErrorf("", "must be positive, not %s", text)
	case errors.Is(err, strconv.ErrRange) || err == nil && n > maxBytes/factor:
		return fieldErrorf("", "%s is too large; the maximum is %d bytes", text, int64(maxBytes))
	case err != nil:
		return fieldErrorf("", "%q is not a size; write bytes as a number, or with a unit such as \"64KB\" or \"10MB\"", text)
	}
	*b = Bytes(n * factor)
	return nil
}

func (b *Bytes) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch describe(raw) {
	case "a string":
		return raw, nil
	case "a number":
		return json.Marshal(string(raw))
	}
	return nil, fieldErrorf("", "must be a number or a string, not %s", describe(raw))
}

// OnDelete says what becomes of a mapping's flows when the mapping is deleted
// or its backend changes. The zero value cuts them at once.
type OnDelete struct {
	// Keep lets flows run on for as long as both ends want.
	Keep bool
	// Drain lets flows run on for this long, then cuts them.
	Drain time.Duration
}

// UnmarshalText reads "cut", "keep", or "drain" with a duration: "drain 30s".
func (o *OnDelete) UnmarshalText(text []byte) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	switch {
	case word == "cut" && rest == "":
		*o = OnDelete{}
		return nil
	case word == "keep" && rest == "":
		*o = OnDelete{Keep: true}
		return nil
	case word == "drain":
		d, err := parseDuration(strings.TrimSpace(rest))
		if err == nil && d > 0 {
			*o = OnDelete{Drain: d}
			return nil
		}
		if err != nil && rest != "" {
			return err
		}
	}
	return fieldErrorf("", "%q is not known; write \"cut\", \"keep\", or \"drain\" with a time such as \"drain 30s\"", text)
}

// maxName is how long names of environments and services may be, in bytes.
const maxName = 128

// checkPrintable refuses names that would fill a log, or that a terminal would
// take for something to do.
func checkPrintable(path, name string) error {
	if len(name) > maxName {
		return fieldErrorf(path, "is %d bytes long; at most %d are taken", len(name), maxName)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fieldErrorf(path, "holds the character %U, which cannot be printed; leave it out", r)
		}
	}
	return nil
}

// Allowed reports whether addr passes an allow and a deny list: it must be in
// allow, unless that is empty, and must not be in deny. An IPv4 address in IPv6
// clothes counts as IPv4.
func Allowed(addr netip.Addr, allow, deny []netip.Prefix) bool {
	if len(allow) == 0 && len(deny) == 0 {
		return true
	}
	addr = addr.Unmap().WithZone("")
	for _, p := range deny {
		if p.Contains(addr) {
			return false
		}
	}
	if len(allow) == 0 {
		return true
	}
	for _, p := range allow {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
