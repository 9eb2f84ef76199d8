package upstream_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
)

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := upstream.NewDialer(upstream.Config{})
		b := httpBackend(t, `{"targets":["10.0.0.1:80"],"retry":{"budget":20,"min_per_second":1}}`)
		a, err := d.AttemptFor(b, nil, upstream.Asker{})
		if err != nil {
			t.Fatal(err)
		}
		retries := func() (n int) {
			for a.MayRetry(time.Now()) {
				n++
			}
			return n
		}
		if n := retries(); n != 10 {
			t.Errorf("without requests: %d retries in ten seconds, want 10", n)
		}
		for range 500 {
			a.Ask(time.Now())
		}
		if n := retries(); n != 90 {
			t.Errorf("after 500 requests: %d more retries, want 90", n)
		}
		time.Sleep(5 * time.Second)
		if n := retries(); n != 0 {
			t.Errorf("five seconds later: %d retries, want none", n)
		}
		for range 100 {
			a.Ask(time.Now())
		}
		if n := retries(); n != 20 {
			t.Errorf("after 100 more: %d retries, want 20", n)
		}
		time.Sleep(5 * time.Second) // the first 500 are forgotten, with their retries
		if n := retries(); n != 0 {
			t.Errorf("100 requests and 20 retries are left: %d more, want none", n)
		}
		time.Sleep(10 * time.Second)
		if n := retries(); n != 10 {
			t.Errorf("with all forgotten: %d retries, want 10", n)
		}
		// Another backend has a budget of its own.
		other, err := d.AttemptFor(httpBackend(t, `{"targets":["10.0.0.1:80"],"retry":true}`), nil, upstream.Asker{})
		if err != nil || !other.MayRetry(time.Now()) {
			t.Errorf("another backend has no budget (%v)", err)
		}
	})
}

// TestBudgetHoldsUnderConcurrency wants not one too many allowed.
func TestBudgetHoldsUnderConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that no second ends
		d := upstream.NewDialer(upstream.Config{})
		b := httpBackend(t, `{"targets":["10.0.0.1:80"],"retry":{"budget":50,"min_per_second":1}}`)
		a, err := d.AttemptFor(b, nil, upstream.Asker{})
		if err != nil {
			t.Fatal(err)
		}
		for range 400 {
			a.Ask(time.Now())
		}
		var allowed atomic.Int64
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 100 {
					if a.MayRetry(time.Now()) {
						allowed.Add(1)
					}
				}
			})
		}
		all.Wait()
		for a.MayRetry(time.Now()) { // what a race refused too much
			allowed.Add(1)
		}
		if n := allowed.Load(); n != 200 {
			t.Errorf("%d were allowed, want 200 of 400", n)
		}
	})
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := upstream.NewDialer(upstream.Config{})
		b := httpBackend(t, `{"targets":["10.0.0.1:80","10.0.0.2:80"],"eject":{"failures":3,"time":"10s","max_time":"30s"}}`)
		// exchange has target 1 judged, if it is the one that is taken.
		exchange := func(failed bool) (at int) {
			at, a := take(t, d, b, upstream.Asker{})
			a.Judge(failed && at == 1)
			a.Done()
			return at
		}
		isOut := func() bool {
			for range 4 {
				if exchange(false) == 1 {
					return false
				}
			}
			return true
		}
		fail := func(times int) {
			for times > 0 {
				if exchange(true) == 1 {
					times--
				}
			}
		}
		fail(2)
		if isOut() { // and that was a success
			t.Fatal("out after two failures")
		}
		fail(2)
		if isOut() {
			t.Fatal("out after two failures, a success, and two failures")
		}
		fail(3)
		if !isOut() {
			t.Fatal("not out after three failures in a row")
		}
		// One failure after its time is enough for twice the time, up to the most.
		for _, length := range []time.Duration{10, 20, 30, 30} {
			time.Sleep(length*time.Second - time.Millisecond)
			if !isOut() {
				t.Fatalf("back before %d s were over", length)
			}
			time.Sleep(2 * time.Millisecond)
			fail(1)
			if !isOut() {
				t.Fatalf("not out again after %d s and a failure", length)
			}
		}
		time.Sleep(61 * time.Second) // out, and then well for as long
		if isOut() {
			t.Fatal("not back")
		}
		fail(2)
		if isOut() {
			t.Fatal("two failures are held against it, long after it was well")
		}
	})
}

// TestEjectionOfAll wants all targets used where all are out.
func TestEjectionOfAll(t *testing.T) {
	for _, balance := range []string{"round_robin", "least_requests", "p2c", "source_hash"} {
		synctest.Test(t, func(t *testing.T) {
			d := upstream.NewDialer(upstream.Config{})
			b := httpBackend(t, `{"balance":"`+balance+`","targets":`+targetsOf(1, 1, 1)+`,"eject":{"failures":1}}`)
			for range 3 {
				_, a := take(t, d, b, upstream.Asker{})
				a.Judge(true)
				a.Done()
			}
			counts := [4]int{}
			for i := range 3000 {
				at, a := take(t, d, b, upstream.Asker{Client: clientAddr(i)})
				counts[at]++
				a.Done()
			}
			for at, n := range counts[1:] {
				if !near(n, 3000, 1./3) {
					t.Errorf("%s: target %d of three that are out got %d of 3000", balance, at+1, n)
				}
			}
		})
	}
}

func TestAgain(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	b := httpBackend(t, `{"balance":"least_requests","targets":["10.0.0.1:80","10.0.0.2:80"]}`)
	a, err := d.AttemptFor(b, nil, upstream.Asker{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		seen := map[string]bool{}
		for {
			ep, ok := a.NextTarget()
			if !ok {
				break
			}
			a.Again() // which is too early, unless it is the last
			seen[ep.Host] = true
			if len(seen) == 2 {
				break
			}
		}
		if len(seen) != 2 {
			t.Fatalf("tried %v, want each target once", seen)
		}
	}
	a.Done()
	a.Again()
	if _, ok := a.NextTarget(); ok {
		t.Error("there is a target after Done")
	}
	for ep, n := range d.Loads() {
		if n != 0 {
			t.Errorf("%v counts %d flows, and all are over", ep, n)
		}
	}
}
