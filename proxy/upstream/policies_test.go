package upstream_test

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// httpBackend reads the backend of a route.
func httpBackend(t testing.TB, value string) *router.Backend {
	t.Helper()
	r, err := router.ParseRoute("r", []byte(`{"host":"*","backend":`+value+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return r.Backend
}

// targetsOf returns the targets "10.0.0.1:80" and on, of these weights.
func targetsOf(weights ...int) string {
	targets := make([]string, len(weights))
	for i, w := range weights {
		targets[i] = fmt.Sprintf(`{"address":"10.0.0.%d:80","weight":%d}`, i+1, w)
	}
	return "[" + strings.Join(targets, ",") + "]"
}

// take begins a flow and returns which target it got, from 1.
func take(t testing.TB, d *upstream.Dialer, b *router.Backend, by upstream.Asker) (int, *upstream.Attempt) {
	t.Helper()
	a, err := d.AttemptFor(b, nil, by)
	if err != nil {
		t.Fatal(err)
	}
	ep, ok := a.NextTarget()
	if !ok {
		t.Fatal("no target")
	}
	return int(netip.MustParseAddr(ep.Host).As4()[3]), &a
}

// near reports whether a binomial count is within five standard deviations.
func near(count, n int, p float64) bool {
	return math.Abs(float64(count)-p*float64(n)) <= 5*math.Sqrt(float64(n)*p*(1-p))+1
}

func TestPowerOfTwoHoldsWeights(t *testing.T) {
	const n = 20000
	d := upstream.NewDialer(upstream.Config{})
	b := httpBackend(t, `{"balance":"p2c","targets":`+targetsOf(1, 2, 5)+`}`)
	counts := [4]int{}
	for range n { // one at a time: nothing but the weights decides
		at, a := take(t, d, b, upstream.Asker{})
		counts[at]++
		a.Done()
	}
	for i, w := range []int{1, 2, 5} {
		if !near(counts[i+1], n, float64(w)/8) {
			t.Errorf("target of weight %d of 8 got %d of %d", w, counts[i+1], n)
		}
	}
}

// TestPowerOfTwoEvensLoads has many flows begin and none end. Of two choices the
// emptier one leaves all about as full, where chance alone would not.
func TestPowerOfTwoEvensLoads(t *testing.T) {
	const targets, n = 20, 20000
	d := upstream.NewDialer(upstream.Config{})
	weights := make([]int, targets)
	for i := range weights {
		weights[i] = 1 + i%2
	}
	b := httpBackend(t, `{"balance":"p2c","targets":`+targetsOf(weights...)+`}`)
	var mu sync.Mutex
	counts := make([]int, targets+1)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range n / 4 {
				at, _ := take(t, d, b, upstream.Asker{})
				mu.Lock()
				counts[at]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for i, w := range weights {
		// Chance alone would leave a target some 26 or 36 off in one of three cases.
		if want := n * w / (targets * 3 / 2); counts[i+1] < want-25 || counts[i+1] > want+25 {
			t.Errorf("target %d of weight %d has %d flows, want about %d", i+1, w, counts[i+1], want)
		}
	}
}

func TestPowerOfTwoPassesOverFailed(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := httpBackend(t, `{"balance":"p2c","targets":`+targetsOf(1, 1000, 1)+`}`)
	d.MarkFailed(upstream.Endpoint{Host: "10.0.0.2", Port: 80})
	for range 200 {
		at, a := take(t, d, b, upstream.Asker{})
		if at == 2 {
			t.Fatal("the failed target was taken")
		}
		seen := map[int]bool{at: true}
		for {
			ep, ok := a.NextTarget()
			if !ok {
				break
			}
			seen[int(netip.MustParseAddr(ep.Host).As4()[3])] = true
		}
		if len(seen) != 3 {
			t.Fatalf("tried %v, want each target once", seen)
		}
		a.Done()
	}
	for ep, n := range d.Loads() {
		if n != 0 {
			t.Errorf("%v counts %d flows, and all are over", ep, n)
		}
	}
}

func TestHashGoesByItsKey(t *testing.T) {
	const n = 20000
	d := upstream.NewDialer(upstream.Config{})
	hashed := func(weights ...int) *router.Backend {
		return httpBackend(t, `{"balance":"hash","hash":{"header":"X-User"},"targets":`+targetsOf(weights...)+`}`)
	}
	home := func(b *router.Backend, i int, client netip.Addr) int {
		at, a := take(t, d, b, upstream.Asker{Client: client, Key: fmt.Sprint("user-", i)})
		a.Done()
		return at
	}
	four, three := hashed(1, 1, 2, 4), hashed(1, 1, 2)
	counts := [5]int{}
	for i := range n {
		at := home(four, i, clientAddr(i))
		counts[at]++
		if other := home(four, i, clientAddr(i+1)); other != at {
			t.Fatalf("user %d is at %d, and from elsewhere at %d", i, at, other)
		}
		if was := home(three, i, netip.Addr{}); at != 4 && was != at {
			t.Fatalf("user %d moved from %d to %d when target 4 came", i, was, at)
		}
	}
	for i, w := range []int{1, 1, 2, 4} {
		if !near(counts[i+1], n, float64(w)/8) {
			t.Errorf("target of weight %d of 8 has %d of %d users", w, counts[i+1], n)
		}
	}
	// Who sends no key goes by the client's address.
	for i := range 100 {
		one, a := take(t, d, four, upstream.Asker{Client: clientAddr(i)})
		a.Done()
		two, a := take(t, d, four, upstream.Asker{Client: clientAddr(i)})
		a.Done()
		if one != two {
			t.Fatalf("%v is at %d and at %d", clientAddr(i), one, two)
		}
	}
}

// TestHashBoundsLoads sends everybody to one key. No target gets more than its
// bound, and the key's own is full first.
func TestHashBoundsLoads(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := httpBackend(t, `{"balance":"hash","hash":{"cookie":"u","max_load":125},"targets":`+targetsOf(1, 1, 2, 4)+`}`)
	by := upstream.Asker{Key: "everybody"}
	weights, flows := []int{0, 1, 1, 2, 4}, [5]int{}
	var live []*upstream.Attempt
	home, first := take(t, d, b, by)
	first.Done()
	for n := 1; n <= 800; n++ {
		at, a := take(t, d, b, by)
		live = append(live, a)
		flows[at]++
		if bound := math.Ceil(1.25 * float64(n) * float64(weights[at]) / 8); float64(flows[at]) > bound {
			t.Fatalf("%d of %d flows are at target %d of weight %d, its bound is %v", flows[at], n, at, weights[at], bound)
		}
	}
	if want := 1000 * weights[home] / 8; flows[home] < want-1 {
		t.Errorf("the key's own target has %d flows, want its bound, %d", flows[home], want)
	}
	for _, a := range live {
		a.Done()
	}
	if at, a := take(t, d, b, by); at != home {
		t.Errorf("with all flows over the key is at %d, want %d", at, home)
	} else {
		a.Done()
	}
}

func zoned(t *testing.T, extra string) *router.Backend {
	return httpBackend(t, `{"prefer_zone":true,`+extra+`"targets":[{"address":"10.0.0.1:80","zone":"a"},
		{"address":"10.0.0.2:80","zone":"a"},{"address":"10.0.0.3:80","zone":"b"},{"address":"10.0.0.4:80","weight":9}]}`)
}

func TestZones(t *testing.T) {
	const n = 8000
	for _, balance := range []string{"round_robin", "least_requests", "p2c", "hash"} {
		extra := fmt.Sprintf(`"balance":%q,`, balance)
		if balance == "hash" {
			extra += `"hash":{"header":"X"},`
		}
		b := zoned(t, extra)
		shares := func(d *upstream.Dialer) (counts [5]int) {
			for i := range n {
				at, a := take(t, d, b, upstream.Asker{Client: clientAddr(i), Key: fmt.Sprint(i)})
				counts[at]++
				a.Done()
			}
			return counts
		}
		d := upstream.NewDialer(upstream.Config{Zone: "a"})
		if c := shares(d); c[1]+c[2] != n || !near(c[1], n, .5) {
			t.Errorf("%s: got %v, want all in zone a, one half each", balance, c)
		}
		// With one of two gone the other takes 1.4 times its share, not twice.
		d.MarkFailed(upstream.Endpoint{Host: "10.0.0.1", Port: 80})
		if c := shares(d); c[1] != 0 || !near(c[2], n, .7) || !near(c[3]+c[4], n, .3) {
			t.Errorf("%s: with one of two failed got %v, want 0.7 of %d at the other", balance, c, n)
		}
		d.MarkFailed(upstream.Endpoint{Host: "10.0.0.2", Port: 80})
		if c := shares(d); c[1]+c[2] != 0 || c[3]+c[4] != n {
			t.Errorf("%s: with none left in the zone got %v, want all elsewhere", balance, c)
		}
		if balance == "least_requests" {
			continue // with nothing else under way the heaviest target takes it all
		}
		for _, zone := range []string{"", "c"} { // nobody's zone: as if there were none
			if c := shares(upstream.NewDialer(upstream.Config{Zone: zone})); !near(c[4], n, .75) {
				t.Errorf("%s: in zone %q got %v, want each by its weight", balance, zone, c)
			}
		}
	}
}

func TestSticky(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	d := upstream.NewDialer(upstream.Config{CookieKey: key})
	value := func(balance string) string {
		return `{"balance":"` + balance + `","sticky":{"cookie":"at"},"targets":` + targetsOf(1, 1, 1) + `}`
	}
	for _, balance := range []string{"round_robin", "least_requests", "p2c", "source_hash"} {
		b := httpBackend(t, value(balance))
		at, a := take(t, d, b, upstream.Asker{Client: clientAddr(1)})
		token := a.Token()
		a.Done()
		if len(token) < 16 || strings.Contains(token, "10.0.0") {
			t.Fatalf("%s: token %q", balance, token)
		}
		// Another node with the key, after an edit, knows it; one without does not.
		other := upstream.NewDialer(upstream.Config{CookieKey: key})
		for range 20 {
			again, a := take(t, other, httpBackend(t, value(balance)), upstream.Asker{Client: clientAddr(2), Token: token})
			if again != at || a.Token() != "" {
				t.Fatalf("%s: came back to %d, want %d, with a new token %q", balance, again, at, a.Token())
			}
			a.Done()
		}
		_, a = take(t, upstream.NewDialer(upstream.Config{}), b, upstream.Asker{Token: token})
		if a.Token() == "" {
			t.Errorf("%s: a node without the key took the token for its own", balance)
		}
		a.Done()
		// Where the target has failed there is another, and a token for it.
		other.MarkFailed(upstream.Endpoint{Host: fmt.Sprintf("10.0.0.%d", at), Port: 80})
		again, a := take(t, other, b, upstream.Asker{Client: clientAddr(2), Token: token})
		if again == at || a.Token() == "" || a.Token() == token {
			t.Errorf("%s: the target failed, and the client got %d with token %q", balance, again, a.Token())
		}
		a.Done()
		for ep, n := range other.Loads() {
			if n != 0 {
				t.Errorf("%s: %v counts %d flows, and all are over", balance, ep, n)
			}
		}
	}
}
