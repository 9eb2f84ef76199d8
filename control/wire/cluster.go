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
	Older        *Older       `json:"older,omitempty" doc:"What processes that upgrades have replaced still have; absent: there are none."`
	Behind       int          `json:"behind" doc:"How many keys were changed after the revision that it last said it has applied. Nodes say so within a second."`
	AppliedKeys  int          `json:"applied_keys"`
	RefusedKeys  int          `json:"refused_keys"`
	DegradedKeys int          `json:"degraded_keys"`
	HeldKeys     int          `json:"held_keys" doc:"Deleted, which the node holds back."`
}

// NodeView is a node as it says of itself, and as the others see it: one that is
// live, or that somebody wants drained, whether it runs or not.
type NodeView struct {
	Name        string       `json:"name"`
	Version     string       `json:"version,omitempty" doc:"Absent: the node does not run."`
	State       string       `json:"state" doc:"joining, ready, draining or down."`
	Addresses   []netip.Addr `json:"addresses" doc:"Where clients reach it."`
	Region      string       `json:"region,omitempty"`
	Weight      int          `json:"weight" doc:"Its share of clients; 0: it is not known, as the node does not run."`
	Started     time.Time    `json:"started,omitzero" doc:"Absent: the node does not run."`
	Applied     int64        `json:"applied_revision" doc:"The etcd revision in force; 0: none yet."`
	Fingerprint string       `json:"fingerprint,omitempty" doc:"The same on nodes that have the same values in force."`
	Load        *NodeLoad    `json:"load,omitempty" doc:"How busy it is, as of a minute ago at most; absent: it is not known."`
	Older       *Older       `json:"older,omitempty" doc:"What processes that upgrades have replaced still have; absent: there are none."`
	Drain       *DrainPhase  `json:"drain,omitempty" doc:"How far the node is with being drained; absent: it serves, or does not know yet that somebody wants it drained."`
	Healthy     bool         `json:"healthy" doc:"Clients are to be sent to it: it is ready, nobody wants it drained, and it is not known to be out of reach."`
	Why         string       `json:"why,omitempty" doc:"Why it is not healthy, for people."`
	Wanted      *Drain       `json:"wanted,omitempty" doc:"Somebody wants it drained."`
	// Votes is by watcher and address, such as "hk2 203.0.113.7".
	Votes map[string]string `json:"votes,omitempty" doc:"What the nodes that watch it say, by watcher and address, such as hk2 203.0.113.7: up, or why not."`
}

// Older is what older processes of a node still have, as of some seconds ago.
type Older struct {
	Processes int       `json:"processes"`
	Flows     int       `json:"flows" doc:"TCP connections, and connections that speak HTTP."`
	Until     time.Time `json:"until,omitzero" doc:"When the last of them are cut; absent: a process does not tell."`
}

// NodeLoad is how busy a node is.
type NodeLoad struct {
	CPU   float64 `json:"cpu" doc:"Of all processors, 0 to 1."`
	Flows int     `json:"flows"`
	Files int     `json:"open_files"`
	In    int64   `json:"bytes_per_second_in" doc:"Of all interfaces but loopback."`
	Out   int64   `json:"bytes_per_second_out"`
}

// DrainPhase is how far a node is with being drained.
type DrainPhase struct {
	Phase string    `json:"phase" doc:"leaving_dns (it serves all that comes, until nobody is sent to it any more), ending_flows (it takes nothing new, and keeps the flows that it has) or drained (no flow is left)."`
	Since time.Time `json:"since" doc:"When the phase began."`
	Until time.Time `json:"until,omitzero" doc:"When leaving_dns ends."`
	Left  int       `json:"flows_left" doc:"Of ending_flows, as of a few seconds ago."`
}

// Drain is a person's wish that a node serves nothing new, until it is taken back.
type Drain struct {
	Reason string `json:"reason,omitempty" maxLength:"200" doc:"Why, for people." example:"new disk"`
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
