package upstream

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/remotegpu/sluice/router"
)

// Targets returns the targets of b, their variables replaced from v (which may
// be nil where there are none), in the order to try for one flow. The first is
// the one whose turn it is, each as often as its weight says; targets that
// failed within the last seconds lose their turn and come last. The slice is
// the caller's.
//
// The turns belong to b, by identity: they begin anew with a new *Backend and
// are forgotten with the old one. The error says which value of v cannot be
// part of an address.
func (d *Dialer) Targets(b *router.Backend, v *router.Vars) ([]Endpoint, error) {
	if len(b.Targets) == 0 {
		return nil, errors.New("the backend has no targets")
	}
	if v == nil {
		v = &router.Vars{}
	}
	eps := make([]Endpoint, len(b.Targets))
	for i := range b.Targets {
		host, port, err := b.Targets[i].Address.Expand(v)
		if err != nil {
			return nil, err
		}
		eps[i] = Endpoint{Host: host, Port: port, FromClient: !b.Targets[i].Address.IsLiteral()}
	}
	if len(eps) == 1 {
		return eps, nil
	}
	first := d.next(b, eps)
	order := make([]Endpoint, 0, len(eps))
	order = append(append(order, eps[first:]...), eps[:first]...)
	return d.failedEndpoints.last(order), nil
}

// next returns the target whose turn it is, passing over failed ones: each
// turn passed over goes to whoever is next, so that the others keep their
// shares among themselves, which would not be so if always the neighbour of the
// failed one took its place.
func (d *Dialer) next(b *router.Backend, eps []Endpoint) int {
	t := d.turns.of(b)
	i := t.take()
	for range eps {
		if !d.failedEndpoints.recent(eps[i]) {
			break
		}
		i = t.take()
	}
	return i
}

// turns keeps the turn of every backend with several targets that is in use. An
// entry goes when the garbage collector finds that its backend is gone, so
// nobody has to say that a backend was replaced, and what is held is in
// proportion to the backends that exist.
type turns struct {
	byBackend sync.Map // weak.Pointer[router.Backend] to *turn
}

func (t *turns) of(b *router.Backend) *turn {
	key := weak.Make(b)
	if x, ok := t.byBackend.Load(key); ok {
		return x.(*turn)
	}
	x, known := t.byBackend.LoadOrStore(key, newTurn(b))
	if !known {
		runtime.AddCleanup(b, func(key weak.Pointer[router.Backend]) { t.byBackend.Delete(key) }, key)
	}
	return x.(*turn)
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

func newTurn(b *router.Backend) *turn {
	t := &turn{stride: 1, ends: make([]uint64, len(b.Targets))}
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
	return t
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
