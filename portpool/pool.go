// Package portpool knows what pools of ports are: which ports a service's
// environments may get, and which pools would get in each other's way.
//
// It decides and never acts: no input or output, no goroutine, only the
// standard library and router's words. control reads the keys pools/<service>
// through it.
package portpool

import (
	"fmt"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// Pool is the value of the key pools/<service>: the ports that environments may
// get for one service. Pools are immutable once parsed.
type Pool struct {
	Service string `json:"-"`
	// Ports are the public ports of the pool.
	Ports router.Ports `json:"ports"`
	// BackendPort is the port behind which the service listens inside an
	// environment, 1 to 65535.
	BackendPort int `json:"backend_port" range:"1,65535"`
}

// Parse reads the value of the key pools/<service>. The error, a
// *router.FieldError, is for the person who wrote it.
func Parse(service string, value []byte) (*Pool, error) {
	p := &Pool{Service: service}
	if len(strings.TrimSpace(string(value))) == 0 {
		return nil, &router.FieldError{Msg: `the value is empty; put {"ports": "20000-29999", "backend_port": 22}`}
	}
	if err := router.Decode(value, p); err != nil {
		return nil, err
	}
	if len(p.Ports) == 0 {
		return nil, &router.FieldError{Path: "ports", Msg: `is missing; give ranges such as "20000-29999"`}
	}
	if p.BackendPort == 0 {
		return nil, &router.FieldError{Path: "backend_port", Msg: "is missing; give the port of the service inside an environment, such as 22"}
	}
	return p, nil
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
			if a.First <= b.Last && b.First <= a.Last {
				return &router.FieldError{Path: "ports", Msg: fmt.Sprintf("%v overlaps %v of the pool %s; give each port to one pool", a, b, other.Service)}
			}
		}
	}
	return nil
}
