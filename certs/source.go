package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/certs/dns01"
)

// source is certmagic, reduced to what it does best: its storage, its locks,
// what is in a certificate, and when to renew. Its own cache and maintenance are
// not used, for three reasons: its retries begin after a minute, its background
// jobs cannot be waited for, and its lookup takes a lock in every handshake.
// Certificates pass through the cache, which certmagic insists on, and are taken
// out of it at once.
type source struct {
	cache       *certmagic.Cache
	base        certmagic.Config
	authorities []*authority // in turn
	fallBack    int          // Config.FallBackAfter
	proof       *dns01.Solver

	mu      sync.Mutex      // guards the following
	strange map[string]bool // keys of authorities in storage that are not among them
}

// order is what a source is asked for.
type order struct {
	name     string
	provider string // key of a DNS provider
	issuer   string // name of the one issuer to ask; empty: all, in turn
	staple   bool   // it is to ask for a stapled OCSP response
	failures int    // attempts for the name that failed in a row, whoever made them
	force    bool   // obtain another certificate even if the one there is not due
}

// newSource starts certmagic's maintenance goroutine; close ends it.
func newSource(cfg Config, storage certmagic.Storage, m *metrics) (*source, error) {
	proof, err := newProof(cfg, storage)
	if err != nil {
		return nil, err
	}
	logger := zap.New(newZapCore(cfg.Logger.Handler()))
	s := &source{
		base: certmagic.Config{
			Storage: storage,
			Logger:  logger,
			OnEvent: onEvent,
			// Responses are fetched where a certificate asks for one, by the
			// Manager, once for all nodes. Of others, revocation shows in renewal
			// information (ARI), which is used.
			OCSP: certmagic.OCSPConfig{DisableStapling: true},
			// Without any, certmagic takes one of its own.
			Issuers: []certmagic.Issuer{stranger("nobody")},
		},
		fallBack: cfg.FallBackAfter,
		proof:    proof,
		strange:  map[string]bool{Imported: true},
	}
	for _, i := range cfg.Issuers {
		a, err := newAuthority(i, cfg, storage, m)
		if err != nil {
			return nil, err
		}
		s.authorities = append(s.authorities, a)
	}
	m.watch(s.authorities)
	s.openCache(cfg.CheckEvery)
	return s, nil
}

func (s *source) openCache(every time.Duration) {
	opts := certmagic.CacheOptions{
		Logger:             s.base.Logger,
		RenewCheckInterval: every,
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			return nil, fmt.Errorf("the cache is not set up yet")
		},
	}
	s.cache = certmagic.NewCache(opts)
	// Maintenance may meet a certificate on its way through the cache. One
	// with OnDemand set it leaves alone.
	idle := s.base
	idle.OnDemand = new(certmagic.OnDemandConfig)
	hands := certmagic.New(s.cache, idle)
	opts.GetConfigForCert = func(certmagic.Certificate) (*certmagic.Config, error) { return hands, nil }
	s.cache.SetOptions(opts)
}

func (s *source) close() {
	s.cache.Stop()
	for _, a := range s.authorities {
		a.close()
	}
}

// know has certificates in storage count that came from an authority of that
// key, which need not be configured any more: what it has issued is not ordered
// again before it is due.
func (s *source) know(ca string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strange[ca] = true
}

// survey looks for what authorities of former times have issued.
func (s *source) survey(ctx context.Context) {
	folders, err := s.base.Storage.List(ctx, "certificates", false)
	if err != nil {
		return // there is nothing yet, or the first attempt meets the same error and reports it
	}
	for _, folder := range folders {
		s.know(folder[strings.LastIndexByte(folder, '/')+1:])
	}
}

// manage obtains the certificate of a name if there is none in storage, renews
// it if it is due, and returns it. It is one attempt, with the issuer whose turn
// it is; where that one takes no orders, or has now failed too often, the next
// ones are tried as well. The error is a *LimitError if none of them takes one.
func (s *source) manage(ctx context.Context, o order) (*tls.Certificate, error) {
	turns, err := s.turns(ctx, o)
	if err != nil {
		return nil, err
	}
	ctx = dns01.WithCertificate(ctx, o.name)
	magic := s.magic(o, turns)
	if o.force {
		if err = magic.RenewCertSync(ctx, o.name, true); err == nil {
			_, err = magic.CacheManagedCertificate(ctx, o.name)
		}
	} else {
		err = magic.ManageSync(ctx, []string{o.name})
	}
	cert := s.take(o.name) // of a failed renewal too: what is in the cache is not managed again
	if err != nil {
		return nil, err
	}
	if cert == nil {
		return nil, fmt.Errorf("%s: certmagic reports success and has no certificate", o.name)
	}
	return cert, nil
}

// turns returns the issuers to try, the one whose turn it is first. Those that
// have failed most lately come after the others, and those that take no orders
// for the name after all: they are asked only to say when they do again.
func (s *source) turns(ctx context.Context, o order) ([]*authority, error) {
	all := s.authorities
	if o.issuer != "" {
		at := slices.IndexFunc(all, func(a *authority) bool { return a.Name == o.issuer })
		if at < 0 {
			return nil, fmt.Errorf("issuer %q is not configured", o.issuer)
		}
		return all[at : at+1], nil
	}
	first := o.failures / s.fallBack % len(all)
	var willing, failing, stopped []*authority
	for i := range all {
		a := all[(first+i)%len(all)]
		switch {
		case a.limits.stopped(ctx, o.name) != nil:
			stopped = append(stopped, a)
		case a.limits.failing(ctx, s.fallBack) != nil:
			failing = append(failing, a)
		default:
			willing = append(willing, a)
		}
	}
	return slices.Concat(willing, failing, stopped), nil
}

// magic returns a certmagic that orders from turns, one after the other, and
// finds in storage what any authority has issued: the newest counts.
func (s *source) magic(o order, turns []*authority) *certmagic.Config {
	base := s.base
	base.MustStaple = o.staple
	magic := certmagic.New(s.cache, base)
	magic.Issuers = nil
	for _, a := range s.authorities {
		if !slices.Contains(turns, a) {
			magic.Issuers = append(magic.Issuers, bystander{a})
		}
	}
	s.mu.Lock()
	for ca := range s.strange {
		if !slices.ContainsFunc(s.authorities, func(a *authority) bool { return a.ca == ca }) {
			magic.Issuers = append(magic.Issuers, stranger(ca))
		}
	}
	s.mu.Unlock()
	// Those to order from come last: certmagic returns the error of the last one.
	t := &trial{fallBack: s.fallBack}
	for _, a := range turns {
		magic.Issuers = append(magic.Issuers, orderer{a, s.proof.For(o.provider), t})
	}
	return magic
}

// trial is one attempt, with as many issuers as it takes. certmagic asks them one
// after the other, under one lock.
type trial struct {
	fallBack int
	over     bool        // no other issuer is asked
	err      error       // what it came to
	soonest  *LimitError // of those that take no orders
}

// failed notes what a came to, and whether the next one is to be asked: not if
// it is the name's own fault, which the next one would find as well.
func (t *trial) failed(ctx context.Context, a *authority, err error) error {
	t.err = err
	if limit, ok := errors.AsType[*LimitError](err); ok {
		if t.soonest == nil || limit.Until.Before(t.soonest.Until) {
			t.soonest = limit
		}
		t.err = t.soonest
	} else {
		t.over = a.limits.failing(ctx, t.fallBack) == nil
	}
	t.over = t.over || ctx.Err() != nil
	return t.err
}

// orderer is an authority that a certificate is ordered from.
type orderer struct {
	*authority
	solver acmez.Solver
	trial  *trial
}

// IssuerKey implements certmagic.Issuer.
func (o orderer) IssuerKey() string { return o.ca }

// Issue implements certmagic.Issuer.
func (o orderer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if o.trial.over {
		return nil, o.trial.err
	}
	cert, err := o.order(ctx, csr, o.solver)
	if err != nil {
		return nil, o.trial.failed(ctx, o.authority, err)
	}
	return &certmagic.IssuedCertificate{Certificate: cert.ChainPEM, Metadata: *cert}, nil
}

// GetRenewalInfo implements certmagic.RenewalInfoGetter (RFC 9773).
func (a *authority) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	return a.open().GetRenewalInfo(ctx, cert.Leaf)
}

// errNotAsked is for issuers that stand by.
var errNotAsked = errors.New("it is another issuer's turn")

// bystander is a configured authority that is not ordered from now: what it has
// issued counts, and when it wants that renewed.
type bystander struct{ *authority }

// IssuerKey implements certmagic.Issuer.
func (b bystander) IssuerKey() string { return b.ca }

// PreCheck implements certmagic.PreChecker, and has certmagic pass it by.
func (bystander) PreCheck(context.Context, []string, bool) error { return errNotAsked }

// Issue implements certmagic.Issuer.
func (bystander) Issue(context.Context, *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	return nil, errNotAsked
}

// stranger is an authority that is not configured: what it has issued counts.
type stranger string

// IssuerKey implements certmagic.Issuer.
func (s stranger) IssuerKey() string { return string(s) }

// PreCheck implements certmagic.PreChecker, and has certmagic pass it by.
func (stranger) PreCheck(context.Context, []string, bool) error { return errNotAsked }

// Issue implements certmagic.Issuer.
func (stranger) Issue(context.Context, *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	return nil, errNotAsked
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
