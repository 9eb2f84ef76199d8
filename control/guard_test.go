package control_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

var testGuard = control.Guard{Percent: 30, Least: 20, Window: time.Minute}

// guardedNode has n mappings in force, ports 20000 and up, at revision 1.
func guardedNode(t *testing.T, n int) *node {
	t.Helper()
	node := newNodeWith(t, func(cfg *control.Config) { cfg.Guard = testGuard })
	node.Load(1, mappings(0, n))
	return node
}

func mappings(first, n int) []etcd.KV {
	kvs := make([]etcd.KV, n)
	for i := range kvs {
		kvs[i] = etcd.KV{Key: portKey(first + i), Value: []byte("10.0.0.1:22"), ModRev: 1}
	}
	return kvs
}

func portKey(i int) string { return fmt.Sprintf("ports/tcp/%d", 20000+i) }

func deletions(rev int64, first, n int) []etcd.Change {
	changes := make([]etcd.Change, n)
	for i := range changes {
		changes[i] = etcd.Change{Key: portKey(first + i), Deleted: true, ModRev: rev}
	}
	return changes
}

// inForce counts the mappings of the table.
func (n *node) inForce() (count int) {
	for i := range 1000 {
		if n.table().Mapping(router.TCP, 20000+i) != nil {
			count++
		}
	}
	return count
}

func (n *node) wantInForce(t *testing.T, want, held int) {
	t.Helper()
	if got := n.inForce(); got != want || n.Held() != held {
		t.Errorf("%d mappings are in force and %d deletions held, want %d and %d", got, n.Held(), want, held)
	}
}

func TestGuardHoldsGreatDeletions(t *testing.T) {
	n := guardedNode(t, 100)
	n.Change(2, deletions(2, 0, 30))
	n.wantInForce(t, 70, 0) // as many as may go
	n.Change(3, append(deletions(3, 30, 5), put("routes/a", `{"host":"a.example.com","respond":{}}`, 3)))
	n.wantInForce(t, 70, 5) // too many within the window
	if v := n.verdicts[portKey(30)]; !strings.HasPrefix(v, "held: ") || !strings.Contains(v, "(applied@1 stays in force)") {
		t.Errorf("the verdict is %q", v)
	}
	if v := n.verdicts["routes/a"]; v != "applied@3" {
		t.Errorf("the verdict of another key of the transaction is %q", v)
	}
	n.Change(4, []etcd.Change{put(portKey(30), "10.0.0.9:22", 4)})
	n.wantInForce(t, 70, 4) // put again: called off
	if got := n.table().Mapping(router.TCP, 20030).Backend.Targets[0].Address.String(); got != "10.0.0.9:22" {
		t.Errorf("it goes to %s", got)
	}
	n.Change(5, []etcd.Change{put(control.ConfirmedKey, "", 5)})
	n.wantInForce(t, 66, 0)
	if v, there := n.verdicts[portKey(31)]; there {
		t.Errorf("a confirmed deletion's verdict is %q", v)
	}
}

func TestGuardLetsPass(t *testing.T) {
	t.Run("few keys", func(t *testing.T) {
		n := guardedNode(t, 19)
		n.Change(2, deletions(2, 0, 19))
		n.wantInForce(t, 0, 0)
	})
	t.Run("what is meant", func(t *testing.T) {
		n := guardedNode(t, 100)
		n.Change(2, append(deletions(2, 0, 90), put(control.MeantKey, "", 2)))
		n.wantInForce(t, 10, 0)
		n.Change(3, deletions(3, 90, 5)) // no longer
		n.wantInForce(t, 10, 5)
	})
	t.Run("keys that come and go", func(t *testing.T) {
		n := guardedNode(t, 100)
		rev := int64(1)
		for range 5 {
			rev++
			n.Change(rev, deletions(rev, 0, 25))
			rev++
			var again []etcd.Change
			for i := range 25 {
				again = append(again, put(portKey(i), "10.0.0.1:22", rev))
			}
			n.Change(rev, again)
		}
		n.wantInForce(t, 100, 0)
	})
	t.Run("slow deletions", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := guardedNode(t, 100)
			for i := range 100 {
				n.Change(int64(2+i), deletions(int64(2+i), i, 1))
				time.Sleep(5 * time.Second)
			}
			n.wantInForce(t, 0, 0)
		})
	})
	t.Run("without a guard", func(t *testing.T) {
		n := newNode(t, "")
		n.Load(1, mappings(0, 100))
		n.Load(2, nil)
		n.wantInForce(t, 0, 0)
	})
}

// An etcd that is found empty, or nearly so, after an outage is no reason to
// drop everything.
func TestGuardOverLoads(t *testing.T) {
	n := guardedNode(t, 100)
	n.Load(5, mappings(0, 10))
	n.wantInForce(t, 100, 90)
	n.Load(6, mappings(0, 10)) // again, and nothing changed
	n.wantInForce(t, 100, 90)
	n.Load(7, mappings(0, 60)) // somebody puts them again
	n.wantInForce(t, 100, 40)
	n.Load(8, append(mappings(0, 60), etcd.KV{Key: control.ConfirmedKey, ModRev: 8}))
	n.wantInForce(t, 60, 0)

	// Confirmed while the node was away: what it held before is covered, and what
	// it finds missing may have been deleted after that.
	away := guardedNode(t, 100)
	away.Load(5, mappings(0, 60))
	away.wantInForce(t, 100, 40)
	away.Load(9, append(mappings(0, 20), etcd.KV{Key: control.ConfirmedKey, ModRev: 8}))
	away.wantInForce(t, 60, 40)
	away.Change(10, []etcd.Change{put(control.ConfirmedKey, "", 10)})
	away.wantInForce(t, 20, 0)

	// A confirmation of long ago says nothing of what happened since.
	long := newNodeWith(t, func(cfg *control.Config) { cfg.Guard = testGuard })
	confirmed := etcd.KV{Key: control.ConfirmedKey, ModRev: 1}
	long.Load(5, append(mappings(0, 100), confirmed))
	long.Load(9, []etcd.KV{confirmed})
	long.wantInForce(t, 100, 100)
}

// What is held does not depend on how changes happened to arrive.
func TestGuardDecidesAlikeOnEveryNode(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var changes []etcd.Change
	for rev := int64(2); rev < 200; rev++ {
		first, n := random.IntN(100), 1+random.IntN(6)
		n = min(n, 100-first)
		if random.IntN(2) == 0 {
			changes = append(changes, deletions(rev, first, n)...)
			continue
		}
		for i := range n {
			changes = append(changes, put(portKey(first+i), "10.0.0.2:22", rev))
		}
	}
	var first map[string]string
	for range 5 {
		n := guardedNode(t, 100)
		for rest := changes; len(rest) > 0; {
			// A batch ends where a revision does.
			size := 1 + random.IntN(40)
			for size < len(rest) && rest[size].ModRev == rest[size-1].ModRev {
				size++
			}
			size = min(size, len(rest))
			n.Change(rest[size-1].ModRev, slices.Clone(rest[:size]))
			rest = rest[size:]
		}
		if first == nil {
			first = maps.Clone(n.verdicts)
		} else if !maps.Equal(first, n.verdicts) {
			t.Fatalf("verdicts differ: %v and %v", first, n.verdicts)
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(first)), func(v string) bool { return strings.HasPrefix(v, "held: ") }) {
		t.Error("nothing was held: the test is too tame")
	}
}

// Whoever deletes a prefix by mistake deletes keys of every kind: what belongs to
// a deletion that is held back is held back as well, whether it comes with the
// rest, before it or after it, and all of it is kept aside on disk.
func TestGuardHoldsAllOfARevision(t *testing.T) {
	others := map[string]string{
		"routes/a": `{"host":"a.example.com","respond":{}}`, "pools/ssh": `{"ports":"20900-20999","backend_port":22}`, "domains/a.example.com": "{}",
	}
	gone := func(rev int64, keys ...string) (changes []etcd.Change) {
		for _, key := range keys {
			changes = append(changes, etcd.Change{Key: key, Deleted: true, ModRev: rev})
		}
		return changes
	}
	for name, batches := range map[string][][]etcd.Change{
		"together":      {append(deletions(2, 0, 100), gone(2, "routes/a", "pools/ssh", "domains/a.example.com")...)},
		"domains first": {gone(2, "domains/a.example.com"), append(deletions(2, 0, 100), gone(2, "routes/a", "pools/ssh")...)},
		"domains last":  {append(deletions(2, 0, 100), gone(2, "routes/a", "pools/ssh")...), gone(2, "domains/a.example.com")},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state")
			n := newNodeWith(t, func(cfg *control.Config) { cfg.Guard, cfg.StateFile = testGuard, file })
			kvs := mappings(0, 100)
			for key, value := range others {
				kvs = append(kvs, etcd.KV{Key: key, Value: []byte(value), ModRev: 1})
			}
			n.Load(1, kvs)
			before := n.Fingerprint()
			n.save(t, file)
			for _, batch := range batches {
				n.Change(2, batch)
			}
			n.wantInForce(t, 100, 103)
			if _, routes := n.table().Len(); n.Fingerprint() != before || len(n.domains) != 1 || routes != 1 {
				t.Errorf("the fingerprint is %v, was %v; %d domains", n.Fingerprint(), before, len(n.domains))
			}
			for key := range others {
				if v := n.verdicts[key]; !strings.HasPrefix(v, "held: ") {
					t.Errorf("the verdict on %s is %q", key, v)
				}
			}
			n.save(t, file)
			wantState(t, file+".prev", 103)
			n.Change(3, []etcd.Change{put(control.ConfirmedKey, "", 3)})
			n.wantInForce(t, 0, 0)
			if len(n.domains) != 0 || n.verdicts["domains/a.example.com"] != "" {
				t.Errorf("after the confirmation there are %d domains", len(n.domains))
			}
		})
	}
}

// That some deletions were meant says nothing of others that happened while a
// node was away, nor of those of another cluster.
func TestGuardBelievesNoOlderWord(t *testing.T) {
	key := func(key string, rev int64) etcd.KV { return etcd.KV{Key: key, Value: []byte("alice"), ModRev: rev} }
	t.Run("meant, of another transaction", func(t *testing.T) {
		watching, away := guardedNode(t, 100), guardedNode(t, 100)
		watching.Change(2, append(deletions(2, 0, 1), put(control.MeantKey, "alice", 2)))
		watching.Change(3, deletions(3, 1, 80))
		watching.wantInForce(t, 99, 80)
		away.Load(3, append(mappings(81, 19), key(control.MeantKey, 2)))
		away.wantInForce(t, 100, 81)
	})
	t.Run("confirmed, before the accident", func(t *testing.T) {
		away := guardedNode(t, 100)
		away.Load(4, append(mappings(81, 19), key(control.ConfirmedKey, 2)))
		away.wantInForce(t, 100, 81)
	})
	t.Run("in another cluster, and held since before", func(t *testing.T) {
		cluster := uint64(7)
		n := newNodeWith(t, func(cfg *control.Config) { cfg.Guard, cfg.Cluster = testGuard, func() uint64 { return cluster } })
		n.Load(1, mappings(0, 100))
		n.Load(5, mappings(0, 10))
		cluster = 8
		for rev := int64(100); rev < 300; rev += 100 {
			n.Load(rev, append(mappings(0, 10), key(control.ConfirmedKey, 50)))
			n.wantInForce(t, 100, 90)
		}
	})
	t.Run("passed, and not yet reached", func(t *testing.T) {
		n := guardedNode(t, 100)
		n.Change(4, append(deletions(5, 0, 1), put(control.ConfirmedKey, "alice", 5)))
		n.Load(7, append(mappings(81, 19), key(control.ConfirmedKey, 5)))
		n.wantInForce(t, 99, 80)
	})
	t.Run("in another cluster", func(t *testing.T) {
		cluster := uint64(7)
		n := newNodeWith(t, func(cfg *control.Config) { cfg.Guard, cfg.Cluster = testGuard, func() uint64 { return cluster } })
		n.Load(1, mappings(0, 100))
		cluster = 8
		n.Load(100_000, append(mappings(0, 1), key(control.ConfirmedKey, 50_000)))
		n.wantInForce(t, 100, 99)
	})
	t.Run("before etcd went back", func(t *testing.T) {
		n := guardedNode(t, 100)
		n.Load(5000, mappings(0, 10))
		n.wantInForce(t, 100, 90)
		n.Load(3000, mappings(0, 10)) // an old backup, in which they are missing as well
		n.Change(3001, []etcd.Change{put(control.ConfirmedKey, "alice", 3001)})
		n.wantInForce(t, 10, 0)
	})
	t.Run("after it went back", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "state")
		before := newNodeWith(t, func(cfg *control.Config) { cfg.Guard, cfg.StateFile = testGuard, file })
		before.Load(5000, mappings(0, 100))
		before.save(t, file)
		n := newNodeWith(t, func(cfg *control.Config) { cfg.Guard, cfg.StateFile = testGuard, file })
		n.Restore()
		n.Load(100, mappings(0, 100))
		n.Load(200, mappings(0, 10))
		n.wantInForce(t, 100, 90)
		n.Load(300, append(mappings(0, 10), key(control.ConfirmedKey, 250)))
		n.wantInForce(t, 10, 0)
	})
}

// The value of a deleted key whose deletion is held back stays what it was, even
// if a newer one, which had been refused, would be good by now.
func TestGuardHoldsTheValueInForce(t *testing.T) {
	n := guardedNode(t, 100)
	n.Change(2, []etcd.Change{put("ports/tcp/20500", "127.0.0.1:20501", 2)})
	n.Change(3, []etcd.Change{put("ports/tcp/20501", "10.0.0.9:22", 3)})
	n.Change(4, []etcd.Change{put("ports/tcp/20501", "127.0.0.1:20500", 4)}) // a loop
	n.wantVerdict(t, "ports/tcp/20501", "last good @3")
	n.Change(5, append(deletions(5, 0, 90), del("ports/tcp/20501", 5)))
	n.Change(6, []etcd.Change{put("ports/tcp/20500", "10.0.0.8:22", 6)})
	if got := n.table().Mapping(router.TCP, 20501).Rev; got != 3 {
		t.Errorf("revision %d of a deleted key came into force, want 3 to stay", got)
	}
}
