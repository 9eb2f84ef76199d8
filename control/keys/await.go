package keys

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/wire"
)

// Answer is what one node said of one key.
type Answer = wire.Answer

// LateError says that live nodes had not answered when the wait ended.
type LateError struct {
	Rev   int64
	Nodes []string
}

func (e *LateError) Error() string {
	return fmt.Sprintf("not all nodes have said that they applied revision %d; these have not: %s", e.Rev, strings.Join(e.Nodes, ", "))
}

const (
	nodesFolder    = "nodes/"
	verdictsFolder = "verdicts/"
)

// view is what nodes/ and verdicts/ say while somebody waits.
type view struct {
	rev   int64                 // waited for
	keys  map[string]bool       // that are asked about, and whether their verdicts are followed; where none is, the revisions of nodes are
	nodes map[string]fleet.Node // live
	said  map[[2]string]string  // verdicts by node and key
	fresh map[[2]string]bool    // those that came after rev
	there map[string]int64      // revisions of the keys that are asked about
}

// NobodyError says that no node is live, so that nobody can say what becomes of
// a key.
type NobodyError struct{ Prefix string }

func (e *NobodyError) Error() string {
	return fmt.Sprintf("no node is live that reads keys below %s", e.Prefix)
}

// SomeoneLives returns a *NobodyError where no node is live.
func (s *Store) SomeoneLives(ctx context.Context) error {
	names, err := s.Client.ReadNames(ctx, nodesFolder, 1)
	if err == nil && len(names) == 0 {
		err = &NobodyError{s.Client.Prefix()}
	}
	return err
}

// Await waits until every live node has said what it made of keys as of
// revision rev, and returns that: in the order of keys and nodes. Without keys
// it waits until every live node has applied rev. A node that dies meanwhile,
// or that joins, is none to wait for. When ctx ends first the error is a
// *LateError, with the answers so far.
func (s *Store) Await(ctx context.Context, rev int64, keys []string) ([]Answer, error) {
	v := &view{rev: rev, keys: map[string]bool{}, nodes: map[string]fleet.Node{}, said: map[[2]string]string{}, fresh: map[[2]string]bool{}}
	many := len(keys) > fewKeys
	for _, k := range keys {
		v.keys[k] = !many
	}
	folders := []string{nodesFolder}
	at, err := s.readNodes(ctx, v)
	if err != nil {
		return nil, err
	}
	if len(keys) > 0 && !many {
		folders = append(folders, verdictsFolder)
		if err := s.readVerdicts(ctx, v, keys, at); err != nil {
			return nil, err
		}
	}
	if !v.complete() {
		err = s.Client.Follow(ctx, folders, at, func(changes []etcd.Change) (bool, error) {
			for _, c := range changes {
				v.take(c)
			}
			return v.complete(), nil
		})
	}
	if err != nil && ctx.Err() != nil {
		err = &LateError{rev, v.waiting()}
	}
	// Records and verdicts come by watchers of their own: that a node has applied
	// the revision may have come before the verdicts that it had written before.
	if len(keys) > 0 && err == nil {
		clear(v.said)
		clear(v.fresh)
		if at, err = s.readNodes(ctx, v); err == nil {
			if err = s.readVerdicts(ctx, v, keys, at); err == nil {
				v.there, err = s.revisions(ctx, keys, at)
			}
		}
	}
	return v.answers(keys), err
}

// fewKeys is how many verdicts of each node are followed one by one. Of more
// keys it is their revision that is waited for.
const fewKeys = 16

func (s *Store) readNodes(ctx context.Context, v *view) (at int64, err error) {
	kvs, at, err := s.Client.ReadUnder(ctx, nodesFolder, 0)
	for _, kv := range kvs {
		v.takeNode(etcd.Change{Key: kv.Key, Value: kv.Value})
	}
	return at, err
}

// readVerdicts reads the verdicts of all nodes on keys: one by one where they
// are few, else all that the nodes have.
func (s *Store) readVerdicts(ctx context.Context, v *view, keys []string, at int64) error {
	for node := range v.nodes {
		folders := []string{""}
		if len(keys) <= fewKeys {
			folders = keys
		}
		for _, folder := range folders {
			kvs, _, err := s.Client.ReadUnder(ctx, verdictsFolder+node+"/"+folder, at)
			if err != nil {
				return err
			}
			for _, kv := range kvs {
				v.takeVerdict(etcd.Change{Key: kv.Key, Value: kv.Value, ModRev: kv.ModRev})
			}
		}
	}
	return nil
}

// revisions returns those of the keys that are there.
func (s *Store) revisions(ctx context.Context, keys []string, at int64) (map[string]int64, error) {
	from := slices.Clone(keys)
	if len(keys) > fewKeys {
		for i, key := range from {
			folder, _, _ := strings.Cut(key, "/")
			from[i] = folder + "/"
		}
	}
	slices.Sort(from)
	there := map[string]int64{}
	for _, under := range slices.Compact(from) {
		kvs, _, err := s.Client.ReadUnder(ctx, under, at)
		if err != nil {
			return nil, err
		}
		for _, kv := range kvs {
			there[kv.Key] = kv.ModRev
		}
	}
	return there, nil
}

func (v *view) take(c etcd.Change) {
	if strings.HasPrefix(c.Key, nodesFolder) {
		v.takeNode(c)
	} else {
		v.takeVerdict(c)
	}
}

func (v *view) takeNode(c etcd.Change) {
	name := strings.TrimPrefix(c.Key, nodesFolder)
	if c.Deleted {
		delete(v.nodes, name)
		return
	}
	var n fleet.Node
	if json.Unmarshal(c.Value, &n) == nil {
		v.nodes[name] = n
	}
}

func (v *view) takeVerdict(c etcd.Change) {
	node, key, ok := strings.Cut(strings.TrimPrefix(c.Key, verdictsFolder), "/")
	if _, asked := v.keys[key]; !ok || !asked {
		return
	}
	at := [2]string{node, key}
	v.fresh[at] = c.ModRev > v.rev
	if c.Deleted {
		delete(v.said, at)
		return
	}
	v.said[at] = string(c.Value)
}

// answered reports whether a node has said what it made of key. A node that has
// applied the revision says nothing of a key whose verdict stays the same.
func (v *view) answered(node, key string) bool {
	at := [2]string{node, key}
	return v.fresh[at] || control.ParseVerdict(v.said[at]).Rev >= v.rev || v.nodes[node].Applied >= v.rev
}

func (v *view) complete() bool { return len(v.waiting()) == 0 }

// waiting returns the nodes that have not answered.
func (v *view) waiting() (late []string) {
	for name, n := range v.nodes {
		followed := false
		missing := false
		for key, follow := range v.keys {
			if !follow {
				break // all alike
			}
			followed = true
			missing = missing || !v.answered(name, key)
		}
		if !followed {
			missing = n.Applied < v.rev
		}
		if missing {
			late = append(late, name)
		}
	}
	slices.Sort(late)
	return late
}

func (v *view) answers(keys []string) []Answer {
	var all []Answer
	for node := range v.nodes {
		for _, key := range keys {
			if v.answered(node, key) {
				a := Answer{Node: node, Key: key, Verdict: control.Verdict{State: control.Removed, Text: "removed"}}
				if text, ok := v.said[[2]string{node, key}]; ok {
					a.Verdict = control.ParseVerdict(text)
				} else if rev := v.there[key]; rev > 0 && rev <= v.nodes[node].Applied {
					a.Verdict = control.AppliedAt(rev)
				}
				all = append(all, a)
			}
		}
	}
	place := map[string]int{}
	for i, k := range keys {
		place[k] = i
	}
	slices.SortFunc(all, func(a, b Answer) int {
		return cmp.Or(cmp.Compare(place[a.Key], place[b.Key]), cmp.Compare(a.Node, b.Node))
	})
	return all
}

// IsLate reports whether err says that nodes had not answered in time.
func IsLate(err error) bool {
	return errors.As(err, new(*LateError))
}
