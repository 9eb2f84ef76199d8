package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/certs/dns01"
)

// source is certmagic, reduced to what it does best: ACME, its storage, and when
// to renew. Its own cache and maintenance are not used, for three reasons: its
// retries begin after a minute, its background jobs cannot be waited for, and
// its lookup takes a lock in every handshake. Certificates pass through the
// cache, which certmagic insists on, and are taken out of it at once.
type source struct {
	cache *certmagic.Cache
	magic map[string]*certmagic.Config // by provider
	proof *dns01.Solver
}

// newSource starts certmagic's maintenance goroutine; close ends it.
func newSource(cfg Config, storage certmagic.Storage) (*source, error) {
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	proof, err := newProof(cfg, storage)
	if err != nil {
		return nil, err
	}
	logger := zap.New(newZapCore(cfg.Logger.Handler()))
	opts := certmagic.CacheOptions{
		Logger:             logger,
		RenewCheckInterval: cfg.CheckEvery,
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			return nil, fmt.Errorf("the cache is not set up yet")
		},
	}
	cache := certmagic.NewCache(opts)
	base := certmagic.Config{
		Storage: storage,
		Logger:  logger,
		// No certificate asks for stapling, and authorities have given OCSP
		// up; revocation shows in renewal information (ARI), which is used.
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	}
	// Maintenance may meet a certificate on its way through the cache. One
	// with OnDemand set it leaves alone.
	idle := base
	idle.OnDemand = new(certmagic.OnDemandConfig)
	hands := certmagic.New(cache, idle)
	opts.GetConfigForCert = func(certmagic.Certificate) (*certmagic.Config, error) { return hands, nil }
	cache.SetOptions(opts)

	s := &source{cache: cache, magic: map[string]*certmagic.Config{}, proof: proof}
	for name := range cfg.Providers {
		magic := certmagic.New(cache, base)
		magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(magic, certmagic.ACMEIssuer{
			CA:           cfg.Directory,
			Email:        email(cfg.Email),
			Agreed:       true,
			TrustedRoots: roots,
			DNS01Solver:  proof.For(name),
			Logger:       logger,
		})}
		s.magic[name] = magic
	}
	return s, nil
}

// email returns what makes certmagic register an account with that address, or
// without any. An empty string would make it ask for one on standard input; it
// trims a blank only after that decision.
func email(address string) string {
	if address == "" {
		return " "
	}
	return address
}

func (s *source) close() { s.cache.Stop() }

// load returns the stored certificate of name and whether it is due for
// renewal. The error is fs.ErrNotExist if there is none.
func (s *source) load(ctx context.Context, provider, name string) (cert *tls.Certificate, due bool, err error) {
	magic := s.magic[provider]
	got, err := magic.CacheManagedCertificate(ctx, name)
	if err != nil {
		return nil, false, err
	}
	s.take(name)
	return &got.Certificate, got.NeedsRenewal(magic), nil
}

// manage obtains the certificate of name if there is none in storage, renews
// it if it is due, and returns it. It is one attempt.
func (s *source) manage(ctx context.Context, provider, name string) (*tls.Certificate, error) {
	ctx = dns01.WithCertificate(ctx, name)
	err := s.magic[provider].ManageSync(ctx, []string{name})
	cert := s.take(name) // of a failed renewal too: what is in the cache is not managed again
	if err != nil {
		return nil, err
	}
	if cert == nil {
		return nil, fmt.Errorf("%s: certmagic reports success and has no certificate", name)
	}
	return cert, nil
}

// take removes the certificates of exactly that name from the cache and returns
// the one that was issued last, or nil.
func (s *source) take(name string) *tls.Certificate {
	var last *tls.Certificate
	var hashes []string
	for _, c := range s.cache.AllMatchingCertificates(name) {
		if len(c.Names) == 0 || c.Names[0] != name || slices.Contains(hashes, c.Hash()) {
			continue // another name's worker has it
		}
		hashes = append(hashes, c.Hash())
		if last == nil || c.Leaf.NotBefore.After(last.Leaf.NotBefore) {
			last = &c.Certificate
		}
	}
	s.cache.Remove(hashes)
	return last
}
