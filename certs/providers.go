package certs

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// troubles are what checks of DNS providers have found. The zero value is that
// none has found anything.
type troubles struct {
	mu  sync.Mutex // guards the following
	all map[account]error
}

// account is a provider and a zone that it was checked with, in lower case and
// with its last dot.
type account struct{ provider, zone string }

// set notes what a check found and reports whether that is another thing than
// before.
func (t *troubles) set(a account, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.all[a]
	if err == nil {
		delete(t.all, a)
		return before != nil
	}
	if t.all == nil {
		t.all = map[account]error{}
	}
	t.all[a] = err
	return before == nil || before.Error() != err.Error()
}

// of returns what is wrong with the provider as far as it matters to name, of
// several things the one about the deepest zone.
func (t *troubles) of(provider, name string) (found error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	deepest := ""
	for _, a := range slices.SortedFunc(maps.Keys(t.all), func(a, b account) int { return strings.Compare(a.zone, b.zone) }) {
		if a.provider == provider && a.holds(name) && len(a.zone) > len(deepest) {
			found, deepest = t.all[a], a.zone
		}
	}
	return found
}

// holds reports whether name, perhaps with a wildcard, is in the zone.
func (a account) holds(name string) bool {
	name = strings.TrimPrefix(name, "*.") + "."
	return name == a.zone || strings.HasSuffix(name, "."+a.zone)
}

// providerChecked takes up what the check of a provider came to: names that use
// it are told of again.
func (m *Manager) providerChecked(provider, zone string, err error) {
	a := account{provider, zone}
	if !m.troubles.set(a, err) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, d := range m.domains {
		if d.provider == provider && a.holds(name) {
			m.news[name] = true
		}
	}
	select {
	case m.poke <- struct{}{}:
	default: // Run has not seen the last one yet
	}
}

// statusOf returns how d is doing, with what is known of its provider.
func (m *Manager) statusOf(d *domain) Status {
	s := *d.status.Load()
	s.Trouble = m.troubles.of(s.Provider, s.Name)
	return s
}
