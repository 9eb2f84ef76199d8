package certstest

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/certs"
)

// Stored implements certs.Shelf.
func (s *Store) Stored(name string) []*certs.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*certs.Stored
	for f, c := range s.shelf {
		if f.name == name {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b *certs.Stored) int { return strings.Compare(a.Issuer, b.Issuer) })
	return all
}

// Served implements certs.Shelf.
func (s *Store) Served(name string) []*certs.Stored {
	all := s.Stored(name)
	for i, c := range all {
		is := *c
		is.Chain, is.Key = nil, nil
		all[i] = &is
	}
	return all
}

// StoredNames implements certs.Shelf.
func (s *Store) StoredNames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for f := range s.shelf {
		names = append(names, f.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// StoredTrouble implements certs.Shelf.
func (s *Store) StoredTrouble(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for f, err := range s.trouble {
		if f.name == name {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Lacking implements certs.Shelf: there is no key to lack.
func (s *Store) Lacking(string) error { return nil }

// Get implements certs.Shared.
func (s *Store) Get(ctx context.Context, key string) (certs.Value, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down, certs.CheckShared(key, nil)); err != nil {
		return certs.Value{}, err
	}
	f, ok := s.files[key]
	if !ok {
		return certs.Value{}, &fs.PathError{Op: "get", Path: key, Err: fs.ErrNotExist}
	}
	return certs.Value{Data: f.data, Rev: f.rev, Modified: f.time}, nil
}

// Peek implements certs.Shared.
func (s *Store) Peek(key string) (certs.Value, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[key]
	if !ok || strings.HasPrefix(key, "limits/") {
		return certs.Value{}, false
	}
	return certs.Value{Data: f.data, Rev: f.rev, Modified: f.time}, true
}

// Swap implements certs.Shared.
func (s *Store) Swap(ctx context.Context, key string, since int64, data []byte) (rev int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down, certs.CheckShared(key, data)); err != nil {
		return 0, err
	}
	if s.files[key].rev != since {
		return 0, certs.ErrSwapped
	}
	s.rev++
	if data == nil {
		delete(s.files, key)
	} else {
		s.files[key] = file{slices.Clone(data), s.rev, time.Now()}
	}
	s.keys.Tell(key)
	return s.rev, nil
}

// WatchStored implements certs.Shelf.
func (s *Store) WatchStored(changed func(names []string)) (stop func()) { return s.names.Add(changed) }

// WatchShared implements certs.Shared.
func (s *Store) WatchShared(folder string, changed func(key string)) (stop func()) {
	return s.keys.Add(func(keys []string) {
		for _, key := range keys {
			if strings.HasPrefix(key, folder) && !strings.HasPrefix(key, "limits/") {
				changed(key)
			}
		}
	})
}
