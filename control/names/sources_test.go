package names_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The next leader cannot resolve a source at first, or not connect at once: what is
// published stays until it is known to be gone.
func TestNextLeaderDoesNotDropSourcesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, &zone{name: "x.test"})
		var mu sync.Mutex
		var lookup, refused error
		c.resolve = func(_ context.Context, name string) ([]netip.Addr, time.Duration, error) {
			mu.Lock()
			defer mu.Unlock()
			if name == "b.example.com" {
				return []netip.Addr{addr("192.0.2.2")}, 20 * time.Second, nil
			}
			return []netip.Addr{addr("192.0.2.1")}, 20 * time.Second, lookup
		}
		c.dial = func(_ context.Context, at netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			if at.Addr() == addr("192.0.2.1") {
				return refused
			}
			return nil
		}
		set := func(l, r error) {
			mu.Lock()
			defer mu.Unlock()
			lookup, refused = l, r
		}
		name := spec(t, edge, `{"sources":["a.example.com","b.example.com"],"port":443}`)
		next := func() {
			c.stop()
			c.lead(c.zone, name)
		}
		c.lead(c.zone, name)
		wait(time.Second)
		c.has("at first", edge, 1, 2)
		set(&net.DNSError{Err: "no name server answers", Name: "a.example.com", IsTimeout: true}, nil)
		next()
		wait(time.Minute)
		c.has("while a source cannot be resolved", edge, 1, 2)
		c.verdictHas(edge, "waiting: the source a.example.com cannot be resolved yet", "no name server answers")
		set(nil, errRefused)
		next()
		wait(time.Second)
		c.has("after one failed connection", edge, 1, 2)
		set(nil, nil)
		wait(10 * time.Second)
		c.has("after a connection", edge, 1, 2)
		set(nil, errRefused)
		next()
		wait(5 * time.Second)
		c.has("after two failed connections", edge, 2)
		set(nil, nil)
		wait(10 * time.Second)
		c.has("when it takes connections again", edge, 1, 2)
		set(&net.DNSError{Err: "no such host", Name: "a.example.com", IsNotFound: true}, nil)
		next()
		wait(5 * time.Second)
		c.has("when there is no such source", edge, 2)
		c.stop()
	})
}
