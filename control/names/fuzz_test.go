package names_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/names"
	"github.com/remotegpu/sluice/router"
)

// drawQuestion draws one of any kind.
func drawQuestion(r *rand.Rand) names.Question {
	addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"}
	q := names.Question{
		Spec: &router.PublishedName{Name: edge, TTL: 60, Min: 1 + r.IntN(3), Interval: time.Duration(1+r.IntN(60)) * time.Second,
			Weights: r.IntN(3) == 0, DryRun: r.IntN(6) == 0},
		Zone: "x.test", Cluster: ours, TTL: []int{60, 600}[r.IntN(2)], Weighted: r.IntN(2) == 0, Now: now,
		Adopt: r.IntN(6) == 0, Force: r.IntN(6) == 0,
		Budget: names.Budget{Spent: r.Float64() * 8, At: now.Add(time.Duration(r.IntN(120)-60) * time.Second)},
	}
	q.Wanted.Complete = r.IntN(6) > 0
	for i, a := range addrs {
		if r.IntN(2) == 0 {
			q.Wanted.Addresses = append(q.Wanted.Addresses, names.Address{Addr: addr(a), Weight: 1 + r.IntN(1000)})
		}
		for range r.IntN(3) {
			rec := names.Record{Name: edge, Type: "A", Data: a, TTL: []int{60, 600}[r.IntN(2)], Weight: r.IntN(101), ID: fmt.Sprint(i, len(q.View.Records))}
			if addr(a).Is6() {
				rec.Type = "AAAA"
			}
			if r.IntN(30) == 0 {
				rec.Odd = "odd"
			}
			q.View.Records = append(q.View.Records, rec)
		}
	}
	if r.IntN(30) == 0 {
		q.View.Records = append(q.View.Records, names.Record{Name: edge, Type: "CNAME", Data: "other.test"})
	}
	for _, cluster := range []string{ours, theirs} {
		if r.IntN(2) == 0 {
			q.View.Markers = append(q.View.Markers, marker(cluster)...)
		}
	}
	return q
}

// checkPlan says what is wrong with a plan, whatever the question.
func checkPlan(q names.Question, p names.Plan) error {
	owned := slices.ContainsFunc(q.View.Markers, func(m names.Record) bool { return m.Data == names.MarkerText(ours, edge) })
	free := len(q.View.Records) == 0 && len(q.View.Markers) == 0
	wants := func(data string) bool {
		return slices.ContainsFunc(q.Wanted.Addresses, func(a names.Address) bool { return a.Addr.String() == data })
	}
	left := slices.Clone(q.View.Records)
	for _, r := range p.Remove {
		at := slices.Index(left, r)
		if at < 0 {
			return fmt.Errorf("it removes %v, which is not there", r)
		}
		left = slices.Delete(left, at, at+1)
	}
	for _, r := range p.Add {
		if !wants(r.Data) || slices.ContainsFunc(q.View.Records, func(o names.Record) bool { return o.Data == r.Data }) {
			return fmt.Errorf("it adds %v, which nobody wants or which is there", r)
		}
		left = append(left, r)
	}
	for _, r := range p.Remove {
		if wants(r.Data) && !slices.ContainsFunc(left, func(o names.Record) bool { return o.Data == r.Data }) {
			return fmt.Errorf("it removes %v, which is wanted", r)
		}
	}
	switch {
	case !p.Due():
		return nil
	case !q.Wanted.Complete || len(q.Wanted.Addresses) == 0:
		return fmt.Errorf("it changes something although nobody knows to what")
	case !owned && !free && !q.Adopt:
		return fmt.Errorf("it changes what is not ours")
	case slices.ContainsFunc(q.View.Records, func(r names.Record) bool { return r.Odd != "" || r.Type == "CNAME" }):
		return fmt.Errorf("it changes something beside a record that it cannot judge")
	case !owned && !p.Claim:
		return fmt.Errorf("it does not mark what it takes")
	case q.Spec.DryRun && !q.Force:
		return fmt.Errorf("it is no dry run")
	case len(left) == 0:
		return fmt.Errorf("it leaves no address")
	case distinct(left) < min(q.Spec.Min, distinct(q.View.Records)):
		return fmt.Errorf("it leaves fewer addresses than it has to")
	case !q.Force && q.Last == nil && (has(q.View.Records, "A") && !has(left, "A") || has(q.View.Records, "AAAA") && !has(left, "AAAA")):
		return fmt.Errorf("it leaves no address of one family")
	case !slices.ContainsFunc(left, func(r names.Record) bool { return wants(r.Data) }):
		return fmt.Errorf("it leaves nothing that is wanted")
	}
	return nil
}

func has(records []names.Record, kind string) bool {
	return slices.ContainsFunc(records, func(r names.Record) bool { return r.Type == kind })
}

func distinct(records []names.Record) int {
	seen := map[string]bool{}
	for _, r := range records {
		seen[r.Data] = true
	}
	return len(seen)
}

func FuzzDecide(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		q := drawQuestion(rand.New(rand.NewPCG(a, b)))
		p := names.Decide(q)
		if err := checkPlan(q, p); err != nil {
			t.Errorf("%v\nquestion: %+v\nplan: %+v", err, q, p)
		}
	})
}

// However often somebody asks, a name changes no more than its budget allows in
// any stretch of time.
func TestBudgetBoundsChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	q := question(t, `{"interval":"15s"}`, wanted("192.0.2.1"))
	var made []time.Time
	other := false
	for range 20000 {
		q.Now = q.Now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
		other = !other
		one, two := "192.0.2.1", "192.0.2.2"
		if other {
			one, two = two, one
		}
		q.Wanted, q.View.Records = wanted(one), []names.Record{a(edge, two)}
		if names.Decide(q).Due() {
			made = append(made, q.Now)
			q.Budget = q.Budget.Spend(q.Spec.Interval, q.Now)
		}
	}
	for i := range made {
		for n := i + 1; n < min(len(made), i+40); n++ {
			if most := 6 + int(made[n].Sub(made[i])/q.Spec.Interval); n-i+1 > most {
				t.Fatalf("%d changes in %v", n-i+1, made[n].Sub(made[i]))
			}
		}
	}
	if len(made) < 1000 {
		t.Errorf("%d changes in all, which is no test", len(made))
	}
}
