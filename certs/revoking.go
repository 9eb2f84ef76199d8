package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// revokingFolder is where Shared says which certificate somebody set out to have
// revoked, by name, from before it is replaced until it is revoked. Once it is
// replaced storage does not have it any more, so whoever was interrupted could
// not name it otherwise.
const revokingFolder = "shared/revoking/"

// Revocation is a certificate that is to be revoked. Chain and Key of its
// Certificate are not there, as revoking takes neither.
type Revocation struct {
	Certificate *Stored
	Reason      int // of RFC 5280 section 5.3.1
	rev         int64
}

// noted is the value of a note. It is not a secret.
type noted struct {
	Issuer string `json:"issuer"` // as in Stored
	DER    []byte `json:"der"`
	Reason int    `json:"reason"`
}

// Unfinished returns the certificate of name that somebody set out to have
// revoked and has not; nil if there is none that has not expired.
func Unfinished(ctx context.Context, shared Shared, name string) (*Revocation, error) {
	v, err := shared.Get(ctx, revokingFolder+name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && v.Data == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var n noted
	var leaf *x509.Certificate
	if err = json.Unmarshal(v.Data, &n); err == nil {
		leaf, err = x509.ParseCertificate(n.DER)
	}
	if err != nil {
		return nil, fmt.Errorf("the note of what is to be revoked of %s cannot be read: %w; delete acme/%s%s to have it forgotten", name, err, revokingFolder, name)
	}
	if time.Now().After(leaf.NotAfter) {
		return nil, nil
	}
	s := &Stored{Name: name, Issuer: n.Issuer, Certificate: &tls.Certificate{Certificate: [][]byte{n.DER}, Leaf: leaf}}
	return &Revocation{Certificate: s, Reason: n.Reason, rev: v.Rev}, nil
}

// SetOut notes that s is to be revoked, in the place of what was noted for its
// name before.
func SetOut(ctx context.Context, shared Shared, s *Stored, reason int) (*Revocation, error) {
	data, err := json.Marshal(noted{s.Issuer, s.Certificate.Leaf.Raw, reason})
	if err != nil {
		return nil, err
	}
	before, err := shared.Get(ctx, revokingFolder+s.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	rev, err := shared.Swap(ctx, revokingFolder+s.Name, before.Rev, data)
	if err != nil {
		return nil, err
	}
	return &Revocation{Certificate: s, Reason: reason, rev: rev}, nil
}

// Forget takes the note back.
func (r *Revocation) Forget(ctx context.Context, shared Shared) error {
	_, err := shared.Swap(ctx, revokingFolder+r.Certificate.Name, r.rev, nil)
	if errors.Is(err, ErrSwapped) {
		return nil // it is somebody else's by now, or gone
	}
	return err
}
