package certs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

// year is by how much the clocks of these tests' bad nodes are ahead.
const year = 365 * 24 * time.Hour

// failedAhead is what a node has shared, by a clock that is a year ahead, of an
// attempt that failed, after which there is to be a pause.
func failedAhead(t *testing.T, failures int, pause time.Duration) []byte {
	t.Helper()
	then := time.Now().Add(year).UTC()
	data, err := json.Marshal(map[string]any{
		"node": "bad", "began": then.Add(-time.Minute), "ended": then, "failures": failures,
		"err": "tls: the authority's certificate has expired", "failed_at": "bad", "next": then.Add(pause),
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// An attempt of a node whose clock is ahead holds the others back for its pause,
// not until that clock's time.
func TestAttemptByAClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		if _, err := c.store.Swap(t.Context(), certs.AttemptsKey("a.x.test"), 0, failedAhead(t, 3, time.Hour)); err != nil {
			t.Fatal(err)
		}
		c.start("a")
		c.start("b")
		c.want("a.x.test")
		after(50 * time.Minute)
		if got := c.taken(); len(got) != 0 {
			t.Errorf("within the pause: %v", got)
		}
		c.says("a.x.test", "expired", time.Now().Add(10*time.Minute).UTC().Format(time.RFC3339))
		after(20 * time.Minute)
		if got := c.taken(); len(got) != 1 {
			t.Errorf("orders after the pause: %v, want one", got)
		}
		c.served("a.x.test")
		c.says("a.x.test", "obtained until")
		if v, ok := c.store.Peek(certs.AttemptsKey("a.x.test")); ok {
			t.Errorf("left after a success: %s", v.Data)
		}
	})
}

// A node whose clock stays ahead writes again and again; the others still try no
// more often than the pauses let them.
func TestClockThatStaysAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.start("a")
		c.start("b")
		c.failing(func(_, _ string) error { return errors.New("no") })
		c.want("a.x.test")
		key := certs.AttemptsKey("a.x.test")
		for range 24 {
			after(time.Hour)
			v, err := c.store.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.store.Swap(t.Context(), key, v.Rev, failedAhead(t, 20, 6*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		c.taken()
		after(5 * time.Hour)
		if got := c.taken(); len(got) != 0 {
			t.Errorf("within the pause: %v", got)
		}
		after(61 * time.Minute)
		if got := c.taken(); len(got) != 1 {
			t.Errorf("orders after the pause: %v, want one", got)
		}
	})
}

// What a node with a clock a year ahead has noted of an authority keeps nobody
// from ordering and renewing; what one has noted whose clock is right does.
func TestLimitsByAClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := certs.Issuer{
			Name: "a", Orders: certs.Budget{Count: 10, Window: 3 * time.Hour}, Duplicates: certs.Budget{Count: 1, Window: 7 * 24 * time.Hour},
		}
		shared, ctx := certstest.NewStore(), t.Context()
		good, bad := certs.NewLimitsForTest(issuer, shared), certs.NewLimitsForTest(issuer, shared)
		bad.SetNow(func() time.Time { return time.Now().Add(year) })
		for _, err := range []error{
			bad.Take(ctx, "x.test", false), bad.Done(ctx, "x.test"), bad.Refused(ctx, "", time.Now().Add(year+time.Hour), "too many"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if left, until := good.Survey(); left != 10 || !until.IsZero() {
			t.Errorf("before anything is read: %d orders left, none until %v", left, until)
		}
		if err := good.Stopped(ctx, "x.test"); err != nil {
			t.Error("stopped: ", err)
		}
		if left, until := good.Survey(); left != 10 || !until.IsZero() {
			t.Errorf("%d orders left, none until %v; want 10, and any time", left, until)
		}
		for i := range 10 {
			if err := good.Take(ctx, "x.test", true); err != nil {
				t.Fatalf("order %d: %v", i, err)
			}
		}
		limited(t, good.Take(ctx, "x.test", true))
		if err := good.Done(ctx, "x.test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		limited(t, good.Take(ctx, "x.test", true))
		if err := good.Take(ctx, "y.test", true); err != nil {
			t.Error(err)
		}
	})
}

// away is storage that answers nobody, which takes its callers ten seconds to
// find out.
type away struct{ asked chan struct{} }

func (a away) Get(ctx context.Context, _ string) (certs.Value, error) {
	a.asked <- struct{}{}
	select {
	case <-time.After(10 * time.Second):
		return certs.Value{}, errors.New("no answer within 10s")
	case <-ctx.Done():
		return certs.Value{}, ctx.Err()
	}
}

func (away) Swap(context.Context, string, int64, []byte) (int64, error) {
	return 0, errors.New("it is away")
}

// While storage does not answer, one attempt waits for it on behalf of all, a
// scrape for nobody, and who is called off for nothing more.
func TestLimitsWhileStorageDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := away{make(chan struct{}, 100)}
		l := certs.NewLimitsForTest(certs.Issuer{Name: "a"}, shared)
		begun, ended := time.Now(), make(chan time.Duration, 17)
		for range 16 {
			go func() {
				l.Stopped(t.Context(), "x.test")
				ended <- time.Since(begun)
			}()
		}
		synctest.Wait()
		l.Survey()
		if took := time.Since(begun); took != 0 {
			t.Errorf("a scrape took %v", took)
		}
		off, cancel := context.WithCancel(t.Context())
		go func() {
			l.Stopped(off, "x.test")
			ended <- time.Since(begun)
		}()
		synctest.Wait()
		cancel()
		if took := <-ended; took != 0 {
			t.Errorf("who was called off waited for %v", took)
		}
		for range 16 {
			if took := <-ended; took > 10*time.Second {
				t.Errorf("an attempt waited for %v", took)
			}
		}
		if n := len(shared.asked); n != 1 {
			t.Errorf("%d asked, want one for all", n)
		}
	})
}

// A client is given a wildcard that holds rather than an exact certificate that
// has expired; once nothing holds, the exact one again.
func TestExpiredExactBesideAWildcard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		put(t, c.store, "ca", "*.x.test", 3*24*time.Hour)
		put(t, c.store, "ca", "a.x.test", 24*time.Hour)
		c.failing(func(_, _ string) error { return errors.New("no") })
		n := c.start("a")
		c.want("a.x.test", "*.x.test")
		for _, step := range []struct {
			pass time.Duration
			want string
		}{{time.Hour, "a.x.test"}, {24 * time.Hour, "*.x.test"}, {48 * time.Hour, "a.x.test"}} {
			after(step.pass)
			cert, err := n.GetCertificate(hello("a.x.test"))
			if err != nil {
				t.Fatal(err)
			}
			if got := cert.Leaf.DNSNames[0]; got != step.want {
				t.Errorf("at %v: %s is served, want %s", time.Now(), got, step.want)
			}
		}
	})
}

// New names that are turned away by the thousand do not stand before renewals.
func TestCrowdDelaysNoRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := certs.Issuer{Name: "a", Orders: certs.Budget{Count: 300, Window: 3 * time.Hour}}
		l := certs.NewLimitsForTest(issuer, certstest.NewStore())
		ctx := t.Context()
		for i := range 270 {
			if err := l.Take(ctx, fmt.Sprintf("n%d.x.test", i), false); err != nil {
				t.Fatal(err)
			}
		}
		var until time.Time
		for i := range 10_000 {
			until = limited(t, l.Take(ctx, fmt.Sprintf("m%d.x.test", i), false))
		}
		if wait := time.Until(until); wait > 3*time.Hour {
			t.Errorf("a new name waits %v, want no longer than for the whole budget", wait)
		}
		for i := range 30 {
			if err := l.Take(ctx, fmt.Sprintf("r%d.x.test", i), true); err != nil {
				t.Fatal(err)
			}
		}
		if wait := time.Until(limited(t, l.Take(ctx, "r.x.test", true))); wait > time.Minute {
			t.Errorf("the next renewal has its turn in %v; one order is there again in 36 s", wait)
		}
	})
}
