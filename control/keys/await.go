package keys

import (
	"cmp"
	"context"
	"encoding/json"
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
	// At is the revision that etcd was seen at last; below Rev, there is none of
	// that revision to be applied.
	At int64
}

func (e *LateError) Error() string {
	if e.At < e.Rev {
		return fmt.Sprintf("there is no revision %d yet: etcd is at revision %d", e.Rev, e.At)
	}
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
	gone  map[[2]string]bool    // those that went since the key is gone, after rev
	there map[string]int64      // revisions of the keys that are asked about, where they are there
}

func newView(rev int64) *view {
	return &view{rev: rev, keys: map[string]bool{}, nodes: map[string]fleet.Node{}, there: map[string]int64{},
		said: map[[2]string]string{}, fresh: map[[2]string]bool{}, gone: map[[2]string]bool{}}
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
// *LateError, with the answers so far where the keys are few.
func (s *Store) Await(ctx context.Context, rev int64, keys []string) ([]Answer, error) {
	v := newView(rev)
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
		if err := s.readRevisions(ctx, v, keys, at); err != nil {
			return nil, err
		}
	}
	newest := at
	if !v.complete() {
		err = s.Client.Follow(ctx, folders, at, func(changes []etcd.Change) (bool, error) {
			for _, c := range changes {
				v.take(c)
				newest = max(newest, c.ModRev)
			}
			return v.complete(), nil
		})
	}
	if err != nil {
		if ctx.Err() != nil {
			err = &LateError{rev, v.waiting(), newest}
		}
		if many { // nobody followed what the nodes say of these
			return nil, err
		}
		return v.answers(keys), err
	}
	if len(keys) == 0 {
		return nil, nil
	}
	// Records and verdicts come by watchers of their own: that a node has applied
	// the revision may have come before the verdicts that it had written before.
	clear(v.nodes)
	clear(v.said)
	clear(v.fresh)
	if at, err = s.readNodes(ctx, v); err != nil {
		return nil, err
	}
	if err := s.readVerdicts(ctx, v, keys, at); err != nil {
		return nil, err
	}
	if many {
		if err := s.readRevisions(ctx, v, keys, at); err != nil {
			return nil, err
		}
	}
	return v.answers(keys), nil
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

// readRevisions notes those of the keys that are there as of revision at.
func (s *Store) readRevisions(ctx context.Context, v *view, keys []string, at int64) error {
	from := slices.Clone(keys)
	if len(keys) > fewKeys {
		for i, key := range from {
			folder, _, _ := strings.Cut(key, "/")
			from[i] = folder + "/"
		}
	}
	slices.Sort(from)
	for _, under := range slices.Compact(from) {
		kvs, _, err := s.Client.ReadUnder(ctx, under, at)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			v.there[kv.Key] = kv.ModRev
		}
	}
	return nil
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
	_, said := v.said[at]
	delete(v.said, at)
	delete(v.fresh, at)
	switch {
	case c.Deleted: // of a key that is there, no answer: another change came between
		v.gone[at] = said && v.there[key] == 0 && c.ModRev > v.rev
	case string(c.Value) == etcd.LeftOut: // it goes next, which says nothing of the key
	default:
		v.said[at], v.fresh[at] = string(c.Value), c.ModRev > v.rev
	}
}

// answered reports whether a node has said what it made of key: that its value is
// in force, by the revision; that it is not, in a verdict that came since; or that
// the key is gone. A node that has applied the revision says nothing of a key whose
// verdict stays the same, nor of one that is left out.
func (v *view) answered(node, key string) bool {
	at := [2]string{node, key}
	said := control.ParseVerdict(v.said[at])
	inForce := said.State == control.Applied || said.State == control.Degraded
	return v.nodes[node].Applied >= v.rev || v.gone[at] || said.Rev >= v.rev || v.fresh[at] && !inForce
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
				all = append(all, Answer{Node: node, Key: key, Verdict: v.verdict(node, key)})
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

// verdict returns what a node has said of key, be it by its revision alone.
func (v *view) verdict(node, key string) control.Verdict {
	text, said := v.said[[2]string{node, key}]
	rev := v.there[key]
	switch {
	case said:
		return control.ParseVerdict(text)
	case rev == 0:
		return control.Verdict{State: control.Removed, Text: "removed"}
	case rev <= v.nodes[node].Applied:
		return control.AppliedAt(rev)
	}
	return control.AppliedAt(v.rev) // it was changed again since
}
