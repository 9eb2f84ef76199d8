package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
)

// hand returns what does by hand what a manager of w would.
func (w *world) hand(t *testing.T, store *certstest.Store) *certs.Hand {
	t.Helper()
	cfg := w.cfg
	cfg.Store = store
	h, err := certs.NewHand(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// A certificate is obtained where there is none, renewed though it is not due,
// and the old one revoked; the limits of the cluster hold for that as well.
func TestRenewAndRevokeByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.Issuers[0].Duplicates = certs.Budget{Count: 2, Window: 48 * time.Hour}
	store := certstest.NewStore()
	h := w.hand(t, store)
	d := certs.Domain{Name: "*.x.test", MustStaple: true}
	first, err := h.Renew(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if !certs.MustStaple(first.Certificate.Leaf) {
		t.Error("the certificate does not ask for a stapled response, as was wanted")
	}
	d.MustStaple = false
	second, err := h.Renew(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if first.Certificate.Leaf.Equal(second.Certificate.Leaf) || w.acme.Orders() < 2 {
		t.Errorf("%d orders, and the certificates are the same: %v", w.acme.Orders(), first.Certificate.Leaf.Equal(second.Certificate.Leaf))
	}
	if certs.MustStaple(second.Certificate.Leaf) {
		t.Error("the second certificate asks for a stapled response, as nobody wanted any more")
	}
	if from, to := second.RenewalWindow(); from.IsZero() || !from.Before(to) {
		t.Errorf("renewal window from %v to %v", from, to)
	}
	_, err = h.Renew(t.Context(), d)
	if until := limited(t, err); time.Until(until) < 23*time.Hour {
		t.Errorf("the third within the window: %v", err)
	}
	if all := h.Limits(t.Context(), "*.x.test"); len(all) != 1 || time.Until(all[0].Until) < 23*time.Hour {
		t.Errorf("limits = %+v, want the one for the name", all)
	}

	// The one that was replaced goes from the authority, the other stays.
	if err := h.Revoke(t.Context(), first, certs.Reasons["keyCompromise"]); err != nil {
		t.Fatal(err)
	}
	if reason, revoked := w.acme.Revoked(t, first.Certificate.Leaf); !revoked || reason != 1 {
		t.Errorf("revoked: %v, for %d, want 1", revoked, reason)
	}
	if err := h.Revoke(t.Context(), first, 4); err != nil {
		t.Errorf("once more: %v", err)
	}
	if all, err := certs.LoadAllStored(t.Context(), store, "*.x.test"); err != nil || len(all) != 1 {
		t.Fatalf("stored: %v, %v, want the second", all, err)
	}
	if _, revoked := w.acme.Revoked(t, second.Certificate.Leaf); revoked {
		t.Error("the second was revoked as well")
	}
	if err := h.Revoke(t.Context(), second, 4); err != nil {
		t.Fatal(err)
	}
	if all, err := certs.LoadAllStored(t.Context(), store, "*.x.test"); err != nil || len(all) != 0 {
		t.Errorf("stored: %v, %v, want nothing that is revoked", all, err)
	}
}

// A rehearsal tells every step, leaves nothing behind, and names what fails.
func TestRehearsal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.Issuers[0].Name, w.cfg.Issuers[0].Staging = "main", w.acme.DirectoryURL
	w.cfg.Issuers[0].Directory = "https://127.0.0.1:1/dir" // that of real orders is not asked
	rehearse := func(d certs.Domain) (steps []certs.Step, err error) {
		err = certs.Rehearse(t.Context(), w.cfg, d, func(s certs.Step) { steps = append(steps, s) })
		return steps, err
	}
	steps, err := rehearse(certs.Domain{Name: "*.x.test", MustStaple: true}) // which this authority issues
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, s := range steps {
		told = append(told, s.What)
		if s.Err != "" {
			t.Errorf("%s: %s", s.What, s.Err)
		}
	}
	for _, want := range []string{"answers", "registers an account", "takes the order", "_acme-challenge.x.test is added", "is published", "is deleted", "issues a certificate"} {
		if !strings.Contains(strings.Join(told, "\n"), want) {
			t.Errorf("told: %q\nwant a step that says %q", told, want)
		}
	}
	if strings.Contains(strings.Join(told, "\n"), "without must_staple") {
		t.Errorf("told: %q", told)
	}
	if got := w.dns.TXT(challengeName); len(got) != 0 {
		t.Errorf("challenge records left behind: %q", got)
	}
	for _, tt := range []struct {
		name          string
		spoil         func()
		failed, words string
	}{
		{"a provider that is refused", func() { w.dns.RefuseUpdates(func(string) bool { return true }) }, "add the record _acme-challenge.x.test", "REFUSED"},
		{"records that nobody sees", func() { w.dns.RefuseUpdates(nil); w.dns.Hide(true) }, "have the authority look at the record", "the certificate authority says"},
		{"an authority that is down", func() { w.dns.Hide(false); w.acme.Down(true) }, "register an account", "503"},
	} {
		tt.spoil()
		steps, err := rehearse(certs.Domain{Name: "*.x.test"})
		last := steps[max(0, len(steps)-1)]
		for _, s := range steps {
			if s.Err != "" {
				last = s
			}
		}
		if err == nil || !strings.Contains(last.What, tt.failed) || !strings.Contains(last.Err, tt.words) {
			t.Errorf("%s: %v, told: %+v\nwant %q to fail with %q", tt.name, err, last, tt.failed, tt.words)
		}
		if got := w.dns.TXT(challengeName); len(got) != 0 {
			t.Errorf("%s: challenge records left behind: %q", tt.name, got)
		}
	}
	w.cfg.Issuers[0].Staging = ""
	if _, err := rehearse(certs.Domain{Name: "*.x.test"}); err == nil || !strings.Contains(err.Error(), "set staging under acme.issuers") {
		t.Errorf("without a staging directory: %v", err)
	}
}

// pki makes certificates for tests of imports.
type pki struct {
	t          *testing.T
	root, mid  *x509.Certificate
	midKey     *ecdsa.PrivateKey
	roots      *x509.CertPool
	midPEM     []byte
	nextSerial int64
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, roots: x509.NewCertPool()}
	rootKey := newKey(t)
	p.root, _ = p.sign("root", nil, rootKey, rootKey, time.Now().Add(time.Hour), true)
	p.roots.AddCert(p.root)
	p.midKey = newKey(t)
	p.mid, p.midPEM = p.sign("intermediate", p.root, p.midKey, rootKey, time.Now().Add(time.Hour), true)
	return p
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a certificate, signed by parent or, where that is nil, by itself.
func (p *pki) sign(name string, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey, until time.Time, ca bool) (*x509.Certificate, []byte) {
	p.t.Helper()
	p.nextSerial++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(p.nextSerial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: until.Add(-2 * time.Hour), NotAfter: until, IsCA: ca, BasicConstraintsValid: true,
	}
	if ca {
		tmpl.DNSNames, tmpl.KeyUsage = nil, x509.KeyUsageCertSign
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), parentKey)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// leaf makes a certificate for name and its key.
func (p *pki) leaf(name string, until time.Time) (chain, key []byte) {
	p.t.Helper()
	private := newKey(p.t)
	_, chain = p.sign(name, p.mid, private, p.midKey, until, false)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		p.t.Fatal(err)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestImport(t *testing.T) {
	p := newPKI(t)
	soon := time.Now().Add(time.Hour)
	chain, key := p.leaf("*.x.test", soon)
	full := append(append([]byte("# from elsewhere\n"), chain...), p.midPEM...)
	s, err := certs.Import("*.x.test", append(full, key...), key, p.roots)
	if err != nil {
		t.Fatal(err)
	}
	if s.Issuer != certs.Imported || s.Name != "*.x.test" || strings.Contains(string(s.Chain), "PRIVATE") || len(s.Signers()) != 2 {
		t.Errorf("imported: issuer %s, name %s, signed by %q", s.Issuer, s.Name, s.Signers())
	}
	if err := certstest.NewStore().PutStored(t.Context(), s); err != nil {
		t.Error(err)
	}
	_, otherKey := p.leaf("*.x.test", soon)
	expired, expiredKey := p.leaf("*.x.test", time.Now().Add(-time.Minute))
	early, earlyKey := p.leaf("*.x.test", time.Now().Add(3*time.Hour))
	for _, tt := range []struct {
		what, name string
		chain, key []byte
		roots      *x509.CertPool
		want       string
	}{
		{"another's key", "*.x.test", full, otherKey, p.roots, "private key does not match public key"},
		{"another name", "*.y.test", full, key, p.roots, "the certificate is for another name"},
		{"no name", "x", full, key, p.roots, "single label"},
		{"a chain that is cut short", "*.x.test", chain, key, p.roots, "add those of its authority's intermediates behind it"},
		{"a chain in the wrong order", "*.x.test", append(append([]byte{}, p.midPEM...), chain...), key, p.roots, "put the leaf first"},
		{"an authority that is not trusted", "*.x.test", full, key, x509.NewCertPool(), "give the file of its authority's roots"},
		{"one that has expired", "*.x.test", append(expired, p.midPEM...), expiredKey, p.roots, "has expired at"},
		{"one that does not hold yet", "*.x.test", append(early, p.midPEM...), earlyKey, p.roots, "holds only from"},
		{"no certificate", "*.x.test", key, key, p.roots, "there is no certificate in the file"},
		{"no key", "*.x.test", full, full, p.roots, "key"},
	} {
		if _, err := certs.Import(tt.name, tt.chain, tt.key, tt.roots); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v\nwant an error that says %q", tt.what, err, tt.want)
		}
	}
}
