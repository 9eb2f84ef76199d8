package certs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

// limited returns until when err says that nothing goes.
func limited(t *testing.T, err error) time.Time {
	t.Helper()
	limit, ok := errors.AsType[*certs.LimitError](err)
	if !ok {
		t.Fatalf("error = %v, want a limit", err)
	}
	return limit.Until
}

// The orders of all nodes together keep within the budget; its last tenth is for
// renewals.
func TestBudgetOfACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := certs.Issuer{Name: "a", Orders: certs.Budget{Count: 20, Window: 20 * time.Minute}}
		shared := certstest.NewStore()
		one, two := certs.NewLimitsForTest(issuer, shared), certs.NewLimitsForTest(issuer, shared)
		node := func(i int) *certs.Limits {
			if i%2 == 0 {
				return one
			}
			return two
		}
		ctx := t.Context()
		for i := range 18 {
			if err := node(i).Take(ctx, fmt.Sprintf("n%d.x.test", i), false); err != nil {
				t.Fatalf("order %d: %v", i, err)
			}
		}
		start := time.Now()
		for i := range 3 { // each is given a turn of its own
			until := limited(t, one.Take(ctx, "more.x.test", false))
			if want := start.Add(time.Duration(i+1) * time.Minute); !until.Equal(want) {
				t.Errorf("refusal %d: until %v, want %v", i, until, want)
			}
		}
		for i := range 2 {
			if err := node(i).Take(ctx, "renewed.x.test", true); err != nil {
				t.Errorf("renewal %d: %v", i, err)
			}
		}
		err := two.Take(ctx, "renewed.x.test", true)
		if until := limited(t, err); !until.Equal(start.Add(time.Minute)) || !strings.Contains(err.Error(), "20 orders in 20m0s") {
			t.Errorf("the third renewal: %v", err)
		}
		time.Sleep(20 * time.Minute)
		for i := range 18 {
			if err := node(i).Take(ctx, "again.x.test", false); err != nil {
				t.Fatalf("order %d of the next window: %v", i, err)
			}
		}
	})
}

// Nodes that order at once never spend the same order twice.
func TestBudgetUnderContention(t *testing.T) {
	issuer := certs.Issuer{Name: "a", Orders: certs.Budget{Count: 9, Window: 24 * time.Hour}}
	shared := certstest.NewStore()
	var mu sync.Mutex
	made := 0
	var nodes sync.WaitGroup
	for range 4 {
		l := certs.NewLimitsForTest(issuer, shared)
		for range 8 {
			nodes.Go(func() {
				if err := l.Take(t.Context(), "a.x.test", true); err == nil {
					mu.Lock()
					made++
					mu.Unlock()
				}
			})
		}
	}
	nodes.Wait()
	if made != 9 {
		t.Errorf("%d orders were made, want the 9 of the budget", made)
	}
}

func TestDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := certs.Issuer{Name: "a", Duplicates: certs.Budget{Count: 2, Window: 48 * time.Hour}}
		shared := certstest.NewStore()
		one, two := certs.NewLimitsForTest(issuer, shared), certs.NewLimitsForTest(issuer, shared)
		ctx := t.Context()
		for _, l := range []*certs.Limits{one, two} {
			if err := errors.Join(l.Take(ctx, "*.x.test", true), l.Done(ctx, "*.x.test")); err != nil {
				t.Fatal(err)
			}
		}
		if until := limited(t, one.Take(ctx, "*.x.test", true)); !until.Equal(time.Now().Add(24 * time.Hour)) {
			t.Errorf("until %v, want a day from now", until)
		}
		if err := one.Take(ctx, "x.test", false); err != nil {
			t.Errorf("another name: %v", err)
		}
		time.Sleep(24 * time.Hour)
		if err := two.Take(ctx, "*.x.test", true); err != nil {
			t.Errorf("a day later: %v", err)
		}
	})
}

// What an authority says to one node counts for all, for what it is about, until
// it is over.
func TestRefusalsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := certs.Issuer{Name: "a"}
		shared := certstest.NewStore()
		one, two := certs.NewLimitsForTest(issuer, shared), certs.NewLimitsForTest(issuer, shared)
		ctx := t.Context()
		if err := one.Refused(ctx, "x.test", time.Now().Add(time.Hour), "too many for x.test"); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{"x.test": true, "*.x.test": true, "a.b.x.test": true, "ax.test": false, "y.test": false} {
			for _, err := range []error{two.Stopped(ctx, name), two.Take(ctx, name, false)} {
				if got := err != nil; got != want {
					t.Errorf("%s: %v, want refused: %v", name, err, want)
				}
			}
		}
		if err := two.Stopped(ctx, "x.test"); !strings.Contains(err.Error(), "it says: too many for x.test") {
			t.Errorf("error = %v, want the authority's words", err)
		}
		if err := two.Refused(ctx, "", time.Now().Add(1000*time.Hour), "busy"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		until := limited(t, one.Stopped(ctx, "y.test"))
		if d := time.Until(until); d > 8*24*time.Hour {
			t.Errorf("an authority can stop the cluster for %v", d)
		}
		time.Sleep(time.Until(until))
		if err := one.Stopped(ctx, "x.test"); err != nil {
			t.Errorf("when it is over: %v", err)
		}
	})
}

// A value that makes no sense costs no certificate.
func TestDamagedLimits(t *testing.T) {
	shared := certstest.NewStore()
	l := certs.NewLimitsForTest(certs.Issuer{Name: "a", Directory: "https://a.test/dir", Orders: certs.Budget{Count: 5, Window: time.Hour},
		Duplicates: certs.Budget{Count: 5, Window: time.Hour}}, shared)
	for _, key := range []string{"limits/a.test-dir", "limits/a.test-dir/x.test"} {
		if _, err := shared.Swap(t.Context(), key, 0, []byte(`{"orders": "soon"`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Take(t.Context(), "x.test", false), l.Done(t.Context(), "x.test")); err != nil {
		t.Error(err)
	}
}

// Storage that fails stops orders: what is not counted could be one too many.
func TestLimitsWithoutStorage(t *testing.T) {
	l := certs.NewLimitsForTest(certs.Issuer{Name: "a", Orders: certs.Budget{Count: 5, Window: time.Hour}}, broken{})
	if err := l.Take(t.Context(), "x.test", false); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("error = %v, want the storage's", err)
	}
	if err := l.Stopped(t.Context(), "x.test"); err != nil {
		t.Errorf("what is not known stops nobody: %v", err)
	}
}

type broken struct{}

var errBroken = errors.New("out of order")

func (broken) Get(context.Context, string) (certs.Value, error) { return certs.Value{}, errBroken }

func (broken) Swap(context.Context, string, int64, []byte) (int64, error) { return 0, errBroken }

func TestScopeOfLimit(t *testing.T) {
	for _, tt := range []struct{ words, name, want string }{
		{`too many certificates (50) already issued for "x.test" in the last 168h0m0s, retry after 2026-01-01`, "*.a.x.test", "x.test"},
		{`too many failed authorizations (5) for "a.x.test" in the last 1h0m0s`, "a.x.test", "a.x.test"},
		{`too many certificates (5) already issued for this exact set of identifiers: *.X.test.`, "*.x.test", "x.test"},
		{"too many new orders (300) from this account in the last 3h0m0s", "a.x.test", ""},
		{"see https://docs.x.test.example.com/limits", "a.x.test", ""},
		{"too many for ax.test and x.test-b", "a.x.test", ""},
		{"Service busy; retry later.", "a.test", ""},
		{"", "a.test", ""},
	} {
		if got := certs.ScopeOf(tt.words, tt.name); got != tt.want {
			t.Errorf("ScopeOf(%q, %s) = %q, want %q", tt.words, tt.name, got, tt.want)
		}
	}
}
