package certs_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs"
)

// told keeps what routes were told.
type told struct {
	mu    sync.Mutex
	needs map[string]certs.Need
	calls int
}

func (x *told) changed(route string, need certs.Need) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.needs[route] = need
	x.calls++
}

func (x *told) want(t *testing.T, route string, missing bool, text string) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if got, want := x.needs[route], (certs.Need{Missing: missing, Text: text}); got != want {
		t.Errorf("%s was told %+v\nwant %+v", route, got, want)
	}
}

// took returns how often a route was told something since it was last called.
func (x *told) took() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.calls
	x.calls = 0
	return n
}

func TestRouteVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &told{needs: map[string]certs.Need{}}
		c := newCluster(t)
		c.list = []string{"hk1"}
		defer c.close()
		m := c.start("hk1", func(cfg *certs.Config) { cfg.RouteChanged = x.changed })
		m.SetRoutes(map[string][]string{
			"env": {"*.x.test"}, "app": {"app.x.test"}, "both": {"*.x.test", "x.test"}, "none": nil,
			"many": {"a.y.test", "b.y.test", "c.y.test", "d.y.test", "e.y.test"},
		})
		// Told before SetRoutes returned, so that the verdicts have it.
		x.want(t, "env", true, "no_certificate: needs *.x.test; put domains/*.x.test")
		x.want(t, "app", true, "no_certificate: needs app.x.test; put domains/app.x.test")
		x.want(t, "both", true, "no_certificate: needs *.x.test, x.test; put domains/*.x.test, domains/x.test")
		x.want(t, "many", true, "no_certificate: needs a.y.test, b.y.test, c.y.test and 2 more; put domains/a.y.test, domains/b.y.test, domains/c.y.test and 2 more")
		if n := x.took(); n != 4 {
			t.Errorf("told %d times, want once for each that needs something", n)
		}

		c.failing(func(string, string) error { return fmt.Errorf("the zone is not there") })
		c.want("*.x.test")
		after(time.Second)
		x.want(t, "env", true, "no_certificate: *.x.test is being obtained")
		x.want(t, "app", true, "no_certificate: *.x.test is being obtained")
		x.want(t, "both", true, "no_certificate: needs x.test; put domains/x.test")
		after(time.Minute)
		x.want(t, "app", true, "no_certificate: *.x.test could not be obtained yet; see the verdict of domains/*.x.test")
		x.took()
		after(5 * time.Hour)
		if n := x.took(); n > 0 {
			t.Errorf("told %d times more of the same failure", n)
		}
		c.failing(nil)
		after(2 * time.Hour)
		x.want(t, "env", false, "certificate *.x.test")
		x.want(t, "app", false, "certificate *.x.test")

		// An exact certificate is the better one.
		put(t, c.store, "ca", "app.x.test", 90*24*time.Hour)
		after(time.Second)
		x.want(t, "app", false, "certificate app.x.test")
		x.took()
		put(t, c.store, "ca", "*.x.test", 90*24*time.Hour)
		after(time.Second)
		if n := x.took(); n > 0 {
			t.Errorf("told %d times of a renewal", n)
		}

		// Gone with its certificate.
		c.want()
		after(60 * 24 * time.Hour)
		x.want(t, "env", false, "certificate *.x.test")
		after(31 * 24 * time.Hour)
		x.want(t, "env", true, "no_certificate: needs *.x.test; put domains/*.x.test")
		m.SetRoutes(map[string][]string{"env": nil, "app": {"app.x.test"}})
		if _, ok := m.Route("env"); ok {
			t.Error("a route that is gone still needs something")
		}
	})
}

func TestRoutesWithLocalCA(t *testing.T) {
	m, err := certs.New(alone(certs.Config{LocalCA: true, DataDir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	m.SetRoutes(map[string][]string{"app": {"app.x.test"}})
	if need, ok := m.Route("app"); !ok || need != (certs.Need{}) {
		t.Errorf("Route = %+v, %v, want nothing to say: the development CA signs", need, ok)
	}
}

func TestNamesFromRoutes(t *testing.T) {
	for _, tt := range []struct {
		from certs.NamesFromRoutes
		want []string
	}{
		{certs.FromNoRoute, nil},
		{certs.FromRoutesExact, []string{"*.ssh.x.test", "app.x.test", "web.x.test", "x.test"}},
		{certs.FromRoutesWildcard, []string{"*.ssh.x.test", "*.x.test", "x.test"}},
	} {
		t.Run(string(tt.from), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := &told{needs: map[string]certs.Need{}}
				c := newCluster(t)
				c.list = []string{"hk1"}
				defer c.close()
				m := c.start("hk1", func(cfg *certs.Config) {
					cfg.NamesFromRoutes, cfg.RouteChanged = tt.from, x.changed
				})
				m.SetRoutes(map[string][]string{
					"app": {"app.x.test"}, "app-api": {"app.x.test"}, "web": {"web.x.test"}, "apex": {"x.test"}, "ssh": {"*.ssh.x.test"},
					"elsewhere": {"www.other.test"}, "odd": {"a_b.x.test"},
				})
				after(time.Minute)
				want := func(want ...string) {
					t.Helper()
					var got []string
					for _, s := range m.Statuses() {
						if s.State != certs.StateObtained {
							t.Errorf("%v", s)
						}
						got = append(got, s.Name)
					}
					if slices.Sort(got); !slices.Equal(got, want) {
						t.Errorf("%s: obtained %q, want %q", tt.from, got, want)
					}
				}
				want(tt.want...)
				x.want(t, "elsewhere", true, "no_certificate: needs www.other.test; put domains/www.other.test")
				if tt.from == certs.FromNoRoute {
					return
				}
				// One that is listed makes others superfluous.
				m.SetDomains([]certs.Domain{{Name: "*.x.test"}})
				after(time.Minute)
				want("*.ssh.x.test", "*.x.test", "x.test")
				m.SetDomains(nil)
				after(time.Minute)
				want(tt.want...)
				// The last route that needs it lets go of it.
				m.SetRoutes(map[string][]string{"app": nil, "ssh": nil})
				m.SetRoutes(map[string][]string{"web": nil, "apex": {"app.x.test"}})
				after(time.Minute)
				if tt.from == certs.FromRoutesExact {
					want("app.x.test")
				} else {
					want("*.x.test")
				}
				orders := len(c.taken())
				m.SetRoutes(map[string][]string{"app-api": nil, "apex": nil, "odd": nil})
				after(80 * 24 * time.Hour)
				want()
				if more := c.taken(); len(more) > 0 {
					t.Errorf("after %d orders, %v for names that no route needs", orders, more)
				}
			})
		})
	}
}

// An edit of a route costs the same however many routes there are.
func BenchmarkSetRoutes(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m, err := certs.New(alone(certs.Config{}))
			if err != nil {
				b.Fatal(err)
			}
			all := map[string][]string{}
			for i := range n {
				all[fmt.Sprintf("r%d", i)] = []string{fmt.Sprintf("n%d.x.test", i), "*.x.test"}
			}
			m.SetRoutes(all)
			edits := []map[string][]string{{"r1": {"other.x.test"}}, {"r1": {"n1.x.test", "*.x.test"}}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.SetRoutes(edits[i&1])
			}
		})
	}
}
