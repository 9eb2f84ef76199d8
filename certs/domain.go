package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/certs/dns"
)

// domain is a name that is wanted, or that a stored certificate is for.
type domain struct {
	name   string
	key    string                          // of Shared; set once it is wanted
	cert   atomic.Pointer[tls.Certificate] // nil: none yet; never modified, always with its Leaf
	status atomic.Pointer[Status]          // nil: nobody wants it

	// Guarded by Manager.mu.
	entry    *Domain // under domains/; nil: there is none
	needed   bool    // by a route, and derived from it
	provider string  // that it comes to
	issuer   string  // that it is to come from; empty: all, in turn
	gen      int     // counts changes of these
	refused  error   // why no attempt would help; nil: attempts are made

	stored  []*Stored // as on the shelf, and imported for other names as well
	best    *Stored   // of these, the one that is served
	trouble error     // why something that is stored is not used
	staple  *staple   // of the best that is stored; nil: it asks for none

	attempt attempt   // as the cluster knows it
	own     attempt   // what only this node knows: it could not share it
	missing time.Time // since when there is none that holds; zero: there is one
	due     time.Time // when one is to be obtained or renewed; zero: none is
	ask     time.Time // when the authority is to be asked how soon that shall be; zero: it need not be
	held    time.Time // this node's turn is not before
	work    *work     // under way; nil: none
	inLine  bool      // for work

	wake  time.Time // when to look again
	place int       // in the queue; -1: it is in none
	was   string    // what was told last
	stage stage     // of expiry, that was logged last
	said  time.Time // when it was logged
	cover cover     // what routes were told of it
}

// wanted reports whether a certificate is to be obtained and renewed.
func (d *domain) wanted() bool { return d.entry != nil || d.needed }

// live reports whether handshakes prefer it to names that nobody wants.
func (d *domain) live() bool {
	return d.wanted() || d.best != nil && d.best.Issuer == Imported && !d.best.Gone
}

// want sees to what follows from being listed, needed, or neither. m.mu is held.
func (m *Manager) want(d *domain, now time.Time) {
	m.stale, m.others = true, true
	d.gen++
	if d.key == "" {
		d.key = AttemptsKey(d.name)
	}
	if d.work != nil {
		d.work.cancel() // it is for the name as it was
	}
	if !d.wanted() {
		delete(m.shared, d.key)
		delete(m.news.domains, d.name)
		d.status.Store(nil)
		d.was, d.provider, d.issuer, d.refused = "", "", "", nil
		d.attempt, d.own, d.held = attempt{}, attempt{}, time.Time{}
		m.refresh(d, now)
		return
	}
	asked := Domain{Name: d.name}
	if d.entry != nil {
		asked = *d.entry
	}
	d.issuer = asked.Issuer
	d.provider, d.refused = m.choose(asked)
	d.own, d.held, d.was = attempt{}, time.Time{}, ""
	m.shared[d.key] = d
	d.attempt = m.peek(d.key)
	m.news.domains[d.name] = true
	m.refresh(d, now)
}

// choose returns the provider for an entry, or why there is none, or what else
// keeps the name from having a certificate.
func (m *Manager) choose(asked Domain) (string, error) {
	name, provider := asked.Name, asked.Provider
	if err := checkDomain(name); err != nil {
		return "", err
	}
	if err := m.cfg.checkIssuer(asked.Issuer); err != nil {
		return "", err
	}
	known := slices.Sorted(maps.Keys(m.cfg.Providers))
	list := strings.Join(known, ", ")
	switch {
	case len(known) == 0:
		return "", errors.New("no DNS provider is configured: add one to sluice.yaml, such as dns: {main: {provider: cloudflare, api_token: ...}}")
	case provider != "" && m.cfg.Providers[provider] == nil:
		return "", fmt.Errorf("DNS provider %q is not configured: use one of %s, or add it under dns in sluice.yaml", provider, list)
	case provider != "":
		return provider, nil
	}
	if p, _ := m.zone(name); p != "" {
		return p, nil
	}
	open := slices.DeleteFunc(slices.Clone(known), func(p string) bool { return len(m.cfg.Providers[p].Zones()) > 0 })
	switch {
	case len(open) == 1: // any zone may be its
		return open[0], nil
	case len(open) == 0:
		return "", fmt.Errorf("it is in no zone of the DNS providers %s: add its zone to one of them in sluice.yaml, or say which one with {\"provider\": ...}", list)
	}
	return "", fmt.Errorf("several DNS providers are configured: say which one with {\"provider\": ...}, one of %s, or give them zones in sluice.yaml", list)
}

// zone returns the provider with the longest zone that name is in, and that
// zone, with its last dot; "" if there is none.
func (m *Manager) zone(name string) (provider, zone string) {
	name = dns.Canonical(strings.TrimPrefix(name, "*."))
	for key, p := range m.cfg.Providers {
		for _, z := range p.Zones() {
			if name != z && !strings.HasSuffix(name, "."+z) {
				continue
			}
			if len(z) > len(zone) || len(z) == len(zone) && key < provider {
				provider, zone = key, z
			}
		}
	}
	return provider, zone
}

// refresh brings d in line with the shelf, the attempts that were made, and the
// time: which certificate is served, what its status is, and when to look again.
// m.mu is held.
func (m *Manager) refresh(d *domain, now time.Time) {
	d.stored = slices.DeleteFunc(d.stored, func(s *Stored) bool { return s.Gone && !now.Before(s.Certificate.Leaf.NotAfter) })
	m.serve(d, m.ready(d, pick(d.stored, now), now), now)
	m.plan(d, now)
	m.judge(d, now)
	m.schedule(d, now)
	if !d.wanted() && d.best == nil && d.work == nil {
		m.forget(d)
	}
}

// serve has handshakes use a certificate, nil for none. m.mu is held.
func (m *Manager) serve(d *domain, best *Stored, now time.Time) {
	old := d.best
	if cert := d.given(best, now); cert != d.cert.Load() {
		d.cert.Store(cert)
	}
	if old == best {
		return
	}
	wasLive, had := d.live(), old != nil
	d.best = best
	if best != nil && (old == nil || !best.Certificate.Leaf.Equal(old.Certificate.Leaf)) {
		m.log.Info("serving a certificate", "domain", d.name, "issuer", best.Issuer, "until", best.Certificate.Leaf.NotAfter)
		m.metrics.took(best)
	}
	if wasLive != d.live() || had != (best != nil) {
		m.stale = true
	}
}

// forget drops a name that nobody wants and that has no certificate. m.mu is
// held.
func (m *Manager) forget(d *domain) {
	m.stale = true
	delete(m.names, d.name)
	m.queue.remove(d)
}
