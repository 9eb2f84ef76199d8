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
	ttl   time.Duration
	delay time.Duration
	asked int
}

const testTTL = 20 * time.Second

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

func (f *fakeDNS) Lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	f.mu.Lock()
	f.asked++
	delay, addrs, ttl, err := f.delay, slices.Clone(f.addrs), f.ttl, f.err
	f.mu.Unlock()
	select {
	case <-time.After(delay):
		return addrs, ttl, err
	case <-ctx.Done():
		return nil, 0, &net.DNSError{Err: "no answer", Name: host, IsTimeout: true}
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
		rig := resolverRig{T: t, dns: &fakeDNS{ttl: testTTL}, log: &strings.Builder{}}
		rig.r = newResolver(rig.dns, slog.New(slog.NewTextHandler(rig.log, nil)), newMetrics())
		defer rig.r.close()
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

// use resolves, wants these addresses, and waits until what that started has
// asked its question and, if that takes no time, had its answer.
func (t resolverRig) use(want ...string) {
	t.Helper()
	got, err := t.r.resolve(t.Context(), "Web.x.test")
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	synctest.Wait()
}

func TestResolveRemembers(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1", "2001:db8::1")
		t.expect("first", 1, nil, "10.0.0.1", "2001:db8::1")
		t.dns.set(nil, "10.0.0.9")
		time.Sleep(testTTL - 1)
		if addrs, _ := t.r.answers.load("web.x.test"); len(addrs.addrs) != 2 {
			t.Errorf("asked again without being used: %v", addrs)
		}
		time.Sleep(1 * time.Nanosecond)
		t.expect("after the TTL", 2, nil, "10.0.0.9")
	})
}

// TestResolveHoldsTTLInBounds wants neither a question per flow for a TTL of 0
// nor a mistake kept for a day.
func TestResolveHoldsTTLInBounds(t *testing.T) {
	for ttl, holds := range map[time.Duration]time.Duration{
		0: minFresh, 3 * time.Second: 3 * time.Second, 24 * time.Hour: maxFresh,
	} {
		inBubble(t, func(t resolverRig) {
			t.dns.ttl = ttl
			t.dns.set(nil, "10.0.0.1")
			t.expect("first", 1, nil, "10.0.0.1")
			t.dns.set(nil, "10.0.0.2")
			time.Sleep(holds*3/4 - 1)
			t.expect("while fresh", 1, nil, "10.0.0.1")
			time.Sleep(holds/4 + 1)
			t.expect("after", 2, nil, "10.0.0.2")
		})
	}
	for ttl, holds := range map[time.Duration]time.Duration{
		0: minFresh, 3 * time.Second: 3 * time.Second, 24 * time.Hour: maxAbsent,
	} {
		inBubble(t, func(t resolverRig) {
			t.dns.ttl = ttl
			t.dns.set(errNXDomain)
			t.expect("first", 1, errNXDomain)
			t.dns.set(nil, "10.0.0.2")
			time.Sleep(holds - 1)
			t.expect("while it is thought absent", 1, errNXDomain)
			time.Sleep(time.Nanosecond)
			t.expect("after", 2, nil, "10.0.0.2")
		})
	}
}

// TestResolveAsksAhead wants a name in use to be asked for before its time is
// over, with no flow waiting for it.
func TestResolveAsksAhead(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.delay = time.Second
		for i := range 50 {
			addr := fmt.Sprintf("10.0.1.%d", i)
			t.dns.set(nil, addr)
			time.Sleep(testTTL * 3 / 4)
			began := time.Now()
			for range 10 { // one of which has it looked up
				if addrs, err := t.r.resolve(t.Context(), "web.x.test"); err != nil || addrs[0].String() == addr {
					t.Fatalf("round %d: %v, %v", i, addrs, err)
				}
			}
			if took := time.Since(began); took != 0 {
				t.Fatalf("round %d: flows waited for %v", i, took)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			t.expect("then", i+2, nil, addr)
		}
	})
}

func TestResolveServesStale(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.set(errServFail)
		time.Sleep(testTTL)
		t.expect("servers fail", 2, nil, "10.0.0.1")
		t.expect("again", 2, nil, "10.0.0.1")
		for i := range 10 {
			time.Sleep(retryAfter)
			t.use("10.0.0.1") // which asks in the background
			t.expect("then", 3+i, nil, "10.0.0.1")
		}
		if n := strings.Count(t.log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings, want 1:\n%s", n, t.log)
		}
		t.dns.set(nil, "10.0.0.2")
		time.Sleep(retryAfter)
		t.use("10.0.0.1")
		t.expect("and it was asked", 13, nil, "10.0.0.2")
		if n := strings.Count(t.log.String(), "resolves again"); n != 1 {
			t.Errorf("the log does not say that it resolves again:\n%s", t.log)
		}
		t.dns.set(errServFail)
		time.Sleep(staleFor)
		t.expect("a day later", 14, errServFail)
	})
}

// TestResolveStaleEnds has flows use a name all day, none of which resolves it.
func TestResolveStaleEnds(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.set(errServFail)
		since := time.Now()
		for time.Since(since) < staleFor {
			if _, err := t.r.resolve(t.Context(), "web.x.test"); err != nil {
				t.Fatalf("after %v: %v", time.Since(since), err)
			}
			time.Sleep(time.Minute)
		}
		if _, err := t.r.resolve(t.Context(), "web.x.test"); !errors.Is(err, errServFail) {
			t.Errorf("after a day: %v", err)
		}
	})
}

// TestResolveStaleIsQuick has servers that do not answer at all.
func TestResolveStaleIsQuick(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.delay = time.Hour
		// A flow with little time must still get to use the address.
		time.Sleep(testTTL)
		ctx, cancel := context.WithTimeout(t.Context(), staleWait)
		defer cancel()
		if addrs, err := t.r.resolve(ctx, "web.x.test"); err != nil || len(addrs) != 1 || ctx.Err() != nil {
			t.Errorf("with little time: %v, %v, %v", addrs, err, ctx.Err())
		}
		// Then nobody waits any more, though the asking goes on.
		time.Sleep(retryAfter)
		began := time.Now()
		t.use("10.0.0.1")
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		t.expect("meanwhile", 3, nil, "10.0.0.1")
	})
}

func TestResolveBelievesNotFound(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.ttl = 0
		t.dns.set(nil, "10.0.0.1")
		t.expect("first", 1, nil, "10.0.0.1")
		t.dns.set(errNXDomain)
		time.Sleep(minFresh)
		t.expect("gone", 2, errNXDomain)
		t.dns.set(errServFail)
		time.Sleep(minFresh)
		t.expect("gone, then servers fail", 3, errServFail)
		time.Sleep(failedFor - 1)
		t.expect("failure is fresh", 3, errServFail)
		t.dns.set(nil, "10.0.0.2")
		time.Sleep(1 * time.Nanosecond)
		t.expect("back", 4, nil, "10.0.0.2")
		t.dns.set(nil)
		time.Sleep(minFresh)
		_, err := t.r.resolve(t.Context(), "web.x.test")
		var dns *net.DNSError
		if !errors.As(err, &dns) || !dns.IsNotFound {
			t.Errorf("an empty answer: %v, want not found", err)
		}
	})
}

// TestResolveBoundsTheBackground wants no more than so many questions at a time
// that nobody waits for, and none after close.
func TestResolveBoundsTheBackground(t *testing.T) {
	inBubble(t, func(t resolverRig) {
		t.dns.set(nil, "10.0.0.1")
		use := func() {
			for i := range 3 * maxRefreshes {
				if _, err := t.r.resolve(t.Context(), fmt.Sprintf("web-%d.x.test", i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		use()
		t.dns.delay = time.Second
		time.Sleep(testTTL * 3 / 4)
		for round := range 3 {
			use()
			synctest.Wait()
			if got, want := t.dns.questions(), (3+round+1)*maxRefreshes; got != want {
				t.Errorf("round %d: %d questions, want %d", round, got, want)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		t.dns.delay = 0
		time.Sleep(testTTL)
		use() // with the flows waiting, since nobody used them in time
		time.Sleep(testTTL * 3 / 4)
		t.r.close()
		before := t.dns.questions()
		use()
		synctest.Wait()
		if got := t.dns.questions(); got != before {
			t.Errorf("%d questions after close", got-before)
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
		time.Sleep(testTTL)
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
	dns := &fakeDNS{ttl: time.Hour}
	dns.set(nil, "10.0.0.1")
	r := newResolver(dns, slog.New(slog.DiscardHandler), newMetrics())
	defer r.close()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.resolve(b.Context(), "web.x.test"); err != nil {
				b.Error(err)
			}
		}
	})
}
