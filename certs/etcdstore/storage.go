package etcdstore

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// filesOf returns the keys of the three files of a certificate.
func filesOf(issuer, name string) (crt, key, meta string) {
	k := certmagic.StorageKeys
	return k.SiteCert(issuer, name), k.SitePrivateKey(issuer, name), k.SiteMeta(issuer, name)
}

// Store implements certmagic.Storage. What belongs to a certificate whose lock
// this process has is kept back until all three files are there.
func (s *Store) Store(ctx context.Context, key string, value []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if value == nil {
		value = []byte{}
	}
	if h := s.holderOf(key); h != nil {
		return h.put(ctx, s, key, slices.Clone(value))
	}
	return s.write(ctx, nil, map[string][]byte{key: value})
}

// Load implements certmagic.Storage. It asks etcd: what certificates there are
// with etcd dead, the mirror knows.
func (s *Store) Load(ctx context.Context, key string) ([]byte, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if value, ok := s.pending(key); ok {
		return value, nil
	}
	value, _, _, err := s.read(ctx, key)
	if isDamage(key, err) {
		return nil, &damagedError{err}
	}
	return value, err
}

// damagedError is what Load says of a file of a certificate that nobody can open,
// whatever keys they have: as good as none, so that another is obtained.
type damagedError struct{ err error }

func (e *damagedError) Error() string        { return e.err.Error() }
func (e *damagedError) Unwrap() error        { return e.err }
func (e *damagedError) Is(target error) bool { return target == fs.ErrNotExist }

// isDamage reports whether err, of reading key, says that a file of a certificate
// does not open with the key that it says it is sealed with.
func isDamage(key string, err error) bool {
	_, _, _, isCert := certs.FileOf(key)
	return isCert && errors.Is(err, errUnopened) && !errors.As(err, new(*seal.MissingKeyError))
}

// Delete implements certmagic.Storage.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	h := s.holderOf(key)
	if h != nil && h.drop(key) {
		return nil // it was on its way here, and what it was to replace stays
	}
	var lock *etcd.Lock
	if h != nil {
		lock = h.lock
	}
	return s.commit(ctx, lock, []etcd.Write{{Key: root + key, Delete: true}, {Key: root + key, Delete: true, Below: true}})
}

// Exists implements certmagic.Storage.
func (s *Store) Exists(ctx context.Context, key string) bool {
	if _, _, _, isCert := certs.FileOf(key); isCert {
		_, err := s.Load(ctx, key)
		return err == nil || !errors.Is(err, fs.ErrNotExist) && errors.Is(err, errUnopened)
	}
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List implements certmagic.Storage.
func (s *Store) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	folder := root
	if dir != "" {
		if err := checkKey(dir); err != nil {
			return nil, err
		}
		folder += dir + "/"
	}
	keys, err := s.client.ListKeys(ctx, folder)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, key := range append(keys, s.pendingBelow(folder)...) {
		if dir == "" && slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(key, root+o) }) {
			continue
		}
		rest := strings.TrimPrefix(key, folder)
		for i, c := range rest + "/" {
			if c == '/' && (recursive || !strings.Contains(rest[:i], "/")) {
				found[path.Join(dir, rest[:i])] = true
			}
		}
	}
	if len(found) > 0 {
		return slices.Sorted(maps.Keys(found)), nil
	}
	if dir != "" {
		if kv, err := s.client.ReadKey(ctx, root+dir); err != nil || kv != nil {
			return nil, err // a file has nothing below it
		}
	}
	return nil, notThere("list", dir)
}

// Stat implements certmagic.Storage.
func (s *Store) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	if err := checkKey(key); err != nil {
		return certmagic.KeyInfo{}, err
	}
	if value, ok := s.pending(key); ok {
		return certmagic.KeyInfo{Key: key, Size: int64(len(value)), IsTerminal: true}, nil
	}
	kv, err := s.client.ReadKey(ctx, root+key)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	if kv != nil {
		return outside(key, kv)
	}
	below, err := s.client.ReadRange(ctx, root+key+"/", "", 1)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	if len(below) == 0 && len(s.pendingBelow(root+key+"/")) == 0 {
		return certmagic.KeyInfo{}, notThere("stat", key)
	}
	return certmagic.KeyInfo{Key: key}, nil
}

// pending returns a file that this process keeps back.
func (s *Store) pending(key string) ([]byte, bool) {
	h := s.holderOf(key)
	if h == nil {
		return nil, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	value, ok := h.files[key]
	return slices.Clone(value), ok
}

// pendingBelow returns the keys of such files below a folder.
func (s *Store) pendingBelow(folder string) []string {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.locks))
	s.mu.Unlock()
	var keys []string
	for _, h := range all {
		h.mu.Lock()
		for key := range h.files {
			if strings.HasPrefix(root+key, folder) {
				keys = append(keys, root+key)
			}
		}
		h.mu.Unlock()
	}
	return keys
}

// nameOf returns the name whose certificate a key, of a file or of its folder,
// belongs to; "" for any other key.
func nameOf(key string) string {
	if _, name, _, ok := certs.FileOf(key); ok {
		return name
	}
	if _, name, _, ok := certs.FileOf(key + "/" + path.Base(key) + ".crt"); ok {
		return name
	}
	return ""
}
