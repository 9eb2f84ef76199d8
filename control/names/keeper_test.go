package names_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/names"
	"github.com/remotegpu/sluice/router"
)

// store is etcd in memory.
type store struct {
	mu    sync.Mutex // guards the following
	keys  map[string]etcd.KV
	rev   int64
	term  int
	moved chan struct{} // closed with each change
	past  []etcd.Change
}

func newStore() *store { return &store{keys: map[string]etcd.KV{}, rev: 1, moved: make(chan struct{})} }

func (s *store) put(key, value string, deleted bool) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev++
	if delete(s.keys, key); !deleted {
		s.keys[key] = etcd.KV{Key: key, Value: []byte(value), ModRev: s.rev}
	}
	s.past = append(s.past, etcd.Change{Key: key, Value: []byte(value), Deleted: deleted, ModRev: s.rev})
	close(s.moved)
	s.moved = make(chan struct{})
	return s.rev
}

func (s *store) get(key string) (etcd.KV, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kv, ok := s.keys[key]
	return kv, ok
}

func (s *store) ReadUnder(_ context.Context, folder string, _ int64) ([]etcd.KV, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []etcd.KV
	for key, kv := range s.keys {
		if strings.HasPrefix(key, folder) {
			all = append(all, kv)
		}
	}
	return all, s.rev, nil
}

func (s *store) Follow(ctx context.Context, folders []string, rev int64, each func([]etcd.Change) (bool, error)) error {
	for {
		s.mu.Lock()
		var news []etcd.Change
		for _, c := range s.past {
			if c.ModRev > rev && strings.HasPrefix(c.Key, folders[0]) {
				news = append(news, c)
			}
		}
		rev = s.rev
		moved := s.moved
		s.mu.Unlock()
		if len(news) > 0 {
			if done, err := each(news); done || err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// fence is the term of one leader.
type fence struct {
	s *store
	n int
}

func (f fence) Commit(_ context.Context, writes []etcd.Write) (int64, error) {
	f.s.mu.Lock()
	deposed := f.s.term != f.n
	for _, w := range writes {
		deposed = deposed || w.Since != 0 && f.s.keys[w.Key].ModRev != w.Since
	}
	f.s.mu.Unlock()
	if deposed {
		return 0, etcd.ErrDeposed
	}
	var rev int64
	for _, w := range writes {
		rev = f.s.put(w.Key, w.Value, w.Delete)
	}
	return rev, nil
}

// cluster is a keeper that leads, and what it depends on.
type cluster struct {
	t       *testing.T
	store   *store
	zone    *zone
	keeper  *names.Keeper
	stop    func()
	resolve func(context.Context, string) ([]netip.Addr, time.Duration, error)
	dial    func(context.Context, netip.AddrPort) error

	mu       sync.Mutex // guards the following
	members  []names.Member
	complete bool
	moved    chan struct{}
	verdicts map[string]string
}

func newCluster(t *testing.T, z *zone) *cluster {
	return &cluster{t: t, store: newStore(), zone: z, complete: true, moved: make(chan struct{}), verdicts: map[string]string{}}
}

// lead begins a term with these names; provider is the zone, or one around it.
func (c *cluster) lead(provider names.Provider, specs ...*router.PublishedName) {
	c.keeper = names.New(names.Config{
		Node: "hk1", Store: c.store, Providers: map[string]names.Provider{"p": provider}, Logger: slog.New(slog.DiscardHandler),
		Resolve: c.resolve, Dial: c.dial,
		Members: func() ([]names.Member, bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.members, c.complete
		},
		MembersChanged: func() <-chan struct{} {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.moved
		},
		Verdict: func(key string, degraded bool, text string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.verdicts[key] = map[bool]string{true: "degraded: ", false: "applied: "}[degraded] + text
		},
	})
	c.keeper.SetNames(specs)
	ctx, cancel := context.WithCancel(context.Background())
	c.store.mu.Lock()
	c.store.term++
	n := c.store.term
	c.store.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := c.keeper.Lead(ctx, fence{c.store, n}); err != nil {
				time.Sleep(time.Second)
			}
		}
	}()
	c.stop = func() {
		cancel()
		<-done
	}
}

// set says who is there: nodes n1, n2... with one address each, those healthy
// that are named.
func (c *cluster) set(healthy ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = nil
	for i := range 4 {
		m := names.Member{Node: fmt.Sprintf("n%d", i), Addresses: []netip.Addr{addr(fmt.Sprintf("192.0.2.%d", i))}, Weight: 1, Why: "it does not answer"}
		if m.Healthy = slices.Contains(healthy, i); m.Healthy {
			m.Why = ""
		}
		c.members = append(c.members, m)
	}
	close(c.moved)
	c.moved = make(chan struct{})
}

func (c *cluster) verdict(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verdicts["names/"+name]
}

// has fails the test unless the name has these addresses.
func (c *cluster) has(when, name string, last ...int) {
	c.t.Helper()
	var want []string
	for _, i := range last {
		want = append(want, fmt.Sprintf("192.0.2.%d", i))
	}
	if got := c.zone.has(name); !slices.Equal(got, want) {
		c.t.Errorf("%s: %s has %v, want %v; verdict %q", when, name, got, want, c.verdict(name))
	}
}

func (c *cluster) verdictHas(name string, parts ...string) {
	c.t.Helper()
	for _, part := range parts {
		if got := c.verdict(name); !strings.Contains(got, part) {
			c.t.Errorf("the verdict on %s is %q, want one with %q", name, got, part)
		}
	}
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// bothWays runs test with a provider that changes records one by one, and with one
// that changes many at a time.
func bothWays(t *testing.T, test func(t *testing.T, c *cluster, p names.Provider)) {
	for _, way := range []string{"one by one", "at once"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := &zone{name: "x.test"}
				c := newCluster(t, z)
				var p names.Provider = z
				if way == "at once" {
					p = swapping{z}
				}
				test(t, c, p)
				if c.stop != nil {
					c.stop()
				}
			})
		})
	}
}

func TestNamesFollowTheNodes(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		c.set(0, 1, 2)
		c.lead(p, spec(t, edge, "{}"), spec(t, "*.env.x.test", `{"ttl":120}`))
		wait(time.Millisecond)
		c.has("at first", edge, 0, 1, 2)
		c.has("at first", "*.env.x.test", 0, 1, 2)
		c.verdictHas(edge, "applied: published 192.0.2.0 192.0.2.1 192.0.2.2 in x.test by p (memory)", "n3 is out: it does not answer")
		c.set(0, 2)
		wait(time.Millisecond)
		c.has("after a death", edge, 0, 2)
		c.set(0, 1, 2)
		wait(time.Millisecond)
		c.has("after its return", edge, 0, 1, 2)
		c.set()
		wait(time.Minute)
		c.has("with nobody healthy", edge, 0, 1, 2)
		c.verdictHas(edge, "degraded: nobody_healthy: what is published stays")
		c.mu.Lock()
		c.complete = false
		c.mu.Unlock()
		c.set(3)
		wait(time.Minute)
		c.has("while nodes are not known", edge, 0, 1, 2)
		c.verdictHas(edge, "degraded: waiting: ")
	})
}

func TestDriftIsMended(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		c.set(0, 1)
		c.lead(p, spec(t, edge, "{}"))
		wait(time.Millisecond)
		c.zone.byHand(func(all []names.Record) []names.Record {
			all = slices.DeleteFunc(all, func(r names.Record) bool { return r.Data == "192.0.2.1" })
			return append(all, a(edge, "203.0.113.9"), names.Record{Name: edge, Type: "MX", Data: "10 mail.x.test"})
		})
		wait(31 * time.Second)
		c.zone.byHand(func(all []names.Record) []names.Record { // what is none of its business is there still
			return slices.DeleteFunc(all, func(r names.Record) bool { return r.Type == "MX" })
		})
		c.has("after a check", edge, 0, 1)
		c.verdictHas(edge, "applied: ", "changed by other hands", "found 192.0.2.0 203.0.113.9 instead of 192.0.2.0 192.0.2.1")
	})
}

func TestWhatIsNotOwnedStaysUntouched(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		c.zone.byHand(func(all []names.Record) []names.Record { return append(all, a(edge, "203.0.113.9")) })
		c.set(0, 1)
		c.lead(p, spec(t, edge, "{}"))
		wait(5 * time.Minute)
		if got := c.zone.has(edge); !slices.Equal(got, []string{"203.0.113.9"}) || len(c.zone.log) > 0 {
			t.Fatalf("it has %v after %v", got, c.zone.log)
		}
		c.verdictHas(edge, "degraded: not_owned: ", "sluice dns apply --adopt edge.x.test")

		rev := c.store.put(names.RequestFolder+edge, names.Request{Adopt: true}.Text(), false)
		wait(time.Millisecond)
		c.has("adopted", edge, 0, 1)
		kv, _ := c.store.get(names.StateFolder + edge)
		if s, err := names.ParseState(kv.Value); err != nil || s.Answered != rev || !s.Owned {
			t.Errorf("the answer is %s, %v", kv.Value, err)
		}
		if _, still := c.store.get(names.RequestFolder + edge); still {
			t.Error("the request that was answered is there still")
		}
	})
}

func TestDryRunChangesNothingUntilItIsApplied(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		c.set(0, 1)
		c.lead(p, spec(t, edge, `{"dry_run":true}`))
		wait(time.Hour)
		c.has("in a dry run", edge)
		c.verdictHas(edge, "applied: published nothing", "to do: +192.0.2.0 +192.0.2.1; dry_run")
		c.store.put(names.RequestFolder+edge, names.Request{Apply: true}.Text(), false)
		wait(time.Millisecond)
		c.has("applied", edge, 0, 1)
		c.set(0)
		wait(time.Hour)
		c.has("after that", edge, 0, 1)
	})
}

// A node that comes and goes every second ends up outside, and costs no more
// changes than the budget has.
func TestFlappingEndsOutside(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		c.set(0, 1)
		changes := 0
		c.zone.seen = func([]names.Record) { changes++ }
		c.lead(p, spec(t, edge, "{}"))
		wait(time.Millisecond)
		changes = 1 // of several records
		const length = 5 * time.Minute
		inside := 0
		for i := range int(length / time.Second) {
			if wait(time.Second); i%2 == 0 {
				c.set(0)
			} else {
				c.set(0, 1)
			}
			wait(time.Millisecond)
			if i%2 == 0 && slices.Contains(c.zone.has(edge), "192.0.2.1") {
				inside++
			}
		}
		if most := 5 + int(length/(15*time.Second)); changes > most {
			t.Errorf("%d changes in %v, want %d at most", changes, length, most)
		}
		if inside > 0 {
			t.Errorf("it was dead and published %d times", inside)
		}
		c.set(0, 1)
		wait(31 * time.Second)
		c.has("when all is quiet", edge, 0, 1)
	})
}

// The next leader goes by what the one before has noted, finishes what that has
// begun, and one that was replaced changes nothing.
func TestTheNextLeaderGoesOn(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		c.set(0, 1)
		c.lead(p, spec(t, edge, "{}"))
		wait(time.Millisecond)
		cluster, _ := c.store.get(names.ClusterKey)
		c.zone.failing(func(op string) error {
			if op == "remove" || op == "swap" {
				return errRefused
			}
			return nil
		})
		c.set(0, 2)
		wait(time.Second)
		c.verdictHas(edge, "degraded: provider_failed: the API refuses")
		c.stop()
		if got := c.verdict(edge); got != "applied: " {
			t.Errorf("who does not lead any more says %q", got)
		}
		c.zone.failing(nil)
		c.lead(p, spec(t, edge, "{}"))
		wait(time.Millisecond)
		c.has("under the next leader", edge, 0, 2)
		if after, _ := c.store.get(names.ClusterKey); string(after.Value) != string(cluster.Value) || len(after.Value) == 0 {
			t.Errorf("the cluster is called %q, and then %q", cluster.Value, after.Value)
		}
		c.store.mu.Lock()
		c.store.term++ // somebody else leads, and nobody told this one
		c.store.mu.Unlock()
		c.set(0)
		wait(time.Minute)
		c.has("under a leader that was replaced", edge, 0, 2)
	})
}

func TestFailuresOfTheProviderAreWaitedOut(t *testing.T) {
	bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
		calls := 0
		c.zone.failing(func(string) error { calls++; return broken{after: 40 * time.Second} })
		c.set(0, 1)
		c.lead(p, spec(t, edge, "{}"), spec(t, "b.x.test", "{}"))
		wait(39 * time.Second)
		if calls != 1 {
			t.Errorf("%d calls while the provider wants to be left alone, want 1", calls)
		}
		c.verdictHas(edge, "degraded: provider_failed: HTTP 503")
		c.zone.failing(nil)
		wait(2 * time.Second)
		c.has("after that", edge, 0, 1)
		c.has("after that", "b.x.test", 0, 1)
		c.verdictHas(edge, "applied: published")
	})
}

// A name that cannot be read is in trouble, and those that are read with it are kept.
func TestOneNameThatCannotBeReadIsAlone(t *testing.T) {
	for _, bad := range []string{"b.x.test", names.Marker("b.x.test", "x.test")} {
		bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
			c.zone.bad = bad
			c.set(0, 1)
			c.lead(p, spec(t, edge, "{}"), spec(t, "b.x.test", "{}"))
			wait(time.Second)
			c.has("at first", edge, 0, 1)
			c.verdictHas(edge, "applied: published")
			c.verdictHas("b.x.test", "degraded: provider_failed: "+bad+" cannot be read")
			wait(10 * time.Minute) // and it does not have the provider rest
			c.set(1)
			wait(time.Second)
			c.has("later", edge, 1)
			c.has("later", "b.x.test")
		})
	}
}

func TestNamesWithoutAProviderSaySo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, &zone{name: "x.test"})
		c.set(0)
		c.lead(c.zone, spec(t, edge, `{"provider":"other"}`), spec(t, "a.y.test", "{}"), spec(t, "b.y.test", `{"zone":"y.test"}`))
		wait(time.Second)
		lacking := func() {
			t.Helper()
			c.verdictHas(edge, "degraded: no_provider: there is no other under dns in the file of hk1, which has p")
			c.verdictHas("a.y.test", "degraded: no_zone: the DNS provider p in the file of hk1 lists no zone that a.y.test is in")
		}
		lacking()
		c.verdictHas("b.y.test", "degraded: provider_failed: no zone y.test")
		at := c.store.put(names.RequestFolder+"a.y.test", "{}", false)
		wait(time.Second)
		kv, _ := c.store.get(names.StateFolder + "a.y.test")
		if s, err := names.ParseState(kv.Value); err != nil || s.Answered != at || !strings.HasPrefix(s.Trouble, "no_zone") {
			t.Errorf("who asks at %d is answered %s", at, kv.Value)
		}
		c.stop()

		// So would this node say whoever leads, and at once.
		lacking()
		c.verdictHas("b.y.test", "applied: ")
		clear(c.verdicts)
		c.keeper.SetNames([]*router.PublishedName{spec(t, edge, `{"provider":"other"}`), spec(t, "a.y.test", "{}")})
		lacking()
		c.keeper.SetNames([]*router.PublishedName{spec(t, edge, `{"provider":"p"}`), spec(t, "a.y.test", "{}")})
		c.verdictHas("a.y.test", "no_zone")
		if got := c.verdict(edge); got != "applied: " {
			t.Errorf("of a name whose provider there is by now: %q", got)
		}
	})
}

func TestSourcesAreResolvedProbedAndPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, &zone{name: "x.test"})
		var mu sync.Mutex
		is := map[string][]netip.Addr{"a.example.com": {addr("192.0.2.0"), addr("192.0.2.1")}, "b.example.com": {addr("192.0.2.2")}}
		down := map[string]bool{}
		c.resolve = func(_ context.Context, name string) ([]netip.Addr, time.Duration, error) {
			mu.Lock()
			defer mu.Unlock()
			if is[name] == nil {
				return nil, 0, fmt.Errorf("no such host")
			}
			return is[name], 20 * time.Second, nil
		}
		c.dial = func(_ context.Context, at netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			if at.Port() != 443 || down[at.Addr().String()] {
				return errRefused
			}
			return nil
		}
		c.lead(c.zone, spec(t, edge, `{"sources":["a.example.com","b.example.com"],"port":443}`))
		wait(time.Second)
		c.has("at first", edge, 0, 1, 2)
		mu.Lock()
		down["192.0.2.1"] = true
		mu.Unlock()
		wait(8 * time.Second)
		c.has("when one takes no connections", edge, 0, 2)
		c.verdictHas(edge, "192.0.2.1:443 of a.example.com is out: the API refuses")
		mu.Lock()
		is["b.example.com"] = []netip.Addr{addr("192.0.2.3")}
		is["a.example.com"] = nil
		clear(down)
		mu.Unlock()
		wait(21 * time.Second)
		c.has("with another address, and a source that does not resolve", edge, 0, 1, 3)
		c.verdictHas(edge, "a.example.com cannot be resolved: no such host")
		c.stop()
	})
}

// TestWhateverHappens has nodes, the provider, other people, and leaders do what
// they like, and watches what resolvers could see after each single change.
func TestWhateverHappens(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range uint64(30) {
		bothWays(t, func(t *testing.T, c *cluster, p names.Provider) {
			whateverHappens(t, c, p, rand.New(rand.NewPCG(seed, round)))
		})
	}
}

func whateverHappens(t *testing.T, c *cluster, p names.Provider, r *rand.Rand) {
	t.Helper()
	const foreign = "theirs.x.test"
	c.zone.byHand(func(all []names.Record) []names.Record { return append(all, a(foreign, "203.0.113.9")) })
	specs := []*router.PublishedName{spec(t, edge, "{}"), spec(t, foreign, "{}"), spec(t, "*.x.test", `{"interval":"5s"}`)}
	var mu sync.Mutex
	var fails float64
	chance := rand.New(rand.NewPCG(r.Uint64(), r.Uint64())) // of the provider's goroutine
	published, ever := map[string]bool{}, map[string]bool{}
	c.zone.failing(func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if chance.Float64() >= fails {
			return nil
		}
		if chance.IntN(2) == 0 {
			return broken{}
		}
		return errRefused
	})
	c.zone.seen = func(records []names.Record) {
		mu.Lock()
		defer mu.Unlock()
		of := map[string][]string{}
		for _, rec := range records {
			if rec.IsAddress() {
				of[rec.Name] = append(of[rec.Name], rec.Data)
				if rec.Name != foreign && !ever[rec.Data] {
					t.Errorf("%s has %s, which nobody ever wanted", rec.Name, rec.Data)
				}
			}
		}
		if !slices.Equal(of[foreign], []string{"203.0.113.9"}) {
			t.Errorf("the records of somebody else are %v", of[foreign])
		}
		for _, s := range specs {
			if published[s.Name] && len(of[s.Name]) == 0 {
				t.Errorf("%s is left without an address", s.Name)
			}
			published[s.Name] = published[s.Name] || len(of[s.Name]) > 0
		}
	}
	pick := func() (healthy []int) {
		for i := range 4 {
			if r.IntN(3) > 0 {
				mu.Lock()
				ever[fmt.Sprintf("192.0.2.%d", i)] = true
				mu.Unlock()
				healthy = append(healthy, i)
			}
		}
		return healthy
	}
	c.set(pick()...)
	c.lead(p, specs...)
	for range 60 {
		switch r.IntN(6) {
		case 0, 1, 2:
			healthy := pick()
			c.set(healthy...)
		case 3:
			mu.Lock()
			fails = []float64{0, 0.3, 1}[r.IntN(3)]
			mu.Unlock()
		case 4:
			c.stop()
			c.lead(p, specs...)
		}
		wait(time.Duration(r.IntN(20000)) * time.Millisecond)
	}
	mu.Lock()
	fails = 0
	mu.Unlock()
	mu.Lock()
	ever["192.0.2.0"] = true
	mu.Unlock()
	last := append(pick(), 0)
	slices.Sort(last)
	last = slices.Compact(last)
	c.set(last...)
	wait(10 * time.Minute)
	c.has("in the end", edge, last...)
	c.has("in the end", "*.x.test", last...)
}
