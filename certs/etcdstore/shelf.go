package etcdstore

import (
	"errors"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
)

// Stored implements certs.Shelf.
func (m *Mirror) Stored(name string) []*certs.Stored {
	ring := m.ring.get()
	var all []*certs.Stored
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, issuer := range m.named[name] {
		p := place{issuer, name}
		c := m.certs[p]
		if c.cert == nil {
			continue
		}
		stored, err := c.open(p, c.good, ring)
		if err != nil { // its key has left the ring since; it can be served, if not read
			stored = &certs.Stored{Name: name, Issuer: issuer, Rev: max(c.good[chainFile].rev, c.good[keyFile].rev, c.good[metaFile].rev)}
		}
		stored.Certificate, stored.Gone = c.cert, c.gone
		all = append(all, stored)
	}
	return all
}

// Served implements certs.Shelf.
func (m *Mirror) Served(name string) []*certs.Stored {
	ring := m.ring.get()
	var all []*certs.Stored
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, issuer := range m.named[name] {
		c := m.certs[place{issuer, name}]
		if c.cert == nil {
			continue
		}
		s := &certs.Stored{Name: name, Issuer: issuer, Certificate: c.cert, Gone: c.gone}
		for file, f := range c.good {
			s.Rev = max(s.Rev, f.rev)
			switch {
			case f == (sealed{}):
			case file == chainFile:
				if outside, err := seal.Look([]byte(f.data)); err == nil {
					s.Modified = outside.Time
				}
			case file == metaFile: // which can be done without
				s.Meta, _, _ = open(ring, c.keys[file], []byte(f.data))
			}
		}
		all = append(all, s)
	}
	return all
}

// StoredNames implements certs.Shelf.
func (m *Mirror) StoredNames() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for p, c := range m.certs {
		if c.cert != nil {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// StoredTrouble implements certs.Shelf.
func (m *Mirror) StoredTrouble(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, issuer := range m.named[name] {
		errs = append(errs, m.certs[place{issuer, name}].err)
	}
	return errors.Join(errs...)
}

// Lacking implements certs.Shelf.
func (m *Mirror) Lacking(name string) error {
	if err := m.ring.lacking(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, issuer := range m.named[name] {
		if missing, ok := errors.AsType[*seal.MissingKeyError](m.certs[place{issuer, name}].err); ok {
			return missing
		}
	}
	return nil
}

// WatchStored implements certs.Shelf.
func (m *Mirror) WatchStored(changed func(names []string)) (stop func()) { return m.names.Add(changed) }

// Peek implements certs.Shared.
func (m *Mirror) Peek(key string) (certs.Value, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.values[key]
	if v == nil || v.good == (sealed{}) {
		return certs.Value{}, false
	}
	return v.open, true
}

// WatchShared implements certs.Shared.
func (m *Mirror) WatchShared(folder string, changed func(key string)) (stop func()) {
	return m.keys.Add(func(keys []string) {
		for _, key := range keys {
			if strings.HasPrefix(key, folder) {
				changed(key)
			}
		}
	})
}
