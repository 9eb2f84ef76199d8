package wire

import (
	"encoding/json"
	"net/netip"
	"time"
)

// Status is a cluster at a glance.
type Status struct {
	Revision int64 `json:"revision" doc:"Of the newest change of a key that nodes act on."`
	Keys     int   `json:"keys"`
	// Nodes are the live ones, by name.
	Nodes    []Node    `json:"nodes" doc:"The live ones, by name."`
	Absent   []string  `json:"absent_members,omitempty" doc:"Members of the nodes' own etcd of which no node is live; empty for one that is expected and has not started."`
	Troubles []Trouble `json:"troubles" doc:"Keys that some node refuses, or has in force with something amiss."`
}

// Node is a live node and how far it is.
type Node struct {
	Name         string       `json:"name"`
	Version      string       `json:"version"`
	State        string       `json:"state" doc:"joining, ready or draining."`
	Addresses    []netip.Addr `json:"addresses" doc:"Where clients reach it."`
	Region       string       `json:"region,omitempty"`
	Weight       int          `json:"weight" doc:"Its share of clients."`
	Started      time.Time    `json:"started"`
	Applied      int64        `json:"applied_revision" doc:"The etcd revision in force; 0: none yet."`
	Fingerprint  string       `json:"fingerprint,omitempty" doc:"The same on nodes that have the same values in force."`
	Behind       int          `json:"behind" doc:"How many keys were changed after the revision that it last said it has applied. Nodes say so within a second."`
	AppliedKeys  int          `json:"applied_keys"`
	RefusedKeys  int          `json:"refused_keys"`
	DegradedKeys int          `json:"degraded_keys"`
	HeldKeys     int          `json:"held_keys" doc:"Deleted, which the node holds back."`
}

// Trouble is what nodes say of a key that is not simply applied.
type Trouble struct {
	Key     string   `json:"key"`
	Verdict Verdict  `json:"verdict"`
	Nodes   []string `json:"nodes"` // that say so
}

// NodeVerdict is what a node says of a key.
type NodeVerdict struct {
	Key     string  `json:"key"`
	Node    string  `json:"node"`
	Verdict Verdict `json:"verdict"`
}

// AppliedBy is that every live node has applied a revision.
type AppliedBy struct {
	Revision int64   `json:"revision"`
	Seconds  float64 `json:"seconds" doc:"How long it took to hear so."`
}

// Changed is an event: a key was changed.
type Changed struct {
	Key      string          `json:"key"`
	Value    json.RawMessage `json:"value,omitempty" doc:"JSON, or a string where it is none. Absent: it was deleted."`
	Revision int64           `json:"revision"`
}

// Alive is an event that says that there are no changes to tell of.
type Alive struct {
	Time time.Time `json:"time"`
}

// Lost is the last event of a stream: changes may have been missed.
type Lost struct {
	Detail string `json:"detail" doc:"Read what you need anew, and watch from there."`
}

// Token is a token as it is shown: without its hashes.
type Token struct {
	Name        string    `json:"name"`
	Role        string    `json:"role" enum:"viewer,operator,admin"`
	Envs        string    `json:"envs,omitempty" doc:"What the names of environments begin with that it is for."`
	Pools       []string  `json:"pools,omitempty" doc:"The pools that it is for."`
	Certificate string    `json:"certificate,omitempty" doc:"The name in client certificates that stand for it."`
	CreatedAt   time.Time `json:"created_at,omitzero"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"`
	FormerUntil time.Time `json:"former_until,omitzero" doc:"Until when the former one is good besides."`
	Note        string    `json:"note,omitempty"`
}

// NewToken is the body that makes one.
type NewToken struct {
	Name        string     `json:"name" minLength:"1" maxLength:"64" pattern:"^[a-z0-9-]+$"`
	Role        string     `json:"role" enum:"viewer,operator,admin"`
	Envs        string     `json:"envs,omitempty" maxLength:"63"`
	Pools       []string   `json:"pools,omitempty" maxItems:"100"`
	Certificate string     `json:"certificate,omitempty" maxLength:"253" doc:"No secret, but the name in the client certificates that stand for the token."`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"`
	Note        string     `json:"note,omitempty" maxLength:"200"`
}

// MadeToken is a token that was made, the only time that it is shown.
type MadeToken struct {
	Token
	Secret string `json:"token,omitempty" doc:"The token itself. It is shown this once. Absent: a certificate stands for it."`
}
