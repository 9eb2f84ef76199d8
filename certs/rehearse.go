package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/remotegpu/sluice/certs/dns01"
)

// Step is one thing that a rehearsal did.
type Step struct {
	What string        `json:"what"`
	Took time.Duration `json:"took"`          // in nanoseconds
	Err  string        `json:"err,omitempty"` // empty: it went well
}

// Rehearse orders a certificate for d at the staging directory of an issuer, the
// one of d or the first, through the DNS provider that the real one would take,
// and tells each step as it ends. Account and certificate are thrown away:
// nothing is stored or served, and no limit of the cluster touched. Calls of say
// come one at a time. The error is that of the step which failed.
func Rehearse(ctx context.Context, cfg Config, d Domain, say func(Step)) error {
	cfg.Store, cfg.Registerer = nil, nil
	cfg = cfg.withDefaults()
	provider, err := cfg.choose(d)
	if err != nil {
		return err
	}
	issuer := cfg.Issuers[max(0, slices.IndexFunc(cfg.Issuers, func(i Issuer) bool { return i.Name == d.Issuer }))]
	if issuer.Staging == "" {
		return fmt.Errorf("issuer %s has no directory for rehearsals: set staging under acme.issuers in sluice.yaml", issuer.Name)
	}
	issuer.Directory, issuer.Orders, issuer.Duplicates = issuer.Staging, Budget{}, Budget{}
	issuer.Roots, issuer.PreferredChains = "", nil // those of staging are others
	a, err := newAuthority(issuer, cfg, nil, newMetrics(nil, nil))
	if err != nil {
		return err
	}
	defer a.close()
	proof, err := newProof(cfg, nil)
	if err != nil {
		return err
	}
	r := &rehearsal{a: a, name: d.Name, staple: d.MustStaple, say: say, solver: proof.For(provider), began: time.Now()}
	return r.run(dns01.WithCertificate(ctx, d.Name))
}

// rehearsal is one under way. It solves the challenge itself, so as to tell what
// happens.
type rehearsal struct {
	a      *authority
	name   string
	staple bool // the certificate is to ask for a stapled OCSP response
	say    func(Step)
	solver interface {
		acmez.Solver
		acmez.Waiter
	}
	began  time.Time // the step under way
	at     string    // what that is
	failed bool      // it was told of
}

// next ends the step under way and begins another.
func (r *rehearsal) next(done, at string) {
	r.say(Step{What: done, Took: time.Since(r.began)})
	r.began, r.at = time.Now(), at
}

// fail tells that the step under way failed, once, and returns err.
func (r *rehearsal) fail(err error) error {
	if err != nil && !r.failed {
		r.failed = true
		r.say(Step{What: r.at, Took: time.Since(r.began), Err: reason(err)})
	}
	return err
}

func (r *rehearsal) run(ctx context.Context) error {
	client := &acmez.Client{Client: r.a.open(), ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeDNS01: r}}
	r.at = "ask for the directory " + r.a.Directory
	directory, err := client.GetDirectory(ctx)
	if err != nil {
		return r.fail(err)
	}
	r.next("the directory "+r.a.Directory+" answers"+describe(directory), "register an account")
	account, err := r.a.newAccount(ctx, client.Client)
	if err != nil {
		return r.fail(err)
	}
	r.next("the authority registers an account"+bound(r.a.EABKeyID), "order a certificate for "+r.name)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := r.request(key)
	if err != nil {
		return err
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return err
	}
	params.Profile = r.a.Profile
	chains, err := client.ObtainCertificate(ctx, params)
	if err != nil {
		return r.fail(err)
	}
	leaf, err := leafOf(chains[0].ChainPEM)
	if err != nil {
		return r.fail(err)
	}
	left := ""
	if r.staple && !mustStaple(leaf) {
		left = ", though without must_staple, which it leaves out"
	}
	r.next(fmt.Sprintf("the authority issues a certificate, by %s, that holds for %s%s; it is thrown away",
		leaf.Issuer.CommonName, days(leaf.NotAfter.Sub(leaf.NotBefore)), left), "")
	return nil
}

// request makes what is asked for, as certmagic does for real orders.
func (r *rehearsal) request(key *ecdsa.PrivateKey) (*x509.CertificateRequest, error) {
	template := &x509.CertificateRequest{DNSNames: []string{r.name}}
	if r.staple {
		template.ExtraExtensions = []pkix.Extension{{Id: tlsFeature, Value: []byte{0x30, 3, 2, 1, statusRequest}}}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}

// Present implements acmez.Solver: the order was taken by then.
func (r *rehearsal) Present(ctx context.Context, ch acme.Challenge) error {
	record := "the record " + ch.DNS01TXTRecordName()
	r.next("the authority takes the order", "add "+record)
	if err := r.solver.Present(ctx, ch); err != nil {
		return r.fail(err)
	}
	r.next(record+" is added", "see "+record+" at the zone's servers")
	return nil
}

// Wait implements acmez.Waiter.
func (r *rehearsal) Wait(ctx context.Context, ch acme.Challenge) error {
	if err := r.solver.Wait(ctx, ch); err != nil {
		return r.fail(err)
	}
	r.next("the record is published", "have the authority look at the record")
	return nil
}

// CleanUp implements acmez.Solver: the authority has looked by then, or will not.
func (r *rehearsal) CleanUp(ctx context.Context, ch acme.Challenge) error {
	err := r.solver.CleanUp(ctx, ch)
	switch {
	case r.failed:
		return err
	case err != nil:
		r.say(Step{What: "delete the record " + ch.DNS01TXTRecordName(), Err: reason(err)})
		return err
	case strings.HasPrefix(r.at, "have the authority"):
		r.say(Step{What: "the record is deleted again", Took: 0})
	}
	return nil
}

func describe(d acme.Directory) string {
	var has []string
	if d.RenewalInfo != "" {
		has = append(has, "renewal information (ARI)")
	}
	if d.Meta != nil && len(d.Meta.Profiles) > 0 {
		var names []string
		for name := range d.Meta.Profiles {
			names = append(names, name)
		}
		slices.Sort(names)
		has = append(has, "the profiles "+strings.Join(names, ", "))
	}
	if len(has) == 0 {
		return ""
	}
	return "; it has " + strings.Join(has, ", and ")
}

func bound(key string) string {
	if key == "" {
		return ""
	}
	return ", bound to " + key
}

// days writes the life of a certificate.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(d.Round(time.Hour)/(24*time.Hour)))
}
