package names

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// Provider is an account with a DNS provider. Names and zones are in lower case
// and without a final dot. Its methods are called by one goroutine at a time, and
// each returns within seconds, whatever becomes of the provider.
type Provider interface {
	// Kind is what it is, for people: alidns, cloudflare, rfc2136.
	Kind() string
	// Zones are those that the account is said to hold; none: nobody said.
	Zones() []string
	// Read returns the A, AAAA, CNAME and TXT records of names. The error may be one
	// of some names (see partial): then the records of the others are returned.
	Read(ctx context.Context, zone string, names []string) ([]Record, error)
	// Add adds a record. One that is there already counts as added.
	Add(ctx context.Context, zone string, r Record) error
	// Update gives a record that Read returned another TTL or weight.
	Update(ctx context.Context, zone string, r Record) error
	// Remove removes a record that Read returned. One that is gone counts as removed.
	Remove(ctx context.Context, zone string, r Record) error
	// LeastTTL returns the shortest TTL, in seconds, that the zone takes.
	LeastTTL(ctx context.Context, zone string) (int, error)
	// Weighted reports whether answers can be weighted.
	Weighted() bool
}

// Swap replaces the records of a name, if they still are what was read.
type Swap struct {
	Name   string
	Marker Record   // as it is to be
	Found  []Record // the TXT records that its name has
	Before []Record // A and AAAA
	After  []Record
}

// Swapper is a Provider that changes several names at once, and all of it or
// nothing.
type Swapper interface {
	// Swap makes swaps, whole or not at all. That something is not as it was read
	// is an error.
	Swap(ctx context.Context, zone string, swaps []Swap) error
}

// passing is an error that may be another one in a moment: the provider is
// throttled, broken or out of reach, for all names alike.
type passing interface {
	error
	Passing() bool
}

// partial is an error of Read that is about some of the names.
type partial interface {
	error
	// Of returns why a name could not be read; nil: it was.
	Of(name string) error
}

// resting is an error that says for how long the provider wants to be left alone.
type resting interface {
	error
	RetryAfter() time.Duration
}

// home is where a name's records go.
type home struct{ provider, zone string }

// homeOf chooses the provider and the zone of a name, of the providers that a
// node has.
func homeOf(p *router.PublishedName, node string, providers map[string]Provider) (home, error) {
	h := home{provider: p.Provider, zone: p.Zone}
	if h.provider != "" && providers[h.provider] == nil {
		return h, fmt.Errorf("no_provider: there is no %s under dns in the file of %s, which has %s; name one of those, or add it there",
			h.provider, node, strings.Join(sortedKeys(providers), ", "))
	}
	for _, name := range sortedKeys(providers) {
		if p.Provider != "" && name != p.Provider {
			continue
		}
		for _, zone := range providers[name].Zones() {
			if within(p.Name, zone) && (p.Zone == "" && len(zone) > len(h.zone) || zone == p.Zone && h.provider == "") {
				h = home{name, zone}
			}
		}
	}
	if h.provider == "" && len(providers) == 1 {
		h.provider = sortedKeys(providers)[0]
	}
	switch {
	case h.provider == "":
		return h, fmt.Errorf("no_provider: no DNS provider in the file of %s lists a zone that %s is in; say \"provider\", or list the zone under one there", node, p.Name)
	case h.zone == "":
		return h, fmt.Errorf("no_zone: the DNS provider %s in the file of %s lists no zone that %s is in; say \"zone\", or list the zone there", h.provider, node, p.Name)
	}
	return h, nil
}

// within reports whether name, perhaps with a wildcard, lies in zone.
func within(name, zone string) bool {
	name = strings.TrimPrefix(name, "*.")
	return name == zone || strings.HasSuffix(name, "."+zone)
}

// carryOut makes a plan step by step, so that there is always an address that is
// wanted: what is new first, then what changes, and what goes last. It returns
// the address records that are there afterwards, as far as is known.
func carryOut(ctx context.Context, to Provider, zone string, q Question, p Plan) ([]Record, error) {
	have := q.View.addresses()
	if p.Claim {
		if err := claim(ctx, to, zone, q); err != nil {
			return have, err
		}
	}
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, r := range p.Add {
		if err := to.Add(ctx, zone, r); err != nil {
			note(err)
			break
		}
		have = append(have, r)
	}
	for _, r := range p.Update {
		if err := to.Update(ctx, zone, r); err != nil {
			note(err)
			break
		}
		if at := slices.IndexFunc(have, r.same); at >= 0 {
			have[at] = r
		}
	}
	for _, r := range p.Remove {
		// What is dead goes although something new could not be added, but not to the
		// last that is wanted.
		left := slices.DeleteFunc(slices.Clone(have), func(o Record) bool { return o == r })
		if !q.anyWanted(left) {
			break
		}
		if err := to.Remove(ctx, zone, r); err != nil {
			note(err)
			break
		}
		have = left
	}
	slices.SortFunc(have, compareRecords)
	return have, first
}

// claim writes the marker, and then takes those of others away.
func claim(ctx context.Context, to Provider, zone string, q Question) error {
	if err := to.Add(ctx, zone, q.marker()); err != nil {
		return err
	}
	for _, m := range q.View.Markers {
		if _, ok := ownerOf(m.Data, q.Spec.Name); ok {
			if err := to.Remove(ctx, zone, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// markerTTL is that of markers, in seconds: nobody's answers depend on them.
const markerTTL = 600

func (q Question) marker() Record {
	return Record{Name: Marker(q.Spec.Name, q.Zone), Type: "TXT", Data: MarkerText(q.Cluster, q.Spec.Name), TTL: max(markerTTL, q.TTL)}
}

// anyWanted reports whether one of records is wanted.
func (q Question) anyWanted(records []Record) bool {
	return slices.ContainsFunc(records, func(r Record) bool {
		return slices.ContainsFunc(q.Wanted.Addresses, func(a Address) bool { return a.Addr.String() == r.Data })
	})
}

// swap returns a plan as one step.
func (q Question) swap(p Plan) Swap {
	before := q.View.addresses()
	return Swap{Name: q.Spec.Name, Marker: q.marker(), Found: q.View.Markers, Before: before, After: p.after(before)}
}
