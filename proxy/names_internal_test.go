package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/router"
)

// namesRig is a backendNames with name servers and listeners of the test. Its
// methods are for use within a bubble of synctest.
type namesRig struct {
	*backendNames
	t     *testing.T
	build router.Builder
	table *router.Table

	mu      sync.Mutex // guards the following fields
	answers map[string]string
	asked   int
	busy    int
	busiest int
	states  map[string]string // as told last, "" for nothing wrong
	tells   int
}

func newNamesRig(t *testing.T) *namesRig {
	r := &namesRig{backendNames: newBackendNames(), t: t, table: &router.Table{}, answers: map[string]string{}, states: map[string]string{}}
	r.resolve = r.answer
	r.own = netip.Addr.IsLoopback
	r.loop = func(m *router.Mapping, lookup func(string) []netip.Addr) *router.Loop {
		return router.Chains{Own: r.own, Mapping: r.build.Mapping, Lookup: lookup}.Loop(m)
	}
	r.tell = func(key string, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tells++
		r.states[key] = ""
		if err != nil {
			r.states[key] = err.Error()
		}
	}
	return r
}

// answer takes a tenth of a second.
func (r *namesRig) answer(ctx context.Context, name string) ([]netip.Addr, error) {
	r.mu.Lock()
	r.asked++
	r.busy++
	r.busiest = max(r.busiest, r.busy)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.busy--
		r.mu.Unlock()
	}()
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if addr := r.answers[name]; addr != "" {
		return []netip.Addr{netip.MustParseAddr(addr)}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, Server: "192.0.2.53:53", IsNotFound: true}
}

func (r *namesRig) set(name, addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[name] = addr
}

func (r *namesRig) questions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// put puts mappings without applying them.
func (r *namesRig) put(port int, value string) {
	r.t.Helper()
	m, err := router.ParseMapping(router.TCP, port, []byte(value))
	if err != nil {
		r.t.Fatal(err)
	}
	r.build.SetMapping(m)
}

func (r *namesRig) applied() {
	was := r.table
	r.table = r.build.Table(was.Rev + 1)
	r.apply(r.table, was)
}

// want wants the last report on a port to hold text; "none": there was none.
func (r *namesRig) want(port int, text string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	got, told := r.states[router.MappingKey(router.TCP, port)]
	if !told {
		got = "none"
	}
	if text == "" && got != "" || !strings.Contains(got, text) {
		r.t.Errorf("port %d: the report is %q, want %q", port, got, text)
	}
}

// inBubble runs f with a rig that is stopped afterwards.
func inBubble(t *testing.T, f func(t *testing.T, r *namesRig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newNamesRig(t)
		defer r.stop()
		f(t, r)
	})
}

func TestNameThatDoesNotResolve(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		r.put(1, "web.x.test:80")
		r.put(2, `{"backend": "192.0.2.1:22", "http": ["192.0.2.1:80", "web.x.test:80"]}`)
		r.put(3, "192.0.2.1:22")
		r.applied()
		r.want(1, "none") // until it was looked up
		time.Sleep(200 * time.Millisecond)
		r.want(1, "backend_unresolved: backend: web.x.test does not resolve: no such host (asked 192.0.2.53:53); correct it, or have it resolve")
		r.want(2, "backend_unresolved: http: web.x.test does not resolve: ")
		r.want(3, "none")

		r.put(4, "web.x.test:81") // of which this is known
		r.applied()
		r.want(4, "backend_unresolved: backend: web.x.test does not resolve")
		r.put(2, "192.0.2.1:22")
		r.applied()
		r.want(2, "")

		r.set("web.x.test", "192.0.2.7")
		time.Sleep(nameRetryMax * 9 / 8)
		r.want(1, "")
		r.want(4, "")

		r.set("web.x.test", "") // and it goes again
		time.Sleep(nameRecheck * 5 / 4)
		r.want(1, "does not resolve")
		r.want(2, "")
	})
}

// TestNamesOfRoutes tells of routes what it tells of mappings, as they come, are
// edited and go.
func TestNamesOfRoutes(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		put := func(name, value string) {
			t.Helper()
			route, err := router.ParseRoute(name, []byte(value))
			if err != nil {
				t.Fatal(err)
			}
			r.build.SetRoute(route)
			r.applied()
			time.Sleep(200 * time.Millisecond)
		}
		want := func(key, text string) {
			t.Helper()
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			if got, told := r.states[key]; told != (text != "none") || told && (text == "" && got != "" || !strings.Contains(got, text)) {
				t.Errorf("of %s was told %q (%t), want %q", key, got, told, text)
			}
		}
		put("ip", `{"host":"a.b","backend":"192.0.2.1:80"}`)
		put("web", `{"host":"a.b","backend":["192.0.2.1:80","web.x.test:80"]}`)
		put("auth", `{"host":"a.b","backend":"192.0.2.1:80","forward_auth":{"backend":"auth.x.test:80"}}`)
		put("any", `{"host":"~^(?<id>[a-z]+)$","backend":"${id}:80"}`)
		want("routes/ip", "none")
		want("routes/any", "none")
		want("routes/web", "backend_unresolved: backend: web.x.test does not resolve: no such host")
		want("routes/auth", "backend_unresolved: forward_auth.backend: auth.x.test does not resolve")

		put("auth", `{"host":"a.b","backend":"192.0.2.1:80"}`) // which has no name any more
		want("routes/auth", "")
		r.set("web.x.test", "127.0.0.1") // of routes nobody asks for a loop of mappings
		time.Sleep(nameRetryMax * 9 / 8)
		want("routes/web", "")
		put("web", `{"host":"a.b","backend":"other.x.test:80"}`)
		want("routes/web", "other.x.test does not resolve")
		r.build.DeleteRoute("web")
		r.applied()
		want("routes/web", "")
		asked := r.questions()
		time.Sleep(time.Hour)
		if r.questions() != asked {
			t.Error("names are looked up that no route has")
		}
	})
}

// TestPutAgainIsLookedUpAtOnce has whoever mended a name not wait for the
// next of the tries, which are far apart by then.
func TestPutAgainIsLookedUpAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		r.put(1, "web.x.test:80")
		r.applied()
		time.Sleep(time.Hour)
		r.want(1, "does not resolve")
		r.set("web.x.test", "192.0.2.7")
		r.put(1, `{"backend": "web.x.test:80", "env": "abc"}`)
		r.applied()
		r.want(1, "does not resolve")
		time.Sleep(200 * time.Millisecond)
		r.want(1, "")
	})
}

func TestFailingNameIsTriedWithBackOff(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		r.put(1, "web.x.test:80")
		r.applied()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := r.questions(); got < 18 || got > 26 {
			t.Errorf("asked %d times in ten minutes, want about 20 and a few at the beginning", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.tells != 1 {
			t.Errorf("told %d times what was no news", r.tells)
		}
	})
}

func TestManyMappingsOfOneName(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		r.set("web.x.test", "192.0.2.7")
		for port := 1; port <= 10000; port++ {
			if port%2 == 0 {
				r.put(port, "web.x.test:80")
			} else {
				r.put(port, "192.0.2.1:22")
			}
		}
		r.applied()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.questions(); got != 1 {
			t.Errorf("asked %d times for one name", got)
		}
		if r.tells != 0 {
			t.Errorf("told %d times that nothing is wrong", r.tells)
		}
	})
}

func TestManyNamesAreNotAskedForAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		const names = 2000
		for port := 1; port <= names; port++ {
			if port%10 != 0 { // the others do not resolve
				r.set(fmt.Sprintf("web-%d.x.test", port), "192.0.2.7")
			}
			r.put(port, fmt.Sprintf("web-%d.x.test:80", port))
		}
		r.applied()
		time.Sleep(names/namesAtOnce*100*time.Millisecond + time.Second)
		r.want(10, "does not resolve")
		r.want(names, "does not resolve")
		r.want(9, "none")
		if r.busiest > namesAtOnce {
			t.Errorf("%d look-ups at once, want at most %d", r.busiest, namesAtOnce)
		}
		before := r.questions()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// Every name is asked for again and again, and all together not more
		// often than they should be.
		if got, most := r.questions()-before, int(10*time.Minute/nameSpacing); got > most || got < most*3/4 {
			t.Errorf("asked %d times in ten minutes, want at most %d and not far less", got, most)
		}
	})
}

func TestNamesOfMappingsThatGo(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		r.put(1, "web.x.test:80")
		r.applied()
		synctest.Wait() // being looked up
		r.build.DeleteMapping(router.TCP, 1)
		r.applied()
		time.Sleep(time.Hour)
		r.want(1, "none")
		if got := r.questions(); got != 1 {
			t.Errorf("asked %d times for a name that nobody needs any more", got)
		}
		r.put(1, "web.x.test:80") // in place of itself, the first look-up still under way
		r.applied()
		synctest.Wait()
		r.build.DeleteMapping(router.TCP, 1)
		r.applied()
		r.put(1, "web.x.test:80")
		r.applied()
		time.Sleep(time.Second)
		r.want(1, "does not resolve")
		if len(r.byName) != 1 || len(r.told) != 1 {
			t.Errorf("%d names and %d reports are kept, want one of each", len(r.byName), len(r.told))
		}
		r.build.DeleteMapping(router.TCP, 1)
		r.applied()
		if len(r.byName) != 0 || len(r.told) != 0 {
			t.Errorf("%d names and %d reports are kept of mappings that are gone", len(r.byName), len(r.told))
		}
	})
}

func TestNameOfThisNode(t *testing.T) {
	inBubble(t, func(t *testing.T, r *namesRig) {
		r.set("self.x.test", "127.0.0.1")
		r.put(1, "self.x.test:1")
		r.put(2, "self.x.test:22") // which is no mapping
		r.put(3, "self.x.test:4")
		r.put(4, "self.x.test:3")
		r.applied()
		time.Sleep(time.Second)
		r.want(1, "backend.targets[0].address: self.x.test:1 is this very port of this node")
		r.want(2, "none")
		r.want(3, "self.x.test:4 is a mapped port of this node that leads back here (tcp/3 to tcp/4 to tcp/3)")
		r.want(4, "(tcp/4 to tcp/3 to tcp/4)")

		r.put(4, "192.0.2.1:22")
		r.applied()
		r.want(4, "")
		time.Sleep(nameRecheck * 5 / 4)
		r.want(3, "")
		r.set("self.x.test", "192.0.2.1") // it has moved
		time.Sleep(nameRecheck * 5 / 4)
		r.want(1, "")
	})
}

func TestStopEndsLookUps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newNamesRig(t)
		for port := 1; port <= 100; port++ {
			r.put(port, fmt.Sprintf("web-%d.x.test:80", port))
		}
		r.applied()
		synctest.Wait()
		r.stop()
		r.stop() // harmless
		if r.busy != 0 {
			t.Errorf("%d look-ups are under way", r.busy)
		}
		r.put(101, "late.x.test:80")
		r.applied()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := r.questions(); got != namesAtOnce {
			t.Errorf("asked %d times, want %d before the stop and none later", got, namesAtOnce)
		}
	}) // and no goroutine is left in the bubble
}

func TestPortStates(t *testing.T) {
	const key = "ports/tcp/1"
	var last error
	s := newPortStates(func(k string, err error) {
		if k != key {
			t.Errorf("told of %s", k)
		}
		last = err
	})
	busy, unknown := errors.New("port_busy"), errors.New("does not resolve")
	for i, step := range []struct {
		do   func()
		want error
	}{
		{func() { s.port(key, nil) }, nil},
		{func() { s.backend(key, unknown) }, unknown},
		{func() { s.port(key, busy) }, busy},
		{func() { s.backend(key, nil) }, busy},
		{func() { s.backend(key, unknown) }, busy},
		{func() { s.port(key, nil) }, unknown},
		{func() { s.backend(key, nil) }, nil},
		{func() { s.port(key, busy); s.forget(key); s.backend(key, nil) }, nil},
	} {
		if step.do(); last != step.want {
			t.Errorf("step %d: told %v, want %v", i, last, step.want)
		}
	}
	if len(s.wrong) != 0 {
		t.Errorf("%v is kept of what is right", s.wrong)
	}
}
