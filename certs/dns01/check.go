package dns01

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
	mdns "github.com/miekg/dns"

	"github.com/remotegpu/sluice/certs/dns"
)

const (
	// checkEvery is how often providers are checked, and left records looked for.
	checkEvery = time.Hour
	// checkSoon is the same after a check has failed.
	checkSoon = 5 * time.Minute
	// settle is how long further names may take to come after the first.
	settle = time.Second
	// maxChecks bounds the zones that one provider is checked with: an account
	// that may use that many may use the others, and calls cost its quota.
	maxChecks = 20
)

// checkResult is what a check has found.
type checkResult struct {
	failed bool
	text   string // what was logged last
}

// SetNames says which names have certificates, each with the provider that it
// chose: Run checks the providers with their zones. The map must not be modified
// any more.
func (s *Solver) SetNames(names map[string]string) {
	s.mu.Lock()
	same := maps.Equal(s.names, names)
	s.names = names
	s.mu.Unlock()
	if same {
		return
	}
	select {
	case s.poke <- struct{}{}:
	default: // Run has not seen the last one yet
	}
}

// Run deletes records that were left behind, by this node or another, and checks
// what the providers may do, now and again, until ctx ends. It returns nil. What
// it finds is in the log, in metrics, and told to Config.Checked.
func (s *Solver) Run(ctx context.Context) error {
	var next time.Time
	for ctx.Err() == nil {
		due := !time.Now().Before(next)
		if due {
			s.sweep(ctx, notes, func(note) bool { return false })
		}
		fine := s.check(ctx, due)
		if due {
			next = time.Now().Add(checkEvery)
		}
		if soon := time.Now().Add(checkSoon); !fine && next.After(soon) {
			next = soon
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-s.poke:
			sleep(ctx, settle) // names seldom come alone
		case <-t.C:
		}
		t.Stop()
	}
	return nil
}

// check checks all providers, side by side, and reports whether all may be used.
// Unless all is said, those zones count as they were found before that have been
// checked: names come and go more often than an account would like to be asked.
func (s *Solver) check(ctx context.Context, all bool) bool {
	s.mu.Lock()
	names := s.names
	s.mu.Unlock()
	var running sync.WaitGroup
	fine := make([]bool, len(s.cfg.Providers))
	for i, name := range slices.Sorted(maps.Keys(s.cfg.Providers)) {
		running.Go(func() { fine[i] = s.checkProvider(ctx, s.cfg.Providers[name], names, all) })
	}
	running.Wait()
	return !slices.Contains(fine, false)
}

// trial is a zone, and the name that a provider is asked about in it.
type trial struct{ zone, name string }

// checkProvider checks one provider with the zones that it lists and with those
// of the names that chose it.
func (s *Solver) checkProvider(ctx context.Context, p *dns.Provider, names map[string]string, all bool) bool {
	trials := s.trials(ctx, p, names)
	fine := true
	for _, t := range trials {
		if found, known := s.found(p, t.zone); known && !all {
			fine = fine && !found.failed
			continue
		}
		err := p.Check(ctx, t.zone, libdns.RelativeName(t.name, t.zone))
		if ctx.Err() != nil {
			return fine
		}
		fine = fine && err == nil
		s.checked(p, t.zone, err)
	}
	switch {
	case len(trials) == 0:
		return true // nothing to try it with
	case fine:
		s.metrics.usable.WithLabelValues(p.Name()).Set(1)
	default:
		s.metrics.usable.WithLabelValues(p.Name()).Set(0)
	}
	return fine
}

// found returns what the last check of p with a zone has found.
func (s *Solver) found(p *dns.Provider, zone string) (found checkResult, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, known = s.checks[p.Name()+" "+zone]
	return found, known
}

// checked makes known what a check has found, if that is new.
func (s *Solver) checked(p *dns.Provider, zone string, err error) {
	now := checkResult{failed: err != nil}
	if err != nil {
		now.text = err.Error()
	}
	before, known := s.found(p, zone)
	s.mu.Lock()
	s.checks[p.Name()+" "+zone] = now
	s.mu.Unlock()
	if known && before == now {
		return
	}
	if err != nil {
		s.log.Warn("a DNS provider cannot be used: certificates will not be obtained or renewed by way of it",
			"provider", p.Name(), "zone", zone, "err", err)
	} else {
		s.log.Info("a DNS provider may be used", "provider", p.Name(), "kind", p.Kind(), "zone", zone)
	}
	s.cfg.Checked(p.Name(), zone, err)
}

// trials returns what to check p with: each zone once, with the name of a
// challenge that may come up there, since a server may let a key change only
// that. Names whose zone nobody can tell are left to their orders.
func (s *Solver) trials(ctx context.Context, p *dns.Provider, names map[string]string) []trial {
	var all []trial
	add := func(t trial) {
		if !slices.ContainsFunc(all, func(o trial) bool { return o.zone == t.zone }) {
			all = append(all, t)
		}
	}
	lookups := 0
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if lookups >= maxChecks || ctx.Err() != nil {
			break
		}
		base := mdns.CanonicalName(strings.TrimPrefix(name, "*."))
		if names[name] != p.Name() || slices.ContainsFunc(all, func(t trial) bool { return mdns.IsSubDomain(t.zone, base) }) {
			continue
		}
		lookups++
		at, err := s.locate(ctx, "_acme-challenge."+base, p.Name())
		if err != nil {
			continue
		}
		if chosen, err := s.choose(at.zone, p.Name()); err == nil && chosen == p {
			add(trial{at.zone, at.name})
		}
	}
	for _, zone := range p.Zones() {
		if len(all) < maxChecks {
			add(trial{zone, "_acme-challenge." + zone})
		}
	}
	return all
}
