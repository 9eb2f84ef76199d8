package router_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

func TestHealthIsStrict(t *testing.T) {
	for _, tc := range []struct {
		health string
		want   router.Health // with defaults
	}{
		{`true`, router.Health{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}},
		{`{}`, router.Health{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}},
		{`{"interval":"1s"}`, router.Health{Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3}},
		{`{"timeout":"8s"}`, router.Health{Interval: 8 * time.Second, Timeout: 8 * time.Second, Rise: 2, Fall: 3}},
		{`{"interval":"1m","timeout":"100ms","rise":100,"fall":1}`, router.Health{Interval: time.Minute, Timeout: 100 * time.Millisecond, Rise: 100, Fall: 1}},
	} {
		m, err := router.ParseMapping(router.TCP, 22, fmt.Appendf(nil, `{"backend":{"targets":["a:1"],"health":%s}}`, tc.health))
		if err != nil {
			t.Errorf("%s: %v", tc.health, err)
		} else if got := m.Backend.Health.WithDefaults(); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.health, got, tc.want)
		}
	}
	for health, want := range map[string]string{
		`false`:                            "backend.health: is on when present",
		`"5s"`:                             "backend.health: must be true or an object in { }, not a string",
		`{"every":"5s"}`:                   "backend.health.every: unknown field",
		`{"interval":5}`:                   "backend.health.interval: must be a string",
		`{"interval":"-5s"}`:               `backend.health.interval: must be positive, not -5s`,
		`{"interval":"10ms"}`:              "backend.health.interval: must be from 1s to 1h, not 10ms",
		`{"interval":"2h"}`:                "backend.health.interval: must be from",
		`{"timeout":"1ms"}`:                "backend.health.timeout: must be from 100ms to the interval, 5s, not 1ms",
		`{"interval":"2s","timeout":"3s"}`: "backend.health.timeout: must be from 100ms to the interval, 2s, not 3s",
		`{"rise":0}`:                       "backend.health.rise: must be from 1 to 100, not 0; leave it out for the default",
		`{"fall":0}`:                       "backend.health.fall: must be from 1 to 100, not 0; leave it out for the default",
		`{"rise":-1}`:                      "backend.health.rise: must be from 1 to 100, not -1",
		`{"fall":101}`:                     "backend.health.fall: must be from 1 to 100, not 101",
	} {
		_, err := router.ParseMapping(router.TCP, 22, fmt.Appendf(nil, `{"backend":{"targets":["a:1"],"health":%s}}`, health))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", health, err, want)
		}
	}
	if _, err := router.ParseMapping(router.UDP, 22, []byte(`{"backend":{"targets":["a:1"],"health":true}}`)); err == nil || !strings.Contains(err.Error(), "backend.health: is a check by TCP") {
		t.Errorf("UDP: %v", err)
	}
	if _, err := router.ParseRoute("r", []byte(`{"host":"~^(?<id>[a-z]+)$","backend":{"targets":["${id}:1"],"health":true}}`)); err == nil || !strings.Contains(err.Error(), "backend.health: cannot be had") {
		t.Errorf("a variable: %v", err)
	}
	if _, err := router.ParseMapping(router.TCP, 22, []byte(`{"http":{"targets":["a:1"],"health":true}}`)); err != nil {
		t.Errorf("for HTTP: %v", err)
	}
}

func TestBalanceIsStrict(t *testing.T) {
	for _, balance := range []string{router.RoundRobin, router.LeastConnections, router.PowerOfTwo, router.SourceHash} {
		m, err := router.ParseMapping(router.TCP, 22, fmt.Appendf(nil, `{"backend":{"targets":["a:1"],"balance":%q}}`, balance))
		if err != nil || m.Backend.Balance != balance {
			t.Errorf("%s: %v", balance, err)
		}
	}
	_, err := router.ParseMapping(router.TCP, 22, []byte(`{"backend":{"targets":["a:1"],"balance":"leastconn"}}`))
	if want := `backend.balance: "leastconn" is not known; known: round_robin, least_connections, least_requests, p2c, source_hash, hash`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAddressIP(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.7:22": "10.0.0.7:22", "[2001:db8::1]:22": "[2001:db8::1]:22", "web-3:8080": "",
		"${id}:22": "", "10.0.0.7:${port}": "", "env-${id}:${port}": "",
	} {
		var a router.Address
		if err := a.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		got, ok := a.IP()
		if ok != (want != "") || ok && got != netip.MustParseAddrPort(want) {
			t.Errorf("%s: got %v, %v, want %q", text, got, ok, want)
		}
		if a.String() != text {
			t.Errorf("%s is written as %s", text, &a)
		}
	}
	var a router.Address
	if err := a.UnmarshalText([]byte("10.0.0.7:22")); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _, _ = a.Expand(nil) }); n != 0 {
		t.Errorf("%v allocations for an address without variables", n)
	}
}

// TestDiffCheckedAgainstModel makes random edits of mappings and routes, looks at
// some of the tables, and counts the backends that are checked.
func TestDiffCheckedAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	backend := func() string {
		return []string{`"10.0.0.1:22"`, `{"targets":["10.0.0.1:22"],"health":true}`}[rng.IntN(2)]
	}
	var b router.Builder
	mappings, routes := map[int]*router.Mapping{}, map[string]*router.Route{}
	prev := &router.Table{}
	known := map[*router.Backend]bool{}
	for rev := range int64(400) {
		port, name := 1+rng.IntN(600), fmt.Sprintf("r%d", rng.IntN(12))
		switch rng.IntN(8) {
		case 0:
			b.DeleteMapping(router.TCP, port)
			delete(mappings, port)
		case 1:
			b.DeleteRoute(name)
			delete(routes, name)
		case 2, 3:
			host := []string{`"a.x.test"`, `"*.x.test"`, `["~^r[0-9]","b.x.test","*"]`}[rng.IntN(3)]
			r, err := router.ParseRoute(name, []byte(`{"host":`+host+`,"backend":`+backend()+`}`))
			if err != nil {
				t.Fatal(err)
			}
			b.SetRoute(r)
			routes[name] = r
		default:
			m, err := router.ParseMapping(router.TCP, port, []byte(`{"backend":`+backend()+`,"http":`+backend()+`}`))
			if err != nil {
				t.Fatal(err)
			}
			b.SetMapping(m)
			mappings[port] = m
		}
		if rng.IntN(3) == 0 {
			continue
		}
		table := b.Table(rev)
		table.DiffChecked(prev, func(_ string, b *router.Backend) {
			if known[b] {
				t.Fatal("a backend came that was there")
			}
			known[b] = true
		}, func(_ string, b *router.Backend) {
			if !known[b] {
				t.Fatal("a backend went that was not there")
			}
			delete(known, b)
		})
		prev = table
		want := map[*router.Backend]bool{}
		for _, m := range mappings {
			want[m.Backend], want[m.HTTP] = true, true
		}
		for _, r := range routes {
			want[r.Backend] = true
		}
		for b := range want {
			if b.Health == nil {
				delete(want, b)
			}
		}
		if len(want) != len(known) {
			t.Fatalf("revision %d: %d backends are checked, want %d", rev, len(known), len(want))
		}
		for b := range want {
			if !known[b] {
				t.Fatalf("revision %d: a backend is not checked", rev)
			}
		}
	}
	none := (&router.Builder{}).Table(0)
	none.DiffChecked(prev, func(string, *router.Backend) { t.Error("a backend came of nothing") }, func(_ string, b *router.Backend) { delete(known, b) })
	if len(known) != 0 {
		t.Errorf("%d backends are still checked", len(known))
	}
}
