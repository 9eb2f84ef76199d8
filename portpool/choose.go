package portpool

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// MaxSpan is how many ports in a row one allocation may have.
const MaxSpan = 32

// Request is a wish for ports of a pool.
type Request struct {
	Env, Service string // who wants them, and of which pool
	// Port is the one that is wanted; 0: any.
	Port int
	// Span is how many in a row are wanted, up to MaxSpan; 0: one.
	Span int
	// Skip passes over so many free places of a pool that picks the lowest, for
	// as long as there are others: whoever lost a race for the first of them
	// should not run for the very next along with everybody else.
	Skip int
}

// Grant is what a request comes to: ports that may be written to etcd, on the
// condition that Claims holds.
type Grant struct {
	Env, Service string
	Ports        router.PortRange
	Protos       []router.Proto
	// Claims are the keys to write, one for each port and protocol.
	Claims []Claim
}

// Claim is a port of a grant, and the etcd revision at which its allocation was
// looked at: 0 where there was none. It is good as long as that is its last.
type Claim struct {
	Proto router.Proto
	Port  int
	Since int64
}

// ExhaustedError says that a pool has no ports for a request.
type ExhaustedError struct {
	Service string
	Span    int
	Stats   Stats
}

func (e *ExhaustedError) Error() string {
	s := e.Stats
	if e.Span > 1 && s.Available >= e.Span {
		return fmt.Sprintf("the pool %s has no %d free ports in a row: %d of its %d are free, none of them so many together; ask for fewer, or let the pool have more ports",
			e.Service, e.Span, s.Available, s.Size)
	}
	return fmt.Sprintf("the pool %s is exhausted: of its %d ports %d are held, %d are quarantined, %d are reserved, %d have mappings that nobody allocated, and %d are free; let it have more ports, or release some",
		e.Service, s.Size, s.Held, s.Quarantined, s.Reserved, s.Mapped, s.Available)
}

// TakenError says that the very port that was asked for cannot be had.
type TakenError struct {
	Proto      router.Proto
	Port       int
	State      State
	Allocation *Allocation // who has it, or had it; nil: nobody
}

func (e *TakenError) Error() string {
	at := fmt.Sprintf("%s port %d", e.Proto, e.Port)
	switch e.State {
	case Allocated:
		return fmt.Sprintf("%s is held by %s of environment %s since %s", at, e.Allocation.Service, e.Allocation.Env, stamp(e.Allocation.Since))
	case Reserved:
		return fmt.Sprintf("%s is reserved: %s", at, e.Allocation.Reserved)
	case Quarantined:
		return fmt.Sprintf("%s was released by environment %s and rests until %s", at, e.Allocation.Env, stamp(e.Allocation.Until))
	case Mapped:
		return fmt.Sprintf("%s has a mapping that nobody allocated; delete %s, or ask for another port", at, router.MappingKey(e.Proto, e.Port))
	}
	return fmt.Sprintf("%s is being allocated to somebody else", at)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Choose decides which ports a request gets at the time now, and changes
// nothing: Claim does, once the caller means to have them. The first choice are
// the ports that the same environment had for the same service before; then the
// pool's lowest or a random one, which random(n) picks from 0 to n-1.
//
// The error is a *router.FieldError for a request that no pool could fulfil, a
// *TakenError or an *ExhaustedError.
func (b *Book) Choose(r Request, now time.Time, random func(n int) int) (*Grant, error) {
	b.advance(now)
	p := b.pools[r.Service]
	if p == nil {
		return nil, &router.FieldError{Path: "service", Msg: fmt.Sprintf("there is no pool %q; there are: %s", r.Service, orNone(b.Services()))}
	}
	if len(p.Ports) == 0 {
		return nil, &router.FieldError{Path: "service", Msg: fmt.Sprintf("the pool %q has no ports: environments are reached at %s", r.Service, p.Route.Host)}
	}
	span := max(r.Span, 1)
	if r.Span < 0 || span > MaxSpan {
		return nil, &router.FieldError{Path: "span", Msg: fmt.Sprintf("must be from 1 to %d, not %d", MaxSpan, r.Span)}
	}
	if r.Port != 0 {
		return b.exactly(p, r, span, now)
	}
	first, ok := b.again(p, r, span)
	if !ok {
		first, ok = b.pick(p, r, span, random)
	}
	if !ok {
		return nil, &ExhaustedError{p.Service, span, b.Stats(p, now)}
	}
	return b.grant(p, r, router.PortRange{First: first, Last: first + span - 1}), nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// exactly grants the ports that are asked for, reserved ones of the pool too.
func (b *Book) exactly(p *Pool, r Request, span int, now time.Time) (*Grant, error) {
	ports := router.PortRange{First: r.Port, Last: r.Port + span - 1}
	if r.Port < 1 || ports.Last > router.MaxPort || !within(ports, p.Ports) {
		return nil, &router.FieldError{Path: "port", Msg: fmt.Sprintf("%v lies outside the pool %s (%v)", ports, p.Service, p.Ports)}
	}
	for port := ports.First; port <= ports.Last; port++ {
		for _, proto := range p.Protos() {
			if b.free(proto, port, r) {
				continue
			}
			a, _ := b.Allocation(proto, port)
			state := Available // claimed by a choice under way
			if !b.claimed[proto].has(port) {
				state = b.State(proto, port, now)
			}
			return nil, &TakenError{proto, port, state, a}
		}
	}
	return b.grant(p, r, ports), nil
}

// free reports whether r may have a port: nobody has it, or it rests from r's
// own use.
func (b *Book) free(proto router.Proto, port int, r Request) bool {
	if !b.taken[proto].has(port) {
		return true
	}
	if b.claimed[proto].has(port) || b.mapped[proto].has(port) {
		return false
	}
	_, own := b.former[holder{r.Env, r.Service}][place{proto, port}]
	return own
}

// again returns the ports that the same environment had before, if it may have
// them now: the pool may have set them aside meanwhile.
func (b *Book) again(p *Pool, r Request, span int) (first int, ok bool) {
	var had []int
	for at := range b.former[holder{r.Env, r.Service}] {
		had = append(had, at.port)
	}
	slices.Sort(had)
	for _, first := range slices.Compact(had) {
		ports := router.PortRange{First: first, Last: first + span - 1}
		if within(ports, p.Ports) && !overlap(ports, p.Reserved) && b.allFree(p, ports, r) && b.had(p, ports, r) {
			return first, true
		}
	}
	return 0, false
}

// overlap reports whether some port of r is in ports.
func overlap(r router.PortRange, ports router.Ports) bool {
	for _, other := range ports {
		if r.First <= other.Last && other.First <= r.Last {
			return true
		}
	}
	return false
}

func (b *Book) allFree(p *Pool, ports router.PortRange, r Request) bool {
	for port := ports.First; port <= ports.Last; port++ {
		for _, proto := range p.Protos() {
			if !b.free(proto, port, r) {
				return false
			}
		}
	}
	return true
}

// had reports whether r's holder had each of ports for each protocol.
func (b *Book) had(p *Pool, ports router.PortRange, r Request) bool {
	had := b.former[holder{r.Env, r.Service}]
	for port := ports.First; port <= ports.Last; port++ {
		for _, proto := range p.Protos() {
			if _, ok := had[place{proto, port}]; !ok {
				return false
			}
		}
	}
	return true
}

// pick returns the first of span free ports in a row, as the pool would have it.
func (b *Book) pick(p *Pool, r Request, span int, random func(n int) int) (first int, ok bool) {
	taken := b.takenFor(p)
	if p.Pick != "random" {
		first, ok = lowest(&taken, p.Ports, 0, span)
		for range r.Skip {
			next, more := lowest(&taken, p.Ports, first+span, span)
			if !more {
				break
			}
			first = next
		}
		return first, ok
	}
	// From a random place on, and then from the begin to there.
	skip := random(p.Ports.Size())
	for i, r := range p.Ports {
		if skip >= r.Size() {
			skip -= r.Size()
			continue
		}
		behind := append(router.Ports{{First: r.First + skip, Last: r.Last}}, p.Ports[i+1:]...)
		if first, ok = lowest(&taken, behind, 0, span); ok {
			return first, true
		}
		break
	}
	return lowest(&taken, p.Ports, 0, span)
}

// takenFor returns the ports that a choice for the pool passes over.
func (b *Book) takenFor(p *Pool) bitmap {
	var taken bitmap
	for _, proto := range p.Protos() {
		for i, word := range b.taken[proto] {
			taken[i] |= word
		}
	}
	for _, r := range p.Reserved {
		for port := r.First; port <= r.Last; port++ {
			taken.set(port, true)
		}
	}
	return taken
}

// lowest returns the first of span ports in a row that are in ports, not below
// from, and not taken. Ranges that touch count as one.
func lowest(taken *bitmap, ports router.Ports, from, span int) (first int, ok bool) {
	for i := 0; i < len(ports); {
		run := ports[i]
		for i++; i < len(ports) && ports[i].First == run.Last+1; i++ {
			run.Last = ports[i].Last
		}
		for first := max(run.First, from); first+span-1 <= run.Last; {
			first = taken.firstClear(first, run.Last)
			end := first
			for end <= run.Last && end < first+span && !taken.has(end) {
				end++
			}
			if end == first+span {
				return first, true
			}
			first = end + 1
		}
	}
	return 0, false
}

func (b *Book) grant(p *Pool, r Request, ports router.PortRange) *Grant {
	g := &Grant{Env: r.Env, Service: r.Service, Ports: ports, Protos: p.Protos()}
	for port := ports.First; port <= ports.Last; port++ {
		for _, proto := range g.Protos {
			_, since := b.Allocation(proto, port)
			g.Claims = append(g.Claims, Claim{proto, port, since})
		}
	}
	return g
}

// Claim keeps other choices away from the ports of g until Unclaim.
func (b *Book) Claim(g *Grant) { b.claim(g, true) }

// Unclaim ends a claim, whatever it came to.
func (b *Book) Unclaim(g *Grant) { b.claim(g, false) }

func (b *Book) claim(g *Grant, claimed bool) {
	for _, c := range g.Claims {
		b.claimed[c.Proto].set(c.Port, claimed)
		b.settle(place{c.Proto, c.Port})
	}
}
