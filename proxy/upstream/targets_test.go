package upstream_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

func firsts(t *testing.T, d *upstream.Dialer, b *router.Backend, n int) string {
	t.Helper()
	var s strings.Builder
	for range n {
		order, err := d.Targets(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(order) != len(b.Targets) {
			t.Fatalf("%d targets in the order, want %d", len(order), len(b.Targets))
		}
		s.WriteString(order[0].Host)
	}
	return s.String()
}

func TestTargetsTakeTurns(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := backend(t, `["a:1","b:1","c:1"]`)
	if got, want := firsts(t, d, b, 7), "abcabca"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// Another backend has turns of its own, the same addresses or not.
	if got, want := firsts(t, d, backend(t, `["a:1","b:1","c:1"]`), 2), "ab"; got != want {
		t.Errorf("another backend: got %s, want %s", got, want)
	}
	order, err := d.Targets(b, nil)
	if got, want := fmt.Sprint(order), "[b:1 c:1 a:1]"; err != nil || got != want {
		t.Errorf("the whole order: got %s, %v, want %s", got, err, want)
	}
	if got, want := firsts(t, d, backend(t, `"a:1"`), 3), "aaa"; got != want {
		t.Errorf("one target: got %s, want %s", got, want)
	}
}

// TestTargetsHoldWeights checks every round on its own, and that the turns of
// one target do not come in a bunch.
func TestTargetsHoldWeights(t *testing.T) {
	for _, weights := range [][]int{{1, 1}, {2, 2, 2}, {5, 1}, {1, 2}, {3, 2, 1}, {1, 1, 8}, {7, 5, 3, 2}, {1000, 1}, {1000, 999}, {997, 499, 250, 0}, {10, 10, 40}} {
		d := upstream.NewDialer(upstream.Config{})
		targets := make([]string, len(weights))
		for i, w := range weights {
			targets[i] = fmt.Sprintf(`{"address":"%c:1","weight":%d}`, 'a'+i, w)
			if w == 0 { // not given
				targets[i] = fmt.Sprintf(`"%c:1"`, 'a'+i)
			}
		}
		b := backend(t, "["+strings.Join(targets, ",")+"]")
		round := 0
		for _, w := range weights {
			round += max(w, 1)
		}
		picks := firsts(t, d, b, 2*round)
		for i, w := range weights {
			w = max(w, 1)
			letter := string(rune('a' + i))
			for n := range 2 {
				if got := strings.Count(picks[n*round:(n+1)*round], letter); got != w {
					t.Errorf("weights %v, round %d: %s was first %d times, want %d", weights, n, letter, got, w)
				}
			}
			// Evenly spread, it comes every round/w flows; twice that is fine.
			longest, since := 0, 0
			for _, c := range picks {
				if since++; string(c) == letter {
					since = 0
				}
				longest = max(longest, since)
			}
			if limit := 2*(round+w-1)/w + 1; longest > limit {
				t.Errorf("weights %v: %s is not first for %d flows, want at most %d", weights, letter, longest, limit)
			}
		}
	}
}

func TestTargetsPassOverFailed(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := backend(t, `["a:1","b:1","c:1"]`)
	d.MarkFailed(upstream.Endpoint{Host: "b", Port: 1})
	picks := firsts(t, d, b, 30)
	// The turns of b go to both others.
	for letter, want := range map[string]int{"a": 15, "b": 0, "c": 15} {
		if got := strings.Count(picks, letter); got != want {
			t.Errorf("%s was first %d times, want %d, in %s", letter, got, want, picks)
		}
	}
	order, err := d.Targets(b, nil)
	if err != nil || order[2].Host != "b" {
		t.Errorf("order %v, %v, want b last", order, err)
	}
	for _, host := range []string{"a", "c"} {
		d.MarkFailed(upstream.Endpoint{Host: host, Port: 1})
	}
	if order, err := d.Targets(b, nil); err != nil || len(order) != 3 {
		t.Errorf("all failed: order %v, %v, want all three", order, err)
	}
}

func TestTargetsExpand(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	r, err := router.ParseRoute("jupyter", []byte(`{"host":"~^env-(?<id>[a-z0-9.-]+)\\.remotegpu\\.com$","backend":["env-${id}:8888","spare:${port}"]}`))
	if err != nil {
		t.Fatal(err)
	}
	order, err := d.Targets(r.Backend, &router.Vars{Port: "443"})
	if err == nil {
		t.Errorf("a capture without a value: got %v, want an error", order)
	}
	b := backend(t, `"[2001:db8::7]:22"`)
	if order, err = d.Targets(b, nil); err != nil || order[0] != (upstream.Endpoint{Host: "2001:db8::7", Port: 22}) {
		t.Errorf("got %v, %v", order, err)
	}
	if _, err := d.Targets(&router.Backend{}, nil); err == nil {
		t.Error("a backend without targets: no error")
	}
}

func TestTargetsConcurrently(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := backend(t, `[{"address":"a:1","weight":3},{"address":"b:1"}]`)
	var all sync.WaitGroup
	var mu sync.Mutex
	counts := make(map[string]int)
	for range 8 {
		all.Go(func() {
			mine := make(map[string]int)
			for range 1000 {
				order, err := d.Targets(b, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mine[order[0].Host]++
			}
			mu.Lock()
			defer mu.Unlock()
			for host, n := range mine {
				counts[host] += n
			}
		})
	}
	all.Wait()
	if counts["a"] != 6000 || counts["b"] != 2000 {
		t.Errorf("got %v, want 6000 and 2000", counts)
	}
}

// TestTurnsGoWithTheirBackends is the promise that edits all day cost nothing
// in the long run.
func TestTurnsGoWithTheirBackends(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	kept := backend(t, `["a:1","b:1"]`)
	firsts(t, d, kept, 1)
	for range 100 {
		firsts(t, d, backend(t, `["a:1","b:1"]`), 1)
	}
	deadline := time.Now().Add(10 * time.Second)
	for d.Turns() > 1 {
		if time.Now().After(deadline) {
			t.Fatalf("the turns of %d backends are kept, want 1", d.Turns())
		}
		runtime.GC()
	}
	if got, want := firsts(t, d, kept, 2), "ba"; got != want {
		t.Errorf("the backend still in use: got %s, want %s", got, want)
	}
}

func BenchmarkTargets(b *testing.B) {
	for name, value := range map[string]string{"one": `"10.0.0.1:22"`, "three": `["10.0.0.1:22","10.0.0.2:22",{"address":"10.0.0.3:22","weight":4}]`} {
		b.Run(name, func(b *testing.B) {
			d := upstream.NewDialer(upstream.Config{})
			target := backend(b, value)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := d.Targets(target, nil); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
