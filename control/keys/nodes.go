package keys

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// maxReason bounds why somebody wants a node drained, in characters: it stands in
// a column of each list of nodes.
const maxReason = 200

// NoNodeError says that there is no node of a name.
type NoNodeError struct{ Name string }

// Error implements error.
func (e *NoNodeError) Error() string {
	return fmt.Sprintf("there is no node %q: none of that name runs and reaches etcd, and nobody wants one drained; `sluice node ls` and GET /nodes list them", e.Name)
}

// ServingError says that nobody wants a node drained, and so nobody can call it off.
type ServingError struct{ Name string }

// Error implements error.
func (e *ServingError) Error() string { return fmt.Sprintf("nobody wants %s drained", e.Name) }

// Nodes returns what etcd has of all nodes as of one revision, by name, those
// included that are to be drained and do not run.
func (s *Store) Nodes(ctx context.Context) ([]wire.NodeView, error) {
	records, rev, err := s.Client.ReadUnder(ctx, nodesFolder, 0)
	if err != nil {
		return nil, err
	}
	kvs, err := s.readMembers(ctx, rev)
	if err != nil {
		return nil, err
	}
	return viewNodes(records, rev, kvs), nil
}

// readMembers reads what nodes know of each other as of a revision.
func (s *Store) readMembers(ctx context.Context, rev int64) (kvs []etcd.KV, err error) {
	for _, folder := range fleet.Folders {
		some, _, err := s.Client.ReadUnder(ctx, folder, rev)
		if err != nil {
			return nil, err
		}
		kvs = append(kvs, some...)
	}
	return kvs, nil
}

// KeepsNames reports whether a live node may keep names in DNS, having a provider.
// The error is a *NobodyError where no node is live.
func (s *Store) KeepsNames(ctx context.Context) (bool, error) {
	if err := s.SomeoneLives(ctx); err != nil {
		return false, err
	}
	kvs, err := s.readMembers(ctx, 0)
	if err != nil {
		return false, err
	}
	reg := fleet.NewRegistry("")
	reg.Load(0, kvs)
	some, _ := reg.KeepsNames()
	return some, nil
}

// viewNodes makes views of the nodes' records, and of what is below fleet.Folders.
func viewNodes(records []etcd.KV, rev int64, kvs []etcd.KV) []wire.NodeView {
	all := map[string]*wire.NodeView{}
	node := func(name string) *wire.NodeView {
		if all[name] == nil {
			all[name] = &wire.NodeView{Name: name, State: string(fleet.Down), Addresses: []netip.Addr{}, Why: "it does not run, or does not reach etcd"}
		}
		return all[name]
	}
	for _, kv := range records {
		v := node(strings.TrimPrefix(kv.Key, nodesFolder))
		v.Why = "it has not told the others of itself"
		describe(v, kv.Value)
	}
	reg := fleet.NewRegistry("")
	reg.Load(rev, kvs)
	members, _ := reg.Members()
	for _, m := range members {
		v := node(m.Node)
		v.Healthy, v.Why = m.Healthy, m.Why
	}
	for _, kv := range kvs {
		if name, is := strings.CutPrefix(kv.Key, fleet.DrainKey("")); is {
			d, _ := fleet.ParseDrain(kv.Value) // whatever it is, the node is drained
			node(name).Wanted = &wire.Drain{Reason: d.Reason}
		}
	}
	votes := votesIn(kvs)
	list := make([]wire.NodeView, 0, len(all))
	for name, v := range all {
		v.Votes = votes[name]
		list = append(list, *v)
	}
	slices.SortFunc(list, func(a, b wire.NodeView) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// describe notes what a node's record says of it. What the node derives secrets of
// is left out.
func describe(v *wire.NodeView, record []byte) {
	var n fleet.Node
	if json.Unmarshal(record, &n) != nil {
		v.State = "unreadable"
		return
	}
	v.Version, v.State, v.Region, v.Weight, v.Started, v.Applied, v.Fingerprint = n.Version, string(n.State), n.Region, max(n.Weight, 1), n.Started, n.Applied, n.Fingerprint
	v.Addresses = append(v.Addresses, n.Addresses...)
	if l := n.Load; l != nil {
		v.Load = &wire.NodeLoad{CPU: l.CPU, Flows: l.Flows, Files: l.Files, In: l.In, Out: l.Out}
	}
	v.Older = (*wire.Older)(n.Older)
	if p := n.Drain; p != nil {
		v.Drain = &wire.DrainPhase{Phase: string(p.Phase), Since: p.Since, Until: p.Until, Left: p.Left}
	}
}

// votesIn returns what watchers say, by node, and by watcher and address.
func votesIn(kvs []etcd.KV) map[string]map[string]string {
	votes := map[string]map[string]string{}
	note := func(watcher, subject, vote string) {
		node, addr, _ := strings.Cut(subject, " ")
		if votes[node] == nil {
			votes[node] = map[string]string{}
		}
		votes[node][watcher+" "+addr] = vote
	}
	for _, kv := range kvs {
		watcher, is := strings.CutPrefix(kv.Key, "health/")
		v, err := fleet.ParseView(kv.Value)
		if !is || err != nil {
			continue
		}
		for _, subject := range v.Up {
			note(watcher, subject, "up")
		}
		for subject, why := range v.Down {
			note(watcher, subject, why)
		}
	}
	return votes
}

// Node returns a node by its name. The error is a *NoNodeError where there is none.
func (s *Store) Node(ctx context.Context, name string) (*wire.NodeView, error) {
	all, err := s.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(v wire.NodeView) bool { return v.Name == name })
	if i < 0 {
		return nil, &NoNodeError{name}
	}
	return &all[i], nil
}

// Drain has a node drained until Undrain, and returns the revision of that, 0 if
// somebody wants so already for the same reason. It waits for nothing. The error is
// a *NoNodeError where there is no such node.
func (s *Store) Drain(ctx context.Context, node, reason string) (rev int64, err error) {
	if utf8.RuneCountInString(reason) > maxReason {
		return 0, &router.FieldError{Path: "reason", Msg: fmt.Sprintf("it is longer than %d characters; say it shorter", maxReason)}
	}
	v, err := s.Node(ctx, node)
	if err != nil {
		return 0, err
	}
	if v.Wanted != nil && v.Wanted.Reason == reason {
		return 0, nil
	}
	value, err := json.Marshal(fleet.Drain{Reason: reason})
	if err != nil {
		return 0, err
	}
	return s.Client.Commit(ctx, []etcd.Edit{{Key: fleet.DrainKey(node), Value: value, Blind: true}}, s.By)
}

// Undrain has a node serve again, and returns the revision of that. It waits for
// nothing. The error is a *NoNodeError where there is no such node, and a
// *ServingError where nobody wants it drained.
func (s *Store) Undrain(ctx context.Context, node string) (rev int64, err error) {
	v, err := s.Node(ctx, node)
	if err != nil {
		return 0, err
	}
	if v.Wanted == nil {
		return 0, &ServingError{node}
	}
	return s.Client.Commit(ctx, []etcd.Edit{{Key: fleet.DrainKey(node), Delete: true, Blind: true}}, s.By)
}
