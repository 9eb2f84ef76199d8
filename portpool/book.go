package portpool

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/remotegpu/sluice/router"
)

// protos is how many protocols there are.
const protos = 2

// Book is the pools and the allocations as somebody last saw them, so ordered
// that choosing a port costs little however many are held. Make one with
// NewBook. It is not safe for concurrent use.
type Book struct {
	pools map[string]*Pool
	slots [protos][router.MaxPort + 1]*slot // nil: nobody ever held it
	// taken has a bit for each port that a choice must pass over: held, set
	// aside, resting, mapped by hand, or claimed by a choice under way.
	taken [protos]bitmap
	// mapped has a bit for each port with a mapping.
	mapped [protos]bitmap
	// claimed has a bit for each port that a choice under way has.
	claimed [protos]bitmap
	// former is the ports that an environment's service had last.
	former map[holder]map[place]struct{}
	// held is those that it has, and outside, by service, the ones of them that are
	// not in its pool.
	held    map[holder]map[place]struct{}
	outside map[string]map[place]struct{}
	// resting has each port whose rest is not over at the time now, which is that
	// of the last choice.
	resting restHeap
	now     time.Time
}

// slot is the allocation of one port.
type slot struct {
	*Allocation
	rev  int64
	at   place
	rest int // its place in Book.resting; -1: it is not there
}

type holder struct{ env, service string }

type place struct {
	proto router.Proto
	port  int
}

// NewBook returns a book without pools or allocations.
func NewBook() *Book {
	return &Book{pools: map[string]*Pool{}, former: map[holder]map[place]struct{}{}, held: map[holder]map[place]struct{}{}, outside: map[string]map[place]struct{}{}}
}

// SetPool adds p, or puts it in the place of the pool of the same service.
func (b *Book) SetPool(p *Pool) {
	b.DeletePool(p.Service)
	b.pools[p.Service] = p
	for h, places := range b.held {
		if h.service != p.Service {
			continue
		}
		for at := range places {
			b.noteHeld(h.service, at)
		}
	}
}

// DeletePool forgets a pool. What is held of it stays held.
func (b *Book) DeletePool(service string) {
	delete(b.pools, service)
	delete(b.outside, service)
}

// noteHeld notes that a port is held for a service, if that is outside of its pool.
func (b *Book) noteHeld(service string, at place) {
	p := b.pools[service]
	if p == nil || p.Ports.Contains(at.port) {
		return
	}
	if b.outside[service] == nil {
		b.outside[service] = map[place]struct{}{}
	}
	b.outside[service][at] = struct{}{}
}

// Pool returns the pool of a service, or nil.
func (b *Book) Pool(service string) *Pool { return b.pools[service] }

// Services returns the services that have pools, in order.
func (b *Book) Services() []string { return slices.Sorted(maps.Keys(b.pools)) }

// Set notes the allocation of a port as of an etcd revision; nil: it has none
// any more. What is older than what is known already is left out, so that it
// does not matter in which order one's own writes and the watch arrive. a
// belongs to the book from then on.
func (b *Book) Set(proto router.Proto, port int, a *Allocation, rev int64) {
	old := b.slots[proto][port]
	if old != nil && old.rev > rev {
		return
	}
	at := place{proto, port}
	if old != nil && old.Allocation != nil {
		leave(b.held, old.Allocation, at)
		leave(b.former, old.Allocation, at)
		delete(b.outside[old.Service], at)
		if old.rest >= 0 {
			heap.Remove(&b.resting, old.rest)
		}
	}
	s := &slot{Allocation: a, rev: rev, at: at, rest: -1}
	b.slots[proto][port] = s
	if a != nil && a.Reserved == "" {
		if a.Released.IsZero() {
			join(b.held, a, at)
			b.noteHeld(a.Service, at)
		} else {
			join(b.former, a, at)
			b.lay(s)
		}
	}
	b.settle(at)
}

// ClearAllocations forgets every allocation, for a load to begin with.
func (b *Book) ClearAllocations() {
	b.slots = [protos][router.MaxPort + 1]*slot{}
	clear(b.held)
	clear(b.outside)
	clear(b.former)
	b.resting = nil
	b.settleAll()
}

// ClearMapped forgets every mapping, for a load to begin with.
func (b *Book) ClearMapped() {
	b.mapped = [protos]bitmap{}
	b.settleAll()
}

func (b *Book) settleAll() {
	for proto := range router.Proto(protos) {
		for port := 1; port <= router.MaxPort; port++ {
			b.settle(place{proto, port})
		}
	}
}

// SetMapped notes whether a port has a mapping, whoever made it.
func (b *Book) SetMapped(proto router.Proto, port int, mapped bool) {
	b.mapped[proto].set(port, mapped)
	b.settle(place{proto, port})
}

// Mapped reports whether a port has a mapping.
func (b *Book) Mapped(proto router.Proto, port int) bool { return b.mapped[proto].has(port) }

// Allocation returns who holds a port or held it last, and the etcd revision of
// that; nil and 0: nobody that is remembered. It must not be modified.
func (b *Book) Allocation(proto router.Proto, port int) (*Allocation, int64) {
	s := b.slots[proto][port]
	if s == nil || s.Allocation == nil {
		return nil, 0
	}
	return s.Allocation, s.rev
}

// State returns what a port is at the time now, whatever its pool reserves.
func (b *Book) State(proto router.Proto, port int, now time.Time) State {
	if a, _ := b.Allocation(proto, port); a != nil {
		if s := a.State(now); s != Available {
			return s
		}
	}
	if b.mapped[proto].has(port) {
		return Mapped
	}
	return Available
}

// All calls each with every port that has an allocation, in the order of
// protocols and ports, until it returns false. Allocations must not be modified.
func (b *Book) All(each func(proto router.Proto, port int, a *Allocation, rev int64) bool) {
	for proto := range b.slots {
		for port, s := range b.slots[proto] {
			if s != nil && s.Allocation != nil && !each(router.Proto(proto), port, s.Allocation, s.rev) {
				return
			}
		}
	}
}

// settle brings the bit of a port in taken up to date.
func (b *Book) settle(at place) {
	taken := b.claimed[at.proto].has(at.port) || b.mapped[at.proto].has(at.port)
	if a, _ := b.Allocation(at.proto, at.port); a != nil {
		taken = taken || a.State(b.now) != Available
	}
	b.taken[at.proto].set(at.port, taken)
}

// lay lays a released port to rest, unless that is over.
func (b *Book) lay(s *slot) {
	if s.rest < 0 && b.now.Before(s.Until) {
		heap.Push(&b.resting, s)
	}
}

// advance ends the rests that are over at the time now. A clock that was ahead
// and was set right has ended some too early: those go on.
func (b *Book) advance(now time.Time) {
	back := now.Before(b.now)
	b.now = now
	if back {
		for _, places := range b.former {
			for at := range places {
				b.lay(b.slots[at.proto][at.port])
				b.settle(at)
			}
		}
	}
	for len(b.resting) > 0 && !now.Before(b.resting[0].Until) {
		b.settle(heap.Pop(&b.resting).(*slot).at)
	}
}

// Stats are a pool's numbers. Size is the sum of the others.
type Stats struct {
	Size        int `json:"size"`
	Held        int `json:"held"`
	Reserved    int `json:"reserved"`
	Quarantined int `json:"quarantined"`
	Mapped      int `json:"mapped"` // by hand: held by nobody, and yet in use
	Available   int `json:"available"`
}

// Stats counts the ports of a pool by their state at the time now. A port that
// is for both protocols counts once, by the state that keeps it from being free.
func (b *Book) Stats(p *Pool, now time.Time) Stats {
	s := Stats{Size: p.Ports.Size()}
	for _, r := range p.Ports {
		for port := r.First; port <= r.Last; port++ {
			switch b.worst(p, port, now) {
			case Allocated:
				s.Held++
			case Reserved:
				s.Reserved++
			case Quarantined:
				s.Quarantined++
			case Mapped:
				s.Mapped++
			default:
				s.Available++
			}
		}
	}
	return s
}

// worst returns the state of a port over the protocols of its pool.
func (b *Book) worst(p *Pool, port int, now time.Time) State {
	for _, proto := range p.Protos() {
		if b.taken[proto].has(port) || b.slots[proto][port] != nil {
			if s := b.State(proto, port, now); s != Available {
				return s
			}
		}
	}
	if p.Reserved.Contains(port) {
		return Reserved
	}
	return Available
}

// Held returns what an environment holds for a service, in order.
func (b *Book) Held(env, service string) []Claim {
	var held []Claim
	for at := range b.held[holder{env, service}] {
		held = append(held, Claim{at.proto, at.port, b.slots[at.proto][at.port].rev})
	}
	slices.SortFunc(held, func(a, b Claim) int { return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto)) })
	return held
}

// Outside returns the ports that environments hold outside of the pools of their
// services, which have shrunk, by service and in order.
func (b *Book) Outside() map[string][]int {
	all := map[string][]int{}
	for service, places := range b.outside {
		if len(places) > 0 {
			all[service] = portsOf(places)
		}
	}
	return all
}

// Stranded is Outside of one service, if its pool were p.
func (b *Book) Stranded(p *Pool) []int {
	found := map[place]struct{}{}
	for h, places := range b.held {
		for at := range places {
			if h.service == p.Service && !p.Ports.Contains(at.port) {
				found[at] = struct{}{}
			}
		}
	}
	return portsOf(found)
}

// portsOf returns the ports of places, in order.
func portsOf(places map[place]struct{}) []int {
	ports := make([]int, 0, len(places))
	for at := range places {
		ports = append(ports, at.port)
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// OutsideText says in a verdict that environments hold ports outside of their
// pool; "" where there are none. ports are in order.
func OutsideText(ports []int) string {
	if len(ports) == 0 {
		return ""
	}
	var ranges router.Ports
	for _, port := range ports {
		if n := len(ranges); n > 0 && ranges[n-1].Last == port-1 {
			ranges[n-1].Last = port
		} else {
			ranges = append(ranges, router.PortRange{First: port, Last: port})
		}
	}
	const most = 10
	more := ""
	if len(ranges) > most {
		ranges, more = ranges[:most], ",..."
	}
	count := "1 port"
	if len(ports) > 1 {
		count = fmt.Sprintf("%d ports", len(ports))
	}
	return fmt.Sprintf("ports_outside: environments hold %s outside of it, %v%s, and keep them until they end (sluice port audit)", count, ranges, more)
}

func join(m map[holder]map[place]struct{}, a *Allocation, at place) {
	h := holder{a.Env, a.Service}
	if m[h] == nil {
		m[h] = map[place]struct{}{}
	}
	m[h][at] = struct{}{}
}

func leave(m map[holder]map[place]struct{}, a *Allocation, at place) {
	h := holder{a.Env, a.Service}
	delete(m[h], at)
	if len(m[h]) == 0 {
		delete(m, h)
	}
}

// restHeap has the rest that ends first in front; it implements heap.Interface.
type restHeap []*slot

func (h restHeap) Len() int           { return len(h) }
func (h restHeap) Less(i, j int) bool { return h[i].Until.Before(h[j].Until) }

func (h restHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].rest, h[j].rest = i, j
}

func (h *restHeap) Push(x any) {
	s := x.(*slot)
	s.rest = len(*h)
	*h = append(*h, s)
}

func (h *restHeap) Pop() any {
	end := len(*h) - 1
	last := (*h)[end]
	(*h)[end], *h = nil, (*h)[:end]
	last.rest = -1
	return last
}

// bitmap is a set of ports.
type bitmap [(router.MaxPort + 64) / 64]uint64

func (m *bitmap) has(port int) bool { return m[port>>6]>>(port&63)&1 != 0 }

func (m *bitmap) set(port int, in bool) {
	if in {
		m[port>>6] |= 1 << (port & 63)
	} else {
		m[port>>6] &^= 1 << (port & 63)
	}
}

// firstClear returns the lowest port from first to last that is not in the set,
// or last+1.
func (m *bitmap) firstClear(first, last int) int {
	for port := first; port <= last; {
		if free := ^m[port>>6] >> (port & 63); free != 0 {
			return min(port+bits.TrailingZeros64(free), last+1)
		}
		port = (port | 63) + 1
	}
	return last + 1
}
