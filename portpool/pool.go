package portpool

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// DefaultQuarantine is how long a released port rests where its pool does not
// say otherwise: clients that knew it have mostly noticed by then.
const DefaultQuarantine = 10 * time.Minute

// Pool is the value of the key pools/<service>: the ports that environments may
// get for one service, and what they get with them. Pools are immutable once
// parsed.
type Pool struct {
	Service string `json:"-"`
	// Ports are the public ports of the pool. They may be left out where Route
	// is given: the service is reached by name then, at the https listeners.
	Ports router.Ports `json:"ports"`
	// Reserved are those of Ports that no environment gets unless it asks for
	// that very one. Default: none.
	Reserved router.Ports `json:"reserved"`
	// Protocol is what a port of the pool is mapped for: "tcp" (default), "udp",
	// or "tcp+udp", the same number for both, as RDP wants.
	Protocol string `json:"protocol"`
	// BackendPort is the port behind which the service listens inside an
	// environment, 1 to 65535.
	BackendPort int `json:"backend_port" range:"1,65535"`
	// BackendHost is where the service listens in environments that do not say
	// so: a text as those of Access, such as env-${env}. Default: they must.
	BackendHost string `json:"backend_host"`
	// HTTP has connections to the ports served as HTTP, TLS included.
	HTTP bool `json:"http"`
	// Mapping are further fields of the mappings, as below ports/.
	Mapping json.RawMessage `json:"mapping"`
	Route   Route           `json:"route"`
	Access  Access          `json:"access"`
	// Pick says which of the free ports is taken: the "lowest" (default), or a
	// "random" one, which tells strangers less about how many there are.
	Pick string `json:"pick"`
	// Quarantine is how long a released port rests before another environment
	// may get it. nil: DefaultQuarantine.
	Quarantine *time.Duration `json:"quarantine"`
}

// MarshalJSON writes what is set, as Parse reads it.
func (p *Pool) MarshalJSON() ([]byte, error) {
	var quarantine *string
	if p.Quarantine != nil {
		text := router.DurationText(*p.Quarantine)
		quarantine = &text
	}
	return json.Marshal(struct {
		Ports       router.Ports    `json:"ports,omitempty"`
		Reserved    router.Ports    `json:"reserved,omitempty"`
		Protocol    string          `json:"protocol,omitempty"`
		BackendPort int             `json:"backend_port"`
		BackendHost string          `json:"backend_host,omitempty"`
		HTTP        bool            `json:"http,omitempty"`
		Mapping     json.RawMessage `json:"mapping,omitempty"`
		Route       Route           `json:"route,omitzero"`
		Access      Access          `json:"access,omitzero"`
		Pick        string          `json:"pick,omitempty"`
		Quarantine  *string         `json:"quarantine,omitempty"`
	}{p.Ports, p.Reserved, p.Protocol, p.BackendPort, p.BackendHost, p.HTTP, p.Mapping, p.Route, p.Access, p.Pick, quarantine})
}

// Protos returns the protocols that a port of the pool is held for.
func (p *Pool) Protos() []router.Proto {
	protos, _ := ParseProtos(p.Protocol) // Parse has looked
	return protos
}

// ParseProtos reads a protocol as Pool.Protocol has it, and reports whether it is one.
func ParseProtos(s string) ([]router.Proto, bool) {
	switch s {
	case "", "tcp":
		return []router.Proto{router.TCP}, true
	case "udp":
		return []router.Proto{router.UDP}, true
	case "tcp+udp":
		return []router.Proto{router.TCP, router.UDP}, true
	}
	return nil, false
}

// Rest returns how long a released port of the pool rests.
func (p *Pool) Rest() time.Duration {
	if p.Quarantine == nil {
		return DefaultQuarantine
	}
	return *p.Quarantine
}

// Parse reads the value of the key pools/<service>. The error, a
// *router.FieldError, is for the person who wrote it.
func Parse(service string, value []byte) (*Pool, error) {
	p := &Pool{Service: service}
	if len(strings.TrimSpace(string(value))) == 0 {
		return nil, &router.FieldError{Msg: `the value is empty; put {"ports": "20000-29999", "backend_port": 22}`}
	}
	if err := router.CheckSize(value); err != nil {
		return nil, err
	}
	if err := router.Decode(value, p); err != nil {
		return nil, err
	}
	if len(p.Ports) == 0 && p.Route.Host == "" {
		return nil, &router.FieldError{Path: "ports", Msg: `is missing; give ranges such as "20000-29999"`}
	}
	if p.BackendPort == 0 {
		return nil, &router.FieldError{Path: "backend_port", Msg: "is missing; give the port of the service inside an environment, such as 22"}
	}
	if _, ok := ParseProtos(p.Protocol); !ok {
		return nil, &router.FieldError{Path: "protocol", Msg: fmt.Sprintf(`%q is none; write "tcp", "udp", or "tcp+udp" for both under the same number`, p.Protocol)}
	}
	if p.Pick != "" && p.Pick != "lowest" && p.Pick != "random" {
		return nil, &router.FieldError{Path: "pick", Msg: fmt.Sprintf(`%q is no way to choose a port; write "lowest" or "random"`, p.Pick)}
	}
	for _, r := range p.Reserved {
		if !within(r, p.Ports) {
			return nil, &router.FieldError{Path: "reserved", Msg: fmt.Sprintf("%v is not all among the pool's ports (%v)", r, p.Ports)}
		}
	}
	if p.HTTP && p.Protocol != "" && p.Protocol != "tcp" {
		return nil, &router.FieldError{Path: "http", Msg: "is for TCP alone; leave protocol out"}
	}
	if err := p.checkTexts(); err != nil {
		return nil, err
	}
	if err := p.checkFields(); err != nil {
		return nil, err
	}
	return p, nil
}

// within reports whether every port of r is in ports.
func within(r router.PortRange, ports router.Ports) bool {
	for port := r.First; port <= r.Last; port++ {
		if !ports.Contains(port) {
			return false
		}
	}
	return true
}

// CheckWithin refuses a pool with ports that no mapping on a node that listens
// on ranges could open.
func (p *Pool) CheckWithin(ranges router.Ports) error {
	for _, r := range p.Ports {
		for port := r.First; port <= r.Last; port++ {
			if !ranges.Contains(port) {
				return &router.FieldError{Path: "ports", Msg: fmt.Sprintf("port %d lies outside the node's ports (%v)", port, ranges)}
			}
		}
	}
	return nil
}

// CheckApart refuses p where it shares a port with another pool.
func (p *Pool) CheckApart(other *Pool) error {
	if other.Service == p.Service {
		return nil
	}
	for _, a := range p.Ports {
		for _, b := range other.Ports {
			if overlap(a, router.Ports{b}) {
				return &router.FieldError{Path: "ports", Msg: fmt.Sprintf("%v overlaps %v of the pool %s; give each port to one pool", a, b, other.Service)}
			}
		}
	}
	return nil
}
