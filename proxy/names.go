package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/sluice/router"
)

const (
	// namesAtOnce bounds the look-ups under way, however many names there are.
	namesAtOnce = 8
	// nameTimeout bounds one of them.
	nameTimeout = 10 * time.Second
	// A name that does not resolve is tried again after the first of these,
	// doubling up to the second; one that does is looked at again after the
	// third.
	nameRetryMin = time.Second
	nameRetryMax = 30 * time.Second
	nameRecheck  = 30 * time.Second
	// nameSpacing is how far apart look-ups are on average, where there are so
	// many names that the times above would have them closer together.
	nameSpacing = 25 * time.Millisecond
)

// backendNames looks whether the names that backends are given by stand for
// something, and tells what is wrong, by key. Flows do not depend on
// it: they resolve names for themselves. A mapping or a
// route of nothing but IP addresses costs it nothing.
type backendNames struct {
	// resolve looks a name up.
	resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// loop returns how a mapping leads back to itself, with the names that it
	// meets as lookup says.
	loop func(m *router.Mapping, lookup func(string) []netip.Addr) *router.Loop
	own  func(netip.Addr) bool
	tell func(key string, err error)

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards the following fields
	byName  map[string]*backendName
	told    map[string]bool // the keys of which something wrong was told last
	queue   []*backendName  // to be looked up, in this order
	workers int
	stopped bool
}

// named is a mapping or a route.
type named interface {
	Key() string
	Backends() []router.FieldBackend
}

// backendName is what is known of one name. It is guarded by backendNames.mu.
type backendName struct {
	name    string
	users   map[named]bool
	known   bool // the first look-up has ended
	addrs   []netip.Addr
	err     error // why there are no addrs
	here    bool  // one of addrs is this node's own
	queued  bool  // or being looked up
	backoff time.Duration
	timer   *time.Timer // to the next look-up; nil: none has ended
}

func newBackendNames() *backendNames {
	n := &backendNames{byName: map[string]*backendName{}, told: map[string]bool{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// apply takes the mappings that differ between was and t. Names that are known
// already count at once, the others when they were looked up.
func (n *backendNames) apply(t, was *router.Table) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return
	}
	t.DiffMappings(was, func(was, is *router.Mapping) { n.follow(orNone(was), orNone(is)) })
	t.DiffNamedRoutes(was, func(was, is *router.Route) { n.follow(orNone(was), orNone(is)) })
}

// orNone returns nil for a pointer that is.
func orNone[T any, P interface {
	*T
	named
}](p P) named {
	if p == nil {
		return nil
	}
	return p
}

// follow takes is, in the place of was, either of them nil for none. n.mu is held.
func (n *backendNames) follow(was, is named) {
	if is != nil {
		eachName(is, func(_, name string) { n.use(name, is) })
	}
	if was != nil {
		eachName(was, func(_, name string) { n.release(name, was) })
	}
	switch {
	case is == nil:
		if _, route := was.(*router.Route); route && n.told[was.Key()] {
			n.tell(was.Key(), nil) // it may be there still, without names
		}
		delete(n.told, was.Key())
	case hasNames(is) || was != nil && n.told[was.Key()]:
		n.judge(is)
	}
}

// use notes that m needs name. n.mu is held.
func (n *backendNames) use(name string, m named) {
	b := n.byName[name]
	if b == nil {
		b = &backendName{name: name, users: map[named]bool{}, backoff: nameRetryMin}
		n.byName[name] = b
	}
	b.users[m] = true
	b.backoff = nameRetryMin // whoever put m may have mended it
	n.enqueue(b)
}

// release notes that m does not need name any more. n.mu is held.
func (n *backendNames) release(name string, m named) {
	b := n.byName[name]
	if b == nil {
		return // m has it twice
	}
	delete(b.users, m)
	if len(b.users) > 0 {
		return
	}
	delete(n.byName, name)
	if b.timer != nil {
		b.timer.Stop()
	}
}

// enqueue has b looked up as soon as a worker is free. n.mu is held.
func (n *backendNames) enqueue(b *backendName) {
	if b.queued || n.stopped {
		return
	}
	b.queued = true
	n.queue = append(n.queue, b)
	if n.workers < namesAtOnce {
		n.workers++
		n.running.Go(n.work)
	}
}

// work looks names up until none is waiting.
func (n *backendNames) work() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.queue) > 0 && !n.stopped {
		b := n.queue[0]
		n.queue = n.queue[1:]
		if n.byName[b.name] != b {
			continue // nobody needs it any more
		}
		n.mu.Unlock()
		ctx, cancel := context.WithTimeout(n.ctx, nameTimeout)
		addrs, err := n.resolve(ctx, b.name)
		cancel()
		n.mu.Lock()
		b.queued = false
		if n.byName[b.name] == b && !n.stopped {
			n.learn(b, addrs, err)
		}
	}
	n.workers--
}

// learn takes what a look-up has come to. n.mu is held.
func (n *backendNames) learn(b *backendName, addrs []netip.Addr, err error) {
	news := fmt.Sprint(err) != fmt.Sprint(b.err) || b.here // of loops, others decide as well
	b.known, b.addrs, b.err = true, addrs, err
	b.here = slices.ContainsFunc(addrs, func(a netip.Addr) bool { return n.own(a.Unmap()) })
	if news || b.here {
		for m := range b.users {
			n.judge(m)
		}
	}
	pause := nameRecheck
	if err != nil {
		pause, b.backoff = b.backoff, min(b.backoff*2, nameRetryMax)
	} else {
		b.backoff = nameRetryMin
	}
	pause = max(pause, time.Duration(len(n.byName))*nameSpacing)
	pause += rand.N(pause / 8) // names put together need not be looked up together
	if b.timer != nil {
		b.timer.Reset(pause)
		return
	}
	b.timer = time.AfterFunc(pause, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.byName[b.name] == b {
			n.enqueue(b)
		}
	})
}

// judge tells what is wrong with the names of m, or that nothing is any more.
// n.mu is held.
func (n *backendNames) judge(m named) {
	err := n.problem(m)
	key := m.Key()
	if err == nil && !n.told[key] {
		return
	}
	if err != nil {
		n.told[key] = true
	} else {
		delete(n.told, key)
	}
	n.tell(key, err)
}

// problem returns what is wrong with the names of m. n.mu is held.
func (n *backendNames) problem(m named) (err error) {
	here := false
	eachName(m, func(field, name string) {
		b := n.byName[name]
		if err == nil && b.err != nil {
			err = fmt.Errorf("backend_unresolved: %s: %s does not resolve: %s; correct it, or have it resolve, which is tried until it does", field, name, inWords(b.err))
		}
		here = here || b.here
	})
	mapping, ok := m.(*router.Mapping)
	if err != nil || !here || !ok {
		return err
	}
	loop := n.loop(mapping, func(name string) []netip.Addr {
		if b := n.byName[name]; b != nil {
			return b.addrs
		}
		return nil
	})
	if loop == nil {
		return nil
	}
	return fmt.Errorf("backend_loop: %w", loop)
}

// inWords leaves out of a resolver's error what its reader has just read.
func inWords(err error) string {
	var dns *net.DNSError
	switch {
	case !errors.As(err, &dns):
		return err.Error()
	case dns.Server != "":
		return dns.Err + " (asked " + dns.Server + ")"
	}
	return dns.Err
}

// stop ends all look-ups and returns when none is under way any more.
func (n *backendNames) stop() {
	n.mu.Lock()
	n.stopped = true
	for _, b := range n.byName {
		if b.timer != nil {
			b.timer.Stop()
		}
	}
	n.mu.Unlock()
	n.cancel()
	n.running.Wait()
}

func hasNames(m named) (has bool) {
	eachName(m, func(string, string) { has = true })
	return has
}

// eachName calls f for each target of m that is given by name.
func eachName(m named, f func(field, name string)) {
	for _, b := range m.Backends() {
		b.EachName(func(name string) { f(b.Field, name) })
	}
}
