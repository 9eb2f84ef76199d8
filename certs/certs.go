// Package certs answers one question for every TLS handshake of the edge: which
// certificate goes with this server name?
//
// It owns the certificates of the names that operators list under domains/ in
// etcd: it obtains them from an ACME authority (RFC 8555), proving control with
// DNS records (DNS-01), renews them, and says in words how each name is doing.
// It also owns the development CA that signs a certificate for any other name,
// where sluice.yaml allows that. It never reads etcd, never listens, and never
// decides where a connection goes.
//
// cmd/sluice calls New and Run, hands SetDomains the list at every change, and
// gives GetCertificate to the servers of TCP and QUIC.
package certs

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/certmagic"
)

// Domain is a name that is to have a certificate: one key under domains/.
type Domain struct {
	Name     string // a DNS name, or "*." and a DNS name
	Provider string // key under `dns:` in sluice.yaml; empty: the only one there is
	Issuer   string // name of the one issuer that it is to come from; empty: all there are, in turn
}

// Manager keeps the certificates of a changing list of names. Make one with
// New; the zero value is not usable. All methods are safe for concurrent use.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	storage certmagic.Storage
	local   *localCA // nil: names that nobody listed are refused
	metrics *metrics
	running atomic.Bool

	troubles troubles // of DNS providers

	index atomic.Pointer[index] // what GetCertificate reads; never nil, never modified

	poke chan struct{} // has a token when the following changed

	mu      sync.Mutex         // guards the following
	domains map[string]*domain // wanted, by name
	retired map[string]*domain // wanted once, with a certificate that still holds
	news    map[string]bool    // names whose state changed outside a worker
}

// New checks cfg, loads the development CA if cfg asks for it, creating it if
// there is none yet, and starts nothing: certificates are neither loaded nor
// obtained before Run.
func New(cfg Config) (*Manager, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Manager{
		cfg:     cfg,
		log:     cfg.Logger,
		storage: cfg.Storage,
		poke:    make(chan struct{}, 1),
		domains: map[string]*domain{},
		retired: map[string]*domain{},
		news:    map[string]bool{},
	}
	if m.storage == nil {
		m.storage = &certmagic.FileStorage{Path: cfg.Dir}
	}
	m.cfg.checked = m.providerChecked
	m.index.Store(&index{})
	m.metrics = newMetrics(cfg.Registerer, m)
	if cfg.LocalCA {
		ca, err := openLocalCA(cfg.DataDir, m.metrics.leaves)
		if err != nil {
			return nil, fmt.Errorf("local CA: %w", err)
		}
		m.local = ca
	}
	return m, nil
}

// SetDomains replaces the list of names that are to have certificates. It never
// blocks: new names are taken up and missing ones let go by Run. The same list
// again changes nothing. A name that is let go is not renewed any more, an
// attempt to obtain its certificate is called off, and a certificate that it has
// is served until it expires.
//
// Of two entries that differ in case only, the first counts.
func (m *Manager) SetDomains(ds []Domain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := make(map[string]bool, len(ds))
	changed := false
	for _, d := range ds {
		name := strings.ToLower(d.Name)
		if wanted[name] {
			continue
		}
		wanted[name] = true
		d.Name = name
		changed = m.wantLocked(d) || changed
	}
	for name, d := range m.domains {
		if !wanted[name] {
			m.retireLocked(d)
			changed = true
		}
	}
	if !changed {
		return
	}
	m.indexLocked()
	select {
	case m.poke <- struct{}{}:
	default: // Run has not seen the last one yet
	}
}

// wantLocked takes an entry into the list and reports whether that changed
// anything.
func (m *Manager) wantLocked(asked Domain) bool {
	name := asked.Name
	d := m.domains[name]
	if d != nil && d.asked == asked {
		return false
	}
	if d == nil {
		d = m.retired[name]
		delete(m.retired, name)
	}
	if d == nil {
		d = &domain{name: name}
	}
	d.asked = asked
	d.provider, d.refused = m.choose(asked)
	m.domains[name] = d
	m.news[name] = true
	if d.refused != nil {
		d.fail(d.provider, d.refused, noRetry)
	} else {
		d.begin(d.provider)
	}
	return true
}

// retireLocked drops d from the list.
func (m *Manager) retireLocked(d *domain) {
	delete(m.domains, d.name)
	delete(m.news, d.name)
	if d.cert.Load() != nil {
		m.retired[d.name] = d
	}
}

// indexLocked publishes the list to GetCertificate.
func (m *Manager) indexLocked() {
	m.index.Store(&index{live: newNames(m.domains), retired: newNames(m.retired)})
}

// Status returns how name, a key under domains/, is doing, and false if it is
// not in the list.
func (m *Manager) Status(name string) (Status, bool) {
	d := m.index.Load().live.get(strings.ToLower(name))
	if d == nil {
		return Status{}, false
	}
	return m.statusOf(d), true
}

// Statuses returns how all names of the list are doing, in no particular order.
func (m *Manager) Statuses() []Status {
	live := m.index.Load().live
	all := make([]Status, 0, len(live.exact)+len(live.wild))
	for _, names := range []map[string]*domain{live.exact, live.wild} {
		for d := range maps.Values(names) {
			all = append(all, m.statusOf(d))
		}
	}
	return all
}

// GetCertificate is for tls.Config.GetCertificate. Of the certificates that
// cover the server name it returns the exact one before the wildcard, those of
// listed names before those of names that are listed no more. If there is none,
// the development CA signs one, for the server name or, without one, for the
// address that the client dialled. The error names the server name and says
// what is missing. Where a listed name covers the server name it takes no lock.
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
