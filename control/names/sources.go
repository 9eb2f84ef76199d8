package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/remotegpu/sluice/router"
)

const (
	// A source is resolved again when its TTL is over, within these.
	leastSourceTTL = 5 * time.Second
	mostSourceTTL  = 5 * time.Minute
	// probeEvery is how often a connection to each address is tried, and
	// probeLimit how long it may take. So many in a row have an address counted as
	// up or down.
	probeEvery = 3 * time.Second
	probeLimit = 2 * time.Second
	probeRise  = 2
	probeFall  = 2
	// probesAtOnce bounds the connections that are tried at a time.
	probesAtOnce = 32
	// resolveLimit bounds a lookup.
	resolveLimit = 5 * time.Second
)

// sources knows the addresses of the sources of names, and which of them take
// connections.
type sources struct {
	resolve func(ctx context.Context, name string) ([]netip.Addr, time.Duration, error)
	dial    func(ctx context.Context, at netip.AddrPort) error
	tell    func() // that something has changed
	kick    chan struct{}

	mu     sync.Mutex // guards the following
	names  map[string]*source
	probed map[netip.AddrPort]*probe
	ports  map[string][]int // by source: the ports that somebody asks of it
}

// source is a name that addresses come from.
type source struct {
	addrs []netip.Addr // as last resolved; a failure leaves them
	err   error        // of the last lookup
	next  time.Time
	// known says that a lookup has found addresses, or that there is no such name. The
	// addresses that are published may be those of a source that is not known.
	known bool
}

// probe is what is known of one address and port.
type probe struct {
	tried bool // enough to say whether it is up
	up    bool
	same  int   // attempts in a row that say otherwise
	err   error // of the last one that failed
	next  time.Time
}

// note takes up what an attempt came to.
func (p *probe) note(err error) {
	if err != nil {
		p.err = err
	}
	switch {
	case !p.tried && err == nil:
		p.tried, p.up, p.same = true, true, 0
	case !p.tried: // it may be published: one failure is not enough here either
		p.same++
		if p.same >= probeFall {
			p.tried, p.same = true, 0
		}
	case (err == nil) == p.up:
		p.same = 0
	default:
		p.same++
		if need := map[bool]int{true: probeFall, false: probeRise}[p.up]; p.same >= need {
			p.up, p.same = !p.up, 0
		}
	}
}

func newSources(resolve func(context.Context, string) ([]netip.Addr, time.Duration, error), dial func(context.Context, netip.AddrPort) error, tell func()) *sources {
	return &sources{
		resolve: resolve, dial: dial, tell: tell, kick: make(chan struct{}, 1),
		names: map[string]*source{}, probed: map[netip.AddrPort]*probe{}, ports: map[string][]int{},
	}
}

// set says which names there are.
func (s *sources) set(specs map[string]*router.PublishedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ports := map[string][]int{}
	for _, p := range specs {
		for _, name := range p.Sources {
			if !slices.Contains(ports[name], p.Port) {
				ports[name] = append(ports[name], p.Port)
			}
			if s.names[name] == nil {
				s.names[name] = &source{}
			}
		}
	}
	s.ports = ports
	for name := range s.names {
		if ports[name] == nil {
			delete(s.names, name)
		}
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// run resolves and probes until ctx ends.
func (s *sources) run(ctx context.Context) {
	for {
		next := s.round(ctx)
		timer := time.NewTimer(max(time.Until(next), 10*time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round does what is due, and returns when something is again.
func (s *sources) round(ctx context.Context) (next time.Time) {
	changed := s.lookUp(ctx)
	changed = s.try(ctx) || changed
	if changed && ctx.Err() == nil {
		s.tell()
	}
	next = time.Now().Add(mostSourceTTL)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, src := range s.names {
		if src.next.Before(next) {
			next = src.next
		}
	}
	for _, p := range s.probed {
		if p.next.Before(next) {
			next = p.next
		}
	}
	return next
}

// lookUp resolves the sources that are due, and reports whether that is news.
func (s *sources) lookUp(ctx context.Context) (changed bool) {
	now := time.Now()
	s.mu.Lock()
	var due []string
	for name, src := range s.names {
		if !src.next.After(now) {
			due = append(due, name)
		}
	}
	s.mu.Unlock()
	each(len(due), func(i int) {
		limit, cancel := context.WithTimeout(ctx, resolveLimit)
		defer cancel()
		addrs, ttl, err := s.resolve(limit, due[i])
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		src := s.names[due[i]]
		if src == nil {
			return
		}
		src.next = time.Now().Add(min(max(ttl, leastSourceTTL), mostSourceTTL))
		if err != nil {
			changed = changed || src.err == nil || !src.known && noSuchName(err)
			src.next = time.Now().Add(leastSourceTTL)
		} else if addrs = sortedAddrs(addrs); !slices.Equal(addrs, src.addrs) || !src.known || src.err != nil {
			src.addrs, changed = addrs, true
		}
		src.err, src.known = err, src.known || err == nil || noSuchName(err)
	})
	return changed
}

// noSuchName reports whether a lookup says that there is no such name, rather than
// that nobody can tell.
func noSuchName(err error) bool {
	failed, ok := errors.AsType[*net.DNSError](err)
	return ok && failed.IsNotFound
}

func sortedAddrs(addrs []netip.Addr) []netip.Addr {
	all := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		all[i] = a.Unmap().WithZone("")
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// try probes the addresses that are due, and reports whether that is news.
func (s *sources) try(ctx context.Context) (changed bool) {
	now := time.Now()
	s.mu.Lock()
	there := map[netip.AddrPort]bool{}
	for name, src := range s.names {
		for _, a := range src.addrs {
			for _, port := range s.ports[name] {
				there[netip.AddrPortFrom(a, uint16(port))] = true
			}
		}
	}
	var due []netip.AddrPort
	for at := range there {
		if s.probed[at] == nil {
			s.probed[at] = &probe{}
		}
		if p := s.probed[at]; !p.next.After(now) {
			p.next = now.Add(probeEvery)
			due = append(due, at)
		}
	}
	for at := range s.probed {
		if !there[at] {
			delete(s.probed, at)
		}
	}
	s.mu.Unlock()
	each(len(due), func(i int) {
		limit, cancel := context.WithTimeout(ctx, probeLimit)
		defer cancel()
		err := s.dial(limit, due[i])
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if p := s.probed[due[i]]; p != nil {
			was, tried := p.up, p.tried
			p.note(err)
			changed = changed || tried != p.tried || was != p.up
		}
	})
	return changed
}

// each runs f for 0 to n-1, some of them at a time, and returns when all have.
func each(n int, f func(i int)) {
	var running sync.WaitGroup
	slots := make(chan struct{}, probesAtOnce)
	for i := range n {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	running.Wait()
}

// wanted returns what a name is to have of its sources.
func (s *sources) wanted(p *router.PublishedName) Wanted {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := Wanted{Complete: true}
	for _, name := range p.Sources {
		src := s.names[name]
		if src != nil && !src.known && src.err != nil {
			return Wanted{Why: fmt.Sprintf("the source %s cannot be resolved yet: %v", name, src.err)}
		}
		if src == nil || !src.known {
			return Wanted{Why: fmt.Sprintf("the source %s is not resolved yet", name)}
		}
		if src.err != nil {
			w.Out = append(w.Out, fmt.Sprintf("%s cannot be resolved: %v", name, src.err))
		}
		for _, a := range src.addrs {
			at := netip.AddrPortFrom(a, uint16(p.Port))
			switch probe := s.probed[at]; {
			case probe == nil || !probe.tried:
				return Wanted{Why: fmt.Sprintf("%v of the source %s is not probed yet", at, name)}
			case !probe.up:
				w.Out = append(w.Out, fmt.Sprintf("%v of %s is out: %v", at, name, probe.err))
			default:
				w.add(a, 1)
			}
		}
	}
	w.sort()
	return w
}

// dial connects to an address and hangs up.
func dial(ctx context.Context, at netip.AddrPort) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	return conn.Close()
}
