package keys

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/router"
)

// Status is a cluster at a glance.
type Status struct {
	Revision int64 `json:"revision"` // of the newest change of a key that nodes act on
	Keys     int   `json:"keys"`
	// Nodes are the live ones, by name.
	Nodes []NodeStatus `json:"nodes"`
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
type Trouble struct {
	Key     string          `json:"key"`
	Verdict control.Verdict `json:"verdict"`
	Nodes   []string        `json:"nodes"` // that say so
}

// Status reads what every live node says.
func (s *Store) Status(ctx context.Context) (*Status, error) {
	kvs, _, err := s.Client.Read(ctx)
	if err != nil {
		return nil, err
	}
	st := &Status{Keys: len(kvs), Nodes: []NodeStatus{}, Troubles: []Trouble{}}
	if st.Revision, err = history.Newest(ctx, s.Client); err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		st.Revision = max(st.Revision, kv.ModRev)
	}
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
		n.Instance = "" // the node derives secrets of it
		for _, kv := range kvs {
			if kv.ModRev > n.Applied {
				n.Behind++
			}
		}
		folder := verdictsFolder + n.Name + "/"
		said, _, err := s.Client.ReadUnder(ctx, folder, at)
		if err != nil {
			return nil, err
		}
		for _, kv := range said {
			v := control.ParseVerdict(string(kv.Value))
			n.count(v)
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
		st.Nodes = append(st.Nodes, n)
	}
	for _, t := range troubles {
		st.Troubles = append(st.Troubles, *t)
	}
	slices.SortFunc(st.Troubles, func(a, b Trouble) int {
		return cmp.Or(router.CompareKeys(a.Key, b.Key), strings.Compare(a.Verdict.Text, b.Verdict.Text))
	})
	return st, nil
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
	Rev      int64                      `json:"rev"`
	Verdicts map[string]control.Verdict `json:"verdicts"` // by node
}

// List returns the keys of a folder such as routes/, with verdicts, in the
// order of keys.
func (s *Store) List(ctx context.Context, folder string) ([]Entry, error) {
	kvs, at, err := s.Client.ReadUnder(ctx, folder, 0)
	if err != nil {
		return nil, err
	}
	all := make([]Entry, len(kvs))
	place := make(map[string]int, len(kvs))
	for i, kv := range kvs {
		all[i] = Entry{Key: kv.Key, Value: string(kv.Value), Rev: kv.ModRev, Verdicts: map[string]control.Verdict{}}
		place[kv.Key] = i
	}
	records, _, err := s.Client.ReadUnder(ctx, nodesFolder, at)
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		node := strings.TrimPrefix(record.Key, nodesFolder)
		said, _, err := s.Client.ReadUnder(ctx, verdictsFolder+node+"/"+folder, at)
		if err != nil {
			return nil, err
		}
		for _, kv := range said {
			if i, ok := place[strings.TrimPrefix(kv.Key, verdictsFolder+node+"/")]; ok {
				all[i].Verdicts[node] = control.ParseVerdict(string(kv.Value))
			}
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return router.CompareKeys(a.Key, b.Key) })
	return all, nil
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
