package etcdstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"

	"github.com/caddyserver/certmagic"
)

// issueLock is what the name of a certificate is put behind by certmagic to
// name the lock under which it is obtained and renewed.
const issueLock = "issue_cert_"

// held is a lock that this process has or waits for. Another goroutine that
// wants it waits for the end of this one: nothing would tell their writes apart.
type held struct {
	done chan struct{} // closed when it was given back, or never taken
	lock *etcd.Lock    // nil: not taken yet

	mu    sync.Mutex        // guards the following
	files map[string][]byte // of a certificate, stored and not written yet
}

// holder is the value of a lock's key, for people.
type holder struct {
	Node  string    `json:"node"`
	Since time.Time `json:"since"`
}

// Lock implements certmagic.Locker.
func (s *Store) Lock(ctx context.Context, name string) error {
	_, err := s.take(ctx, name, false)
	return err
}

// TryLock implements certmagic.TryLocker.
func (s *Store) TryLock(ctx context.Context, name string) (bool, error) {
	return s.take(ctx, name, true)
}

func (s *Store) take(ctx context.Context, name string, try bool) (taken bool, err error) {
	if name == "" {
		return false, errors.New("lock: want a name")
	}
	h := &held{done: make(chan struct{})}
	for {
		s.mu.Lock()
		other := s.locks[name]
		if other == nil {
			s.locks[name] = h
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		if try {
			return false, ctx.Err()
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return false, fmt.Errorf("lock %s, which another part of this node has: %w", name, ctx.Err())
		}
	}
	who, err := json.Marshal(holder{s.cfg.Node, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		panic(err) // it is a string and a time
	}
	lock, err := s.client.Lock(ctx, etcd.LockConfig{Key: root + "locks/" + name, Holder: string(who), TTL: s.cfg.LockTTL, Try: try})
	s.mu.Lock()
	h.lock = lock
	s.mu.Unlock()
	if err != nil {
		s.forget(name, h)
		if errors.Is(err, etcd.ErrLocked) {
			err = nil
		}
		return false, err
	}
	return true, nil
}

// forget lets others of this process have the lock.
func (s *Store) forget(name string, h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[name] == h { // else another call was quicker
		delete(s.locks, name)
		close(h.done)
	}
}

// lookup returns the lock of that name if this process has it, else nil.
func (s *Store) lookup(name string) *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.locks[name]; h != nil && h.lock != nil {
		return h
	}
	return nil
}

// holderOf returns the lock of the certificate that key belongs to.
func (s *Store) holderOf(key string) *held {
	if name := nameOf(key); name != "" {
		return s.lookup(issueLock + name)
	}
	return nil
}

// Unlock implements certmagic.Locker. A lock that was lost needs no unlocking.
// The error names files of a certificate that were stored without the rest, and
// are dropped; the lock is given back nevertheless.
func (s *Store) Unlock(ctx context.Context, name string) error {
	h := s.lookup(name)
	if h == nil {
		return fmt.Errorf("unlock %s: this process does not have that lock", name)
	}
	h.mu.Lock()
	left := slices.Sorted(maps.Keys(h.files))
	h.files = nil
	h.mu.Unlock()
	err := h.lock.Release(ctx)
	s.forget(name, h)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("of a certificate only %s was stored before its lock was given back: it was dropped", strings.Join(left, ", ")))
	}
	return err
}

// RenewLockLease implements certmagic.LockLeaseRenewer. The lease is renewed
// all along, however long that is; this asks etcd whether it has held.
func (s *Store) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	h := s.lookup(name)
	if h == nil {
		return fmt.Errorf("renew the lock %s: this process does not have it", name)
	}
	_, holds, err := s.client.Transact(ctx, []etcd.Guard{h.lock.Guard()}, nil)
	if err == nil && !holds {
		err = ErrLockLost
	}
	if err != nil {
		return fmt.Errorf("renew the lock %s: %w", name, err)
	}
	return nil
}

// Close gives back the locks that are left. Call it after everything that uses
// the store has returned.
func (s *Store) Close() error {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.locks))
	s.mu.Unlock()
	var errs []error
	for _, name := range names {
		errs = append(errs, s.Unlock(context.Background(), name))
	}
	return errors.Join(errs...)
}

// put stores a file of a certificate: with the other two, once they are there,
// or by itself, if it is what certmagic stores anew of a certificate that stays.
// Of a new one certmagic stores the key, the chain, and that one last.
func (h *held) put(ctx context.Context, s *Store, key string, value []byte) error {
	issuer, name, suffix, _ := certs.FileOf(key)
	crt, private, meta := filesOf(issuer, name)
	h.mu.Lock()
	defer h.mu.Unlock()
	if suffix == "json" && h.files[crt] == nil && h.files[private] == nil {
		return s.write(ctx, h.lock, map[string][]byte{key: value})
	}
	if h.files == nil {
		h.files = map[string][]byte{}
	}
	h.files[key] = value
	whole := map[string][]byte{crt: h.files[crt], private: h.files[private], meta: h.files[meta]}
	for _, part := range whole {
		if part == nil {
			return nil
		}
	}
	if err := s.write(ctx, h.lock, whole); err != nil {
		delete(h.files, key) // certmagic deletes the others, which it knows to be stored
		return err
	}
	for file := range whole {
		delete(h.files, file)
	}
	return nil
}

// drop forgets a file that was not written yet, and reports whether it did.
func (h *held) drop(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.files[key]
	delete(h.files, key)
	return ok
}

// outside returns what certmagic wants to know of a sealed file.
func outside(key string, kv *etcd.KV) (certmagic.KeyInfo, error) {
	out, err := seal.Look(kv.Value)
	if err != nil {
		return certmagic.KeyInfo{}, fmt.Errorf("stat %s: %w", kv.Key, err)
	}
	return certmagic.KeyInfo{Key: key, Modified: out.Time, Size: int64(out.Size), IsTerminal: true}, nil
}
