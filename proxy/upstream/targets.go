package upstream

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/remotegpu/sluice/router"
)

// Asker is who a flow is for, as far as a balance goes by that. The zero value
// is nobody in particular. Its strings need not outlive the call.
type Asker struct {
	Client netip.Addr // the flow's client
	Key    string     // what router.HashBalance goes by; "": the client's address
	Token  string     // the value of the cookie of router.Sticky
}

// choose lays out the targets in the order to try, as far as that is settled
// before the first is tried.
func (a *Attempt) choose(by Asker) {
	a.balance = policyOf(a.backend)
	if a.balance == byKey {
		switch {
		case by.Key != "" && a.backend.Balance == router.HashBalance:
			a.key = hashString(by.Key)
		case by.Client.IsValid():
			a.key = hashAddr(by.Client)
		default:
			a.balance = byTurn
		}
	}
	a.stick(by.Token)
	a.lay()
}

// lay lays out the targets.
func (a *Attempt) lay() {
	n := len(a.backend.Targets)
	if n == 1 {
		return
	}
	a.chooseZone()
	if a.order == nil {
		a.order = make([]int32, n)
	}
	for i := range a.order {
		a.order[i] = int32(i)
	}
	if a.balance != byTurn {
		return
	}
	first := a.nextInTurn()
	for i := range a.order {
		a.order[i] = int32((first + i) % n)
	}
	if a.zone != anyZone || a.dialer.anyBad() {
		slices.SortStableFunc(a.order, func(i, j int32) int { return a.badness(i) - a.badness(j) })
	}
}

// policy is how the next target is chosen.
type policy uint8

const (
	byTurn   policy = iota // each as often as its weight says
	byLoad                 // the one with the fewest flows for its weight
	byChance               // of two at random the one with fewer flows for its weight
	byKey                  // always the same one for a client or what it sends
)

func policyOf(b *router.Backend) policy {
	switch b.Balance {
	case router.LeastConnections, router.LeastRequests:
		return byLoad
	case router.PowerOfTwo:
		return byChance
	case router.SourceHash, router.HashBalance:
		return byKey
	}
	return byTurn
}

// nextInTurn returns the target whose turn it is, passing over failed ones: each
// turn passed over goes to whoever is next, so that the others keep their
// shares among themselves, which would not be so if always the neighbour of the
// failed one took its place. Where too many turns would have to be passed over,
// the target is drawn.
func (a *Attempt) nextInTurn() int {
	t := a.dialer.groups.of(a.backend)
	for range a.backend.Targets {
		if i := t.take(); a.badness(int32(i)) == 0 {
			return i
		}
	}
	if at := a.draw(-1); at >= 0 {
		return int(a.order[at])
	}
	return t.take()
}

// badness orders targets: those with less come first. Nothing is left out: where
// all are bad, what says so is likely wrong, and all are tried. Whether a target
// is well counts for more than where it stands.
func (a *Attempt) badness(i int32) int {
	bad := 0
	if a.zone != anyZone && (a.backend.Targets[i].Zone == a.dialer.zone) != (a.zone == ownZone) {
		bad = 1
	}
	if a.isBad(i) {
		bad += 2
	}
	return bad
}

// isBad reports whether target i is to come after those that are not.
func (a *Attempt) isBad(i int32) bool {
	if !a.dialer.anyBad() {
		return false
	}
	ep := a.target(int(i))
	return a.dialer.failedEndpoints.recent(ep) || a.dialer.checks.isDown(ep, a.backend) ||
		a.dialer.ejections.isOut(ep, a.backend.Eject)
}

// anyBad reports whether any target of any backend failed lately or is down:
// nearly never, and then health costs three loads.
func (d *Dialer) anyBad() bool {
	return !d.failedEndpoints.until.empty() || d.checks.downs.Load() > 0 || !d.ejections.known.empty()
}

// pick returns the next target to try and, where flows are counted, counts this
// one.
func (a *Attempt) pick() int {
	a.lease.Done()
	if i, ok := a.pickStuck(); ok {
		return i
	}
	switch {
	case a.balance == byLoad:
		return a.pickLeastLoaded()
	case a.balance == byChance:
		return a.pickByChance()
	case a.order == nil:
		return 0
	case a.balance == byKey:
		return a.pickByHash()
	}
	return int(a.order[a.begun])
}

// pickLeastLoaded takes the target with the fewest flows for its weight, this
// one counted in. Of several the one is taken that comes next in the row after
// the last one taken. Where no target has any flow, each has its turn as often as
// its weight says: else the heaviest would have all flows that come one by one.
func (a *Attempt) pickLeastLoaded() int {
	if a.order == nil {
		a.lease = a.dialer.loads.of(a.target(0)).take()
		return 0
	}
	targets := a.backend.Targets
	g := a.dialer.groups.of(a.backend)
	g.mu.Lock() // or flows that begin together would all see the same one free
	defer g.mu.Unlock()
	best, bestCost, busy := -1, cost{}, false
	for at := a.begun; at < len(a.order); at++ {
		i := int(a.order[at])
		c := cost{
			bad: a.badness(int32(i)), flows: a.load(g, i).flows.Load() + 1, weight: int64(weightOf(targets[i])),
			away: (i - g.start + len(targets)) % len(targets),
		}
		if best < 0 || c.bad < bestCost.bad {
			busy = false
		}
		if best < 0 || c.less(bestCost) {
			best, bestCost = at, c
		}
		busy = busy || c.bad == bestCost.bad && c.flows > 1
	}
	if !busy && a.begun == 0 {
		best = slices.Index(a.order, int32(a.nextInTurn()))
	}
	i := a.bring(best)
	g.start = (i + 1) % len(targets)
	a.lease = a.load(g, i).take()
	return i
}

// load returns the load of target i. Those of targets without variables are
// kept with the backend.
func (a *Attempt) load(g *group, i int) *load {
	if a.eps != nil {
		return a.dialer.loads.of(a.eps[i])
	}
	g.counting.Do(func() {
		g.loads = make([]*load, len(a.backend.Targets))
		for i := range g.loads {
			g.loads[i] = a.dialer.loads.of(a.target(i))
		}
	})
	return g.loads[i]
}

// cost orders the targets of a backend that balances by connections.
type cost struct {
	bad           int
	flows, weight int64
	away          int
}

func (c cost) less(than cost) bool {
	if c.bad != than.bad {
		return c.bad < than.bad
	}
	if l, r := c.flows*than.weight, than.flows*c.weight; l != r {
		return l < r
	}
	return c.away < than.away
}

// bring puts the target at place at of the order next in it, and returns it.
func (a *Attempt) bring(at int) int {
	a.order[a.begun], a.order[at] = a.order[at], a.order[a.begun]
	return int(a.order[a.begun])
}

// groups keeps what is remembered of every backend with several targets, or with
// retries, that is in use. An entry goes when the garbage collector finds that its backend is
// gone, so nobody has to say that a backend was replaced, and what is held is in
// proportion to the backends that exist.
type groups struct {
	byBackend sync.Map // weak.Pointer[router.Backend] to *group
}

// group is what is remembered of one backend. It belongs to the *Backend: an
// edited one has its turns begin anew.
type group struct {
	turn
	budget budget

	counting sync.Once
	loads    []*load // by target, once they were asked for
	naming   sync.Once
	tokens   []string // the same

	mu    sync.Mutex // guards the following field
	start int        // of targets with equal loads, the first to take
}

func (t *groups) of(b *router.Backend) *group {
	key := weak.Make(b)
	if x, ok := t.byBackend.Load(key); ok {
		return x.(*group)
	}
	made := &group{}
	made.turn.lay(b)
	x, known := t.byBackend.LoadOrStore(key, made)
	if !known {
		runtime.AddCleanup(b, func(key weak.Pointer[router.Backend]) { t.byBackend.Delete(key) }, key)
	}
	return x.(*group)
}

// turn says whose turn it is among the targets of one backend: weighted round
// robin with one atomic addition, however many flows ask at once.
//
// A round has as many turns as the weights add up to. They are laid out in a
// row, each target's side by side, and visited with a stride that has no
// divisor in common with their number, so that every round visits each exactly
// once: the weights hold exactly. With equal weights the stride is 1, each in
// turn; else it is near the golden section of the round, which spreads the
// turns of one target about as evenly as any order can.
type turn struct {
	count  atomic.Uint64
	stride uint64
	ends   []uint64 // where in the row the turns of target i end
}

// lay lays out the turns of the targets of b.
func (t *turn) lay(b *router.Backend) {
	t.stride, t.ends = 1, make([]uint64, len(b.Targets))
	divisor := uint64(0)
	for _, target := range b.Targets {
		divisor = gcd(divisor, weightOf(target))
	}
	round := uint64(0)
	for i, target := range b.Targets {
		round += weightOf(target) / divisor
		t.ends[i] = round
	}
	if round > uint64(len(b.Targets)) {
		t.stride = max(round*618/1000, 1)
		for gcd(t.stride, round) != 1 {
			t.stride++
		}
	}
}

func weightOf(t router.Target) uint64 { return uint64(max(t.Weight, 1)) }

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// take returns the target whose turn it is and moves on.
func (t *turn) take() int {
	round := t.ends[len(t.ends)-1]
	at := (t.count.Add(1) - 1) % round * t.stride % round
	for i, end := range t.ends {
		if at < end {
			return i
		}
	}
	panic("unreachable: at is below round, the last end")
}
