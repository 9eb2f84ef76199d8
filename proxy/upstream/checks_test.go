package upstream_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// quick is a checking that tests need not wait for. Keys cannot have it so.
var quick = router.Health{Interval: 5 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 3}

type checkRig struct {
	*testing.T
	*upstream.Dialer
	reg *prometheus.Registry
	log *strings.Builder // read it once the Dialer is closed
}

func newCheckRig(t *testing.T) *checkRig {
	r := &checkRig{T: t, reg: prometheus.NewPedanticRegistry(), log: &strings.Builder{}}
	r.Dialer = upstream.NewDialer(upstream.Config{Registerer: r.reg, Logger: slog.New(slog.NewTextHandler(r.log, nil))})
	t.Cleanup(r.Close)
	return r
}

func checked(t *testing.T, h router.Health, eps ...upstream.Endpoint) *router.Backend {
	b := backendOf(t, eps...)
	b.Health = &h
	return b
}

// await waits until the checks say this, such as "127.0.0.1:80 up, 127.0.0.2:80
// down", of all targets once each was checked.
func (r *checkRig) await(want string) {
	r.Helper()
	got := ""
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		var states []string
		done := true
		for _, h := range r.Health() {
			state := "down"
			if h.Up {
				state = "up"
			}
			states = append(states, fmt.Sprintf("%v %s", h.Endpoint, state))
			done = done && !h.Checked.IsZero()
		}
		if got = strings.Join(states, ", "); done && got == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	r.Fatalf("the checks say %q, want %q", got, want)
}

func (r *checkRig) order(b *router.Backend) string {
	r.Helper()
	eps, err := r.Targets(b, nil)
	if err != nil {
		r.Fatal(err)
	}
	return fmt.Sprint(eps)
}

func TestChecksPassOverWhatIsDown(t *testing.T) {
	r := newCheckRig(t)
	bad, good := closedPort(t, "127.0.0.1"), greeter(t, "127.0.0.2", "x")
	b := checked(t, quick, bad, good)
	r.SetChecked([]*router.Backend{b}, nil)
	r.await(fmt.Sprintf("%v down, %v up", bad, good))
	for range 5 {
		if got, want := r.order(b), fmt.Sprint([]upstream.Endpoint{good, bad}); got != want {
			t.Errorf("order %s, want %s", got, want)
		}
		// Those who have no use for checks are not told of them.
		if at, _, _ := attempt(t, r.Dialer, backendOf(t, bad, good)).Next(); at.String() != bad.String() {
			t.Errorf("another backend: %v, want %v", at, bad)
		}
	}
	for _, balance := range []string{router.LeastConnections, router.SourceHash} {
		b := checked(t, quick, bad, good)
		b.Balance = balance
		for i := range 20 {
			a, err := r.Attempt(b, nil, clientAddr(i))
			if err != nil {
				t.Fatal(err)
			}
			if at, _, _ := a.Next(); at.String() != good.String() {
				t.Errorf("%s: took %v", balance, at)
			}
			a.Done()
		}
	}
	if got := gauges(t, r.reg, "sluice_upstream_checked_targets"); got["up"] != 1 || got["down"] != 1 {
		t.Errorf("counted %v", got)
	}
	for outcome, n := range counters(t, r.reg, "sluice_upstream_dials_total") {
		if n != 0 && outcome != "canceled" { // as the test's own were
			t.Errorf("%v dials %s: checks count for flows", n, outcome)
		}
	}
	r.Close()
	if got := r.log.String(); strings.Count(got, "a target is down") != 1 || !strings.Contains(got, "connection refused") {
		t.Errorf("the log says %s", got)
	}
}

func TestChecksFollowATarget(t *testing.T) {
	r := newCheckRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ep := endpointOf(ln.Addr())
	r.SetChecked([]*router.Backend{checked(t, quick, ep)}, nil)
	r.await(fmt.Sprintf("%v up", ep))
	for range 3 {
		ln.Close()
		r.await(fmt.Sprintf("%v down", ep))
		h := r.Health()[0]
		if h.Err == nil || h.Health != quick || h.Since.After(h.Checked) {
			t.Errorf("down: %+v", h)
		}
		if ln, err = net.Listen("tcp", ep.String()); err != nil {
			t.Fatal(err)
		}
		r.await(fmt.Sprintf("%v up", ep))
		if h := r.Health()[0]; h.Err != nil {
			t.Errorf("up: %+v", h)
		}
	}
	defer ln.Close()
	r.Close()
	if got := r.log.String(); strings.Count(got, "a target is down") != 3 || strings.Count(got, "a target is up again") != 3 {
		t.Errorf("the log says %s", got)
	}
}

func TestChecksOfNoneAreDistrusted(t *testing.T) {
	r := newCheckRig(t)
	one, two := closedPort(t, "127.0.0.1"), closedPort(t, "127.0.0.2")
	b := checked(t, quick, one, two)
	r.SetChecked([]*router.Backend{b}, nil)
	r.await(fmt.Sprintf("%v down, %v down", one, two))
	a, c := fmt.Sprint([]upstream.Endpoint{one, two}), fmt.Sprint([]upstream.Endpoint{two, one})
	seen := map[string]bool{}
	for range 4 {
		seen[r.order(b)] = true
	}
	if !seen[a] && !seen[c] || len(seen) > 2 {
		t.Errorf("orders %v, want both targets in each", seen)
	}
}

func TestChecksAreSharedAndEnd(t *testing.T) {
	r := newCheckRig(t)
	bad, good := closedPort(t, "127.0.0.1"), greeter(t, "127.0.0.2", "x")
	first, second := checked(t, quick, bad, good), checked(t, quick, bad)
	r.SetChecked([]*router.Backend{first, second, backendOf(t, good)}, nil)
	r.await(fmt.Sprintf("%v down, %v up", bad, good))
	r.SetChecked(nil, []*router.Backend{first})
	r.await(fmt.Sprintf("%v down", bad))
	// An edit knows from the first moment what was known before it.
	edited := checked(t, quick, good, bad)
	r.SetChecked([]*router.Backend{edited}, []*router.Backend{second})
	if got, want := r.order(edited), fmt.Sprint([]upstream.Endpoint{good, bad}); got != want {
		t.Errorf("order after the edit %s, want %s", got, want)
	}
	slow := quick
	slow.Interval = time.Hour
	slower := checked(t, slow, good, bad)
	r.SetChecked([]*router.Backend{slower}, []*router.Backend{edited})
	if got, want := r.order(slower), fmt.Sprint([]upstream.Endpoint{good, bad}); got != want {
		t.Errorf("order after other settings %s, want %s", got, want)
	}
	if got := gauges(t, r.reg, "sluice_upstream_checked_targets"); got["up"] != 1 || got["down"] != 1 {
		t.Errorf("counted %v", got)
	}
	r.SetChecked(nil, []*router.Backend{slower, slower, first}) // once too often
	if got := r.Health(); len(got) != 0 {
		t.Errorf("still checked: %v", got)
	}
	if got := gauges(t, r.reg, "sluice_upstream_checked_targets"); got["up"] != 0 || got["down"] != 0 {
		t.Errorf("counted %v", got)
	}
}

func TestChecksOfNames(t *testing.T) {
	r := newCheckRig(t)
	good := greeter(t, "127.0.0.1", "x")
	r.SetLookup(names(map[string][]string{"web.x.test": {"127.0.0.9", "127.0.0.1"}}))
	web, gone := upstream.Endpoint{Host: "web.x.test", Port: good.Port}, upstream.Endpoint{Host: "gone.x.test", Port: 80}
	r.SetChecked([]*router.Backend{checked(t, quick, web, gone)}, nil)
	r.await(fmt.Sprintf("%v down, %v up", gone, web))
	if h := r.Health()[0]; h.Err == nil || !strings.Contains(h.Err.Error(), "no such host") {
		t.Errorf("%+v", h)
	}
	// One address of the name refuses; that is not for checks to remember.
	addrs, err := r.Resolve(t.Context(), web)
	if err != nil || addrs[0].Addr() != netip.MustParseAddr("127.0.0.9") {
		t.Errorf("resolved to %v, %v", addrs, err)
	}
}

// TestChecksAreBounded has more targets than may be checked at a time, none of
// which answers.
func TestChecksAreBounded(t *testing.T) {
	r := newCheckRig(t)
	deaf := deafPort(t, "127.0.0.1")
	var all []*router.Backend
	for i := range 3 * upstream.MaxChecking {
		h := router.Health{Interval: time.Millisecond, Timeout: 20*time.Millisecond + time.Duration(i), Rise: 1, Fall: 1}
		all = append(all, checked(t, h, deaf)) // each another check, for its timeout
	}
	r.SetChecked(all, nil)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if n := r.Checking(); n > upstream.MaxChecking {
			t.Fatalf("%d checks at a time, want at most %d", n, upstream.MaxChecking)
		}
		down := 0
		for _, h := range r.Health() {
			if !h.Up {
				down++
			}
		}
		if down == len(all) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are down", down, len(all))
		}
		time.Sleep(time.Millisecond)
	}
	r.SetChecked(nil, all)
	for r.Checking() > 0 { // the workers leave when nothing is due
		if time.Now().After(deadline) {
			t.Fatalf("%d checks go on", r.Checking())
		}
		time.Sleep(time.Millisecond)
	}
}

// gauges returns the values of a gauge by the value of its one label.
func gauges(t *testing.T, reg prometheus.Gatherer, name string) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				values[m.Label[0].GetValue()] = m.Gauge.GetValue()
			}
		}
	}
	return values
}
