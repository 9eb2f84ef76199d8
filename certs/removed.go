package certs

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/caddyserver/certmagic"
)

// RemovedFolder is where Shared says which certificates were taken away before
// their end, so that no node puts them back, and an old backup does not either.
const RemovedFolder = "shared/removed/"

// Removed is the value of such a note. It is not a secret.
type Removed struct {
	Name   string    `json:"name"`
	Issuer string    `json:"issuer"` // as in Stored
	Until  time.Time `json:"until"`  // the end of the certificate, and of the note
}

// RemovedKey is the key of Shared for the note about a certificate.
func RemovedKey(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return RemovedFolder + hex.EncodeToString(sum[:16])
}

// NoteRemoved notes that a certificate is not to be served any more where there
// is another one.
func NoteRemoved(ctx context.Context, shared Shared, s *Stored) error {
	leaf := s.Certificate.Leaf
	data, err := json.Marshal(Removed{s.Name, s.Issuer, leaf.NotAfter.UTC()})
	if err != nil {
		return err
	}
	_, err = shared.Swap(ctx, RemovedKey(leaf), 0, data)
	if errors.Is(err, ErrSwapped) {
		return nil // it is noted
	}
	return err
}

// Remove takes a certificate away: it is noted, and deleted from storage under
// the lock under which certmagic stores it. Nodes serve it only as long as there
// is no other one.
func Remove(ctx context.Context, store interface {
	certmagic.Storage
	Shared
}, s *Stored) (err error) {
	lock := "issue_cert_" + s.Name
	if err := store.Lock(ctx, lock); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Unlock(context.WithoutCancel(ctx), lock)) }()
	if err := NoteRemoved(ctx, store, s); err != nil {
		return err
	}
	return store.Delete(ctx, FolderOf(s.Issuer, s.Name))
}
