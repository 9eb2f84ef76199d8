package certs

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// roster knows which nodes there are, and whose turn it is. The nodes of a
// cluster agree without asking each other: each ranks all of them by a hash of
// node and name (rendezvous hashing), so that a name has its own order of
// nodes, and another one that comes or goes moves few names. Where they do not
// agree for a moment the name's lock decides.
type roster struct {
	list func(context.Context) ([]string, error) // nil: there is this node alone

	mu    sync.Mutex // guards the following
	nodes []string
	read  time.Time
}

// rosterFor is how long a node goes by the nodes that it read.
const rosterFor = 5 * time.Second

// rank returns how many nodes come before me in turn for name, after as many
// attempts in a row have failed: each failure moves the turn to the next node.
func (r *roster) rank(ctx context.Context, me, name string, failures int) int {
	all := r.all(ctx)
	if !slices.Contains(all, me) {
		all = append(slices.Clone(all), me)
	}
	weights := make(map[string]float64, len(all))
	for _, node := range all {
		weights[node] = share(node + "\n" + name)
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b string) int {
		return cmp.Or(cmp.Compare(weights[a], weights[b]), cmp.Compare(a, b))
	})
	n := len(sorted)
	return ((slices.Index(sorted, me)-failures)%n + n) % n
}

// all returns the nodes that live; those that did when they could last be asked
// for, where they cannot be now.
func (r *roster) all(ctx context.Context) []string {
	if r.list == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock() // held while reading: the others would read the same
	if now := time.Now(); r.read.IsZero() || now.Sub(r.read) >= rosterFor {
		r.read = now
		if nodes, err := r.list(ctx); err == nil {
			r.nodes = nodes
		}
	}
	return r.nodes
}
