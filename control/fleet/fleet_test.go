package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/control/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shelf is a keeper that notes every record.
type shelf struct {
	mu      sync.Mutex
	records []string
	keys    map[string]string // the others, by key
}

func (s *shelf) SetRecord(record string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, record)
}

func (s *shelf) Set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil {
		s.keys = map[string]string{}
	}
	s.keys[key] = value
}

func (s *shelf) SetProgress(record string) { s.SetRecord(record) }

// last returns the last record and how many there have been.
func (s *shelf) last(t *testing.T) (fleet.Node, int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var n fleet.Node
	if err := json.Unmarshal([]byte(s.records[len(s.records)-1]), &n); err != nil {
		t.Fatal(err)
	}
	return n, len(s.records)
}

func cidrs(t *testing.T, texts ...string) []net.Addr {
	t.Helper()
	var as []net.Addr
	for _, text := range texts {
		ip, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		as = append(as, &net.IPNet{IP: ip, Mask: n.Mask})
	}
	return as
}

func config(addresses ...netip.Addr) fleet.Config {
	return fleet.Config{Name: "edge-1", Instance: "a", Version: "v0.1.0", Addresses: addresses}
}

// run starts a Registrar inside a synctest bubble.
func run(t *testing.T, cfg fleet.Config) (*fleet.Registrar, *shelf) {
	t.Helper()
	s := new(shelf)
	r, err := fleet.New(cfg, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(start(t, r))
	return r, s
}

// start has a Registrar run inside a synctest bubble until stop is called.
func start(t *testing.T, r *fleet.Registrar) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestRecordReadsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := run(t, config(netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")))
		r.SetState(fleet.Ready)
		synctest.Wait()
		want := `{"name":"edge-1","instance":"a","version":"v0.1.0","state":"ready","addresses":["203.0.113.7","2001:db8::7"],"weight":1,` +
			`"started":"2000-01-01T00:00:00Z","applied_revision":0}`
		if got := s.records[len(s.records)-1]; got != want {
			t.Errorf("record is\n%s, want\n%s", got, want)
		}
		want = `{"state":"ready","addresses":["203.0.113.7","2001:db8::7"],"weight":1,"names":false}`
		if got := s.keys["members/edge-1"]; got != want {
			t.Errorf("card is\n%s, want\n%s", got, want)
		}
	})
}

// A record says which cluster keys the node has as soon as they change, that it
// has none if so, and nothing where nobody asks.
func TestClusterKeysAreRecordedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys atomic.Pointer[[]string]
		keys.Store(new([]string))
		cfg := config(netip.MustParseAddr("203.0.113.7"))
		cfg.ClusterKeys = func() []string { return *keys.Load() }
		r, s := run(t, cfg)
		if n, _ := s.last(t); n.ClusterKeys == nil || len(n.ClusterKeys) != 0 {
			t.Errorf("a node without a key says %#v", n.ClusterKeys)
		}
		keys.Store(&[]string{"8be05d2c6d49b97f", "0123456789abcdef"})
		r.ClusterKeysChanged()
		synctest.Wait()
		r.SetApplied(7, "")
		time.Sleep(time.Minute)
		synctest.Wait()
		if n, _ := s.last(t); n.Applied != 7 || !slices.Equal(n.ClusterKeys, *keys.Load()) {
			t.Errorf("the record says revision %d and keys %v", n.Applied, n.ClusterKeys)
		}
	})
}

// What older processes have is recorded when it changes, until there are none.
func TestOlderProcessesAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := run(t, config(netip.MustParseAddr("203.0.113.7")))
		last := func() (string, int) {
			time.Sleep(2 * time.Second)
			synctest.Wait()
			return s.records[len(s.records)-1], len(s.records)
		}
		two := fleet.Older{Processes: 2, Flows: 37, Until: time.Date(2000, 1, 1, 12, 0, 0, 0, time.UTC)}
		r.SetOlder(two)
		got, n := last()
		if want := `"older":{"processes":2,"flows":37,"until":"2000-01-01T12:00:00Z"}`; !strings.Contains(got, want) {
			t.Errorf("the record is %s, want one with %s", got, want)
		}
		r.SetOlder(two)
		if _, again := last(); again != n {
			t.Errorf("the same was recorded again: %d records, then %d", n, again)
		}
		r.SetOlder(fleet.Older{})
		if got, _ := last(); strings.Contains(got, "older") {
			t.Errorf("the record is %s, and there are none any more", got)
		}
	})
}

func TestStatesAreRecordedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := run(t, config(netip.MustParseAddr("203.0.113.7")))
		for i, state := range []fleet.State{fleet.Joining, fleet.Ready, fleet.Ready, fleet.Draining} {
			r.SetState(state)
			synctest.Wait()
			if n, _ := s.last(t); n.State != state {
				t.Errorf("after change %d the record says %s, want %s", i, n.State, state)
			}
		}
		if _, n := s.last(t); n != 3 {
			t.Errorf("%d records for 3 states, want as many", n)
		}
	})
}

func TestAppliedRevisionsAreRecordedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := run(t, config(netip.MustParseAddr("203.0.113.7")))
		const edits = 5000 // one a millisecond
		for rev := range int64(edits) {
			r.SetApplied(rev+1, "")
			time.Sleep(time.Millisecond)
			if n, _ := s.last(t); rev-n.Applied > 1001 {
				t.Fatalf("at revision %d the record still says %d", rev, n.Applied)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		n, records := s.last(t)
		if n.Applied != edits {
			t.Errorf("in the end the record says revision %d, want %d", n.Applied, edits)
		}
		if records > 8 {
			t.Errorf("%d records within 6 seconds, want one a second", records)
		}
		time.Sleep(time.Minute)
		if _, later := s.last(t); later != records {
			t.Errorf("%d records while nothing changed, want none", later-records)
		}
		// After a quiet time the next one goes out at once.
		r.SetApplied(edits+1, "0123456789ab")
		synctest.Wait()
		if n, _ := s.last(t); n.Applied != edits+1 || n.Fingerprint != "0123456789ab" {
			t.Errorf("the record says revision %d, want %d at once", n.Applied, edits+1)
		}
	})
}

func TestAddressesFollowTheInterfaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		own, fail := cidrs(t, "127.0.0.1/8", "10.1.2.3/8", "203.0.113.7/24", "fe80::1/64", "2001:db8::7/64", "::1/128"), error(nil)
		set := func(as []net.Addr, err error) {
			mu.Lock()
			defer mu.Unlock()
			own, fail = as, err
		}
		cfg := config()
		cfg.Interfaces = func() ([]net.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			return own, fail
		}
		_, s := run(t, cfg)
		expect := func(when string, want ...string) {
			t.Helper()
			n, _ := s.last(t)
			if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(n.Addresses)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		expect("at first", "203.0.113.7", "2001:db8::7")
		for _, step := range []struct {
			when string
			own  []net.Addr
			err  error
			want []string
		}{
			{"another address", cidrs(t, "203.0.113.8/24"), nil, []string{"203.0.113.8"}},
			{"no address", cidrs(t, "127.0.0.1/8"), nil, []string{"203.0.113.8"}},
			{"an error", nil, errors.New("netlink"), []string{"203.0.113.8"}},
			{"private ones", cidrs(t, "192.168.1.2/24", "100.64.3.4/10", "fd00::1/64"), nil, []string{"100.64.3.4", "192.168.1.2", "fd00::1"}},
		} {
			set(step.own, step.err)
			time.Sleep(11 * time.Second)
			synctest.Wait()
			expect(step.when, step.want...)
		}
	})
}

func TestNewRefusesInWords(t *testing.T) {
	for _, test := range []struct {
		cfg  fleet.Config
		want string
	}{
		{fleet.Config{Instance: "a", Version: "v"}, "no name"},
		{fleet.Config{Name: "edge-1", Version: "v"}, "no instance"},
		{fleet.Config{Name: "edge-1", Instance: "a"}, "no version"},
		{config(netip.MustParseAddr("127.0.0.1")), "127.0.0.1"},
		{config(netip.Addr{}), "cannot reach"},
	} {
		if _, err := fleet.New(test.cfg, new(shelf)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New(%+v): %v, want an error that says %q", test.cfg, err, test.want)
		}
	}
	if _, err := fleet.New(config(), nil); err == nil {
		t.Error("New without a keeper: no error")
	}
}

func TestInstanceIsKept(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	first, err := fleet.Instance(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := fleet.Instance(dir)
	if err != nil || again != first {
		t.Errorf("second call: %q, %v, want %q", again, err, first)
	}
	if second, err := fleet.Instance(other); err != nil || second == first || second == "" {
		t.Errorf("another directory: %q, %v, want another instance than %q", second, err, first)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v, want one file", entries, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instance"), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fleet.Instance(dir); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("empty file: %v, want an error that says what to do", err)
	}
	if _, err := fleet.Instance(filepath.Join(dir, "none")); err == nil {
		t.Error("no directory: no error")
	}
}
