package control_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
)

// TestSameKeysSameDecisions edits pools that overlap and mappings that lead to
// each other at random, and wants nodes that watched, in batches and with loads
// of their own, to have the same of etcd's values in force as one that starts at
// the end.
func TestSameKeysSameDecisions(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range uint64(40) {
		sameKeysSameDecisions(t, drawn{rand.New(rand.NewPCG(seed, round))})
	}
}

func FuzzSameKeysSameDecisions(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, seed, stream uint64) {
		sameKeysSameDecisions(t, drawn{rand.New(rand.NewPCG(seed, stream))})
	})
}

func (d drawn) contender() (key, value string) {
	broken := d.IntN(8) == 0
	if d.IntN(2) == 0 {
		first := 20000 + 50*d.IntN(8)
		key, value = "pools/"+d.of("a", "b", "c", "d", "e", "f"), fmt.Sprintf(pool, fmt.Sprintf("%d-%d", first, first+49+50*d.IntN(3)))
	} else {
		key = fmt.Sprintf("ports/%s/%d", d.of("tcp", "tcp", "udp"), 20000+d.IntN(8))
		value = fmt.Sprintf(d.of("127.0.0.1:%d", "127.0.0.1:%d", "10.0.0.1:%d", `["10.0.0.1:22","127.0.0.1:%d"]`), 20000+d.IntN(8))
		if value[0] == '[' {
			value = `{"backend":` + value + `}`
		}
	}
	if broken {
		value = "nonsense"
	}
	return key, value
}

func sameKeysSameDecisions(t *testing.T, d drawn) {
	t.Helper()
	in := map[string]etcd.KV{}
	load := func(n *node, rev int64) {
		kvs := slices.Collect(maps.Values(in))
		d.Shuffle(len(kvs), func(i, j int) { kvs[i], kvs[j] = kvs[j], kvs[i] })
		n.Load(rev, kvs)
	}
	nodes := []*node{newNode(t, ""), newNode(t, "")}
	for _, n := range nodes {
		n.Load(1, nil)
	}
	unseen := make([][]etcd.Change, len(nodes))
	rev := int64(1)
	edit := func(ch etcd.Change) {
		rev++
		ch.ModRev = rev
		if delete(in, ch.Key); !ch.Deleted {
			in[ch.Key] = etcd.KV{Key: ch.Key, Value: ch.Value, ModRev: rev}
		}
		for i := range nodes {
			unseen[i] = append(unseen[i], ch)
		}
	}
	see := func(i int) {
		if d.IntN(10) == 0 { // was away
			load(nodes[i], rev)
		} else {
			nodes[i].Change(rev, unseen[i])
		}
		unseen[i] = nil
	}
	for range 60 {
		key, value := d.contender()
		edit(etcd.Change{Key: key, Value: []byte(value), Deleted: d.IntN(5) == 0})
		for i := range nodes {
			if d.IntN(3) == 0 {
				see(i)
			}
		}
	}
	nodes = append(nodes, newNode(t, ""))
	unseen = append(unseen, nil)
	for i := range nodes[:2] {
		see(i)
	}
	load(nodes[2], rev)
	wantSameDecisions(t, in, nodes)
	// Without what only those remember who saw it, all of it is the same.
	for key := range in {
		if control.ParseVerdict(nodes[2].verdicts[key]).State == control.Refused {
			edit(etcd.Change{Key: key, Deleted: true})
		}
	}
	for i := range nodes {
		see(i)
	}
	for _, n := range nodes {
		if n.Fingerprint() != nodes[2].Fingerprint() {
			t.Fatalf("fingerprints differ: %v and %v", n.verdicts, nodes[2].verdicts)
		}
	}
}

func wantSameDecisions(t *testing.T, in map[string]etcd.KV, nodes []*node) {
	t.Helper()
	fresh := nodes[len(nodes)-1]
	for _, n := range nodes {
		if len(n.verdicts) != len(in) {
			t.Fatalf("%d verdicts on %d keys", len(n.verdicts), len(in))
		}
		for key, kv := range in {
			a, b := control.ParseVerdict(n.verdicts[key]), control.ParseVerdict(fresh.verdicts[key])
			if a.State != b.State || a.State == control.Applied && (a.Rev != b.Rev || a.Rev != kv.ModRev) {
				t.Fatalf("%s@%d: one that watched says %q, a fresh one %q", key, kv.ModRev, a.Text, b.Text)
			}
		}
	}
}
