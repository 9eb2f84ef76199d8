package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Config is one entry under `dns:` in sluice.yaml.
type Config struct {
	// Provider says what the entry is, and thereby which settings it takes: a
	// key of Kinds.
	Provider string `json:"provider"`
	// Zones are the zones that the account holds, such as x-gpu.com. Empty: it
	// is asked for whatever zone a name of a domain that chose it turns out to
	// be in.
	Zones []string `json:"zones"`
	// Nameservers are the servers that answer for Zones, host or host:port, where
	// they cannot be found by DNS. Empty: they can.
	Nameservers []string `json:"nameservers"`
	// Settings are everything else in the entry.
	Settings Settings `json:"settings"`
}

// Settings are the fields of an entry that its kind of provider describes, by
// name. All of them print as if they were secret.
type Settings map[string]Secret

// Longhand gathers the fields that only the kind of provider knows: in the
// file they stand beside the others.
func (Config) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return raw, nil // not an object, which is not for us to say
	}
	out := map[string]any{}
	settings := map[string]string{}
	for name, value := range all {
		if name == "provider" || name == "zones" || name == "nameservers" {
			out[name] = value
			continue
		}
		var text *string
		if err := json.Unmarshal(value, &text); err != nil {
			return nil, fmt.Errorf("%s must be a string; put it in quotes", name)
		}
		if text != nil {
			settings[name] = *text
		}
	}
	if len(settings) > 0 {
		out["settings"] = settings
	}
	return json.Marshal(out)
}

// Secret is a string that prints, logs and marshals as "REDACTED". Convert it
// with string(s) where the value itself is needed.
type Secret string

const redacted = "REDACTED"

// String hides the value; an empty Secret is shown as empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText hides the value from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// servers checks zones and nameservers and returns them in one spelling: zones
// in lower case with their last dot, servers with their port.
func (c Config) servers() (zones, nameservers []string, err error) {
	for _, z := range c.Zones {
		zone := Canonical(z)
		if zone == "." || strings.ContainsAny(zone, " /:*") || strings.Contains(zone, "..") {
			return nil, nil, fmt.Errorf("zones: %q is not a zone: want a name such as x-gpu.com", z)
		}
		if slices.Contains(zones, zone) {
			return nil, nil, fmt.Errorf("zones: %q is there twice", z)
		}
		zones = append(zones, zone)
	}
	for _, s := range c.Nameservers {
		addr, err := withPort(s, "53")
		if err != nil {
			return nil, nil, fmt.Errorf("nameservers: %q: want host or host:port: %w", s, err)
		}
		nameservers = append(nameservers, addr)
	}
	if len(nameservers) > 0 && len(zones) == 0 {
		return nil, nil, errors.New("nameservers: say which zones they answer for: add zones")
	}
	return zones, nameservers, nil
}

// Canonical returns name in lower case and with its last dot.
func Canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, ".")) + "."
}

// withPort returns addr with port added if it has none.
func withPort(addr, port string) (string, error) {
	host, own, err := net.SplitHostPort(addr)
	if err != nil {
		host, own = strings.Trim(addr, "[]"), port
	}
	n, err := strconv.ParseUint(own, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("%q is not a port", own)
	}
	if host == "" || strings.ContainsAny(host, "/ ") {
		return "", fmt.Errorf("%q is not a host", host)
	}
	return net.JoinHostPort(host, own), nil
}
