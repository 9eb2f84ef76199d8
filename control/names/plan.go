package names

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// Question is all that a decision on a name rests on.
type Question struct {
	Spec *router.PublishedName
	Zone string // that the name lies in, without a final dot
	// Cluster is whose names are ours.
	Cluster string
	Wanted  Wanted
	View    View
	// TTL is that of the records: the one asked for, or the least that the
	// provider takes.
	TTL      int
	Weighted bool // whether the provider weights answers
	// Last are the addresses that the name was left with; nil: that is not known.
	Last   []string
	Budget Budget
	// Adopt has a name taken over that is not ours; Force has changes made that are
	// held back by the budget or by dry_run. Both are a person's words.
	Adopt, Force bool
	Now          time.Time
}

// Plan is what is to become of a name. Made in the order of its fields it never
// leaves the name without an address.
type Plan struct {
	Claim  bool     // the marker is to be written first
	Add    []Record // new ones
	Update []Record // of the view, with another TTL or weight
	Remove []Record // of the view
	// Held says that all that is for later or for nobody to do, and why.
	Held string
	// Wait is after what time it may be made; 0: not by itself.
	Wait time.Duration
	// Owned says that the name is ours, or is about to be.
	Owned bool
	// Trouble is what keeps the name from being as wanted; "": nothing does.
	Trouble string
	// Drift says that records were changed by other hands.
	Drift bool
}

// Changes reports whether there is something to do.
func (p Plan) Changes() bool { return p.Claim || len(p.Add)+len(p.Update)+len(p.Remove) > 0 }

// Due reports whether it is to be done now.
func (p Plan) Due() bool { return p.Changes() && p.Held == "" }

// Decide says what is to become of a name. It is a function of q alone.
func Decide(q Question) Plan {
	name := q.Spec.Name
	if !q.Wanted.Complete {
		return Plan{Held: q.Wanted.Why, Trouble: "waiting: " + q.Wanted.Why, Owned: q.View.owner(name, q.Cluster) == q.Cluster}
	}
	p := q.own()
	if !p.Owned {
		return p
	}
	if odd := q.odd(); odd != "" {
		return Plan{Owned: true, Trouble: odd, Held: odd}
	}
	have := q.View.addresses()
	p.Drift = q.drifted(have)
	if len(q.Wanted.Addresses) == 0 {
		p.Claim = false
		p.Trouble = "nobody_healthy: there is nothing to publish"
		if len(have) > 0 {
			p.Trouble = "nobody_healthy: what is published stays, so that the name is not left without an address"
		}
		return p
	}
	q.difference(&p, have)
	q.keepLeast(&p, q.keepTypes(&p))
	q.hold(&p, have)
	return p
}

// own says whether the name is ours to change.
func (q Question) own() Plan {
	name := q.Spec.Name
	switch owner := q.View.owner(name, q.Cluster); {
	case owner == q.Cluster:
		return Plan{Owned: true}
	case q.Adopt:
		return Plan{Owned: true, Claim: true}
	case owner != "":
		why := fmt.Sprintf("not_owned: %s is kept by the cluster %s, as the TXT record of %s says; take its key away there, and then run `sluice dns apply --adopt %s`",
			name, owner, Marker(name, q.Zone), name)
		return Plan{Trouble: why, Held: why}
	case len(q.View.Records) > 0:
		why := fmt.Sprintf("not_owned: there are records of %s (%s) that this cluster did not make; to have it keep them from now on, run `sluice dns apply --adopt %s`",
			name, list(dataOf(q.View.Records)), name)
		return Plan{Trouble: why, Held: why}
	}
	return Plan{Owned: true, Claim: true}
}

// odd says which records of the name nobody here can judge.
func (q Question) odd() string {
	for _, r := range q.View.Records {
		switch {
		case r.Type == "CNAME":
			return fmt.Sprintf("in_the_way: %s is a CNAME of %s, beside which there can be no address; delete it", r.Name, r.Data)
		case r.Odd != "":
			return fmt.Sprintf("in_the_way: the record %s %s of %s is %s, and nothing is changed beside it; delete it, or make it an ordinary one",
				r.Type, r.Data, r.Name, r.Odd)
		}
	}
	return ""
}

// drifted reports whether the records are not those that we left.
func (q Question) drifted(have []Record) bool {
	return q.Last != nil && !q.Adopt && !slices.Equal(dataOf(have), q.Last)
}

// difference notes what makes the records those that are wanted.
func (q Question) difference(p *Plan, have []Record) {
	weighted := q.Spec.Weights && q.Weighted
	wanted := q.Wanted.records(q.Spec.Name, q.TTL, weighted)
	kept := make([]bool, len(wanted))
	for _, r := range have {
		at := slices.IndexFunc(wanted, r.same)
		switch {
		case at < 0 || kept[at]: // a second copy is of no use
			p.Remove = append(p.Remove, r)
			continue
		case r.TTL != wanted[at].TTL || wanted[at].Weight != 0 && r.Weight != wanted[at].Weight:
			r.TTL, r.Weight = wanted[at].TTL, cmp.Or(wanted[at].Weight, r.Weight)
			p.Update = append(p.Update, r)
		}
		kept[at] = true
	}
	for i, r := range wanted {
		if !kept[i] {
			p.Add = append(p.Add, r)
		}
	}
}

// keepTypes takes removals back that would leave no address of a type, unless a
// person asks for them: with all of one family out it is the paths of that family
// that are broken. What other hands added goes all the same. It returns how many
// addresses stay.
func (q Question) keepTypes(p *Plan) int {
	var stay []Record
	p.Remove = slices.DeleteFunc(p.Remove, func(r Record) bool {
		family := func(a Address) bool { return a.Addr.Is4() == (r.Type == "A") }
		ours := q.Last == nil || slices.Contains(q.Last, r.Data)
		if q.Force || !ours || slices.ContainsFunc(q.Wanted.Addresses, family) || slices.ContainsFunc(stay, r.same) {
			return false
		}
		stay = append(stay, r)
		return true
	})
	if len(stay) > 0 {
		// What to do stands before the addresses, of which there may be many.
		p.Trouble = fmt.Sprintf("nobody_healthy: no node or source that is healthy has an %s record to publish, so the last ones stay; if there are to be none, `sluice dns apply %s` takes them out: %s",
			stay[0].Type, q.Spec.Name, list(dataOf(stay)))
	}
	return len(stay)
}

// keepLeast takes removals back that would leave fewer addresses than wished; kept
// stay besides those that are wanted.
func (q Question) keepLeast(p *Plan, kept int) {
	missing := q.Spec.Min - len(q.Wanted.Addresses) - kept
	var stay []Record
	p.Remove = slices.DeleteFunc(p.Remove, func(r Record) bool {
		// A second copy makes up for nothing.
		twice := q.anyWanted([]Record{r}) || slices.ContainsFunc(stay, r.same)
		if len(stay) >= missing || twice {
			return false
		}
		stay = append(stay, r)
		return true
	})
	if len(stay) > 0 {
		p.Trouble = fmt.Sprintf("too_few: %d addresses are healthy and min is %d, so %s stays published", len(q.Wanted.Addresses), q.Spec.Min, list(dataOf(stay)))
	}
}

// hold says what of a plan has to wait, by dry_run and by the budget.
func (q Question) hold(p *Plan, have []Record) {
	if !p.Changes() || q.Force {
		return
	}
	if q.Spec.DryRun {
		p.Held = "dry_run: `sluice dns apply " + q.Spec.Name + "` makes it so once"
		return
	}
	interval := q.Spec.Interval
	left := q.Budget.left(interval, q.Now)
	urgent := len(p.Remove) > 0 || len(have) == 0
	switch {
	case left >= 2 || urgent && left >= 1 && len(p.Add)+len(p.Update) == 0:
	case urgent && left >= 1:
		// The last change is for what must go, where enough stay.
		if len(have)-len(p.Remove) >= q.Spec.Min && !p.Claim && !p.empties(have) { // second copies are among those that go
			p.Add, p.Update = nil, nil
			p.Wait = q.Budget.Spend(interval, q.Now).wait(2, interval, q.Now)
		}
	default:
		need := 2.0
		if urgent {
			need = 1
		}
		p.Wait = q.Budget.wait(need, interval, q.Now)
		p.Held = fmt.Sprintf("it has changed %d times in short order, and waits", burst)
	}
}

// empties reports whether the removals of p by themselves leave no address of a
// type.
func (p Plan) empties(have []Record) bool {
	left := map[string]int{}
	for _, r := range have {
		left[r.Type]++
	}
	for _, r := range p.Remove {
		if left[r.Type]--; left[r.Type] == 0 {
			return true
		}
	}
	return false
}

// dataOf returns what records hold, in the order of records.
func dataOf(records []Record) []string {
	all := make([]string, len(records))
	for i, r := range records {
		all[i] = r.Data
	}
	return all
}

// list writes the first few of many.
func list(all []string) string {
	const most = 8
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], " "), len(all)-most)
	}
	return strings.Join(all, " ")
}

// after returns the addresses that a name has once p is made on have.
func (p Plan) after(have []Record) []Record {
	left := slices.DeleteFunc(slices.Clone(have), func(r Record) bool {
		return slices.ContainsFunc(p.Remove, func(o Record) bool { return o == r })
	})
	for i, r := range left {
		if at := slices.IndexFunc(p.Update, r.same); at >= 0 {
			left[i] = p.Update[at]
		}
	}
	left = append(left, p.Add...)
	slices.SortFunc(left, compareRecords)
	return left
}

// canonical writes an address as records have it.
func canonical(data string) string {
	if a, err := netip.ParseAddr(data); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return data
}
