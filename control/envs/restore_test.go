package envs_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// auditOf returns what an audit of keys finds.
func auditOf(t *testing.T, keys map[string]string) []envs.Finding {
	t.Helper()
	reg := envs.NewRegistry()
	var kvs []etcd.KV
	for i, key := range slices.Sorted(maps.Keys(keys)) {
		kvs = append(kvs, etcd.KV{Key: key, Value: []byte(keys[key]), ModRev: int64(i + 1)})
	}
	reg.Load(int64(len(kvs)), kvs)
	found, err := envs.New(envs.Config{Registry: reg, Ports: router.Ports{{First: 20000, Last: 32767}}}).Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Between two times anything may have happened. What is restored is consistent, and
// says what it is not.
func TestRestoreIsConsistent(t *testing.T) {
	r := newRig(t)
	r.put("pools/ssh", `{"ports":"20000-20009","backend_port":22,"quarantine":"0s","pick":"random"}`)
	r.put("pools/jupyter", `{"ports":"30000-30009","backend_port":8888,"http":true,"quarantine":"0s"}`)
	r.put("pools/rdp", `{"ports":"31000-31009","backend_port":3389,"protocol":"tcp+udp","quarantine":"1h"}`)
	n := r.node()
	r.settle(n, "pools/ssh", "pools/jupyter", "pools/rdp")
	rng := rand.New(rand.NewPCG(1, 1))
	var times []map[string]string
	for range 12 {
		for range 15 {
			// What comes to nothing for want of ports does here, too.
			_ = step(t.Context(), n, rng, fmt.Sprint("env", rng.IntN(24)))
		}
		times = append(times, r.keys(""))
	}
	brought, kept := 0, 0
	for i, now := range times {
		for _, then := range times {
			for _, prune := range []bool{false, true} {
				wanted, left := envs.Restore(now, then, r.clock.Now().Add(time.Duration(i)*time.Minute), prune)
				if found := auditOf(t, wanted); len(found) > 0 {
					t.Fatalf("audit: %v", found)
				}
				brought, kept = brought+checkRestored(t, now, then, wanted, prune), kept+len(left)
				for _, l := range left {
					if _, was := then[l.Key]; !was || wanted[l.Key] != now[l.Key] {
						t.Errorf("%s is left out (%s), and is %q", l.Key, l.Why, wanted[l.Key])
					}
				}
				if !prune && len(left) == 0 && maps.Equal(now, then) && !maps.Equal(wanted, now) {
					t.Errorf("to what there is: %s", cmp.Diff(now, wanted))
				}
			}
		}
	}
	if brought == 0 || kept == 0 {
		t.Errorf("%d environments were brought back and %d left out", brought, kept)
	}
}

// checkRestored wants each environment to be as it was, or as it is, and returns
// how many were brought back.
func checkRestored(t *testing.T, now, then, wanted map[string]string, prune bool) (brought int) {
	t.Helper()
	for key, value := range wanted {
		if !strings.HasPrefix(key, "envs/") {
			continue
		}
		if value != then[key] && value != now[key] {
			t.Errorf("%s is %s, was %s and is %s now", key, value, then[key], now[key])
		}
		if _, was := then[key]; prune && !was {
			t.Errorf("%s was not there, and stays", key)
		}
		if value == then[key] && value != now[key] {
			brought++
		}
	}
	for key := range now {
		_, was := then[key]
		if _, is := wanted[key]; strings.HasPrefix(key, "envs/") && !prune && !was && !is {
			t.Errorf("%s is gone", key)
		}
	}
	return brought
}

// What somebody else has by now is left to them, and said.
func TestRestoreLeavesOthersAlone(t *testing.T) {
	const since = `"since":"2026-11-01T12:00:00Z"`
	held := func(env string) string { return `{"env":"` + env + `","service":"ssh",` + since + `}` }
	mapped := func(env string) string { return `{"backend":"10.0.0.1:22","env":"` + env + `","service":"ssh"}` }
	record := func(port int) string {
		return fmt.Sprintf(`{"backend":"10.0.0.1","created_at":"2026-11-01T12:00:00Z","services":{"ssh":{"port":%d,"backend":"10.0.0.1:22"}}}`, port)
	}
	then := map[string]string{
		"pools/ssh": `{"ports":"20000-20009","backend_port":22}`, "routes/www": "then",
		"envs/a": record(20000), "allocations/tcp/20000": held("a"), "ports/tcp/20000": mapped("a"),
		"envs/b": record(20001), "allocations/tcp/20001": held("b"), "ports/tcp/20001": mapped("b"),
		"envs/c": record(20002), "allocations/tcp/20002": held("c"), "ports/tcp/20002": mapped("c"),
		"envs/d": record(20003), "allocations/tcp/20003": held("d"), "ports/tcp/20003": mapped("d"),
		"envs/lost":             record(20008),
		"allocations/tcp/20004": `{"reserved":"the office VPN",` + since + `}`,
		"allocations/tcp/20005": `{"reserved":"the old VPN",` + since + `}`,
		"ports/tcp/20006":       "10.0.0.9:22",
	}
	now := map[string]string{
		"pools/ssh": then["pools/ssh"], "routes/www": "now", "routes/new": "now",
		"envs/a": record(20007), "allocations/tcp/20007": held("a"), "ports/tcp/20007": mapped("a"), // has moved on
		"envs/n": record(20001), "allocations/tcp/20001": held("n"), "ports/tcp/20001": mapped("n"), // has b's port
		"ports/tcp/20002":       "10.0.0.8:22",                              // put by hand at c's
		"allocations/tcp/20003": `{"reserved":"the new VPN",` + since + `}`, // d's
		"envs/m":                record(20004), "allocations/tcp/20004": held("m"), "ports/tcp/20004": mapped("m"),
		"envs/o": record(20006), "allocations/tcp/20006": held("o"), "ports/tcp/20006": mapped("o"),
	}
	at := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	wanted, left := envs.Restore(now, then, at, false)
	var said []string
	for _, l := range left {
		said = append(said, l.Key+": "+l.Why)
	}
	want := []string{
		"envs/b: its tcp port 20001 is held by ssh of environment n by now; end that first",
		"envs/c: its tcp port 20002 has a mapping by now that was put by hand; remove ports/tcp/20002 first",
		"envs/d: its tcp port 20003 is reserved by now: the new VPN",
		"envs/lost: it did not hold tcp port 20008 then either",
		"allocations/tcp/20004: it was reserved (the office VPN), and is held by ssh of environment m by now",
		"ports/tcp/20006: the port is held by ssh of environment o by now",
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
	expected := maps.Clone(now)
	maps.Copy(expected, map[string]string{
		"routes/www": "then", "envs/a": then["envs/a"], "allocations/tcp/20000": held("a"), "ports/tcp/20000": mapped("a"),
		"allocations/tcp/20005": then["allocations/tcp/20005"],
		"allocations/tcp/20007": `{"env":"a","service":"ssh",` + since + `,"released":"2026-11-02T12:00:00Z","until":"2026-11-02T12:10:00Z"}`,
	})
	delete(expected, "ports/tcp/20007")
	if diff := cmp.Diff(expected, wanted); diff != "" {
		t.Error(diff)
	}
	// With prune those end that were not there, and make room.
	wanted, left = envs.Restore(now, then, at, true)
	if len(left) != 3 || wanted["envs/b"] != then["envs/b"] || wanted["ports/tcp/20006"] != then["ports/tcp/20006"] || wanted["envs/n"]+wanted["routes/new"]+wanted["envs/m"] != "" {
		t.Errorf("%v, %v", left, wanted)
	}
	if got := wanted["allocations/tcp/20006"]; !strings.Contains(got, `"env":"o"`) || !strings.Contains(got, `"released"`) {
		t.Errorf("the port of an environment that ended does not rest: %s", got)
	}
}
