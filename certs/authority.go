package certs

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// authority is an issuer at work, over acmez: certmagic's own issuer neither
// tells what an authority says of when to come back, nor lets limits be shared
// between nodes. All methods are safe for concurrent use.
type authority struct {
	Issuer
	ca        string // its key in storage
	storage   certmagic.Storage
	log       *slog.Logger
	transport *http.Transport
	http      *http.Client
	roots     *x509.CertPool // that certificates have to lead to; nil: not looked at
	limits    *limits
	metrics   *metrics
	turns     chan struct{} // holds a token for each order under way

	mu     sync.Mutex // guards the following
	client *acme.Client
	opened time.Time
}

const (
	// ordersAtOnce bounds the orders that a node has under way with one
	// authority. Each waits for DNS most of its time; Let's Encrypt takes 20
	// requests a second and more.
	ordersAtOnce = 24
	// clientFor is how long a client is kept for its directory and its nonces.
	clientFor = time.Hour
	// pollLimit bounds the wait for the authority to validate, and to issue.
	pollLimit = 5 * time.Minute
)

// newAuthority contacts nobody. The caller closes it.
func newAuthority(i Issuer, cfg Config, storage certmagic.Storage, m *metrics) (*authority, error) {
	trusted, err := rootsOf(i.CAFile)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: ca_file: %w", i.Name, err)
	}
	roots, err := rootsOf(i.Roots)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: roots: %w", i.Name, err)
	}
	a := &authority{
		Issuer: i, ca: i.key(), storage: storage, roots: roots, metrics: m,
		log:   slog.New(lower{cfg.Logger.Handler()}).With("issuer", i.Name),
		turns: make(chan struct{}, ordersAtOnce),
	}
	a.transport = authorityTransport(trusted)
	a.http = &http.Client{Transport: listener{a.transport}, Timeout: 30 * time.Second}
	a.limits = newLimits(i, cfg.Store)
	return a, nil
}

func (a *authority) close() { a.transport.CloseIdleConnections() }

// open returns a client for the directory. One is used for many orders, since
// each answer brings the nonce of the next request.
func (a *authority) open() *acme.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client == nil || time.Since(a.opened) > clientFor {
		a.client, a.opened = &acme.Client{
			Directory: a.Directory, HTTPClient: a.http, UserAgent: "sluice", PollTimeout: pollLimit, Logger: a.log,
		}, time.Now()
	}
	return a.client
}

// order obtains a certificate for the one name of csr, and keeps the authority's
// limits. The name's lock is held.
func (a *authority) order(ctx context.Context, csr *x509.CertificateRequest, solver acmez.Solver) (*acme.Certificate, error) {
	select {
	case a.turns <- struct{}{}:
		defer func() { <-a.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	name := csr.DNSNames[0]
	old := a.current(ctx, name)
	if err := a.limits.take(ctx, name, old != nil); err != nil {
		a.metrics.order(a.Name, err)
		return nil, err
	}
	ctx, said := listenTo(ctx)
	cert, err := a.obtain(ctx, csr, solver, old)
	if err == nil {
		if err = a.checkChain(name, cert.ChainPEM); err != nil {
			_ = a.learn(ctx, name, said, nil) // it was issued, and counts for the limits of the name
		}
	}
	if err == nil && wantsStaple(csr.Extensions) {
		if leaf, bad := leafOf(cert.ChainPEM); bad == nil && !mustStaple(leaf) {
			a.log.Warn("the certificate does not ask for a stapled OCSP response, as its key under domains/ wants: the authority has left that out", "domain", name)
		}
	}
	err = a.learn(ctx, name, said, err)
	a.metrics.order(a.Name, err)
	return cert, err
}

// current returns the certificate of name that this authority has issued and a
// new one will replace; nil: none that still holds.
func (a *authority) current(ctx context.Context, name string) *x509.Certificate {
	chain, err := a.storage.Load(ctx, certmagic.StorageKeys.SiteCert(a.ca, name))
	if err != nil {
		return nil
	}
	leaf, err := leafOf(chain)
	if err != nil || !time.Now().Before(leaf.NotAfter) {
		return nil
	}
	return leaf
}

// leafOf parses the first certificate of a PEM chain.
func leafOf(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in it: want PEM, the leaf first")
	}
	return x509.ParseCertificate(block.Bytes)
}

// obtain makes an order, and another one where the authority does not know what
// it is asked of: an account that it has lost, a certificate that it does not
// take for one to be replaced (RFC 9773 section 5).
func (a *authority) obtain(ctx context.Context, csr *x509.CertificateRequest, solver acmez.Solver, old *x509.Certificate) (*acme.Certificate, error) {
	client := &acmez.Client{Client: a.open(), ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeDNS01: solver}}
	said := saidIn(ctx)
	directory, err := client.GetDirectory(ctx)
	if err != nil {
		return nil, err
	}
	said.ordersAt(directory.NewOrder)
	for again := false; ; again = true {
		account, err := a.account(ctx, client.Client)
		if err != nil {
			return nil, err
		}
		params, err := acmez.OrderParametersFromCSR(account, csr)
		if err != nil {
			return nil, err
		}
		params.Profile = a.Profile
		params.Replaces = old
		chains, err := client.ObtainCertificate(ctx, params)
		if err == nil {
			return a.choose(chains)
		}
		p, isProblem := errors.AsType[acme.Problem](err)
		switch {
		case again || !isProblem || isLimit(p):
			return nil, err
		case p.Type == acme.ProblemTypeAccountDoesNotExist:
			if err := a.forget(ctx); err != nil {
				return nil, err
			}
		case old != nil && said.refusedOrder(): // whatever the reason: authorities give many
			old = nil
		default:
			return nil, err
		}
	}
}

// choose returns the chain that leads by the most preferred authority.
func (a *authority) choose(chains []acme.Certificate) (*acme.Certificate, error) {
	if len(chains) == 0 {
		return nil, errors.New("the certificate authority issued a certificate and offers no chain of it")
	}
	for _, want := range a.PreferredChains {
		for i := range chains {
			if leadsBy(chains[i].ChainPEM, want) {
				return &chains[i], nil
			}
		}
	}
	if len(a.PreferredChains) > 0 {
		a.log.Warn("no chain leads by a preferred authority; the first one is taken", "preferred", a.PreferredChains)
	}
	return &chains[0], nil
}

// leadsBy reports whether a certificate of the chain was issued by an authority
// of that common name.
func leadsBy(chain []byte, name string) bool {
	return slices.ContainsFunc(certificatesOf(chain), func(c *x509.Certificate) bool { return c.Issuer.CommonName == name })
}

// certificatesOf parses the certificates of a PEM chain, leaving out what is none.
func certificatesOf(chain []byte) (all []*x509.Certificate) {
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, c)
		}
	}
	return all
}

// checkChain says why clients would not believe a chain, where it is known whom
// they trust.
func (a *authority) checkChain(name string, chain []byte) error {
	if a.roots == nil {
		return nil
	}
	if err := verifyChain(name, certificatesOf(chain), a.roots); err != nil {
		return fmt.Errorf("the certificate that issuer %s has issued is not used: %w", a.Name, err)
	}
	return nil
}

// verifyChain checks a chain, leaf first, as a client of name does that trusts
// roots; nil stands for the system's.
func verifyChain(name string, chain []*x509.Certificate, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("there is no certificate in it")
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), DNSName: anyHost(name)}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opts)
	return err
}

// anyHost returns a host that a certificate for name covers.
func anyHost(name string) string {
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		return "any." + parent
	}
	return name
}

// learn shares with the cluster what an order told of the authority, and returns
// the order's error, as a *LimitError where that is what it comes to.
func (a *authority) learn(ctx context.Context, name string, said *said, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	note := func(err error) {
		if err != nil {
			a.log.Warn("what the certificate authority said is not shared with other nodes", "err", err)
		}
	}
	if err == nil {
		note(a.limits.done(ctx, name))
		return nil
	}
	until, limited := said.limit(err, time.Now())
	if limited {
		limit, failed := a.limits.refused(ctx, stop{Scope: scopeOf(wordsOf(err), name), Until: until, Why: wordsOf(err)})
		note(failed)
		return limit
	}
	if said.broken() {
		_, failed := a.limits.fails(ctx, err.Error())
		note(failed)
	} else if a.limits.look(ctx).Failures > 0 {
		note(a.limits.works(ctx))
	}
	return err
}

// scopeOf returns the domain that an authority's words about a limit are about:
// name itself or the longest parent of it that they mention. "": all of it.
func scopeOf(words, name string) string {
	words = strings.ToLower(words)
	for domain := strings.TrimPrefix(name, "*."); strings.Contains(domain, "."); {
		if mentions(words, domain) {
			return domain
		}
		_, domain, _ = strings.Cut(domain, ".")
	}
	return ""
}

// mentions reports whether domain stands in words by itself, rather than at the
// end of a longer name.
func mentions(words, domain string) bool {
	for at := 0; ; at++ {
		i := strings.Index(words[at:], domain)
		if i < 0 {
			return false
		}
		at += i
		before := strings.TrimSuffix(words[:at], "*.")
		after := strings.TrimSuffix(words[at+len(domain):], ".")
		if !endsLabel(before) && !beginsLabel(after) {
			return true
		}
	}
}

func endsLabel(s string) bool   { return s != "" && isLabel(s[len(s)-1]) }
func beginsLabel(s string) bool { return s != "" && s[0] != '.' && isLabel(s[0]) }

func isLabel(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
}

func isLimit(p acme.Problem) bool {
	return p.Type == acme.ProblemTypeRateLimited || p.Status == http.StatusTooManyRequests
}

// wordsOf returns the authority's own words, or the whole error.
func wordsOf(err error) string {
	if p, ok := errors.AsType[acme.Problem](err); ok && p.Detail != "" {
		return p.Detail
	}
	return err.Error()
}

// authorityTransport returns the connections to an authority.
func authorityTransport(trusted *x509.CertPool) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.MaxIdleConnsPerHost = 4
	t.IdleConnTimeout = 30 * time.Second
	t.TLSClientConfig = tlsTo(trusted)
	return t
}
