package names_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/names"
)

const (
	edge   = "edge.x.test"
	ours   = "c1"
	theirs = "c2"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// wanted are addresses of equal weight.
func wanted(texts ...string) names.Wanted {
	w := names.Wanted{Complete: true}
	for _, text := range texts {
		w.Addresses = append(w.Addresses, names.Address{Addr: netip.MustParseAddr(text), Weight: 1})
	}
	return w
}

func marker(cluster string) []names.Record {
	if cluster == "" {
		return nil
	}
	return []names.Record{{Name: names.Marker(edge, "x.test"), Type: "TXT", Data: names.MarkerText(cluster, edge), TTL: 600, ID: "m"}}
}

// question is one of a name that is ours and has these addresses.
func question(t *testing.T, value string, w names.Wanted, have ...names.Record) names.Question {
	t.Helper()
	return names.Question{
		Spec: spec(t, edge, value), Zone: "x.test", Cluster: ours, Wanted: w, TTL: 60, Now: now,
		View: names.View{Records: have, Markers: marker(ours)},
	}
}

// text writes a plan on one line.
func text(p names.Plan) string {
	var parts []string
	if p.Claim {
		parts = append(parts, "claim")
	}
	for _, of := range []struct {
		sign    string
		records []names.Record
	}{{"+", p.Add}, {"~", p.Update}, {"-", p.Remove}} {
		for _, r := range of.records {
			parts = append(parts, of.sign+r.Data)
		}
	}
	if p.Held != "" {
		parts = append(parts, "held")
	}
	return strings.Join(parts, " ")
}

func TestDecide(t *testing.T) {
	one, two, three, six, six2 := "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"
	cname := names.Record{Name: edge, Type: "CNAME", Data: "other.test"}
	line := names.Record{Name: edge, Type: "A", Data: one, TTL: 60, Odd: "for the line telecom alone"}
	long := a(edge, one)
	long.TTL = 600
	spent := names.Budget{Spent: 5, At: now}
	last := names.Budget{Spent: 4, At: now}
	for _, test := range []struct {
		name    string
		value   string
		wanted  names.Wanted
		have    []names.Record
		owner   string // of the marker; "": there is none
		change  func(*names.Question)
		want    string
		trouble string // what the plan's begins with
	}{
		{name: "nothing to do", wanted: wanted(one), have: []names.Record{a(edge, one)}, owner: ours},
		{name: "a new name", wanted: wanted(one, six), want: "claim +192.0.2.1 +2001:db8::1"},
		{name: "one more and one less", wanted: wanted(two), have: []names.Record{a(edge, one)}, owner: ours, want: "+192.0.2.2 -192.0.2.1"},
		{name: "another TTL", wanted: wanted(one), have: []names.Record{long}, owner: ours, want: "~192.0.2.1"},
		{name: "twice the same", wanted: wanted(one), have: []names.Record{a(edge, one), a(edge, one)}, owner: ours, want: "-192.0.2.1"},
		{name: "nobody healthy", wanted: wanted(), have: []names.Record{a(edge, one)}, owner: ours, trouble: "nobody_healthy: what is published stays"},
		{name: "nobody healthy and nothing there", wanted: wanted(), trouble: "nobody_healthy: there is nothing"},
		{name: "not known who is there", wanted: names.Wanted{Why: "who knows"}, have: []names.Record{a(edge, one)}, owner: ours, want: "held", trouble: "waiting: who knows"},
		{name: "somebody's records", wanted: wanted(two), have: []names.Record{a(edge, one)}, want: "held", trouble: "not_owned: there are records of edge.x.test (192.0.2.1)"},
		{name: "the same address, and not ours", wanted: wanted(one), have: []names.Record{a(edge, one)}, want: "held", trouble: "not_owned: "},
		{name: "another cluster's", wanted: wanted(two), have: []names.Record{a(edge, one)}, owner: theirs, want: "held", trouble: "not_owned: edge.x.test is kept by the cluster c2"},
		{name: "another cluster's, with nothing there", wanted: wanted(two), owner: theirs, want: "held", trouble: "not_owned: "},
		{name: "adopted", wanted: wanted(two), have: []names.Record{a(edge, one)}, want: "claim +192.0.2.2 -192.0.2.1",
			change: func(q *names.Question) { q.Adopt, q.Force = true, true }},
		{name: "adopted from another cluster", wanted: wanted(one), have: []names.Record{a(edge, one)}, owner: theirs, want: "claim",
			change: func(q *names.Question) { q.Adopt, q.Force = true, true }},
		{name: "a CNAME", wanted: wanted(one), have: []names.Record{cname}, owner: ours, want: "held", trouble: "in_the_way: edge.x.test is a CNAME of other.test"},
		{name: "a CNAME that was adopted", wanted: wanted(one), have: []names.Record{cname}, want: "held", trouble: "in_the_way: ",
			change: func(q *names.Question) { q.Adopt, q.Force = true, true }},
		{name: "a record for some", wanted: wanted(two), have: []names.Record{line}, owner: ours, want: "held", trouble: "in_the_way: the record A 192.0.2.1"},
		{name: "fewer than min", value: `{"min":2}`, wanted: wanted(two), have: []names.Record{a(edge, one), a(edge, three)}, owner: ours,
			want: "+192.0.2.2 -192.0.2.3", trouble: "too_few: 1 addresses are healthy and min is 2, so 192.0.2.1 stays"},
		{name: "all of IPv6 out", wanted: wanted(one), have: []names.Record{a(edge, one), a(edge, two), a(edge, six), a(edge, six)}, owner: ours,
			want: "-192.0.2.2 -2001:db8::1", trouble: "nobody_healthy: no node or source that is healthy has an AAAA record to publish, so the last ones stay; if there are to be none, `sluice dns apply edge.x.test` takes them out: 2001:db8::1"},
		{name: "all of IPv4 out", wanted: wanted(six), have: []names.Record{a(edge, one), a(edge, two), a(edge, six)}, owner: ours,
			trouble: "nobody_healthy: no node or source that is healthy has an A record to publish"},
		{name: "all of IPv6 out, which counts for min", value: `{"min":2}`, wanted: wanted(one), have: []names.Record{a(edge, one), a(edge, two), a(edge, six)}, owner: ours,
			want: "-192.0.2.2", trouble: "nobody_healthy: "},
		{name: "no IPv6 any more, as a person says", wanted: wanted(one), have: []names.Record{a(edge, one), a(edge, six)}, owner: ours, want: "-2001:db8::1",
			change: func(q *names.Question) { q.Force = true }},
		{name: "IPv6 that other hands added", wanted: wanted(one), have: []names.Record{a(edge, one), a(edge, six)}, owner: ours, want: "-2001:db8::1",
			change: func(q *names.Question) { q.Last = []string{one} }},
		{name: "the last change is for removals, and for whoever takes the place of the last of IPv6", wanted: wanted(one, six2), have: []names.Record{a(edge, one), a(edge, six)}, owner: ours,
			want: "+2001:db8::2 -2001:db8::1", change: func(q *names.Question) { q.Budget = last }},
		{name: "dry run", value: `{"dry_run":true}`, wanted: wanted(two), have: []names.Record{a(edge, one)}, owner: ours, want: "+192.0.2.2 -192.0.2.1 held"},
		{name: "dry run applied", value: `{"dry_run":true}`, wanted: wanted(two), have: []names.Record{a(edge, one)}, owner: ours, want: "+192.0.2.2 -192.0.2.1",
			change: func(q *names.Question) { q.Force = true }},
		{name: "too many changes", wanted: wanted(one), have: []names.Record{a(edge, one), a(edge, two)}, owner: ours, want: "-192.0.2.2 held",
			change: func(q *names.Question) { q.Budget = spent }},
		{name: "the last change is for removals", wanted: wanted(one, six), have: []names.Record{a(edge, one), a(edge, two)}, owner: ours, want: "-192.0.2.2",
			change: func(q *names.Question) { q.Budget = last }},
		{name: "and not for additions", wanted: wanted(one, two), have: []names.Record{a(edge, one)}, owner: ours, want: "+192.0.2.2 held",
			change: func(q *names.Question) { q.Budget = last }},
		{name: "but for whoever has to be there", wanted: wanted(two), have: []names.Record{a(edge, one)}, owner: ours, want: "+192.0.2.2 -192.0.2.1",
			change: func(q *names.Question) { q.Budget = last }},
	} {
		t.Run(test.name, func(t *testing.T) {
			value := test.value
			if value == "" {
				value = "{}"
			}
			q := question(t, value, test.wanted, test.have...)
			q.View.Markers = marker(test.owner)
			if test.change != nil {
				test.change(&q)
			}
			p := names.Decide(q)
			if got := text(p); got != test.want {
				t.Errorf("plan is %q, want %q (%+v)", got, test.want, p)
			}
			if !strings.HasPrefix(p.Trouble, test.trouble) || (test.trouble == "") != (p.Trouble == "") {
				t.Errorf("trouble is %q, want %q", p.Trouble, test.trouble)
			}
		})
	}
}

func TestWeightsAreInProportion(t *testing.T) {
	w := wanted("192.0.2.1", "192.0.2.2", "2001:db8::1")
	w.Addresses[0].Weight, w.Addresses[1].Weight = 3, 12
	q := question(t, `{"weights":true}`, w)
	q.Weighted = true
	want := map[string]int{"192.0.2.1": 25, "192.0.2.2": 100, "2001:db8::1": 0} // one alone has none
	for _, r := range names.Decide(q).Add {
		if r.Weight != want[r.Data] {
			t.Errorf("%s has the weight %d, want %d", r.Data, r.Weight, want[r.Data])
		}
	}
	q.Weighted = false
	for _, r := range names.Decide(q).Add {
		if r.Weight != 0 {
			t.Errorf("%s has the weight %d where there are none", r.Data, r.Weight)
		}
	}
}

func TestDriftIsTold(t *testing.T) {
	q := question(t, "{}", wanted("192.0.2.1"), a(edge, "192.0.2.1"), a(edge, "203.0.113.9"))
	if names.Decide(q).Drift {
		t.Error("drift, of what nobody has seen before")
	}
	q.Last = []string{"192.0.2.1"}
	if p := names.Decide(q); !p.Drift || text(p) != "-203.0.113.9" {
		t.Errorf("drift is %v and the plan %q", p.Drift, text(p))
	}
	q.Last = []string{"192.0.2.1", "203.0.113.9"}
	if names.Decide(q).Drift {
		t.Error("drift, where only what is wanted has changed")
	}
}

// No two names have the same marker, none is where another name's records are,
// and none is below a name.
func TestMarkers(t *testing.T) {
	seen := map[string]string{}
	all := []string{"x.test", "*.x.test", "a.x.test", "*.a.x.test", "wildcard.x.test", "sluice.x.test", "sluice-a.x.test", "a-b.x.test", "b.a.x.test", "*.b.a.x.test"}
	for _, name := range all {
		m := names.Marker(name, "x.test")
		if other, twice := seen[m]; twice {
			t.Errorf("%s and %s share the marker %s", name, other, m)
		}
		seen[m] = name
		if !strings.HasSuffix(m, ".x.test") || !strings.HasPrefix(m, "_") {
			t.Errorf("the marker of %s is %s, want one in the zone that no host has", name, m)
		}
		if strings.HasSuffix(m, "."+name) && name != "x.test" {
			t.Errorf("the marker of %s is %s, below it", name, m)
		}
	}
}

func TestOnlyTheMarkerOfTheNameCounts(t *testing.T) {
	q := question(t, "{}", wanted("192.0.2.2"), a(edge, "192.0.2.1"))
	for _, data := range []string{"", "v=spf1 -all", "heritage=sluice", "heritage=sluice,cluster=,name=" + edge, names.MarkerText(ours, "other.x.test"), " " + names.MarkerText(ours, edge)} {
		q.View.Markers = []names.Record{{Name: names.Marker(edge, "x.test"), Type: "TXT", Data: data}}
		if p := names.Decide(q); p.Owned || p.Due() {
			t.Errorf("the text %q makes the name ours", data)
		}
	}
	q.View.Markers = append(q.View.Markers, marker(theirs)[0], marker(ours)[0])
	if p := names.Decide(q); !p.Owned {
		t.Error("ours among others does not")
	}
}
