package etcdstore

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// envsFolder has values of JSON in which members are sealed, in base64, for the
// key of the value (SealSecret): services.<name>.secrets.
const envsFolder = "envs/"

// folders are those in which something is sealed.
var folders = []string{root, envsFolder}

// A transaction of Reseal has at most so many values, and bytes, beyond one.
const (
	resealValues = 64
	resealBytes  = 256 << 10
)

// Resealed is what Reseal has come to.
type Resealed struct {
	Done   int     // values sealed anew
	Before int     // values that had the first key's seal already
	Failed []error // of values that cannot be opened, by their keys
}

// Reseal seals everything in etcd anew that is not sealed with the first key of
// the ring, and lastly has the cluster know that no other is in use. It goes
// through all of it, value by value, a few in a transaction that is made only if
// nobody has written them meanwhile, so that it takes nothing away from nodes at
// work; called off, it can be run again, and does what is left. The date of a
// value stays. The error is one of etcd's.
func (s *Store) Reseal(ctx context.Context) (Resealed, error) {
	var to Resealed
	ring, err := s.ring.toSeal(ctx)
	if err != nil {
		return to, err
	}
	for _, folder := range folders {
		if err == nil {
			err = s.each(ctx, folder, func(page []etcd.KV) error { return s.resealPage(ctx, ring, page, &to) })
		}
	}
	if err != nil || len(to.Failed) > 0 {
		return to, err
	}
	return to, s.markAnew(ctx, ring)
}

// each passes the values below a folder that are sealed, or have a sealed
// member, in the order of keys.
func (s *Store) each(ctx context.Context, folder string, do func(page []etcd.KV) error) error {
	after := ""
	for {
		page, err := s.client.ReadRange(ctx, folder, after, resealValues)
		if err != nil || len(page) == 0 {
			return err
		}
		after = strings.TrimPrefix(page[len(page)-1].Key, folder)
		sealed := page[:0]
		for _, kv := range page {
			if len(sealedParts(kv)) > 0 {
				sealed = append(sealed, kv)
			}
		}
		if err := do(sealed); err != nil {
			return err
		}
	}
}

// sealedParts returns what of a value is sealed, or should be.
func sealedParts(kv etcd.KV) (parts [][]byte) {
	if strings.HasPrefix(kv.Key, root) {
		if strings.HasPrefix(kv.Key, root+"locks/") {
			return nil
		}
		return [][]byte{kv.Value}
	}
	var env struct {
		Services map[string]struct{ Secrets string }
	}
	if json.Unmarshal(kv.Value, &env) != nil {
		return nil
	}
	for _, service := range slices.Sorted(maps.Keys(env.Services)) {
		part, err := base64.StdEncoding.DecodeString(env.Services[service].Secrets)
		if err == nil && len(part) > 0 {
			parts = append(parts, part)
		}
	}
	return parts
}

func (s *Store) resealPage(ctx context.Context, ring *seal.Ring, page []etcd.KV, to *Resealed) error {
	for len(page) > 0 {
		n, size := 0, 0
		for ; n < len(page) && (n == 0 || size+len(page[n].Value) <= resealBytes); n++ {
			size += len(page[n].Value)
		}
		if err := s.resealSome(ctx, ring, page[:n], to); err != nil {
			return err
		}
		page = page[n:]
	}
	return nil
}

// resealSome seals values anew in one transaction or, where somebody has written
// one of them meanwhile, each by itself.
func (s *Store) resealSome(ctx context.Context, ring *seal.Ring, kvs []etcd.KV, to *Resealed) error {
	var guards []etcd.Guard
	var writes []etcd.Write
	for _, kv := range kvs {
		w, err := resealed(ring, kv)
		switch {
		case err != nil:
			to.Failed = append(to.Failed, fmt.Errorf("%s: %w", kv.Key, err))
		case w == nil:
			to.Before++
		default:
			guards, writes = append(guards, s.client.Unchanged(kv.Key, kv.ModRev)), append(writes, *w)
		}
	}
	if len(writes) == 0 {
		return nil
	}
	_, done, err := s.client.Transact(ctx, guards, writes)
	if err != nil {
		return err
	}
	if done {
		to.Done += len(writes)
		return nil
	}
	for _, w := range writes {
		kv, err := s.client.ReadKey(ctx, w.Key)
		if err != nil {
			return err
		}
		if kv == nil {
			continue
		}
		if err := s.resealSome(ctx, ring, []etcd.KV{*kv}, to); err != nil {
			return err
		}
	}
	return nil
}

// resealed returns a value as the first key seals it, nil if that has.
func resealed(ring *seal.Ring, kv etcd.KV) (*etcd.Write, error) {
	value := kv.Value
	for _, part := range sealedParts(kv) { // none: written anew meanwhile, without a secret
		outside, err := seal.Look(part)
		if err != nil {
			return nil, err
		}
		plain, err := ring.Open(kv.Key, part)
		if err != nil {
			return nil, err
		}
		if outside.KeyID == ring.Active() {
			continue
		}
		sealed, err := ring.Seal(kv.Key, plain, outside.Time)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(kv.Key, root) {
			return &etcd.Write{Key: kv.Key, Value: string(sealed)}, nil
		}
		text := base64.StdEncoding.EncodeToString
		now := bytes.Replace(value, []byte(text(part)), []byte(text(sealed)), 1)
		if bytes.Equal(now, value) {
			return nil, errors.New("a secret in it is not written as sluice writes it: put it again")
		}
		value = now
	}
	if bytes.Equal(value, kv.Value) {
		return nil, nil
	}
	return &etcd.Write{Key: kv.Key, Value: string(value)}, nil
}

// markAnew has the marker name the first key alone.
func (s *Store) markAnew(ctx context.Context, ring *seal.Ring) error {
	kv, err := s.client.ReadKey(ctx, markerKey)
	if err != nil {
		return err
	}
	var since int64
	if kv != nil {
		since = kv.ModRev
	}
	w, err := markerOf(ring, ring.IDs()[:1], s.cfg.Node)
	if err != nil {
		return err
	}
	_, done, err := s.client.Transact(ctx, []etcd.Guard{s.client.Unchanged(markerKey, since)}, []etcd.Write{w})
	if err == nil && !done {
		err = errors.New("the mark of the cluster's key was written by another node at this moment; run it again")
	}
	return err
}

// KeyUse returns how many values in etcd, and members of them, are sealed with which key, by its ID.
// Those that are not sealed are under "".
func (s *Store) KeyUse(ctx context.Context) (map[string]int, error) {
	use := map[string]int{}
	count := func(page []etcd.KV) error {
		for _, kv := range page {
			for _, part := range sealedParts(kv) {
				outside, _ := seal.Look(part)
				use[outside.KeyID]++
			}
		}
		return nil
	}
	for _, folder := range folders {
		if err := s.each(ctx, folder, count); err != nil {
			return use, err
		}
	}
	return use, nil
}
