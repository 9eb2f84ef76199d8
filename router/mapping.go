package router

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Proto is a transport protocol.
type Proto uint8

// The protocols a port may be mapped for.
const (
	TCP Proto = iota
	UDP
	numProtos
)

func (p Proto) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// DefaultConnectTimeout bounds a dial where neither mapping nor route says
// otherwise.
const DefaultConnectTimeout = 10 * time.Second

// Mapping is one public port of one protocol and its backend. Mappings are
// immutable once parsed.
type Mapping struct {
	Proto Proto `json:"-"`
	Port  int   `json:"-"` // 1 to 65535
	Rev   int64 `json:"-"` // etcd revision of the value

	// Backend gets the raw bytes. Its addresses hold no variables. It may be
	// absent where HTTP is present.
	Backend *Backend `json:"backend"`
	// HTTP, where not nil, gets connections that open with a TLS ClientHello
	// (terminated here) or an HTTP request line, as HTTP exchanges. TCP only.
	HTTP *Backend `json:"http"`

	// Env and Service name the environment and its service in logs.
	Env     string `json:"env"`
	Service string `json:"service"`

	ProxyProtocol ProxyProtocol `json:"proxy_protocol"`
	// ConnectTimeout bounds dialling one target; 0 means DefaultConnectTimeout.
	ConnectTimeout time.Duration `json:"connect_timeout"`
	// IdleTimeout ends a flow on which no byte moved for so long; 0 means
	// never for TCP and one minute for UDP.
	IdleTimeout time.Duration `json:"idle_timeout"`
	// ExpiresAt, unless zero, is when the mapping stops as if deleted.
	ExpiresAt time.Time `json:"expires_at"`
	OnDelete  OnDelete  `json:"on_delete"`

	Limits MappingLimits  `json:"limits"`
	Allow  []netip.Prefix `json:"allow"` // clients that may connect; empty: all
	Deny   []netip.Prefix `json:"deny"`  // clients that may not, even if allowed

	// Requests, where not nil, is what is asked of the requests that HTTP gets.
	Requests *Admission `json:"requests"`
}

// ProxyProtocol says what a mapping does with the PROXY protocol.
type ProxyProtocol struct {
	// Accept has connections from the node's trusted_proxies open with a
	// PROXY header, version 1 or 2, which names the true client.
	Accept bool `json:"accept"`
	// Send is the version sent to the backend: "v1", "v2" or "" for none.
	Send string `json:"send"`
}

// MappingLimits bounds the flows of one mapping on one node. Zero means no
// limit, everywhere.
type MappingLimits struct {
	Connections    int       `json:"connections"`    // at a time
	PerClient      int       `json:"per_client"`     // at a time, by client address
	NewPerSecond   int       `json:"new_per_second"` // with a burst of one second
	BytesPerSecond Bandwidth `json:"bytes_per_second"`
}

// Bandwidth bounds bytes per second, all flows of the mapping together. Zero
// means no limit.
type Bandwidth struct {
	Up   Bytes `json:"up"`   // client to backend
	Down Bytes `json:"down"` // backend to client
}

// ParseMapping reads the value of the key ports/<proto>/<port>: "host:port" or
// a JSON mapping. The error, a *FieldError, is for the person who wrote it.
func ParseMapping(proto Proto, port int, value []byte) (*Mapping, error) {
	m := &Mapping{Proto: proto, Port: port}
	if err := CheckSize(value); err != nil {
		return nil, err
	}
	text, err := unquoted(strings.TrimSpace(string(value)))
	if err != nil {
		return nil, err
	}
	switch {
	case text == "":
		return nil, fieldErrorf("", "the value is empty; put \"host:port\" or a JSON mapping, or delete the key")
	case strings.HasPrefix(text, `["`):
		return nil, fieldErrorf("", "a list is not a mapping; write {\"backend\": %s}", text)
	case text[0] != '{':
		// Most of tens of thousands of values are a mere address, which needs
		// no decoder. What is not, the decoder knows, or what is wrong with it.
		var a Address
		if a.UnmarshalText([]byte(text)) == nil && !strings.Contains(text, "//") {
			m.Backend = &Backend{Targets: []Target{{Address: a}}}
			return m, m.check()
		}
		text = string(shortMapping(text))
	}
	if err := Decode([]byte(text), m); err != nil {
		return nil, err
	}
	return m, m.check()
}

// unquoted lets the short form be a JSON string, as programs write it.
func unquoted(text string) (string, error) {
	if text == "" || text[0] != '"' && text[0] != '\'' {
		return text, nil
	}
	var s string
	if json.Unmarshal([]byte(text), &s) != nil || strings.HasPrefix(strings.TrimSpace(s), "{") {
		return "", fieldErrorf("", "the value stands in quotes; drop them")
	}
	return strings.TrimSpace(s), nil
}

// shortMapping writes the short form host:port as a JSON mapping.
func shortMapping(address string) []byte {
	long, err := json.Marshal(map[string]string{"backend": address})
	if err != nil {
		panic(err) // a map of strings always encodes
	}
	return long
}

func (m *Mapping) check() error {
	if m.Backend == nil && m.HTTP == nil {
		return fieldErrorf("backend", "is missing; give \"host:port\" (or http)")
	}
	if err := m.checkBackends(); err != nil {
		return err
	}
	if m.Env != "" {
		markOwned(m.Backends())
	}
	if err := checkPrintable("env", m.Env); err != nil {
		return err
	}
	if err := checkPrintable("service", m.Service); err != nil {
		return err
	}
	switch m.ProxyProtocol.Send {
	case "", "v2":
	case "v1":
		if m.Proto == UDP {
			return fieldErrorf("proxy_protocol.send", "version 1 of the PROXY protocol cannot describe UDP; write \"v2\"")
		}
	default:
		return fieldErrorf("proxy_protocol.send", "%q is not known; write \"v1\" or \"v2\"", m.ProxyProtocol.Send)
	}
	for _, limit := range []struct {
		name  string
		value int
	}{{"connections", m.Limits.Connections}, {"per_client", m.Limits.PerClient}, {"new_per_second", m.Limits.NewPerSecond}} {
		if limit.value < 0 {
			return fieldErrorf("limits."+limit.name, "must be 0 (no limit) or more, not %d", limit.value)
		}
	}
	return m.checkAdmission()
}

func (m *Mapping) checkBackends() error {
	if m.Proto == UDP && m.HTTP != nil {
		return fieldErrorf("http", "a UDP port cannot be told HTTP apart from raw bytes; put http on the TCP mapping")
	}
	for _, b := range []struct {
		name    string
		backend *Backend
	}{{"backend", m.Backend}, {"http", m.HTTP}} {
		if b.backend == nil {
			continue
		}
		for i, t := range b.backend.Targets {
			if !t.Address.IsLiteral() {
				return fieldErrorf(fmt.Sprintf("%s.targets[%d].address", b.name, i),
					"%q holds a variable; a mapping has no captures, use a route", t.Address)
			}
		}
		if err := b.backend.check(b.name, nil); err != nil {
			return err
		}
	}
	if b := m.Backend; b != nil {
		if field := b.onlyHTTP(); field != "" {
			return fieldErrorf("backend."+field, "goes by requests, and raw bytes hold none that can be told; use http, or leave it out")
		}
		switch {
		case b.Health != nil && m.Proto == UDP:
			return fieldErrorf("backend.health", "is a check by TCP, which says nothing of a UDP service; leave it out")
		case b.H2C:
			return fieldErrorf("backend.h2c", "raw bytes are not HTTP; use http")
		case b.TLS != nil:
			return fieldErrorf("backend.tls", "raw bytes are passed on as they come; use http for an encrypted HTTP backend")
		case b.ProxyProtocol != "":
			return fieldErrorf("backend.proxy_protocol", "belongs to the mapping here; write \"proxy_protocol\": {\"send\": %q}", b.ProxyProtocol)
		}
	}
	return nil
}

// EffectiveConnectTimeout returns ConnectTimeout or its default.
func (m *Mapping) EffectiveConnectTimeout() time.Duration {
	if m.ConnectTimeout > 0 {
		return m.ConnectTimeout
	}
	return DefaultConnectTimeout
}

// Key returns the mapping's key below the prefix, such as ports/tcp/20022.
func (m *Mapping) Key() string { return MappingKey(m.Proto, m.Port) }

// Label returns what metrics and logs call the mapping, such as tcp/20022.
func (m *Mapping) Label() string { return fmt.Sprintf("%v/%d", m.Proto, m.Port) }
