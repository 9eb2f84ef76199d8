package certstest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs"
)

var _ certs.Store = (*Store)(nil)

// Store is a certs.Store in memory: what a cluster is to nodes, to as many
// Managers of one test as are given it. As in etcd, what certmagic stores of a
// certificate appears on the shelf all at once. Make one with NewStore. All
// methods are safe for concurrent use.
type Store struct {
	names, keys certs.Watchers

	mu      sync.Mutex // guards the following
	rev     int64
	files   map[string]file
	locks   map[string]chan struct{} // closed by Unlock
	shelf   map[folder]*certs.Stored
	trouble map[folder]error
	down    error // what everything that is not in memory returns; nil: it works
}

type file struct {
	data []byte
	rev  int64
	time time.Time
}

// folder is the place of one certificate.
type folder struct{ issuer, name string }

// NewStore returns an empty Store.
func NewStore() *Store {
	return &Store{
		files: map[string]file{}, locks: map[string]chan struct{}{},
		shelf: map[folder]*certs.Stored{}, trouble: map[folder]error{},
	}
}

// Fail has everything that would ask etcd return err, until Fail(nil). What is
// in memory stays.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// Tear stores one file of a certificate, as somebody with etcdctl would: the
// shelf sees it by itself, whether or not it goes with the others.
func (s *Store) Tear(key string, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putLocked(key, value)
	if issuer, name, _, ok := certs.FileOf(key); ok {
		s.lookLocked(folder{issuer, name})
	}
}

func (s *Store) putLocked(key string, value []byte) {
	s.rev++
	s.files[key] = file{slices.Clone(value), s.rev, time.Now()}
}

// lookLocked brings the shelf up to date with the files of one certificate.
func (s *Store) lookLocked(f folder) {
	read := func(suffix string) file {
		return s.files[certs.FolderOf(f.issuer, f.name)+"/"+certmagic.StorageKeys.Safe(f.name)+suffix]
	}
	crt, key, meta := read(".crt"), read(".key"), read(".json")
	before := s.shelf[f]
	switch {
	case crt.data == nil && key.data == nil:
		delete(s.trouble, f)
		if before == nil || before.Gone {
			return
		}
		gone := *before
		gone.Gone = true
		s.shelf[f] = &gone
	default:
		now, err := certs.ParseStored(f.issuer, f.name, crt.data, key.data, meta.data)
		if err != nil {
			s.trouble[f] = err
			break
		}
		delete(s.trouble, f)
		if before != nil && string(before.Chain) == string(now.Chain) && string(before.Key) == string(now.Key) {
			now.Certificate = before.Certificate
		}
		now.Rev, now.Modified = max(crt.rev, key.rev, meta.rev), crt.time
		s.shelf[f] = now
	}
	s.names.Tell(f.name)
}

// Store implements certmagic.Storage.
func (s *Store) Store(ctx context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil {
		return err
	}
	s.putLocked(key, value)
	// certmagic stores the key, the chain and then this.
	if issuer, name, suffix, ok := certs.FileOf(key); ok && suffix == "json" {
		s.lookLocked(folder{issuer, name})
	}
	return nil
}

// PutStored implements certs.Store.
func (s *Store) PutStored(ctx context.Context, c *certs.Stored) error {
	if _, err := certs.ParseStored(c.Issuer, c.Name, c.Chain, c.Key, c.Meta); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil {
		return err
	}
	keys := certmagic.StorageKeys
	s.putLocked(keys.SiteCert(c.Issuer, c.Name), c.Chain)
	s.putLocked(keys.SitePrivateKey(c.Issuer, c.Name), c.Key)
	if c.Meta != nil {
		s.putLocked(keys.SiteMeta(c.Issuer, c.Name), c.Meta)
	} else {
		delete(s.files, keys.SiteMeta(c.Issuer, c.Name))
	}
	s.lookLocked(folder{keys.Safe(c.Issuer), c.Name})
	return nil
}

// Load implements certmagic.Storage.
func (s *Store) Load(ctx context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil {
		return nil, err
	}
	f, ok := s.files[key]
	if !ok {
		return nil, &fs.PathError{Op: "load", Path: key, Err: fs.ErrNotExist}
	}
	return slices.Clone(f.data), nil
}

// Delete implements certmagic.Storage.
func (s *Store) Delete(ctx context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil {
		return err
	}
	touched := map[folder]bool{}
	for k := range s.files {
		if k == key || strings.HasPrefix(k, key+"/") {
			delete(s.files, k)
			if issuer, name, _, ok := certs.FileOf(k); ok {
				touched[folder{issuer, name}] = true
			}
		}
	}
	for f := range touched {
		s.lookLocked(f)
	}
	return nil
}

// Exists implements certmagic.Storage.
func (s *Store) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List implements certmagic.Storage.
func (s *Store) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for k := range s.files {
		rest, below := strings.CutPrefix(k, dir+"/")
		if dir == "" {
			rest, below = k, true
		}
		for i, c := range rest + "/" {
			if below && c == '/' && (recursive || !strings.Contains(rest[:i], "/")) {
				found[path.Join(dir, rest[:i])] = true
			}
		}
	}
	if _, isFile := s.files[dir]; len(found) == 0 && !isFile {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrNotExist}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// Stat implements certmagic.Storage.
func (s *Store) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil {
		return certmagic.KeyInfo{}, err
	}
	if f, ok := s.files[key]; ok {
		return certmagic.KeyInfo{Key: key, Modified: f.time, Size: int64(len(f.data)), IsTerminal: true}, nil
	}
	for k := range s.files {
		if strings.HasPrefix(k, key+"/") {
			return certmagic.KeyInfo{Key: key}, nil
		}
	}
	return certmagic.KeyInfo{}, &fs.PathError{Op: "stat", Path: key, Err: fs.ErrNotExist}
}

// Lock implements certmagic.Locker.
func (s *Store) Lock(ctx context.Context, name string) error {
	for {
		s.mu.Lock()
		held, err := s.locks[name], errors.Join(ctx.Err(), s.down)
		if held == nil && err == nil {
			s.locks[name] = make(chan struct{})
		}
		s.mu.Unlock()
		if held == nil || err != nil {
			return err
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TryLock implements certmagic.TryLocker.
func (s *Store) TryLock(ctx context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(ctx.Err(), s.down); err != nil || s.locks[name] != nil {
		return false, err
	}
	s.locks[name] = make(chan struct{})
	return true, nil
}

// Unlock implements certmagic.Locker. It works although the store fails, as a
// lease ends although etcd is away.
func (s *Store) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.locks[name]; held != nil {
		close(held)
	}
	delete(s.locks, name)
	return nil
}

// RenewLockLease implements certmagic.LockLeaseRenewer.
func (s *Store) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[name] == nil {
		return fmt.Errorf("lock %s is not held", name)
	}
	return errors.Join(ctx.Err(), s.down)
}

// Locks returns the names of the locks that are held.
func (s *Store) Locks() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.locks))
}

// String names the store in logs: certmagic would print all that is in it.
func (s *Store) String() string { return "memory" }
