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
	"time"
)

const (
	// freshFor is how long an answer is used without asking again. The
	// standard library's resolver does not tell the TTL; five seconds follow a
	// backend that moves closely enough, and are one question in five seconds
	// for each name in use.
	freshFor = 5 * time.Second
	// failedFor is the same for a name that does not resolve, so that flows
	// which cannot succeed do not each cost a question.
	failedFor = time.Second
	// staleFor is how long the last answer serves while no new one is to be
	// had. Name servers fail more often than backends move, and an address that
	// was right yesterday is likelier right than none.
	staleFor = 24 * time.Hour

	// lookupTimeout bounds one look-up, and staleWait one for which there is a
	// former answer at hand.
	lookupTimeout = 5 * time.Second
	staleWait     = time.Second

	// maxNames bounds the memory. Names may be made of what clients send.
	maxNames = 16384
)

// lookuper is the part of net.Resolver that is used.
type lookuper interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// resolver remembers what names stand for. Fresh answers are read without a
// lock. A name that is not fresh is looked up by one of the flows that want it,
// on that flow's goroutine; the others wait for it, or go on with the former
// answer if there is one.
type resolver struct {
	dns     lookuper
	log     *slog.Logger
	metrics *metrics
	answers *bounded[string, *answer]

	mu      sync.Mutex               // guards the following field
	flights map[string]chan struct{} // closed when the look-up has ended
}

// answer is what is known of a name. It is never modified.
type answer struct {
	addrs   []netip.Addr // empty: err says why
	err     error
	learned time.Time // when a resolver said so
	fresh   time.Time // until when not to ask again
}

// usable reports whether a can stand in for a newer answer. a may be nil.
func (a *answer) usable() bool {
	return a != nil && len(a.addrs) > 0 && time.Since(a.learned) < staleFor
}

func newResolver(dns lookuper, log *slog.Logger, m *metrics) *resolver {
	dead := func(a *answer) bool { return isPast(a.fresh) && !a.usable() }
	return &resolver{
		dns: dns, log: log, metrics: m,
		answers: &bounded[string, *answer]{max: maxNames, dead: dead},
		flights: make(map[string]chan struct{}),
	}
}

// resolve returns the addresses of name, IPv4 and IPv6, in the order to try
// (RFC 6724 section 6), at least one. The slice is shared: do not modify it.
func (r *resolver) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	name = strings.ToLower(name)
	for {
		known, _ := r.answers.load(name)
		if known != nil && !isPast(known.fresh) {
			return known.addrs, known.err
		}
		done, mine := r.join(name)
		if mine {
			return r.lookUp(ctx, name, done)
		}
		if known.usable() {
			return known.addrs, nil
		}
		select {
		case <-done: // and look again: there is an answer, or nobody is asking
		case <-ctx.Done():
			return nil, fmt.Errorf("resolve %s: %w", name, ctx.Err())
		}
	}
}

// recall is resolve from memory alone; known is false where somebody has to ask.
func (r *resolver) recall(name string) (addrs []netip.Addr, err error, known bool) {
	a, _ := r.answers.load(strings.ToLower(name))
	if a == nil || isPast(a.fresh) {
		return nil, nil, false
	}
	return a.addrs, a.err, true
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

// lookUp asks for name, remembers the answer and leaves.
func (r *resolver) lookUp(ctx context.Context, name string, done chan struct{}) ([]netip.Addr, error) {
	defer r.leave(name, done)
	former, _ := r.answers.load(name)
	if former != nil && !isPast(former.fresh) {
		return former.addrs, former.err // somebody left just before we joined
	}
	bounded, cancel := context.WithTimeout(ctx, lookupLimit(ctx, former.usable()))
	defer cancel()
	addrs, err := r.dns.LookupNetIP(bounded, "ip", name)
	now := time.Now()
	switch {
	case err == nil && len(addrs) > 0:
		r.metrics.lookedUp(fromDNS)
		for i, a := range addrs {
			addrs[i] = a.Unmap()
		}
		r.answers.store(name, &answer{addrs: addrs, learned: now, fresh: now.Add(freshFor)})
		return addrs, nil
	case ctx.Err() != nil: // says nothing about the name
		return nil, fmt.Errorf("resolve %s: %w", name, ctx.Err())
	}
	// That a name does not exist is an answer, and a former one must not stand
	// against it: the address may be somebody else's by now.
	if !isNotFound(err) && former.usable() {
		r.metrics.lookedUp(fromStale)
		r.log.Warn("a backend's name does not resolve; its last address stays in use", "upstream", name, "err", err)
		r.answers.store(name, &answer{addrs: former.addrs, learned: former.learned, fresh: now.Add(freshFor)})
		return former.addrs, nil
	}
	r.metrics.lookedUp(fromNone)
	if err == nil {
		err = &net.DNSError{Err: "no addresses", Name: name, IsNotFound: true}
	}
	r.answers.store(name, &answer{err: err, learned: now, fresh: now.Add(failedFor)})
	return nil, err
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

func isNotFound(err error) bool {
	var dns *net.DNSError
	return err == nil || errors.As(err, &dns) && dns.IsNotFound
}
