package etcdstore

import (
	"context"
	"fmt"
	"time"
)

// SealSecret returns a value sealed with the cluster key, for the path that it is
// kept at below the prefix. The error says what the node lacks, if it has no key.
func (s *Store) SealSecret(ctx context.Context, path string, plain []byte) ([]byte, error) {
	ring, err := s.ring.toSeal(ctx)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", path, err)
	}
	return ring.Seal(path, plain, time.Now())
}

// OpenSecret returns what SealSecret has sealed for that path.
func (s *Store) OpenSecret(path string, sealed []byte) ([]byte, error) {
	plain, err := s.ring.get().Open(path, sealed)
	if err != nil {
		return nil, fmt.Errorf("open what is sealed in %s: %w", path, err)
	}
	return plain, nil
}
