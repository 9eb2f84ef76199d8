package fleet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// The subtrees below the prefix that a Registry is to be fed with.
const (
	cardsFolder = "members/"
	drainFolder = "drain/"
	viewsFolder = "health/"
)

// Folders are the subtrees that a Registry is to be fed with.
var Folders = []string{drainFolder, viewsFolder, cardsFolder}

// Card is what a node tells the others of itself, the value of members/<node>.
// It is apart from the node's record, which says with every edit how far the
// node is: two hundred nodes that all watched that of each other would take
// forty thousand messages an edit.
type Card struct {
	State     State        `json:"state"`
	Addresses []netip.Addr `json:"addresses"` // where clients reach it, in order
	Region    string       `json:"region,omitempty"`
	Weight    int          `json:"weight"` // its share of clients, 1 to MaxWeight
	// HTTPS is the port of its https listener, and Mapped a mapped TCP port that
	// is open, both for peers to look at; 0: there is none.
	HTTPS  int `json:"https,omitempty"`
	Mapped int `json:"mapped,omitempty"`
	// Names says whether it has a DNS provider, and so may be the one that keeps
	// names; nil: it is of a version that does not tell.
	Names *bool `json:"names,omitempty"`
}

// MaxWeight is the largest weight of a node.
const MaxWeight = 1000

// ParseCard reads the value of members/<node>. Unknown fields are passed over:
// nodes of another version may be among the members.
func ParseCard(value []byte) (*Card, error) {
	c := new(Card)
	if err := json.Unmarshal(value, c); err != nil {
		return nil, err
	}
	if c.State == "" {
		return nil, fmt.Errorf("it has no state")
	}
	c.Weight = min(max(c.Weight, 1), MaxWeight)
	return c, nil
}

// Drain is a person's wish that a node serves nothing new, the value of
// drain/<node>. It stays until somebody takes it back.
type Drain struct {
	Reason string `json:"reason,omitempty"` // for people
}

// ParseDrain reads the value of drain/<node>. Whatever it is, the node is
// drained: the error is for whoever is about to put it.
func ParseDrain(value []byte) (Drain, error) {
	var d Drain
	if strings.TrimSpace(string(value)) == "" {
		return d, nil
	}
	err := router.Decode(value, &d)
	return d, err
}

// DrainKey returns the key that has a node drained.
func DrainKey(node string) string { return drainFolder + node }
