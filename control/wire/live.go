package wire

import (
	"net/netip"
	"time"
)

// Flow is a live flow of a node: a connection to a mapped port, a UDP session, a
// connection that a route takes whole, or an HTTP exchange of a public listener.
type Flow struct {
	ID       uint64         `json:"id"` // of this node: flows of a process that begin later have higher ones; of an exchange, given when it is first listed
	Proto    string         `json:"proto"`
	Listener string         `json:"listener"` // such as tcp/20022
	Port     int            `json:"port"`
	Client   netip.AddrPort `json:"client"`
	Backend  string         `json:"backend,omitempty"` // host:port; absent until it is connected, and for HTTP
	Address  string         `json:"address,omitempty"` // ip:port, where backend has a name
	Route    string         `json:"route,omitempty"`   // absent for mappings
	Env      string         `json:"env,omitempty"`
	Service  string         `json:"service,omitempty"`
	HTTP     bool           `json:"http,omitempty"` // its exchanges choose backends for themselves
	Since    time.Time      `json:"since"`
	Age      float64        `json:"age"` // seconds
	Up       int64          `json:"bytes_up"`
	Down     int64          `json:"bytes_down"`
	// Process is the ID of the process that has the flow, where that is an older
	// one, which an upgrade of the node has left to end its flows.
	Process int `json:"process,omitempty"`
}

// Flows is a list of flows.
type Flows struct {
	Items  []Flow `json:"items"`
	Unseen string `json:"unseen,omitempty" doc:"Which flows there are besides, of older processes of the node, and why they are not listed; absent: none."`
}

// Cut is how many flows were ended.
type Cut struct {
	Cut    int    `json:"cut"`
	Unseen string `json:"unseen,omitempty" doc:"Which flows, of older processes of the node, could not be looked at, and why; absent: none."`
}

// Target is one address of a backend.
type Target struct {
	Address string `json:"address"` // host:port
	Weight  int    `json:"weight"`  // its share
	// Health is "up" or "down" where the target is checked, and HealthErr why
	// the last check failed, if it did.
	Health    string `json:"health,omitempty"`
	HealthErr string `json:"health_error,omitempty"`
}

// Explanation says what would become of a request or connection.
type Explanation struct {
	// Outcome says it in a sentence.
	Outcome string `json:"outcome"`
	// Note says where the request would not come to this node at all, though
	// Outcome says what the node would do with it.
	Note string `json:"note,omitempty"`
	Rev  int64  `json:"rev"` // the etcd revision that the node's table is as of
	// Key is what decides, below the prefix, and Verdict what the node says of
	// it; "" where nothing does.
	Key      string            `json:"key,omitempty"`
	Verdict  string            `json:"verdict,omitempty"`
	Host     string            `json:"host,omitempty"` // the pattern that matches
	Captures map[string]string `json:"captures,omitempty"`
	Targets  []Target          `json:"targets,omitempty"`
	// Sent is the path and query that a backend gets, where that is not what the
	// client sends.
	Sent string `json:"sent,omitempty"`
	// First says what is asked before the request goes on, in this order.
	First  []string `json:"first,omitempty"`
	Limits any      `json:"limits,omitempty"` // of the key, as in its value
	// Refused says why this client would be refused, "" if it would not.
	Refused     string       `json:"refused,omitempty"`
	Certificate *Certificate `json:"certificate,omitempty"`
	// ClientAuth says which certificate a TLS client of the host has to show, or
	// may; nil: none is asked for.
	ClientAuth *ClientAuth `json:"client_auth,omitempty"`
	// Others are the routes that match by host and are not taken, in the order
	// in which they were tried.
	Others []Loser `json:"others,omitempty"`
}

// Certificate is what a TLS client would be shown.
type Certificate struct {
	Names  []string  `json:"names,omitempty"`
	Issuer string    `json:"issuer,omitempty"`
	Until  time.Time `json:"until,omitzero"`
	Err    string    `json:"error,omitempty"` // why there is none
}

// ClientAuth is what clients of a host are asked for.
type ClientAuth struct {
	CA   string `json:"ca"`              // whose certificates, a name under client_auth of the node's file
	Mode string `json:"mode"`            // require or verify_if_given
	Err  string `json:"error,omitempty"` // why the node accepts none, or goes by what it had before
}

// Loser is a route that was not taken.
type Loser struct {
	Route string `json:"route"`
	Host  string `json:"host"`
	Why   string `json:"why"`
}
