package keys

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// Status is a cluster at a glance.
type Status struct {
	Revision int64 `json:"revision"` // of the newest change of a key that nodes act on
	Keys     int   `json:"keys"`
	// Nodes are the live ones, by name.
	Nodes []NodeStatus `json:"nodes"`
	// Absent are the members of the nodes' own etcd that are of no live node, ""
	// for one that is expected and has not started. What is left of such a cluster
	// bears the loss of fewer nodes.
	Absent []string `json:"absent_members,omitempty"`
	// Troubles are the keys that some node refuses, or has in force with
	// something amiss, in the order of keys.
	Troubles []Trouble `json:"troubles"`
}

// NodeStatus is one live node and how far it is.
type NodeStatus struct {
	fleet.Node
	// Behind is how many of the cluster's keys were changed after the revision
	// that the node last said it has applied. Nodes say so within a second.
	Behind       int `json:"behind"`
	AppliedKeys  int `json:"applied_keys"`
	RefusedKeys  int `json:"refused_keys"`
	DegradedKeys int `json:"degraded_keys"`
	HeldKeys     int `json:"held_keys"` // deleted, which the node holds back
}

// Trouble is what nodes say of a key that is not simply applied.
type Trouble = wire.Trouble

// Status reads what every live node says.
func (s *Store) Status(ctx context.Context) (*Status, error) {
	kvs, _, err := s.Client.Read(ctx)
	if err != nil {
		return nil, err
	}
	st := &Status{Nodes: []NodeStatus{}, Troubles: []Trouble{}}
	if st.Revision, err = history.Newest(ctx, s.Client); err != nil {
		return nil, err
	}
	var wanted []etcd.KV // without what only says something of changes
	for _, kv := range kvs {
		st.Revision = max(st.Revision, kv.ModRev)
		if !history.IsNote(kv.Key) {
			wanted = append(wanted, kv)
		}
	}
	st.Keys = len(wanted)
	records, at, err := s.Client.ReadUnder(ctx, nodesFolder, 0)
	if err != nil {
		return nil, err
	}
	troubles := map[[2]string]*Trouble{} // by key and text
	for _, record := range records {
		var n NodeStatus
		if json.Unmarshal(record.Value, &n.Node) != nil {
			n.State = "unreadable"
		}
		n.Name = strings.TrimPrefix(record.Key, nodesFolder)
		n.Instance = ""     // the node derives secrets of it
		n.ClusterKeys = nil // `sluice certs key ls` says who lacks one
		if err := s.readTroubles(ctx, &n, at, wanted, troubles); err != nil {
			return nil, err
		}
		st.Nodes = append(st.Nodes, n)
	}
	for _, t := range troubles {
		st.Troubles = append(st.Troubles, *t)
	}
	slices.SortFunc(st.Troubles, func(a, b Trouble) int {
		return cmp.Or(router.CompareKeys(a.Key, b.Key), strings.Compare(a.Verdict.Text, b.Verdict.Text))
	})
	if err := s.countBehind(ctx, st, kvs); err != nil {
		return nil, err
	}
	st.Absent, err = s.absent(ctx, st.Nodes)
	return st, err
}

// readTroubles reads what a node says of the keys kvs as of revision at, counts
// it, and notes what is amiss in troubles, by key and text.
func (s *Store) readTroubles(ctx context.Context, n *NodeStatus, at int64, kvs []etcd.KV, troubles map[[2]string]*Trouble) error {
	folder := verdictsFolder + n.Name + "/"
	said, _, err := s.Client.ReadUnder(ctx, folder, at)
	if err != nil {
		return err
	}
	spoken := make(map[string]bool, len(said))
	for _, kv := range said {
		if string(kv.Value) == etcd.LeftOut {
			continue
		}
		v := control.ParseVerdict(string(kv.Value))
		n.count(v)
		spoken[strings.TrimPrefix(kv.Key, folder)] = true
		if v.State == control.Applied {
			continue
		}
		key := strings.TrimPrefix(kv.Key, folder)
		t := troubles[[2]string{key, v.Text}]
		if t == nil {
			t = &Trouble{Key: key, Verdict: v}
			troubles[[2]string{key, v.Text}] = t
		}
		t.Nodes = append(t.Nodes, n.Name)
	}
	for _, kv := range kvs {
		if !spoken[kv.Key] && kv.ModRev <= n.Applied {
			n.AppliedKeys++
		}
	}
	return nil
}

// countBehind counts for each node the keys that were changed after what it has
// applied: those there are, kvs, and those that are gone.
func (s *Store) countBehind(ctx context.Context, st *Status, kvs []etcd.KV) error {
	changed := make(map[string]int64, len(kvs)) // the last change by key
	for _, kv := range kvs {
		changed[kv.Key] = kv.ModRev
	}
	least := st.Revision
	for _, n := range st.Nodes {
		if n.Applied > 0 { // else it has nothing yet that could be gone
			least = min(least, n.Applied)
		}
	}
	if least < st.Revision {
		log, err := history.Read(ctx, s.Client, least)
		if err != nil {
			return err
		}
		for _, c := range log.Changes {
			if _, there := changed[c.Key]; c.After == nil && etcd.IsWatched(c.Key) && (!there || changed[c.Key] < c.Rev) {
				changed[c.Key] = c.Rev
			}
		}
	}
	for i := range st.Nodes {
		for _, rev := range changed {
			if rev > st.Nodes[i].Applied {
				st.Nodes[i].Behind++
			}
		}
	}
	return nil
}

// absent returns the members of the nodes' own etcd of which no node is live. An
// etcd apart from the nodes has members of other names.
func (s *Store) absent(ctx context.Context, nodes []NodeStatus) ([]string, error) {
	names, err := s.Client.MemberNames(ctx)
	if err != nil {
		return nil, err
	}
	live := func(name string) bool {
		return slices.ContainsFunc(nodes, func(n NodeStatus) bool { return n.Name == name })
	}
	if !slices.ContainsFunc(names, live) {
		return nil, nil
	}
	names = slices.DeleteFunc(names, live)
	slices.Sort(names)
	return names, nil
}

func (n *NodeStatus) count(v control.Verdict) {
	switch v.State {
	case control.Refused:
		n.RefusedKeys++
	case control.Degraded:
		n.DegradedKeys++
	case control.Held:
		n.HeldKeys++
	case control.Applied:
		n.AppliedKeys++
	}
}

// Entry is a key, and what the live nodes say of it.
type Entry struct {
	Key      string                     `json:"key"`
	Value    string                     `json:"value"`
	Rev      int64                      `json:"revision"`
	Verdicts map[string]control.Verdict `json:"verdicts"` // by node
}

// List returns the keys of a folder such as routes/, with verdicts, in the
// order of keys for people.
func (s *Store) List(ctx context.Context, folder string) ([]Entry, error) {
	all, _, err := s.Page(ctx, folder, "", 0)
	slices.SortFunc(all, func(a, b Entry) int { return router.CompareKeys(a.Key, b.Key) })
	return all, err
}

// Page returns at most limit keys that begin with under and come after the key after,
// with verdicts, in the order of their bytes, and whether there are more. A limit of 0
// is none. It reads no more than that of etcd, but for the nodes' records.
func (s *Store) Page(ctx context.Context, under, after string, limit int) (all []Entry, more bool, err error) {
	p := etcd.Page{Under: under, Limit: limit}
	if after != "" {
		p.From = after + "\x00"
	}
	kvs, at, more, err := s.Client.ReadPage(ctx, p)
	if err != nil || len(kvs) == 0 {
		return []Entry{}, false, err
	}
	all = make([]Entry, len(kvs))
	place := make(map[string]int, len(kvs))
	for i, kv := range kvs {
		all[i] = Entry{Key: kv.Key, Value: string(kv.Value), Rev: kv.ModRev, Verdicts: map[string]control.Verdict{}}
		place[kv.Key] = i
	}
	records, _, err := s.Client.ReadUnder(ctx, nodesFolder, at)
	if err != nil {
		return nil, false, err
	}
	for _, record := range records {
		node := strings.TrimPrefix(record.Key, nodesFolder)
		folder := verdictsFolder + node + "/"
		said, _, _, err := s.Client.ReadPage(ctx, etcd.Page{Under: folder, From: folder + kvs[0].Key, To: folder + kvs[len(kvs)-1].Key, Rev: at})
		if err != nil {
			return nil, false, err
		}
		var n fleet.Node
		if json.Unmarshal(record.Value, &n) == nil {
			for i := range all {
				if all[i].Rev <= n.Applied {
					all[i].Verdicts[node] = control.AppliedAt(all[i].Rev)
				}
			}
		}
		for _, kv := range said {
			if i, ok := place[strings.TrimPrefix(kv.Key, folder)]; ok && string(kv.Value) != etcd.LeftOut {
				all[i].Verdicts[node] = control.ParseVerdict(string(kv.Value))
			}
		}
	}
	return all, more, nil
}

// Newest returns the revision of the newest change of a key that nodes act on,
// deletions included where the history has them.
func (s *Store) Newest(ctx context.Context) (rev int64, err error) {
	if rev, err = history.Newest(ctx, s.Client); err != nil {
		return 0, err
	}
	kvs, _, err := s.Client.Read(ctx)
	for _, kv := range kvs {
		rev = max(rev, kv.ModRev)
	}
	return rev, err
}
