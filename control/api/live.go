package api

import (
	"fmt"
	"iter"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/control/wire"
)

// Live is the data plane as it is at the moment. Its methods may be called from
// any goroutine.
type Live interface {
	// Flows gives every live flow, in no order. unseen says in a line which there
	// are besides, and why they are not given; "": none.
	Flows() (flows iter.Seq[Flow], unseen string)
	// Cut ends the live flows that match picks and returns how many it ended.
	// unseen says which it could not look at.
	Cut(match func(Flow) bool) (ended int, unseen string)
	// Mappings gives every mapping in force with its account, TCP first, ports
	// ascending.
	Mappings() iter.Seq[Mapping]
	// Explain says what would become of a request or a connection.
	Explain(q Question) Explanation
}

// What the control API has too is described there.
type (
	// Flow is a live flow, as GET /flows gives it.
	Flow = wire.Flow
	// Target is one address of a mapping's backend.
	Target = wire.Target
)

// Mapping is a mapping in force, its state and its account, as GET /mappings
// gives it. The account covers what happened since the port was mapped, edits included, or
// since the process began.
type Mapping struct {
	Proto   string `json:"proto"`
	Port    int    `json:"port"`
	Backend string `json:"backend,omitempty"` // its first target
	HTTP    string `json:"http,omitempty"`    // likewise
	// Targets and HTTPTargets are all of them.
	Targets     []Target `json:"targets,omitempty"`
	HTTPTargets []Target `json:"http_targets,omitempty"`
	// Verdict is what the node says of the key, as in etcd below verdicts/.
	Verdict     string `json:"verdict,omitempty"`
	Env         string `json:"env,omitempty"`
	Service     string `json:"service,omitempty"`
	Live        int    `json:"flows"`       // live ones
	Started     int64  `json:"started"`     // flows let in
	Refused     int64  `json:"refused"`     // flows that lists or limits refused
	Unreachable int64  `json:"unreachable"` // flows that found no target
	Up          int64  `json:"bytes_up"`
	Down        int64  `json:"bytes_down"`
}

// Filter picks flows or mappings: those that are like it in every field that is
// set. The zero value picks all.
type Filter struct {
	ID       uint64
	Proto    string // tcp or udp
	Port     int
	Client   netip.Prefix // networks hold the client
	Env      string
	Service  string
	Listener string
	Route    string
	Backend  string // host:port
}

// The parameters of a Filter, as in queries and on the command line.
var (
	flowFilters    = []string{"id", "proto", "port", "client", "env", "service", "listener", "route", "backend"}
	mappingFilters = []string{"proto", "port", "env", "service"}
)

// parseFilter reads the parameters of a query, of which only those given exist.
func parseFilter(query url.Values, known []string) (f Filter, err error) {
	for name, values := range query {
		if !slices.Contains(known, name) {
			return f, fmt.Errorf("there is no parameter %q; there are %s", name, strings.Join(known, ", "))
		}
		if len(values) != 1 || values[0] == "" {
			return f, fmt.Errorf("give the parameter %q one value", name)
		}
		if err := f.Set(name, values[0]); err != nil {
			return f, err
		}
	}
	return f, nil
}

// Set sets a field by its name in queries.
func (f *Filter) Set(name, value string) (err error) {
	switch name {
	case "id":
		if f.ID, err = strconv.ParseUint(value, 10, 64); err != nil || f.ID == 0 {
			return fmt.Errorf("id: %q is not the ID of a flow; those are numbers from 1", value)
		}
	case "proto":
		if value != "tcp" && value != "udp" {
			return fmt.Errorf("proto: %q is not known; write tcp or udp", value)
		}
		f.Proto = value
	case "port":
		if f.Port, err = strconv.Atoi(value); err != nil || f.Port < 1 || f.Port > 65535 {
			return fmt.Errorf("port: %q is not a port; ports are numbers from 1 to 65535", value)
		}
	case "client":
		if f.Client, err = parseClient(value); err != nil {
			return err
		}
	case "listener":
		kind, port, _ := strings.Cut(value, "/")
		if !slices.Contains([]string{"tcp", "udp", "https", "http"}, kind) || !isPort(port) {
			return fmt.Errorf("listener: %q is none; write tcp/<port> or udp/<port> for a mapping, https/<port> or http/<port> for a listener", value)
		}
		f.Listener = value
	case "backend":
		host, port, err := net.SplitHostPort(value)
		if err != nil || host == "" || !isPort(port) {
			return fmt.Errorf("backend: %q is not a target; write host:port as in the mapping or route, such as 10.0.0.7:22, web-3:8080 or [2001:db8::1]:22", value)
		}
		f.Backend = value
	default:
		field := f.text(name)
		if field == nil {
			return fmt.Errorf("there is no filter %q", name)
		}
		*field = value
	}
	return nil
}

func isPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= 1 && n <= 65535 && s == strconv.Itoa(n)
}

// text returns the field of plain text with a name, or nil.
func (f *Filter) text(name string) *string {
	switch name {
	case "env":
		return &f.Env
	case "service":
		return &f.Service
	case "listener":
		return &f.Listener
	case "route":
		return &f.Route
	case "backend":
		return &f.Backend
	}
	return nil
}

// parseClient reads an address or a network.
func parseClient(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("client: %q is neither an address nor a network; write it as 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32", text)
	}
	return p.Masked(), nil
}

// Query returns f as the parameters of a query.
func (f Filter) Query() url.Values {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.ID != 0 {
		set("id", strconv.FormatUint(f.ID, 10))
	}
	if f.Port != 0 {
		set("port", strconv.Itoa(f.Port))
	}
	if f.Client.IsValid() {
		set("client", f.Client.String())
	}
	set("proto", f.Proto)
	for _, name := range []string{"env", "service", "listener", "route", "backend"} {
		set(name, *f.text(name))
	}
	return q
}

// Match reports whether f picks the flow.
func (f Filter) Match(flow Flow) bool {
	return (f.ID == 0 || f.ID == flow.ID) &&
		(f.Port == 0 || f.Port == flow.Port) &&
		(!f.Client.IsValid() || f.Client.Contains(flow.Client.Addr())) &&
		like(f.Proto, flow.Proto) && like(f.Env, flow.Env) && like(f.Service, flow.Service) &&
		like(f.Listener, flow.Listener) && like(f.Route, flow.Route) && (like(f.Backend, flow.Backend) || flow.Address != "" && like(f.Backend, flow.Address))
}

// MatchMapping reports whether f picks the mapping.
func (f Filter) MatchMapping(m Mapping) bool {
	return (f.Port == 0 || f.Port == m.Port) && like(f.Proto, m.Proto) && like(f.Env, m.Env) && like(f.Service, m.Service)
}

func like(want, have string) bool { return want == "" || want == have }
