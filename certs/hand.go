package certs

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// Hand does one by one, for an operator, what a Manager does by itself. What it
// stores, the nodes serve; the locks and limits of the cluster hold for it. Make
// one with NewHand, and close it. It is safe for concurrent use.
type Hand struct {
	cfg     Config
	src     *source
	storage certmagic.Storage
}

// NewHand checks cfg, of which it uses what obtaining takes, and contacts nobody.
func NewHand(cfg Config) (*Hand, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	src, err := newSource(cfg, cfg.Store, newMetrics(nil, nil))
	if err != nil {
		return nil, err
	}
	return &Hand{cfg: cfg, src: src, storage: cfg.Store}, nil
}

// choose returns the DNS provider for d, as a Manager does.
func (c Config) choose(d Domain) (provider string, err error) { return (&Manager{cfg: c}).choose(d) }

// Close frees what the Hand holds.
func (h *Hand) Close() { h.src.close() }

// Renew obtains a certificate for d, whether or not the one there is due, stores
// it in that one's place, and returns it.
func (h *Hand) Renew(ctx context.Context, d Domain) (*Stored, error) {
	provider, err := h.cfg.choose(d)
	if err != nil {
		return nil, err
	}
	h.src.survey(ctx)
	o := order{name: d.Name, provider: provider, issuer: d.Issuer, staple: d.MustStaple, force: true}
	if _, err := h.src.manage(ctx, o); err != nil {
		return nil, err
	}
	all, err := LoadAllStored(ctx, h.storage, d.Name)
	if err != nil {
		return nil, err
	}
	newest := Newest(slices.DeleteFunc(all, func(s *Stored) bool { return s.Issuer == Imported }))
	if newest == nil {
		return nil, fmt.Errorf("%s: it was obtained, and storage does not have it", d.Name)
	}
	return newest, nil
}

// Reasons are the names of reasons to revoke a certificate for, and their codes
// (RFC 5280 section 5.3.1), as far as authorities take them from subscribers.
var Reasons = map[string]int{
	"unspecified": acme.ReasonUnspecified, "keyCompromise": acme.ReasonKeyCompromise, "affiliationChanged": acme.ReasonAffiliationChanged,
	"superseded": acme.ReasonSuperseded, "cessationOfOperation": acme.ReasonCessationOfOperation,
}

// Revoke revokes a certificate with the authority that issued it, and deletes it
// from storage if it is still there. One that is revoked already is no error.
func (h *Hand) Revoke(ctx context.Context, s *Stored, reason int) error {
	at := slices.IndexFunc(h.src.authorities, func(a *authority) bool { return a.ca == s.Issuer })
	if at < 0 {
		return fmt.Errorf("%s was issued by %s, which is not configured: add it under acme.issuers in sluice.yaml", s.Name, s.Issuer)
	}
	a := h.src.authorities[at]
	client := a.open()
	account, err := a.loadAccount(ctx)
	if err != nil {
		return err
	}
	leaf := s.Certificate.Leaf
	err = client.RevokeCertificate(ctx, account, leaf, account.PrivateKey, reason)
	if p, ok := errors.AsType[acme.Problem](err); ok && p.Type == acme.ProblemTypeAlreadyRevoked {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("revoke the certificate of %s, serial number %x, with issuer %s: %w", s.Name, leaf.SerialNumber, a.Name, err)
	}
	if err := NoteRemoved(ctx, h.cfg.Store, s); err != nil {
		return fmt.Errorf("the certificate of %s is revoked, and nodes could not be told: %w", s.Name, err)
	}
	there, err := LoadStored(ctx, h.storage, s.Issuer, s.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !there.Certificate.Leaf.Equal(leaf):
		return nil
	case err != nil:
		return err
	}
	return h.storage.Delete(ctx, FolderOf(s.Issuer, s.Name))
}

// LoadAllStored reads from storage the certificates of name, one for each issuer,
// in the order of issuers.
func LoadAllStored(ctx context.Context, storage certmagic.Storage, name string) ([]*Stored, error) {
	issuers, err := storage.List(ctx, "certificates", false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(issuers)
	var all []*Stored
	for _, folder := range issuers {
		s, err := LoadStored(ctx, storage, path.Base(folder), name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Newest returns the certificate that was issued last; nil of none.
func Newest(all []*Stored) (newest *Stored) {
	for _, s := range all {
		if newest == nil || s.Certificate.Leaf.NotBefore.After(newest.Certificate.Leaf.NotBefore) {
			newest = s
		}
	}
	return newest
}

// RenewalWindow returns when the authority that issued s suggests to renew it
// (RFC 9773), zero times if it did not say.
func (s *Stored) RenewalWindow() (from, to time.Time) {
	var meta struct {
		IssuerData acme.Certificate `json:"issuer_data"`
	}
	if json.Unmarshal(s.Meta, &meta) != nil || meta.IssuerData.RenewalInfo == nil {
		return time.Time{}, time.Time{}
	}
	window := meta.IssuerData.RenewalInfo.SuggestedWindow
	return window.Start, window.End
}

// Import makes of PEM files what is to be stored for name under the issuer
// Imported, or says what is wrong with them: a key that is not the chain's, a
// chain that does not cover name, is out of date, or does not lead to roots; nil
// stands for the system's.
func Import(name string, chain, key []byte, roots *x509.CertPool) (*Stored, error) {
	if err := checkDomain(name); err != nil {
		return nil, err
	}
	chain, err := onlyCertificates(chain)
	if err != nil {
		return nil, err
	}
	cert, err := parsePair(name, chain, key)
	if err != nil {
		return nil, fmt.Errorf("the certificate %w", err)
	}
	leaf := cert.Leaf
	switch now := time.Now(); {
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("the certificate holds only from %s on", leaf.NotBefore.UTC().Format(time.RFC3339))
	case !now.Before(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate has expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := verifyChain(name, certificatesOf(chain), roots); err != nil {
		if len(certificatesOf(chain)) == 1 && leaf.Issuer.String() != leaf.Subject.String() {
			return nil, fmt.Errorf("%w; the file holds the certificate alone: add those of its authority's intermediates behind it", err)
		}
		return nil, fmt.Errorf("%w; give the file of its authority's roots if they are not the system's", err)
	}
	return &Stored{Name: name, Issuer: Imported, Chain: chain, Key: key, Meta: []byte("{}"), Certificate: cert}, nil
}

// onlyCertificates returns the certificates of a PEM file without what else is
// in it, such as a key or text. They have to be in order: the leaf first.
func onlyCertificates(file []byte) (chain []byte, err error) {
	all := certificatesOf(file)
	if len(all) == 0 {
		return nil, errors.New("there is no certificate in the file: want PEM")
	}
	for i, c := range all[1:] {
		if err := all[i].CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("certificate %d of the file (%s) is not signed by the next one (%s): put the leaf first, and behind each certificate that of who signed it",
				i+1, all[i].Subject, c.Subject)
		}
	}
	for _, c := range all {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return chain, nil
}

// IssuerName returns what people call the issuer of a stored certificate: the
// name of the configured one of that key, or the key.
func IssuerName(issuers []Issuer, key string) string {
	for _, i := range issuers {
		if i = i.withDefaults(); i.key() == key {
			return i.Name
		}
	}
	return strings.TrimSuffix(key, "-directory")
}

// LimitStatus is what a cluster knows of an issuer's limits.
type LimitStatus struct {
	Issuer  string    `json:"issuer"`
	Left    int       `json:"orders_left"` // of the cluster's own budget; -1: there is none
	Until   time.Time `json:"until,omitzero"`
	Why     string    `json:"why,omitempty"` // why there is no order for the name before Until
	Failing string    `json:"failing,omitempty"`
}

// Limits returns what stands in the way of an order for name, for each issuer.
func (h *Hand) Limits(ctx context.Context, name string) []LimitStatus {
	var all []LimitStatus
	for _, a := range h.src.authorities {
		s := LimitStatus{Issuer: a.Name, Left: -1}
		for _, err := range []*LimitError{a.limits.stopped(ctx, name), a.limits.nameLimit(ctx, name)} {
			if err != nil && err.Until.After(s.Until) {
				s.Until, s.Why = err.Until, err.Why
			}
		}
		state := a.limits.look(ctx)
		if a.Orders.Count > 0 {
			s.Left = a.Orders.left(state.Orders, time.Now())
		}
		if state.Failures > 0 {
			s.Failing = fmt.Sprintf("%d times in a row, last with: %s", state.Failures, state.Failure)
		}
		all = append(all, s)
	}
	return all
}

// Signers returns who signed the certificate, who signed that one's certificate,
// and so on, by their common names.
func (s *Stored) Signers() (names []string) {
	for _, c := range certificatesOf(s.Chain) {
		names = append(names, c.Issuer.CommonName)
	}
	return names
}
