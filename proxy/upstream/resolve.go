package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// How long an answer is used follows its TTL within these bounds. Less than
	// a second would have names with a TTL of 0 asked for by every flow; more
	// than some minutes would make a mistake in a zone last for as long as
	// whoever made it wrote, a day mostly.
	minFresh = time.Second
	maxFresh = 5 * time.Minute
	// The same for the answer that a name does not exist: a container that
	// starts, or a record just made, is found soon.
	maxAbsent = 10 * time.Second
	// failedFor is the same for a name about which nothing could be learnt, so
	// that flows which cannot succeed do not each cost a question.
	failedFor = time.Second
	// staleFor is how long the last answer serves while no new one is to be
	// had. Name servers fail more often than backends move, and an address that
	// was right yesterday is likelier right than none (RFC 8767).
	staleFor = 24 * time.Hour
	// retryAfter is how long it takes meanwhile until the next question.
	retryAfter = 5 * time.Second

	// lookupTimeout bounds one look-up, and staleWait one that a flow waits for
	// although there is a former answer at hand.
	lookupTimeout = 5 * time.Second
	staleWait     = time.Second

	// maxNames bounds the memory, and maxRefreshes the questions that nobody
	// waits for. Names may be made of what clients send.
	maxNames     = 16384
	maxRefreshes = 64
)

// Resolver looks names up and says for how long the answer is good. It is called
// from any goroutine.
type Resolver interface {
	Lookup(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, err error)
}

// resolver remembers what names stand for. Fresh answers are read without a
// lock. One that is in use is asked for again in the background before its time
// is over, so that flows find it fresh. A name that is not fresh is looked up by
// one of the flows that want it, on that flow's goroutine; the others wait for
// it, or go on with the former answer if there is one.
type resolver struct {
	dns     Resolver
	log     *slog.Logger
	metrics *metrics
	answers *bounded[string, *answer]

	ctx        context.Context // of the look-ups in the background
	cancel     context.CancelFunc
	background sync.WaitGroup

	mu         sync.Mutex               // guards the following fields
	flights    map[string]chan struct{} // closed when the look-up has ended
	refreshing int
	closed     bool
}

// answer is what is known of a name. Nothing but turns is ever modified.
type answer struct {
	addrs   []netip.Addr // empty: err says why
	err     error
	learned time.Time // when a resolver said so
	ahead   time.Time // from when on its use has it asked for again
	fresh   time.Time // until when it is used without waiting for another
	failing bool      // the last question had no answer

	turns *atomic.Uint32 // flows that began at an address by turns, in former answers too; nil: there are no several
}

// usable reports whether a can stand in for a newer answer. a may be nil.
func (a *answer) usable() bool {
	return a != nil && len(a.addrs) > 0 && time.Since(a.learned) < staleFor
}

func newResolver(dns Resolver, log *slog.Logger, m *metrics) *resolver {
	dead := func(a *answer) bool { return isPast(a.fresh) && !a.usable() }
	r := &resolver{
		dns: dns, log: log, metrics: m,
		answers: &bounded[string, *answer]{max: maxNames, dead: dead},
		flights: make(map[string]chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// close ends the look-ups in the background and waits for them. Others go on.
func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.background.Wait()
}

// resolve returns the addresses of name, IPv4 and IPv6, in the order to try
// (RFC 6724 section 6), at least one. The slice is shared: do not modify it.
func (r *resolver) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	for {
		if addrs, err, known := r.recall(name); known {
			return addrs, err
		}
		name := strings.ToLower(name)
		former, _ := r.answers.load(name)
		done, mine := r.join(name)
		if mine {
			return r.lookUp(ctx, name, done, lookupLimit(ctx, former.usable()))
		}
		if former.usable() {
			return former.addrs, nil
		}
		select {
		case <-done: // and look again: there is an answer, or nobody is asking
		case <-ctx.Done():
			return nil, fmt.Errorf("resolve %s: %w", name, ctx.Err())
		}
	}
}

// recall is resolve from memory alone; known is false where somebody has to ask
// and wait.
func (r *resolver) recall(name string) (addrs []netip.Addr, err error, known bool) {
	name = strings.ToLower(name)
	a, _ := r.answers.load(name)
	if a == nil || isPast(a.fresh) {
		return nil, nil, false
	}
	if isPast(a.ahead) {
		r.refresh(name)
	}
	return a.addrs, a.err, true
}

// remembered returns the addresses that name was last known to have, however
// long ago, and has it looked up in the background if that is due. The slice is
// shared: do not modify it.
func (r *resolver) remembered(name string) []netip.Addr {
	name = strings.ToLower(name)
	a, _ := r.answers.load(name)
	if !a.usable() {
		return nil
	}
	if isPast(a.ahead) {
		r.refresh(name)
	}
	return a.addrs
}

// turn returns a number that is one higher each time, for flows to take the
// addresses of name by.
func (r *resolver) turn(name string) uint32 {
	if a, _ := r.answers.load(strings.ToLower(name)); a != nil && a.turns != nil {
		return a.turns.Add(1) - 1
	}
	return 0
}

// refresh has name looked up in the background, unless that is being done.
func (r *resolver) refresh(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.refreshing == maxRefreshes || r.flights[name] != nil {
		return
	}
	done := make(chan struct{})
	r.flights[name] = done
	r.refreshing++
	r.background.Go(func() {
		_, _ = r.lookUp(r.ctx, name, done, lookupTimeout)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.refreshing--
	})
}

// join returns the channel that is closed when the look-up of name ends, and
// whether it is the caller's task to do it, and then to leave.
func (r *resolver) join(name string) (done chan struct{}, mine bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done = r.flights[name]
	if done == nil {
		done = make(chan struct{})
		r.flights[name] = done
		mine = true
	}
	return done, mine
}

func (r *resolver) leave(name string, done chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, name)
	close(done)
}

// lookUp asks for name, for as long as limit, remembers the answer and leaves.
func (r *resolver) lookUp(ctx context.Context, name string, done chan struct{}, limit time.Duration) ([]netip.Addr, error) {
	defer r.leave(name, done)
	former, _ := r.answers.load(name)
	if former != nil && !isPast(former.ahead) {
		return former.addrs, former.err // somebody left just before we joined
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	addrs, ttl, err := r.dns.Lookup(bounded, name)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no addresses", Name: name, IsNotFound: true}
	}
	if err != nil && ctx.Err() != nil { // says nothing about the name
		return nil, fmt.Errorf("resolve %s: %w", name, ctx.Err())
	}
	a := r.learn(name, former, addrs, ttl, err)
	if former != nil && former.turns != nil {
		a.turns = former.turns
	} else if len(a.addrs) > 1 {
		a.turns = new(atomic.Uint32)
	}
	r.answers.store(name, a)
	return a.addrs, a.err
}

// learn makes what is known of name from now on out of what was known and the
// outcome of a look-up.
func (r *resolver) learn(name string, former *answer, addrs []netip.Addr, ttl time.Duration, err error) *answer {
	now := time.Now()
	var dns *net.DNSError
	absent := errors.As(err, &dns) && dns.IsNotFound
	switch {
	case err == nil:
		r.metrics.lookedUp(fromDNS)
		if former != nil && former.failing {
			r.log.Info("a backend's name resolves again", "upstream", name)
		}
		ttl = min(max(ttl, minFresh), maxFresh)
		return &answer{addrs: addrs, learned: now, ahead: now.Add(ttl * 3 / 4), fresh: now.Add(ttl)}
	// That a name does not exist is an answer, and a former one must not stand
	// against it: the address may be somebody else's by now.
	case !absent && former.usable():
		r.metrics.lookedUp(fromStale)
		if !former.failing {
			r.log.Warn("a backend's name does not resolve; its last address stays in use", "upstream", name, "err", err)
		}
		return &answer{addrs: former.addrs, learned: former.learned, ahead: now.Add(retryAfter), fresh: former.learned.Add(staleFor), failing: true}
	}
	r.metrics.lookedUp(fromNone)
	holds := failedFor
	if absent {
		holds = min(max(ttl, minFresh), maxAbsent)
	}
	until := now.Add(holds)
	return &answer{err: err, learned: now, ahead: until, fresh: until}
}

// lookupLimit returns how long a look-up may take. Where a former answer can
// stand in, half of the time that is left is kept for connecting to it.
func lookupLimit(ctx context.Context, hasFormer bool) time.Duration {
	if !hasFormer {
		return lookupTimeout
	}
	if deadline, ok := ctx.Deadline(); ok {
		return min(staleWait, time.Until(deadline)/2)
	}
	return staleWait
}
