package etcdstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// Get implements certs.Shared.
func (s *Store) Get(ctx context.Context, key string) (certs.Value, error) {
	if err := certs.CheckShared(key, nil); err != nil {
		return certs.Value{}, err
	}
	value, at, rev, err := s.read(ctx, key)
	if errors.Is(err, errUnopened) && !errors.As(err, new(*seal.MissingKeyError)) {
		s.cfg.Logger.Error("a shared value is damaged, and counts as empty", "key", root+key, "err", err)
		return certs.Value{Rev: rev}, nil
	}
	if err != nil {
		return certs.Value{}, err
	}
	return certs.Value{Data: value, Rev: rev, Modified: at}, nil
}

// Swap implements certs.Shared.
func (s *Store) Swap(ctx context.Context, key string, since int64, data []byte) (rev int64, err error) {
	if err := certs.CheckShared(key, data); err != nil {
		return 0, err
	}
	w := etcd.Write{Key: root + key, Delete: true}
	if data != nil {
		if w, err = s.seal(ctx, key, data); err != nil {
			return 0, err
		}
	}
	rev, done, err := s.client.Transact(ctx, []etcd.Guard{s.client.Unchanged(w.Key, since)}, []etcd.Write{w})
	switch {
	case err != nil:
		return 0, err
	case !done:
		return 0, fmt.Errorf("write %s: %w", w.Key, certs.ErrSwapped)
	}
	return rev, nil
}
