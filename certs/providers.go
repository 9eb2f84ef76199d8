package certs

import (
	"strings"
	"time"
)

// account is a provider and a zone that it was checked with, in lower case and
// with its last dot.
type account struct{ provider, zone string }

// holds reports whether name, perhaps with a wildcard, is in the zone.
func (a account) holds(name string) bool {
	name = strings.TrimPrefix(name, "*.") + "."
	return name == a.zone || strings.HasSuffix(name, "."+a.zone)
}

// faults are why accounts cannot be used, by their last check.
type faults map[account]error

// of returns what is wrong with a provider as far as it matters to name: of
// several things that about the deepest zone.
func (f faults) of(provider, name string) (found error) {
	deepest := ""
	for a, err := range f {
		if a.provider == provider && a.holds(name) && len(a.zone) > len(deepest) {
			found, deepest = err, a.zone
		}
	}
	return found
}

// providerChecked takes up what the check of a provider came to, for the names
// that use it.
func (m *Manager) providerChecked(provider, zone string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := account{provider, zone}
	if err == nil && m.faults[a] == nil {
		return
	}
	if m.faults[a] = err; err == nil {
		delete(m.faults, a)
	}
	now := time.Now()
	for name, d := range m.names {
		if d.wanted() && d.provider == provider && a.holds(name) {
			m.refresh(d, now)
		}
	}
	m.finish()
}
