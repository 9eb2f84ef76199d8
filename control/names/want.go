package names

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// Member is a node that a name may be published for.
type Member struct {
	Node      string
	Addresses []netip.Addr
	Region    string
	Weight    int // its share of clients, from 1
	// Healthy says that clients are to be sent to it, and Why, for people, why not.
	Healthy bool
	Why     string
}

// Address is an address to be published.
type Address struct {
	Addr   netip.Addr
	Weight int // its share, from 1
}

// Wanted is what a name is to have.
type Wanted struct {
	// Complete says that all is known that matters; without, nothing is changed,
	// and Why says what is waited for.
	Complete  bool
	Addresses []Address // in the order of addresses, each once
	// Out says for people who is not published, and why.
	Out []string
	Why string
}

// wantMembers returns what a name is to have of nodes.
func wantMembers(p *router.PublishedName, members []Member, complete bool) Wanted {
	w := Wanted{Complete: complete}
	if !complete {
		w.Why = "the nodes of the cluster are not known yet"
		return w
	}
	for _, m := range members {
		switch {
		case len(p.Regions) > 0 && !slices.Contains(p.Regions, m.Region):
			continue
		case !m.Healthy:
			w.Out = append(w.Out, m.Node+" is out: "+m.Why)
			continue
		case len(m.Addresses) == 0:
			w.Out = append(w.Out, m.Node+" has no address")
		}
		for _, a := range m.Addresses {
			w.add(a, max(m.Weight, 1))
		}
	}
	w.sort()
	if len(members) > 0 && len(w.Addresses) == 0 && len(w.Out) == 0 {
		w.Out = append(w.Out, fmt.Sprintf("no node is in the regions %s", strings.Join(p.Regions, ", ")))
	}
	return w
}

// add adds an address that clients could reach; of two nodes that have the same
// one, the greater weight counts.
func (w *Wanted) add(a netip.Addr, weight int) {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() {
		return
	}
	if at := slices.IndexFunc(w.Addresses, func(o Address) bool { return o.Addr == a }); at >= 0 {
		w.Addresses[at].Weight = max(w.Addresses[at].Weight, weight)
		return
	}
	w.Addresses = append(w.Addresses, Address{a, weight})
}

func (w *Wanted) sort() {
	slices.SortFunc(w.Addresses, func(a, b Address) int { return a.Addr.Compare(b.Addr) })
}

// equal reports whether w and o ask for the same records.
func (w Wanted) equal(o Wanted) bool {
	return w.Complete == o.Complete && slices.Equal(w.Addresses, o.Addresses)
}

// maxWeight is the greatest weight that providers take.
const maxWeight = 100

// records returns the records that a name is to have. Weights are put in
// proportion to the greatest where weighted, and else left out.
func (w Wanted) records(name string, ttl int, weighted bool) []Record {
	most := 1
	for _, a := range w.Addresses {
		most = max(most, a.Weight)
	}
	all := make([]Record, len(w.Addresses))
	of := map[string]int{} // by type
	for _, a := range w.Addresses {
		of[typeOf(a.Addr)]++
	}
	for i, a := range w.Addresses {
		all[i] = Record{Name: name, Type: typeOf(a.Addr), Data: a.Addr.String(), TTL: ttl}
		if weighted && of[all[i].Type] > 1 { // one alone has nothing to be weighted with
			all[i].Weight = max(1, a.Weight*maxWeight/most)
		}
	}
	slices.SortFunc(all, compareRecords)
	return all
}

// weighs reports whether weights differ.
func (w Wanted) weighs() bool {
	return slices.ContainsFunc(w.Addresses, func(a Address) bool { return a.Weight != w.Addresses[0].Weight })
}
