package fleet

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/remotegpu/sluice/control/etcd"
)

// Member is a node as the others see it.
type Member struct {
	Node      string
	Addresses []netip.Addr // where clients reach it, in order; not to be modified
	Region    string       // "": nobody said
	Weight    int          // its share of clients, from 1 to MaxWeight
	State     State
	// Healthy says that clients are to be sent to it: it is ready, nobody wants it
	// drained, and it is not known to be out of reach.
	Healthy bool
	Why     string // why it is not Healthy, for people; "" if it is
}

// Registry is the nodes of the cluster as etcd has them. Feed it with Load and
// Change, as a handler of control/etcd's watch. It is safe for concurrent use.
type Registry struct {
	mu     sync.Mutex
	loaded bool
	cards  map[string]*Card
	drains map[string]Drain
	moved  chan struct{} // closed, and another made, when Members has other answers
}

// NewRegistry returns a Registry that knows nothing yet.
func NewRegistry() *Registry {
	return &Registry{cards: map[string]*Card{}, drains: map[string]Drain{}, moved: make(chan struct{})}
}

// Members returns the nodes in the order of their names. complete is false until
// etcd has been read: whoever gets that must change nothing, since nodes may be
// missing.
func (r *Registry) Members() (members []Member, complete bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for node, c := range r.cards {
		m := Member{Node: node, Addresses: c.Addresses, Region: c.Region, Weight: c.Weight, State: c.State}
		if d, ok := r.drains[node]; ok {
			m.State, m.Why = Draining, "it is drained"
			if d.Reason != "" {
				m.Why += ": " + d.Reason
			}
		} else if c.State != Ready {
			m.Why = "it is " + string(c.State)
		}
		m.Healthy = m.Why == ""
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	return members, r.loaded
}

// Changed returns a channel that is closed once Members may have other answers.
// Call it before Members, so that no change is missed.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.moved
}

// Load replaces all that is known by the keys below Folders as of a revision.
func (r *Registry) Load(_ int64, kvs []etcd.KV) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.cards)
	clear(r.drains)
	for _, kv := range kvs {
		r.put(kv.Key, kv.Value)
	}
	r.loaded = true
	r.tell()
}

// Change notes changes, in their order.
func (r *Registry) Change(_ int64, changes []etcd.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := false
	for _, c := range changes {
		if c.Deleted {
			news = r.remove(c.Key) || news
		} else {
			news = r.put(c.Key, c.Value) || news
		}
	}
	if news {
		r.tell()
	}
}

func (r *Registry) tell() {
	close(r.moved)
	r.moved = make(chan struct{})
}

// put notes a value, and reports whether it is of a key that matters. A card that
// cannot be read is none: clients cannot be sent to whoever wrote it.
func (r *Registry) put(key string, value []byte) bool {
	if node, ok := strings.CutPrefix(key, cardsFolder); ok {
		delete(r.cards, node)
		if c, err := ParseCard(value); err == nil {
			r.cards[node] = c
		}
		return true
	}
	if node, ok := strings.CutPrefix(key, drainFolder); ok {
		r.drains[node], _ = ParseDrain(value)
		return true
	}
	return false
}

func (r *Registry) remove(key string) bool {
	if node, ok := strings.CutPrefix(key, cardsFolder); ok {
		delete(r.cards, node)
		return true
	}
	if node, ok := strings.CutPrefix(key, drainFolder); ok {
		delete(r.drains, node)
		return true
	}
	return false
}
