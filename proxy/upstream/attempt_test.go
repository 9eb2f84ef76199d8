package upstream_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

func attempt(t testing.TB, d *upstream.Dialer, b *router.Backend) *upstream.Attempt {
	t.Helper()
	a, err := d.Attempt(b, nil, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Done)
	return &a
}

// step calls Next and wants this outcome of it, such as "ready 10.0.0.1:22",
// "unresolved web.x.test:80" or "exhausted".
func step(t *testing.T, a *upstream.Attempt, want string) {
	t.Helper()
	addr, ep, state := a.Next()
	got := map[upstream.State]string{
		upstream.Ready: fmt.Sprintf("ready %v", addr), upstream.Unresolved: fmt.Sprintf("unresolved %v", ep), upstream.Exhausted: "exhausted",
	}[state]
	if got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

// names is a resolver of names that it knows.
func names(known map[string][]string) upstream.LookupFunc {
	return func(_ context.Context, host string) ([]netip.Addr, error) {
		var addrs []netip.Addr
		for _, a := range known[host] {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		if addrs == nil {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return addrs, nil
	}
}

func TestAttemptWalksTargetsAndAddresses(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	d := upstream.NewDialer(upstream.Config{Registerer: reg})
	d.SetLookup(names(map[string][]string{"web.x.test": {"10.0.0.2", "2001:db8::2"}, "one.x.test": {"10.0.0.3"}}))
	b := backend(t, `["10.0.0.1:80","web.x.test:81","gone.x.test:82","one.x.test:83"]`)
	a := attempt(t, d, b)
	step(t, a, "ready 10.0.0.1:80")
	a.Failed(time.Millisecond, syscall.ECONNREFUSED)
	step(t, a, "unresolved web.x.test:81")
	step(t, a, "unresolved web.x.test:81") // asking again changes nothing
	if err := a.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	step(t, a, "ready 10.0.0.2:81")
	a.Failed(time.Millisecond, os.ErrDeadlineExceeded)
	step(t, a, "ready [2001:db8::2]:81")
	a.Failed(time.Millisecond, syscall.ENETUNREACH)
	step(t, a, "unresolved gone.x.test:82")
	if err := a.Resolve(t.Context()); err == nil {
		t.Error("a name that does not exist: no error")
	}
	step(t, a, "unresolved one.x.test:83")
	if err := a.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	step(t, a, "ready 10.0.0.3:83")
	a.Connected(time.Millisecond)
	want := "dial backend 10.0.0.1:80: connection refused; " +
		"dial backend web.x.test:81: 10.0.0.2:81: i/o timeout; [2001:db8::2]:81: network is unreachable; " +
		"dial backend gone.x.test:82: lookup gone.x.test: no such host"
	if got := fmt.Sprint(a.Err()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	counts := map[string]float64{
		"connected": 1, "refused": 1, "timeout": 0, "unreachable": 1, "unresolved": 1, "canceled": 0, "local": 0, "other": 0,
	}
	if got := counters(t, reg, "sluice_upstream_dials_total"); !maps.Equal(got, counts) {
		t.Errorf("got %v, want %v", got, counts)
	}
	// What failed comes last now, and names are in memory.
	a = attempt(t, d, b)
	for _, want := range []string{"ready 10.0.0.3:83", "ready 10.0.0.1:80", "ready 10.0.0.2:81", "ready [2001:db8::2]:81", "exhausted", "exhausted"} {
		step(t, a, want) // the caller passes each over
	}
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "gone.x.test") {
		t.Errorf("got %v, want what is remembered of gone.x.test", err)
	}
}

func TestAttemptSharesItsTime(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	d.SetLookup(names(map[string][]string{"web.x.test": {"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}}))
	b := backend(t, `["web.x.test:80","10.0.0.9:80"]`)
	if _, err := d.Resolve(t.Context(), upstream.Endpoint{Host: "web.x.test", Port: 80}); err != nil {
		t.Fatal(err)
	}
	a := attempt(t, d, b)
	a.Timeout = 8 * time.Second
	for _, tc := range []struct {
		ready       string
		limit, took time.Duration
	}{
		{"10.0.0.1:80", 2 * time.Second, 2 * time.Second},
		{"10.0.0.2:80", 2 * time.Second, 0},
		{"10.0.0.3:80", 3 * time.Second, 6 * time.Second}, // and nothing is left for 10.0.0.4
		{"10.0.0.9:80", 8 * time.Second, 8 * time.Second},
	} {
		step(t, a, "ready "+tc.ready)
		if got := a.Limit(); got != tc.limit {
			t.Errorf("%s: limit %v, want %v", tc.ready, got, tc.limit)
		}
		a.Failed(tc.took, os.ErrDeadlineExceeded)
	}
	step(t, a, "exhausted")
	if err := a.Err(); err == nil || strings.Count(err.Error(), "no connection within 8s") != 2 {
		t.Errorf("got %v", err)
	}
	if a := attempt(t, d, b); a.Limit() != router.DefaultConnectTimeout {
		t.Errorf("default limit %v", a.Limit())
	}
}

func TestAttemptGivenUp(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	d := upstream.NewDialer(upstream.Config{Registerer: reg})
	b := backend(t, `["10.0.0.1:80","10.0.0.2:80"]`)
	for _, giveUp := range []func(a *upstream.Attempt){
		func(a *upstream.Attempt) { a.Failed(time.Second, context.Canceled) },
		func(a *upstream.Attempt) { a.Done() },
		func(a *upstream.Attempt) { a.Done(); a.Failed(time.Second, syscall.ECONNREFUSED); a.Connected(0) },
	} {
		a := attempt(t, d, b)
		if _, _, state := a.Next(); state != upstream.Ready {
			t.Fatalf("state %v", state)
		}
		giveUp(a)
		step(t, a, "exhausted")
		if _, ok := a.NextTarget(); ok {
			t.Error("a target after all")
		}
	}
	got := counters(t, reg, "sluice_upstream_dials_total")
	if got["canceled"] != 3 || got["refused"] != 0 || got["connected"] != 0 {
		t.Errorf("got %v, want 3 canceled", got)
	}
	// Nobody is blamed: the turns go on as if nothing had been.
	for _, want := range []string{"10.0.0.2:80", "10.0.0.1:80"} {
		step(t, attempt(t, d, b), "ready "+want)
	}
}

func TestAttemptUDP(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	d := upstream.NewDialer(upstream.Config{Registerer: reg})
	b := backend(t, `["10.0.0.1:80","10.0.0.2:80"]`)
	a, err := d.AttemptUDP(b, nil, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	step(t, &a, "ready 10.0.0.1:80")
	a.Failed(0, syscall.ECONNREFUSED)
	step(t, &a, "ready 10.0.0.2:80")
	if got, want := fmt.Sprint(a.Err()), "dial backend 10.0.0.1:80 by UDP: connection refused"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	a.Connected(0)
	a.Done()
	for outcome, n := range counters(t, reg, "sluice_upstream_dials_total") {
		if n != 0 {
			t.Errorf("%v dials %s, want none by TCP", n, outcome)
		}
	}
}

func TestAttemptRefusesTheLinkToClients(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	r, err := router.ParseRoute("any", []byte(`{"host":"~^(?<a>\\d+)-(?<b>\\d+)-(?<c>\\d+)-(?<d>\\d+)\\.remotegpu\\.com$","backend":"${a}.${b}.${c}.${d}:80"}`))
	if err != nil {
		t.Fatal(err)
	}
	var table router.Builder
	table.SetRoute(r)
	for host, want := range map[string]string{"10-0-0-7.remotegpu.com": "ready 10.0.0.7:80", "169-254-169-254.remotegpu.com": "exhausted"} {
		match, captures := table.Table(1).Match(&router.Request{Host: host, Port: 443, Path: "/"})
		if match == nil {
			t.Fatalf("%s: no route", host)
		}
		a, err := d.Attempt(match.Backend, &router.Vars{Host: host, Captures: captures}, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		step(t, &a, want)
		a.Done()
	}
}

// TestAttemptAllocates pins what stands on the way of every flow.
func TestAttemptAllocates(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	d.SetLookup(names(map[string][]string{"web.x.test": {"10.0.0.2"}}))
	client := netip.MustParseAddr("192.0.2.7")
	for _, tc := range []struct {
		value string
		want  float64
	}{
		{`"10.0.0.1:22"`, 0},
		{`"[2001:db8::1]:22"`, 0},
		{`{"targets":["10.0.0.1:22"],"balance":"source_hash"}`, 0},
		{`{"targets":["10.0.0.1:22"],"balance":"least_connections"}`, 1},
		{`["10.0.0.1:22","10.0.0.2:22","10.0.0.3:22"]`, 1},
		{`{"targets":["10.0.0.1:22","10.0.0.2:22","10.0.0.3:22"],"balance":"source_hash"}`, 1},
		{`{"targets":["10.0.0.1:22","10.0.0.2:22","10.0.0.3:22"],"balance":"least_connections"}`, 1},
		{`"web.x.test:22"`, 1},
	} {
		b := backend(t, tc.value)
		flow := func() {
			a, err := d.Attempt(b, nil, client)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, state := a.Next(); state != upstream.Ready {
				_ = a.Resolve(t.Context())
				_, _, _ = a.Next()
			}
			a.Connected(time.Millisecond)
			a.Done()
		}
		flow()
		if got := testing.AllocsPerRun(200, flow); got > tc.want {
			t.Errorf("%s: %v allocations, want %v", tc.value, got, tc.want)
		}
	}
}

func BenchmarkAttempt(b *testing.B) {
	for name, value := range map[string]string{
		"one":         `"10.0.0.1:22"`,
		"three":       `["10.0.0.1:22","10.0.0.2:22",{"address":"10.0.0.3:22","weight":4}]`,
		"three_least": `{"targets":["10.0.0.1:22","10.0.0.2:22",{"address":"10.0.0.3:22","weight":4}],"balance":"least_connections"}`,
		"three_hash":  `{"targets":["10.0.0.1:22","10.0.0.2:22",{"address":"10.0.0.3:22","weight":4}],"balance":"source_hash"}`,
	} {
		b.Run(name, func(b *testing.B) {
			d := upstream.NewDialer(upstream.Config{})
			target, client := backend(b, value), netip.MustParseAddr("192.0.2.7")
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					a, err := d.Attempt(target, nil, client)
					if err != nil {
						b.Error(err)
					}
					_, _, _ = a.Next()
					a.Connected(time.Millisecond)
					a.Done()
				}
			})
		})
	}
}
