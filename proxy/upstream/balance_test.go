package upstream_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// balanced returns a backend of that policy with targets 10.0.0.1:22 and on, of
// these weights.
func balanced(t testing.TB, balance string, weights ...int) *router.Backend {
	t.Helper()
	targets := make([]string, len(weights))
	for i, w := range weights {
		targets[i] = fmt.Sprintf(`{"address":"10.0.0.%d:22","weight":%d}`, i+1, w)
	}
	return backend(t, fmt.Sprintf(`{"balance":%q,"targets":[%s]}`, balance, strings.Join(targets, ",")))
}

// begin begins a flow and returns its target's number, from 0.
func begin(t testing.TB, d *upstream.Dialer, b *router.Backend, client netip.Addr) (int, *upstream.Attempt) {
	t.Helper()
	a, err := d.Attempt(b, nil, client)
	if err != nil {
		t.Fatal(err)
	}
	addr, _, state := a.Next()
	if state != upstream.Ready {
		t.Fatalf("state %v", state)
	}
	a.Connected(0)
	return int(addr.Addr().As4()[3]) - 1, &a
}

// TestLeastConnectionsAgainstModel begins and ends flows at random, and wants
// each at a target that no other is better than.
func TestLeastConnectionsAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 5))
	for range 20 {
		weights := make([]int, 1+rnd.IntN(8))
		for i := range weights {
			weights[i] = 1 + rnd.IntN(5)
		}
		d := upstream.NewDialer(upstream.Config{})
		b := balanced(t, router.LeastConnections, weights...)
		flows := make([]int, len(weights))
		type live struct {
			at   int
			done func()
		}
		var lives []live
		for range 2000 {
			switch r := rnd.IntN(100); {
			case r < 45 && len(lives) > 0:
				i := rnd.IntN(len(lives))
				lives[i].done()
				flows[lives[i].at]--
				lives[i] = lives[len(lives)-1]
				lives = lives[:len(lives)-1]
				continue
			case r == 99: // an edit
				b = balanced(t, router.LeastConnections, weights...)
			}
			at, a := begin(t, d, b, netip.Addr{})
			for i := range flows {
				if len(lives) == 0 {
					break // it is somebody's turn
				}
				if (flows[i]+1)*weights[at] < (flows[at]+1)*weights[i] {
					t.Fatalf("weights %v, flows %v: took %d, although %d is better", weights, flows, at, i)
				}
			}
			done := a.Done
			if rnd.IntN(2) == 0 {
				l := a.Lease()
				a.Done() // counts no more
				done = l.Done
			}
			flows[at]++
			lives = append(lives, live{at, done})
		}
	}
}

// TestLeastConnectionsHoldsWeights has many flows begin at the same time: what
// they hold in the end is in proportion to the weights, to the flow.
func TestLeastConnectionsHoldsWeights(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := balanced(t, router.LeastConnections, 5, 3, 2)
	var counts [3]int
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 125 {
				at, _ := begin(t, d, b, netip.Addr{})
				mu.Lock()
				counts[at]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if counts != [3]int{500, 300, 200} {
		t.Errorf("got %v, want 500, 300 and 200 of 1000", counts)
	}
}

// TestLeastConnectionsOneByOne has flows begin when the one before has ended.
func TestLeastConnectionsOneByOne(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := balanced(t, router.LeastConnections, 5, 3, 2)
	var counts [3]int
	for range 100 {
		at, a := begin(t, d, b, netip.Addr{})
		counts[at]++
		a.Done()
	}
	if counts != [3]int{50, 30, 20} {
		t.Errorf("got %v, want 50, 30 and 20 of 100", counts)
	}
	// While one has failed, the others have its turns.
	d.MarkFailed(upstream.Endpoint{Host: "10.0.0.1", Port: 22})
	for range 100 {
		at, a := begin(t, d, b, netip.Addr{})
		counts[at]++
		a.Done()
	}
	if counts[0] != 50 || counts[1] < 65 || counts[2] < 45 {
		t.Errorf("the first has failed, and counts are %v", counts)
	}
}

func TestLeastConnectionsCountsAttempts(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := balanced(t, router.LeastConnections, 1, 1, 1)
	slow, err := d.Attempt(b, nil, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	step(t, &slow, "ready 10.0.0.1:22") // and no answer yet
	counted := func(want ...int64) {
		t.Helper()
		for i, n := range want {
			if got := d.Loads()[upstream.Endpoint{Host: fmt.Sprintf("10.0.0.%d", i+1), Port: 22}]; got != n {
				t.Errorf("counted %d flows of target %d, want %d", got, i, n)
			}
		}
	}
	for _, want := range []int{1, 2} {
		if at, _ := begin(t, d, b, netip.Addr{}); at != want {
			t.Errorf("took %d, want %d", at, want)
		}
	}
	counted(1, 1, 1)
	slow.Failed(0, os.ErrDeadlineExceeded)
	counted(0, 1, 1)
	step(t, &slow, "ready 10.0.0.2:22")
	counted(0, 2, 1)
	slow.Done()
	slow.Done()
	counted(0, 1, 1)
}

func TestLeastConnectionsPassesOverFailed(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := balanced(t, router.LeastConnections, 1, 1, 1)
	d.MarkFailed(upstream.Endpoint{Host: "10.0.0.2", Port: 22})
	for range 20 {
		if at, _ := begin(t, d, b, netip.Addr{}); at == 1 {
			t.Fatal("the failed target was taken")
		}
	}
	order, err := d.Targets(b, nil)
	if err != nil || len(order) != 3 || order[2].Host != "10.0.0.2" {
		t.Errorf("order %v, %v, want the failed one last", order, err)
	}
}

// TestLoadsGoWithTheirUsers wants nothing left of targets without flows and
// without a backend, and all kept of those with either.
func TestLoadsGoWithTheirUsers(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	kept := backend(t, `{"balance":"least_connections","targets":["10.0.1.1:22","10.0.1.2:22"]}`)
	begin(t, d, kept, netip.Addr{})
	_, a := begin(t, d, backend(t, `{"balance":"least_connections","targets":["10.0.2.1:22","10.0.2.2:22"]}`), netip.Addr{})
	live := a.Lease() // and the backend is gone
	for i := range 100 {
		_, a := begin(t, d, backend(t, fmt.Sprintf(`{"balance":"least_connections","targets":["10.0.3.%d:22"]}`, i)), netip.Addr{})
		a.Done()
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(d.Loads()) > 3 {
		if time.Now().After(deadline) {
			t.Fatalf("%d loads are kept, want 3", len(d.Loads()))
		}
		runtime.GC()
	}
	if got := d.Loads(); got[upstream.Endpoint{Host: "10.0.2.1", Port: 22}] != 1 {
		t.Errorf("got %v, want the live flow's", got)
	}
	live.Done()
	runtime.KeepAlive(kept)
}

func clientAddr(i int) netip.Addr {
	if i%2 == 0 {
		return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
}

func homes(t *testing.T, d *upstream.Dialer, b *router.Backend, clients int) []string {
	t.Helper()
	at := make([]string, clients)
	for i := range at {
		a, err := d.Attempt(b, nil, clientAddr(i))
		if err != nil {
			t.Fatal(err)
		}
		ep, _ := a.NextTarget()
		at[i] = ep.String()
		a.Done()
	}
	return at
}

func hashed(t *testing.T, hosts ...string) *router.Backend {
	t.Helper()
	targets := make([]string, len(hosts))
	for i, h := range hosts {
		targets[i] = fmt.Sprintf("%q", h+":22")
	}
	return backend(t, fmt.Sprintf(`{"balance":"source_hash","targets":[%s]}`, strings.Join(targets, ",")))
}

func TestSourceHashMovesOnlyWhomItMust(t *testing.T) {
	const n = 20000
	d := upstream.NewDialer(upstream.Config{})
	before := homes(t, d, hashed(t, "a", "b", "c", "d"), n)
	// Another node, another order, and the same addresses as IPv4 in IPv6.
	for i, home := range homes(t, upstream.NewDialer(upstream.Config{}), hashed(t, "d", "b", "a", "c"), n) {
		if home != before[i] {
			t.Fatalf("%v: %s here and %s there", clientAddr(i), before[i], home)
		}
	}
	mapped, err := d.Attempt(hashed(t, "a", "b", "c", "d"), nil, netip.AddrFrom16(clientAddr(8).As16()))
	if err != nil {
		t.Fatal(err)
	}
	if ep, _ := mapped.NextTarget(); ep.String() != before[8] {
		t.Errorf("%v mapped into IPv6 moved from %s to %v", clientAddr(8), before[8], ep)
	}
	moved := 0
	for i, home := range homes(t, d, hashed(t, "a", "b", "d"), n) { // c has gone
		if (before[i] == "c:22") != (home != before[i]) {
			t.Fatalf("%v moved from %s to %s", clientAddr(i), before[i], home)
		}
		if home != before[i] {
			moved++
		}
	}
	if share := float64(moved) / n; math.Abs(share-.25) > .02 {
		t.Errorf("%v of the clients moved, want about a quarter", share)
	}
	for i, home := range homes(t, d, hashed(t, "a", "b", "c", "d", "e"), n) { // e has come
		if home != before[i] && home != "e:22" {
			t.Fatalf("%v moved from %s to %s", clientAddr(i), before[i], home)
		}
	}
	d.MarkFailed(upstream.Endpoint{Host: "a", Port: 22})
	second := map[string]int{}
	for i, home := range homes(t, d, hashed(t, "a", "b", "c", "d"), n) {
		if (before[i] == "a:22") != (home != before[i]) {
			t.Fatalf("a failed: %v moved from %s to %s", clientAddr(i), before[i], home)
		}
		if home != before[i] {
			second[home]++
		}
	}
	for _, home := range []string{"b:22", "c:22", "d:22"} { // its clients spread evenly
		if share := float64(second[home]) / (n / 4); math.Abs(share-1./3) > .05 {
			t.Errorf("%s got %v of the failed target's clients, want about a third", home, share)
		}
	}
}

func TestSourceHashHoldsWeights(t *testing.T) {
	const n = 50000
	d := upstream.NewDialer(upstream.Config{})
	weights := []int{1, 2, 4, 8, 1}
	counts := map[string]int{}
	for _, home := range homes(t, d, balanced(t, router.SourceHash, weights...), n) {
		counts[home]++
	}
	// Each count is binomial; five standard deviations allow for chance, which
	// has its say once, in the choice of the hash.
	for i, w := range weights {
		p := float64(w) / 16
		want, limit := p*n, 5*math.Sqrt(n*p*(1-p))
		if got := float64(counts[fmt.Sprintf("10.0.0.%d:22", i+1)]); math.Abs(got-want) > limit {
			t.Errorf("target %d of weight %d has %v clients, want %v ± %v", i+1, w, got, want, limit)
		}
	}
}

func TestSourceHashWithoutClient(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := balanced(t, router.SourceHash, 1, 1)
	for i, want := range []int{0, 1, 0} { // each in turn
		if at, _ := begin(t, d, b, netip.Addr{}); at != want {
			t.Errorf("flow %d: took %d, want %d", i, at, want)
		}
	}
}
