package fleet

import (
	"net/netip"
	"time"
)

// State is what a node is doing.
type State string

// The states of a node, in the order of its life.
const (
	Joining  State = "joining"  // started, and has not applied a full load yet
	Ready    State = "ready"    // serving
	Draining State = "draining" // serving what it has, and accepting nothing new
	Down     State = "down"     // serving nothing
)

// Node is a node's record, the value of nodes/<name> in etcd.
type Node struct {
	Name      string       `json:"name"`
	Instance  string       `json:"instance"` // the same in every life of one node; see the function Instance
	Version   string       `json:"version"`
	State     State        `json:"state"`
	Addresses []netip.Addr `json:"addresses"` // where clients reach it
	Region    string       `json:"region,omitempty"`
	Weight    int          `json:"weight"` // its share of clients, 1 to MaxWeight
	Started   time.Time    `json:"started"`
	Applied   int64        `json:"applied_revision"` // etcd revision in force; 0: none yet
	// Load is how busy it is, as of a minute ago at most; nil: it is not known.
	Load *Load `json:"load,omitempty"`
	// Drain is how far the node is with being drained; nil: nobody wants it drained.
	Drain *Progress `json:"drain,omitempty"`
	// Older are the processes that upgrades have replaced and that keep flows; nil:
	// there are none.
	Older *Older `json:"older,omitempty"`
	// Fingerprint is the same on nodes that have the same values in force; "":
	// it is not known.
	Fingerprint string `json:"fingerprint,omitempty"`
	// ClusterKeys are the IDs of the cluster keys that it opens sealed values with,
	// that which it seals with first; nil: it does not say. They are no secret.
	ClusterKeys []string `json:"cluster_keys,omitzero"`
}

// Older is what older processes of a node still have, as of some seconds ago.
type Older struct {
	Processes int `json:"processes"`
	Flows     int `json:"flows"`
	// Until is when the last of the flows are cut; zero: a process does not tell.
	Until time.Time `json:"until,omitzero"`
}

// Load is how busy a node is.
type Load struct {
	CPU   float64 `json:"cpu"` // of all processors, 0 to 1
	Flows int     `json:"flows"`
	Files int     `json:"open_files"`
	In    int64   `json:"bytes_per_second_in"` // of all interfaces but loopback
	Out   int64   `json:"bytes_per_second_out"`
}
