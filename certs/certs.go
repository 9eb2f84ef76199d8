// Package certs answers one question for every TLS handshake of the edge: which
// certificate goes with this server name?
//
// It owns the certificates of the names that operators list under domains/ in
// etcd, or that routes need: it obtains them from an ACME authority (RFC 8555),
// proving control with DNS records (DNS-01), renews them, and says in words how
// each name is doing. One node of a cluster does so for all: what any of them
// stores, every node serves as soon as its shelf has it. The package also owns
// the development CA that signs a certificate for any other name, where
// sluice.yaml allows that. It never reads etcd, never listens, and never decides
// where a connection goes.
//
// cmd/sluice calls New and Run, hands SetDomains the list at every change and
// SetRoutes the routes that changed, and gives GetCertificate to the servers of
// TCP and QUIC.
package certs

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Domain is a name that is to have a certificate: one key under domains/.
type Domain struct {
	Name     string // a DNS name, or "*." and a DNS name
	Provider string // key under `dns:` in sluice.yaml; empty: the one whose zone it is in
	Issuer   string // name of the one issuer that it is to come from; empty: all there are, in turn
	// MustStaple has certificates that are obtained from now on ask for a stapled
	// OCSP response in every handshake (RFC 7633). Not every authority issues such.
	MustStaple bool
	// Rev is the revision of the key. A higher one has an attempt made that was
	// put off because others failed: somebody wants it again.
	Rev int64
}

// Manager keeps the certificates of a changing list of names. Make one with
// New; the zero value is not usable. All methods are safe for concurrent use.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	local   *localCA // nil: names that nobody listed are refused
	metrics *metrics
	running atomic.Bool
	roster  roster

	index atomic.Pointer[index] // what GetCertificate reads; never nil, never modified

	poke     chan struct{} // has a token when news, or when somebody wakes sooner
	restaple chan struct{} // has a token when staples are to be looked at

	// telling is held while others are told what changed, so that what they are
	// told last is what is so; it is taken before mu.
	telling sync.Mutex

	mu         sync.Mutex         // guards the following
	names      map[string]*domain // listed, needed by a route, or with a stored certificate
	shared     map[string]*domain // of those that are wanted, by their key of Shared
	also       alsoFor
	listed     bool     // SetDomains was called: names that it did not name are not wanted
	queue      queue    // by the time to look at them again
	stale      bool     // the index is to be made anew
	routes     routeSet // what routes need
	news       news
	faults     faults             // of DNS providers
	staples    map[string]*staple // by their key of Shared; those in use
	stapleGone map[string]int64   // keys of Shared with nothing left to be for, and the revision that is known
	others     bool               // there are other names than Run knows of, or they have other providers
}

// news is what is to be told: nothing twice.
type news struct{ domains, routes map[string]bool }

// New checks cfg, loads the development CA if cfg asks for it, creating it if
// there is none yet, puts the certificates on the shelf to use, and starts
// nothing: none is obtained before Run.
func New(cfg Config) (*Manager, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Manager{
		cfg:        cfg,
		log:        cfg.Logger,
		poke:       make(chan struct{}, 1),
		restaple:   make(chan struct{}, 1),
		staples:    map[string]*staple{},
		stapleGone: map[string]int64{},
		names:      map[string]*domain{},
		shared:     map[string]*domain{},
		also:       alsoFor{},
		routes:     newRouteSet(),
		faults:     faults{},
		news:       news{map[string]bool{}, map[string]bool{}},
	}
	m.cfg.checked = m.providerChecked
	m.roster.list = cfg.Nodes
	m.index.Store(&index{})
	m.metrics = newMetrics(cfg.Registerer, m)
	if cfg.LocalCA {
		ca, err := openLocalCA(cfg.DataDir, m.metrics.leaves)
		if err != nil {
			return nil, fmt.Errorf("local CA: %w", err)
		}
		m.local = ca
	}
	m.takeStored(cfg.Store.StoredNames())
	return m, nil
}

// SetDomains replaces the list of names that are to have certificates. It never
// blocks: new names are taken up and missing ones let go by Run. The same list
// again changes nothing. A name that is let go, and that no route needs, is not
// renewed any more, an attempt to obtain its certificate is called off, and a
// certificate that it has is served until it expires.
//
// Of two entries that differ in case only, the first counts.
func (m *Manager) SetDomains(ds []Domain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	wanted := make(map[string]bool, len(ds))
	for _, d := range ds {
		d.Name = strings.ToLower(d.Name)
		if wanted[d.Name] {
			continue
		}
		wanted[d.Name] = true
		m.list(d, now)
	}
	for name, d := range m.names {
		if d.entry != nil && !wanted[name] {
			d.entry = nil
			m.want(d, now)
		}
	}
	m.listed = true
	m.deriveAll(now)
	m.finish()
}

// list takes an entry into the list. m.mu is held.
func (m *Manager) list(entry Domain, now time.Time) {
	d := m.domain(entry.Name)
	if d.entry == nil {
		d.entry = &entry
		m.want(d, now)
		return
	}
	old := *d.entry
	d.entry = &entry
	switch old.Rev = entry.Rev; {
	case old != entry:
		m.want(d, now)
	case d.attempt.Wish < entry.Rev:
		d.own, d.held = attempt{}, time.Time{}
		m.refresh(d, now)
	}
}

// domain returns that of a name, in lower case, made if there is none. m.mu is
// held.
func (m *Manager) domain(name string) *domain {
	d := m.names[name]
	if d == nil {
		d = &domain{name: name, place: -1, stored: m.cfg.Store.Served(name), trouble: m.cfg.Store.StoredTrouble(name)}
		m.names[name] = d
	}
	return d
}

// publish has handshakes find what was changed. m.mu is held.
func (m *Manager) publish() {
	if m.stale {
		m.stale = false
		m.index.Store(newIndex(m.names))
	}
}

// finish publishes what was changed, and has Run see to the rest. m.mu is held.
func (m *Manager) finish() {
	m.publish()
	select {
	case m.poke <- struct{}{}:
	default: // Run has not seen the last one yet
	}
}

// tellAtOnce bounds what is told before somebody else has a turn.
const tellAtOnce = 256

// tell tells what is new, some of it, and reports whether there is more.
func (m *Manager) tell() (more bool) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	domains := takeSome(&m.news.domains)
	routes := takeSome(&m.news.routes)
	more = len(m.news.domains)+len(m.news.routes) > 0
	m.mu.Unlock()
	for _, name := range domains {
		m.cfg.Changed(name)
	}
	for _, name := range routes {
		if need, ok := m.Route(name); ok {
			m.cfg.RouteChanged(name, need)
		}
	}
	return more
}

func takeSome(from *map[string]bool) (some []string) {
	for name := range *from {
		if len(some) == tellAtOnce {
			return some
		}
		some = append(some, name)
		delete(*from, name)
	}
	if len(some) > 0 {
		*from = map[string]bool{} // one that has been large is slow to walk for ever
	}
	return some
}

// Status returns how name, a key under domains/ or a name that a route needs, is
// doing, and false if nobody wants it.
func (m *Manager) Status(name string) (Status, bool) {
	d := m.index.Load().live.get(strings.ToLower(name))
	if d == nil {
		return Status{}, false
	}
	s := d.status.Load()
	if s == nil {
		return Status{}, false
	}
	return *s, true
}

// Statuses returns how all names that are wanted are doing, in no particular
// order.
func (m *Manager) Statuses() []Status {
	live := m.index.Load().live
	all := make([]Status, 0, len(live.exact)+len(live.wild))
	for _, names := range []map[string]*domain{live.exact, live.wild} {
		for d := range maps.Values(names) {
			if s := d.status.Load(); s != nil {
				all = append(all, *s)
			}
		}
	}
	return all
}

// GetCertificate is for tls.Config.GetCertificate. Of the certificates that
// cover the server name it returns the exact one before the wildcard, those of
// wanted names and imported ones before those of names that are wanted no more.
// If there is none, the development CA signs one, for the server name or,
// without one, for the address that the client dialled. The error names the
// server name and says what is missing. Where there is one it neither takes a
// lock nor, for a name in lower case, allocates.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	idx := m.index.Load()
	if cert := idx.find(name); cert != nil {
		return cert, nil
	}
	if m.local == nil {
		m.metrics.missing.Inc()
		return nil, idx.absent(name)
	}
	cert, err := m.local.certificate(name, hello.Conn)
	if err != nil {
		m.metrics.missing.Inc()
		return nil, err
	}
	return cert, nil
}
