package upstream

import (
	"math"
	"math/rand/v2"
)

// pickByChance draws two of the targets that are left, each as likely as its
// weight says, and takes the one with fewer flows for its weight (the power of
// two choices). No lock is taken: flows that begin together may see the same one
// free, but they do not all draw it.
func (a *Attempt) pickByChance() int {
	if a.order == nil {
		return a.count(0)
	}
	one := a.draw(-1)
	if two := a.draw(one); two >= 0 && a.isLess(int(a.order[two]), int(a.order[one])) {
		one = two
	}
	return a.count(a.bring(one))
}

// draw draws one of the best targets that are left, by weight, and returns its
// place in the order. not is a place to leave out. -1: there is none.
func (a *Attempt) draw(not int) int {
	least, sum := math.MaxInt, uint64(0)
	for at := a.begun; at < len(a.order); at++ {
		if at == not {
			continue
		}
		i := a.order[at]
		switch bad := a.badness(i); {
		case bad < least:
			least, sum = bad, weightOf(a.backend.Targets[i])
		case bad == least:
			sum += weightOf(a.backend.Targets[i])
		}
	}
	if sum == 0 || not >= 0 && least > a.badness(a.order[not]) {
		return -1
	}
	drawn := rand.Uint64N(sum)
	last := -1
	for at := a.begun; at < len(a.order); at++ {
		i := a.order[at]
		if at == not || a.badness(i) != least { // which may have changed meanwhile
			continue
		}
		last = at
		w := weightOf(a.backend.Targets[i])
		if drawn < w {
			break
		}
		drawn -= w
	}
	return last
}

// isLess reports whether target i has fewer flows for its weight than j.
func (a *Attempt) isLess(i, j int) bool {
	g := a.dialer.groups.of(a.backend)
	t := a.backend.Targets
	return a.load(g, i).flows.Load()*int64(weightOf(t[j])) < a.load(g, j).flows.Load()*int64(weightOf(t[i]))
}

// count counts the flow at target i.
func (a *Attempt) count(i int) int {
	if a.eps == nil && a.order == nil {
		a.lease = a.dialer.loads.of(a.target(i)).take()
	} else {
		a.lease = a.load(a.dialer.groups.of(a.backend), i).take()
	}
	return i
}

// pickByHash takes the target that scores highest for the key (weighted
// rendezvous hashing): a target that goes takes nobody but its own keys along,
// and one that comes takes its share from all others alike. Nothing in it is
// random, so that all nodes agree. Where the backend bounds the load, a target
// that has its bound of flows comes after those that have not.
func (a *Attempt) pickByHash() int {
	full := a.loadBound()
	best, bestBad, bestScore := -1, 0, 0.0
	for at := a.begun; at < len(a.order); at++ {
		i := int(a.order[at])
		bad := 2 * a.badness(int32(i))
		if full.isOver(a, i) {
			bad++
		}
		s := score(a.key, hashEndpoint(a.target(i)), weightOf(a.backend.Targets[i]))
		if best < 0 || bad < bestBad || bad == bestBad && s > bestScore {
			best, bestBad, bestScore = at, bad, s
		}
	}
	i := a.bring(best)
	if full.percent > 0 {
		a.count(i)
	}
	return i
}

// loadBound says how many flows a target may have before it counts as full. The
// zero value bounds nothing.
type loadBound struct {
	percent       uint64 // of the fair share
	flows, weight uint64 // of all targets, one more flow counted in
}

func (a *Attempt) loadBound() loadBound {
	h := a.backend.Hash
	if h == nil || h.MaxLoad == 0 {
		return loadBound{}
	}
	b := loadBound{percent: uint64(h.MaxLoad), flows: 1}
	g := a.dialer.groups.of(a.backend)
	for i, t := range a.backend.Targets {
		b.flows += uint64(a.load(g, i).flows.Load())
		b.weight += weightOf(t)
	}
	return b
}

// isOver reports whether one more flow would take target i over the bound,
// which is rounded up (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing
// with Bounded Loads").
func (b loadBound) isOver(a *Attempt, i int) bool {
	if b.percent == 0 {
		return false
	}
	flows := uint64(a.load(a.dialer.groups.of(a.backend), i).flows.Load()) + 1
	whole := b.percent * b.flows * weightOf(a.backend.Targets[i])
	bound := (whole + 100*b.weight - 1) / (100 * b.weight)
	return flows > bound
}

// zoning is what zones mean for an attempt.
type zoning uint8

const (
	anyZone    zoning = iota
	ownZone           // targets of the node's zone come first
	otherZones        // the others do
)

// overProvision is by how much the targets of a zone are taken to be more than
// it needs: while that many fail, all of its flows stay.
const overProvision = 1.4

// chooseZone decides whether the attempt stays in the node's zone. It does while
// the targets there are well; where so many are not that the rest would carry
// more than overProvision of their own share, what is above that goes elsewhere.
func (a *Attempt) chooseZone() {
	own := a.dialer.zone
	if !a.backend.PreferZone || own == "" {
		return
	}
	all, well, others := uint64(0), uint64(0), false
	for i, t := range a.backend.Targets {
		if t.Zone != own {
			others = true
			continue
		}
		all += weightOf(t)
		if a.badness(int32(i)) == 0 {
			well += weightOf(t)
		}
	}
	if all == 0 || !others {
		return
	}
	a.zone = ownZone
	share := overProvision * float64(well) / float64(all)
	if share >= 1 {
		return
	}
	at := rand.Float64()
	if a.balance == byKey { // and the same key is of the same zone each time
		at = float64(mix(a.key+1)>>11) / (1 << 53)
	}
	if at >= share {
		a.zone = otherZones
	}
}
