package fleet

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

// View is what a node sees of the peers that it watches, the value of
// health/<node>. It is written when it changes, and goes with its node's lease.
type View struct {
	Up   []string          `json:"up,omitempty"`   // subjects that answer, in order
	Down map[string]string `json:"down,omitempty"` // why not, by subject
}

// ParseView reads the value of health/<node>.
func ParseView(value []byte) (*View, error) {
	v := new(View)
	err := json.Unmarshal(value, v)
	v.sort()
	return v, err
}

func (v *View) sort() { slices.Sort(v.Up) }

// blind reports whether whoever has this view sees nobody: it is more likely to be
// cut off itself than everybody else to be down, so it has no say.
func (v *View) blind() bool { return len(v.Up) == 0 }

// vote returns what a view says of a subject: 1 for up, -1 for down, 0 for nothing.
func (v *View) vote(subject string) int {
	if _, down := v.Down[subject]; down {
		return -1
	}
	if _, up := slices.BinarySearch(v.Up, subject); up {
		return 1
	}
	return 0
}

// A subject of votes is one address of a node: "hk1 203.0.113.7".
func subjectOf(node string, addr netip.Addr) string { return node + " " + addr.String() }

// nodeOf returns whose address a subject is.
func nodeOf(subject string) string {
	node, _, _ := strings.Cut(subject, " ")
	return node
}

// isSix reports whether a subject is an IPv6 address.
func isSix(subject string) bool {
	return strings.Contains(subject[strings.LastIndexByte(subject, ' ')+1:], ":")
}

// watchersEach is how many nodes watch a node, where there are as many others.
// Four fifths of the messages of two hundred nodes that all watched each other
// would tell nothing new.
const watchersEach = 8

// watchersOf returns who of nodes watches node, by rendezvous hashing: everybody
// who knows the same nodes says the same, and one that comes or goes changes
// little.
func watchersOf(node string, nodes []string) []string {
	type ranked struct {
		node string
		rank uint64
	}
	all := make([]ranked, 0, len(nodes))
	for _, n := range nodes {
		if n != node {
			all = append(all, ranked{n, rank(n, node)})
		}
	}
	if len(all) > watchersEach {
		slices.SortFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(b.rank, a.rank), strings.Compare(a.node, b.node)) })
		all = all[:watchersEach]
	}
	watchers := make([]string, len(all))
	for i := range all {
		watchers[i] = all[i].node
	}
	slices.Sort(watchers)
	return watchers
}

// rank is the same on all nodes and in all versions: FNV-1a of both names,
// finished as in MurmurHash3 so that similar names have nothing in common.
func rank(watcher, node string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range []string{watcher, "\x00", node} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
