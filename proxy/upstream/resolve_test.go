package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDNS answers as its fields say.
type fakeDNS struct {
	mu    sync.Mutex // guards the following fields
	addrs []netip.Addr
	err   error
	delay time.Duration
	asked int
}

func (f *fakeDNS) set(err error, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.addrs = err, nil
	for _, a := range addrs {
		f.addrs = append(f.addrs, netip.MustParseAddr(a))
	}
}

func (f *fakeDNS) questions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fakeDNS) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	f.asked++
	delay, addrs, err := f.delay, slices.Clone(f.addrs), f.err
	f.mu.Unlock()
	select {
	case <-time.After(delay):
		return addrs, err
	case <-ctx.Done():
		return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
	}
}

var (
	errServFail = &net.DNSError{Err: "server misbehaving", Name: "web.x.test", IsTemporary: true}
	errNXDomain = &net.DNSError{Err: "no such host", Name: "web.x.test", IsNotFound: true}
)

type resolverRig struct {
	*testing.T
	dns *fakeDNS
	r   *resolver
	log *strings.Builder
}

func inBubble(t *testing.T, f func(t resolverRig)) {
	synctest.Test(t, func(t *testing.T) {
		rig := resolverRig{T: t, dns: &fakeDNS{}, log: &strings.Builder{}}
		rig.r = newResolver(rig.dns, slog.New(slog.NewTextHandler(rig.log, nil)), newMetrics())
		f(rig)
	})
}

// expect resolves and wants these addresses, or the error, and so many
// questions asked up to now.
func (t resolverRig) expect(when string, questions int, wantErr error, want ...string) {
	t.Helper()
	got, err := t.r.resolve(t.Context(), "Web.x.test")
	if !errors.Is(err, wantErr) || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, %v, want %v, %v", when, got, err, want, wantErr)
	}
	if n := t.dns.questions(); n != questions {
		t.Errorf("%s: %d questions asked, want %d", when, n, questions)
	}
}

func TestResolveRemembers(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1", "::ffff:10.0.0.2", "2001:db8::1")
		t.expect("first", 1, nil, "10.0.0.1", "10.0.0.2", "2001:db8::1")
		t.dns.set(nil, "10.0.0.9")
		time.Sleep(freshFor - 1)
		t.expect("while fresh", 1, nil, "10.0.0.1", "10.0.0.2", "2001:db8::1")
		time.Sleep(1 * time.Nanosecond)
		t.expect("after", 2, nil, "10.0.0.9")
	})
}

func TestResolveServesStale(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.set(errServFail)
		time.Sleep(freshFor)
		t.expect("servers fail", 2, nil, "10.0.0.1")
		t.expect("again", 2, nil, "10.0.0.1")
		time.Sleep(freshFor)
		t.expect("later", 3, nil, "10.0.0.1")
		if n := strings.Count(t.log.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings, want 2:\n%s", n, t.log)
		}
		t.dns.set(nil, "10.0.0.2")
		time.Sleep(freshFor)
		t.expect("servers are back", 4, nil, "10.0.0.2")
		t.dns.set(errServFail)
		time.Sleep(staleFor)
		t.expect("a day later", 5, errServFail)
	})
}

// TestResolveStaleIsQuick has servers that do not answer at all.
func TestResolveStaleIsQuick(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.delay = time.Hour
		time.Sleep(freshFor)
		began := time.Now()
		t.expect("silence", 2, nil, "10.0.0.1")
		if took := time.Since(began); took != staleWait {
			t.Errorf("took %v, want %v", took, staleWait)
		}
		// A flow with less time than that must still get to use the address.
		time.Sleep(freshFor)
		ctx, cancel := context.WithTimeout(t.Context(), staleWait)
		defer cancel()
		if addrs, err := t.r.resolve(ctx, "web.x.test"); err != nil || len(addrs) != 1 || ctx.Err() != nil {
			t.Errorf("with little time: %v, %v, %v", addrs, err, ctx.Err())
		}
	})
}

func TestResolveBelievesNotFound(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.set(errNXDomain)
		time.Sleep(freshFor)
		t.expect("gone", 2, errNXDomain)
		t.dns.set(errServFail)
		time.Sleep(failedFor)
		t.expect("gone, then servers fail", 3, errServFail)
		time.Sleep(failedFor - 1)
		t.expect("failure is fresh", 3, errServFail)
		t.dns.set(nil, "10.0.0.2")
		time.Sleep(1 * time.Nanosecond)
		t.expect("back", 4, nil, "10.0.0.2")
		t.dns.set(nil)
		time.Sleep(freshFor)
		_, err := t.r.resolve(t.Context(), "web.x.test")
		var dns *net.DNSError
		if !errors.As(err, &dns) || !dns.IsNotFound {
			t.Errorf("an empty answer: %v, want not found", err)
		}
	})
}

func TestResolveAsksOnceForAll(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.dns.delay = time.Second
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if addrs, err := t.r.resolve(t.Context(), "web.x.test"); err != nil || len(addrs) != 1 {
					t.Errorf("got %v, %v", addrs, err)
				}
			})
		}
		all.Wait()
		if n := t.dns.questions(); n != 1 {
			t.Errorf("%d questions for 50 flows, want 1", n)
		}
		// With a former answer the others do not even wait.
		time.Sleep(freshFor)
		var asking sync.WaitGroup
		asking.Go(func() { t.expect("asking", 2, nil, "10.0.0.1") })
		synctest.Wait()
		began := time.Now()
		t.expect("meanwhile", 2, nil, "10.0.0.1")
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v, want no time", took)
		}
		asking.Wait()
		if len(t.r.flights) != 0 {
			t.Errorf("%d look-ups left over", len(t.r.flights))
		}
	})
}

// TestResolveHandsOver has the flow that asks leave before there is an answer.
func TestResolveHandsOver(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.dns.delay = 2 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := t.r.resolve(ctx, "web.x.test"); !errors.Is(err, context.Canceled) {
				t.Errorf("the flow that left: %v", err)
			}
		})
		synctest.Wait()
		for range 3 {
			all.Go(func() {
				if addrs, err := t.r.resolve(t.Context(), "web.x.test"); err != nil || len(addrs) != 1 {
					t.Errorf("a flow that stayed: %v, %v", addrs, err)
				}
			})
		}
		impatient, stop := context.WithTimeout(t.Context(), time.Second/2)
		defer stop()
		all.Go(func() {
			if _, err := t.r.resolve(impatient, "web.x.test"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the impatient flow: %v", err)
			}
		})
		time.Sleep(time.Second)
		cancel()
		all.Wait()
		if n := t.dns.questions(); n != 2 {
			t.Errorf("%d questions, want 2", n)
		}
	})
}

func TestResolveTimeout(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.delay = time.Hour
		began := time.Now()
		if _, err := t.r.resolve(t.Context(), "web.x.test"); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took != lookupTimeout {
			t.Errorf("took %v, want %v", took, lookupTimeout)
		}
	})
}

func TestFailuresPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFailures[string]()
		f.remember("a")
		if !f.recent("a") || f.recent("b") {
			t.Error("a failed and b did not")
		}
		if got := f.last([]string{"a", "b", "c"}); !slices.Equal(got, []string{"b", "c", "a"}) {
			t.Errorf("got %v, want a at the end", got)
		}
		time.Sleep(failureMemory)
		if f.recent("a") || !f.until.empty() {
			t.Error("the failure is not forgotten")
		}
		f.remember("a")
		f.forget("a")
		if f.recent("a") || !f.until.empty() {
			t.Error("the success did not count")
		}
	})
}

func TestBoundedHoldsItsBound(t *testing.T) {
	b := &bounded[int, bool]{max: 800, dead: func(dead bool) bool { return dead }}
	const limit = 2*800 + 8 // one more for each that stores at the same time
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range 5000 {
				b.store(w*5000+i, i%2 == 0)
				if n := b.count.Load(); n > limit {
					t.Errorf("%d entries, want at most %d", n, limit)
					return
				}
			}
		})
	}
	all.Wait()
	n := 0
	b.entries.Range(func(any, any) bool { n++; return true })
	if int64(n) != b.count.Load() || n == 0 {
		t.Errorf("%d entries, counted %d", n, b.count.Load())
	}
}

func TestBoundedDropsTheDeadFirst(t *testing.T) {
	b := &bounded[int, bool]{max: 100, dead: func(dead bool) bool { return dead }}
	for i := range 101 {
		b.store(i, i%2 == 1)
	}
	for i := range 101 {
		if _, ok := b.load(i); ok != (i%2 == 0) {
			t.Errorf("entry %d: kept %v", i, ok)
		}
	}
	b.delete(0)
	b.delete(0)
	if n := b.count.Load(); n != 50 {
		t.Errorf("counted %d, want 50", n)
	}
}

func BenchmarkResolveFresh(b *testing.B) {
	dns := &fakeDNS{}
	dns.set(nil, "10.0.0.1")
	r := newResolver(dns, slog.New(slog.DiscardHandler), newMetrics())
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.resolve(b.Context(), "web.x.test"); err != nil {
				b.Error(err)
			}
		}
	})
}
