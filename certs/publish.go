package certs

import (
	"crypto/x509"
	"slices"
	"strings"
	"time"
)

// alsoFor says, by what it was stored for, which other names an imported
// certificate covers.
type alsoFor map[string][]string

// storedChanged puts to use what the shelf has of names now.
func (m *Manager) storedChanged(names []string) { m.takeStored(names) }

// takeStored puts to use what the shelf has of names. It may be called from any
// goroutine.
func (m *Manager) takeStored(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	affected := make(map[string]bool, len(names))
	for _, name := range names {
		affected[name] = true
		for _, other := range m.also[name] {
			affected[other] = true
		}
		m.noteAlso(name, m.cfg.Store.Served(name))
		for _, other := range m.also[name] {
			affected[other] = true
		}
	}
	for name := range affected {
		m.takeOne(name, now)
	}
	m.finish()
}

// noteAlso notes which names beside its own an imported certificate covers.
// m.mu is held.
func (m *Manager) noteAlso(name string, stored []*Stored) {
	delete(m.also, name)
	for _, s := range stored {
		if s.Issuer != Imported {
			continue
		}
		if others := namesOf(s.Certificate.Leaf, name); len(others) > 0 {
			m.also[name] = others
		}
	}
}

// namesOf returns the names that a certificate covers, in lower case, without one.
func namesOf(leaf *x509.Certificate, without string) (names []string) {
	for _, name := range leaf.DNSNames {
		name = strings.ToLower(name)
		if name != without && validHost(strings.TrimPrefix(name, "*.")) {
			names = append(names, name)
		}
	}
	return names
}

// takeOne puts to use what is stored for name, or for another name and covers
// it. m.mu is held.
func (m *Manager) takeOne(name string, now time.Time) {
	stored := m.cfg.Store.Served(name)
	for other, covers := range m.also {
		if !slices.Contains(covers, name) {
			continue
		}
		for _, s := range m.cfg.Store.Served(other) {
			if s.Issuer == Imported {
				stored = append(stored, s)
			}
		}
	}
	trouble := m.cfg.Store.StoredTrouble(name)
	if len(stored) == 0 && trouble == nil && m.names[name] == nil {
		return
	}
	d := m.domain(name)
	d.stored = stored    // refresh leaves out what has gone and expired
	d.held = time.Time{} // what was waited for may be this
	if trouble != nil && (d.trouble == nil || d.trouble.Error() != trouble.Error()) {
		m.log.Error("what is stored for a certificate is not used", "domain", name, "err", trouble)
	}
	d.trouble = trouble
	m.refresh(d, now)
}
