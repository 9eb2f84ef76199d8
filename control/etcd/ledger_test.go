package etcd

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A ledger is driven at random, with writes that fail with and without effect
// and stores that lose everything, against what was set last.
func TestLedgerAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		g := newLedger("first")
		want, store := map[string]string{}, map[string]string{}
		perform := func(ws []write) {
			for _, w := range ws {
				if w.drop {
					delete(store, w.key)
				} else {
					store[w.key] = w.value
				}
			}
		}
		for range 2000 {
			key := fmt.Sprint("k", rnd.IntN(20))
			if rnd.IntN(10) == 0 {
				key = "first"
			}
			switch rnd.IntN(9) {
			case 8:
				if key != "first" {
					g.leave(key, "leaving")
					delete(want, key)
				}
			case 0, 1, 2:
				value := fmt.Sprint(rnd.IntN(3))
				g.set(key, value)
				want[key] = value
			case 3:
				g.drop(key)
				delete(want, key)
			case 4: // written
				ws := g.next(1+rnd.IntN(5), 100)
				for i, w := range ws {
					if w.key == "first" && i != 0 {
						t.Fatalf("seed %d: the first key is written after others", seed)
					}
				}
				perform(ws)
				if rnd.IntN(2) == 0 { // and changed meanwhile
					g.set(key, "meanwhile")
					want[key] = "meanwhile"
				}
				g.done(ws)
			case 5: // failed without effect
				g.again(g.next(5, 100))
			case 6: // failed after it took effect
				ws := g.next(5, 100)
				perform(ws)
				g.again(ws)
			case 7:
				if rnd.IntN(10) == 0 {
					clear(store)
					g.startOver()
				}
			}
		}
		for g.backlog() > 0 {
			ws := g.next(5, 100)
			perform(ws)
			g.done(ws)
		}
		if diff := cmp.Diff(want, store); diff != "" {
			t.Fatalf("seed %d: store differs (-want +got):\n%s", seed, diff)
		}
		if len(g.lines) != len(want) {
			t.Fatalf("seed %d: %d lines are kept for %d keys", seed, len(g.lines), len(want))
		}
	}
}

// What leaves is seen to do so by whoever follows the store, and what is dropped
// is not, whatever fails and whatever else becomes of it meanwhile.
func TestLedgerShowsWhatLeaves(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		g := newLedger("first")
		store := map[string]string{}
		left := map[string]bool{} // since it was last set, or dropped, it has left
		perform := func(ws []write) {
			for _, w := range ws {
				was, there := store[w.key]
				if !w.drop {
					store[w.key] = w.value
					continue
				}
				if left[w.key] && there && was != "leaving" {
					t.Fatalf("seed %d: %s leaves unseen, as %q", seed, w.key, was)
				}
				delete(store, w.key)
			}
		}
		for n := range 2000 {
			key := fmt.Sprint("k", rnd.IntN(5))
			switch rnd.IntN(7) {
			case 0, 1:
				g.set(key, fmt.Sprint(n))
				left[key] = false
			case 2:
				g.leave(key, "leaving")
				left[key] = true
			case 3:
				g.drop(key)
				left[key] = false
			case 4, 5:
				ws := g.next(3, 100)
				perform(ws)
				g.done(ws)
			case 6:
				ws := g.next(3, 100)
				if rnd.IntN(2) == 0 {
					perform(ws)
				}
				g.again(ws)
			}
		}
	}
}

func TestLedgerBoundsABatch(t *testing.T) {
	g := newLedger("first")
	for i := range 300 {
		g.set(fmt.Sprintf("k%03d", i), "0123456789")
	}
	if got := len(g.next(128, 1<<20)); got != 128 {
		t.Errorf("a batch bounded by operations has %d, want 128", got)
	}
	if got := len(g.next(128, 100)); got != 8 {
		t.Errorf("a batch bounded by 100 bytes has %d of 14, want 8", got)
	}
}

// What says that the rest is done is written after it, whatever fails.
func TestLedgerWritesProgressLast(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		g := newLedger("first")
		set, store := map[string]int{}, map[string]int{} // the last by key
		promised := map[int]map[string]int{}             // by progress, what was set before
		perform := func(ws []write) {
			for _, w := range ws {
				n := 0
				if _, err := fmt.Sscan(w.value, &n); err != nil {
					t.Fatal(err)
				}
				store[w.key] = n
			}
			for key, n := range promised[store["first"]] {
				if store[key] < n {
					t.Fatalf("seed %d: progress %d is written, and of %s there is %d, want %d", seed, store["first"], key, store[key], n)
				}
			}
		}
		for n := 1; n < 1000; n++ {
			switch rnd.IntN(6) {
			case 0, 1, 2:
				key := fmt.Sprint("k", rnd.IntN(20))
				g.set(key, fmt.Sprint(n))
				set[key] = n
			case 3:
				g.setBehind("first", fmt.Sprint(n))
				promised[n] = maps.Clone(set)
			case 4:
				ws := g.next(1+rnd.IntN(5), 100)
				perform(ws)
				g.done(ws)
			case 5:
				ws := g.next(5, 100)
				if rnd.IntN(2) == 0 {
					perform(ws)
				}
				g.again(ws)
			}
		}
	}
}
