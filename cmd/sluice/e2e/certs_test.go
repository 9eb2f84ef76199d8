package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/remotegpu/sluice/certs/certstest"
)

// certs runs `sluice certs` with the node's file, and wants that exit code.
func (n *node) certs(wantCode int, args ...string) (stdout, stderr string) {
	n.t.Helper()
	code, stdout, stderr := runSluice(n.t, n.dir, append([]string{"certs", "--config", "sluice.yaml"}, args...)...)
	if code != wantCode {
		n.t.Fatalf("sluice certs %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, wantCode, stdout, stderr)
	}
	return stdout, stderr
}

// storedSerial returns the serial number of what is stored for a name.
func (n *node) storedSerial(name, issuer string) string {
	n.t.Helper()
	out, _ := n.certs(0, "show", name, "-o", "json")
	var shown struct {
		Certificates []struct{ Serial, Issuer string }
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		n.t.Fatal(err)
	}
	for _, c := range shown.Certificates {
		if c.Issuer == issuer {
			return c.Serial
		}
	}
	n.t.Fatalf("there is no certificate of %s for %s: %s", issuer, name, out)
	return ""
}

// issuersYAML writes the acme section for some authorities, of which the first
// needs a binding, and Knot's provider.
func issuersYAML(knot string, issuers ...string) nodeOption {
	return withYAML(fmt.Sprintf(`acme:
  email: ops@example.com
  fall_back_after: 1
  resolvers: [%q]
  issuers:
%s
dns:
  knot: {provider: rfc2136, server: %[1]q, key_name: edge-key., key_algorithm: hmac-sha256, key: %[3]q}
`, knot, strings.Join(issuers, "\n"), goodKey))
}

// issuerYAML writes one issuer, with further fields as they are.
func issuerYAML(name string, a *certstest.ACME, more string) string {
	return fmt.Sprintf("  - {name: %s, directory: %q, staging: %[2]q, ca_file: %q%s}", name, a.DirectoryURL, a.RootsFile, more)
}

// steady makes handshakes and requests by each version of HTTP, over and over,
// until it is told to end; not one may fail.
type steady struct {
	t       *testing.T
	cancel  context.CancelFunc
	running sync.WaitGroup
	asked   atomic.Int64
}

func startSteady(t *testing.T, n *node, host string, roots *x509.CertPool) *steady {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &steady{t: t, cancel: cancel}
	for _, proto := range []string{"h1", "h2", "h3"} {
		s.running.Go(func() { s.ask(ctx, n, proto, host, roots) })
	}
	t.Cleanup(s.end)
	return s
}

// ask makes requests over connections that are each used a few times, so that
// handshakes happen all along.
func (s *steady) ask(ctx context.Context, n *node, proto, host string, roots *x509.CertPool) {
	for ctx.Err() == nil {
		c := newClientWith(s.t, n, proto, roots)
		for range 3 {
			_, body, err := c.do(c.request(ctx, http.MethodGet, host, "/", nil))
			if ctx.Err() != nil {
				break
			}
			if err != nil || body != host {
				s.t.Errorf("%s: %q, %v", proto, body, err)
				return
			}
			s.asked.Add(1)
		}
		if tr, ok := c.http.Transport.(interface{ CloseIdleConnections() }); ok {
			tr.CloseIdleConnections()
		}
	}
}

// more waits until some more requests of each version may have been answered.
func (s *steady) more() {
	s.t.Helper()
	start := s.asked.Load()
	eventually(s.t, "more traffic", func() error {
		if now := s.asked.Load(); now < start+20 {
			return fmt.Errorf("%d requests", now-start)
		}
		return nil
	})
}

func (s *steady) end() {
	s.cancel()
	s.running.Wait()
}

// The life of a wildcard: issued from nothing by one command, with an authority
// that rejects nonces, takes its time and wants accounts bound; rehearsed, shown,
// renewed, revoked and replaced, while clients of every version come and go.
func TestLifeOfACertificate(t *testing.T) {
	t.Parallel()
	const mac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	knot := startKnot(t)
	authority := certstest.NewACME(t, knot, certstest.ACMEOptions{
		Chaos: true, EAB: map[string]string{"kid-1": mac}, RenewalPoll: time.Second,
		Profiles: map[string]time.Duration{"classic": 90 * 24 * time.Hour, "shortlived": 6 * 24 * time.Hour},
	})
	n := startNode(t, withoutLocalCA(), issuersYAML(knot, issuerYAML("first", authority,
		fmt.Sprintf(", profile: shortlived, roots: %q, eab: {key_id: kid-1, hmac_key: %s}", authority.IssuerFile, mac))))
	n.put("routes/site", respondRoute("*.x.test", "${host}"))

	out, _ := n.certs(0, "rehearse", "*.x.test")
	for _, want := range []string{"takes the order", "is added", "is published", "is deleted again", "issues a certificate"} {
		if !strings.Contains(out, want) {
			t.Errorf("the rehearsal does not say %q:\n%s", want, out)
		}
	}
	if out, _ = n.certs(0, "ls"); strings.Count(out, "\n") != 1 {
		t.Fatalf("the rehearsal left something behind:\n%s", out)
	}

	n.put("domains/*.x.test", `{"issuer": "first"}`)
	n.verdictHas("domains/*.x.test", "applied@", "obtained until ")
	first, err := n.leaf("a.x.test", authority.Roots)
	if err != nil {
		t.Fatal(err)
	}
	if life := first.NotAfter.Sub(first.NotBefore); life > 7*24*time.Hour {
		t.Errorf("the certificate holds for %v, want the six days of its profile", life)
	}
	traffic := startSteady(t, n, "a.x.test", authority.Roots)
	traffic.more()

	var shown struct {
		Domain       string
		Certificates []struct{ Serial, Issuer, Key string }
		Issuers      []struct {
			Left int `json:"orders_left"`
		}
	}
	out, _ = n.certs(0, "show", "*.x.test", "-o", "json")
	if err := json.Unmarshal([]byte(out), &shown); err != nil || len(shown.Certificates) != 1 || len(shown.Issuers) != 1 {
		t.Fatalf("%v, shown: %s", err, out)
	}
	if c := shown.Certificates[0]; c.Serial != fmt.Sprintf("%x", first.SerialNumber) || c.Issuer != "first" || c.Key != "ECDSA P-256" || shown.Domain != `{"issuer": "first"}` {
		t.Errorf("shown: %+v, want serial number %x", c, first.SerialNumber)
	}

	// By the time that a command has ended the node serves what it obtained.
	n.certs(0, "renew", "*.x.test")
	second := n.mustLeaf("a.x.test", authority.Roots)
	if second.Equal(first) {
		t.Fatal("renew ended, and the old certificate is served")
	}
	if authority.LastOrder().Replaces == "" {
		t.Error("the order of a renewal does not say what it replaces")
	}
	traffic.more()

	n.certs(2, "revoke", "*.x.test") // without --yes
	n.certs(0, "revoke", "*.x.test", "--reason", "keyCompromise", "--yes")
	third := n.mustLeaf("a.x.test", authority.Roots)
	if third.Equal(second) {
		t.Error("revoke ended, and the revoked certificate is served")
	}
	for cert, want := range map[*x509.Certificate]bool{first: false, second: true, third: false} {
		if reason, revoked := authority.Revoked(t, cert); revoked != want || revoked && reason != 1 {
			t.Errorf("%x: revoked %v, for %d, want %v", cert.SerialNumber, revoked, reason, want)
		}
	}
	traffic.more()

	// The authority wants it renewed early, and says so when it is asked.
	authority.Renew(t, third, time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))
	eventually(t, "the certificate is renewed when its authority wants", func() error {
		if leaf := n.mustLeaf("a.x.test", authority.Roots); leaf.Equal(third) {
			return errors.New("it is the same one")
		}
		return nil
	})
	traffic.more()
	traffic.end()
	if records, err := lookup(knot, "_acme-challenge.x.test", dns.TypeTXT); err != nil || len(records) > 0 {
		t.Errorf("challenge records are left behind: %v, %v", records, err)
	}
	if keys := n.etcdctl("get", "--prefix", "/sluice/acme/"); strings.Contains(keys, "BEGIN") || strings.Contains(keys, "PRIVATE") {
		t.Error("etcd has something in clear below acme/")
	}

	// Somebody damages what is stored: it counts as none, to commands as well.
	for line := range strings.Lines(n.etcdctl("get", "--prefix", "--keys-only", "/sluice/acme/certificates/")) {
		if key := strings.TrimSpace(line); strings.HasSuffix(key, ".key") {
			n.etcdctl("put", key, "garbage")
		}
	}
	if out, _ = n.certs(0, "renew", "*.x.test"); strings.Contains(out, "no key") {
		t.Errorf("renewed: %s", out)
	}
	n.verdictHas("domains/*.x.test", "applied@", "obtained until ")
	if out, _ = n.certs(0, "renew", "a.x.test"); !strings.Contains(out, "! it has no key domains/a.x.test: it is renewed only if a route needs it") {
		t.Errorf("renewed, without a key: %s", out)
	}
}

// mustLeaf is leaf, and there must be one.
func (n *node) mustLeaf(name string, roots *x509.CertPool) *x509.Certificate {
	n.t.Helper()
	leaf, err := n.leaf(name, roots)
	if err != nil {
		n.t.Fatal(err)
	}
	return leaf
}

// While the first issuer is down the second one has its turn, and a key that
// names the first waits for it.
func TestSecondIssuer(t *testing.T) {
	t.Parallel()
	knot := startKnot(t)
	first := certstest.NewACME(t, knot, certstest.ACMEOptions{})
	second := certstest.NewACME(t, knot, certstest.ACMEOptions{})
	first.Down(true)
	n := startNode(t, withoutLocalCA(), issuersYAML(knot, issuerYAML("first", first, ""), issuerYAML("second", second, "")))
	n.put("domains/a.x.test", `{}`)
	n.verdictHas("domains/a.x.test", "applied@", "obtained until ")
	n.mustLeaf("a.x.test", second.Roots)
	n.put("domains/b.x.test", `{"issuer": "first"}`)
	n.verdictHas("domains/b.x.test", "degraded: ", "503")
	n.put("domains/b.x.test", `{"issuer": "third"}`)
	n.verdictHas("domains/b.x.test", "degraded: ", `issuer "third" is not configured: use one of first, second`)

	// It is back, and refuses: the second one is asked at once.
	first.Down(false)
	first.Refuse(&certstest.Refusal{Status: http.StatusTooManyRequests, RetryAfter: "3600", Problem: "rateLimited", Detail: "too many new orders"})
	n.put("domains/b.x.test", `{"issuer": "first"}`)
	n.verdictHas("domains/b.x.test", "degraded: ", "issuer first takes no order for it before 20", "it says: too many new orders")
	n.put("domains/c.x.test", `{}`)
	n.verdictHas("domains/c.x.test", "applied@", "obtained until ")
	n.mustLeaf("c.x.test", second.Roots)
	orders := first.Orders()
	_, stderr := n.certs(1, "renew", "b.x.test")
	if !strings.Contains(stderr, "issuer first takes no order for it before 20") || first.Orders() != orders {
		t.Errorf("a command asks an authority that every node leaves alone: %s", stderr)
	}
	if out, _ := n.certs(0, "show", "b.x.test"); !strings.Contains(out, "takes no order for it before 20") {
		t.Errorf("shown: %s\nwant the limit", out)
	}
}

// A certificate from elsewhere is checked, served, listed, exported to its owner
// alone, and never stands in clear where it should not.
func TestImportedCertificate(t *testing.T) {
	t.Parallel()
	knot := startKnot(t)
	authority := certstest.NewACME(t, knot, certstest.ACMEOptions{})
	n := startNode(t, withoutLocalCA(), issuersYAML(knot, issuerYAML("first", authority, "")))
	n.put("routes/site", respondRoute("*.shop.test", "${host}"))
	cert, key, roots := selfMade(t, n.dir, "*.shop.test")

	_, stderr := n.certs(1, "import", "*.shop.test", "--cert", cert, "--key", key)
	if !strings.Contains(stderr, "give the file of its authority's roots") {
		t.Errorf("an authority that nobody trusts: %s", stderr)
	}
	_, stderr = n.certs(1, "import", "*.other.test", "--cert", cert, "--key", key, "--roots", cert)
	if !strings.Contains(stderr, "is for another name") {
		t.Errorf("another name: %s", stderr)
	}
	out, _ := n.certs(0, "import", "*.shop.test", "--cert", cert, "--key", key, "--roots", cert)
	if !strings.Contains(out, "! it is imported and nobody renews it") {
		t.Errorf("it ends within a month, and nothing is said: %s", out)
	}
	eventually(t, "the imported certificate is served", func() error {
		_, err := n.leaf("a.shop.test", roots)
		return err
	})
	for _, proto := range []string{"h1", "h2", "h3"} {
		if _, body := newClientWith(t, n, proto, roots).get("a.shop.test", "/"); body != "a.shop.test" {
			t.Errorf("%s: body %q", proto, body)
		}
	}
	if out, _ = n.certs(0, "ls", "shop"); !strings.Contains(out, "*.shop.test") || !strings.Contains(out, "imported") || !strings.Contains(out, "nobody renews it") {
		t.Errorf("listed: %s", out)
	}
	_, stderr = n.certs(1, "renew", "*.shop.test")
	if !strings.Contains(stderr, "is imported") {
		t.Errorf("renew: %s", stderr)
	}

	// Over one that was obtained: that one is revoked, the imported one stays.
	n.put("domains/a.x.test", `{}`)
	n.verdictHas("domains/a.x.test", "applied@", "obtained until ")
	obtained := n.mustLeaf("a.x.test", authority.Roots)
	cert, key, roots = selfMade(t, n.dir, "a.x.test")
	n.certs(0, "import", "a.x.test", "--cert", cert, "--key", key, "--roots", cert)
	n.certs(0, "revoke", "a.x.test", "--yes")
	if reason, revoked := authority.Revoked(t, obtained); !revoked || reason != 4 {
		t.Errorf("revoked: %v, for %d, want 4", revoked, reason)
	}
	n.mustLeaf("a.x.test", roots)

	// One that was replaced and not revoked is revoked by the next try, and
	// nothing is ordered for that.
	before := n.storedSerial("a.x.test", "first")
	authority.KeepAll(true)
	if _, stderr = n.certs(1, "revoke", "a.x.test", "--reason", "keyCompromise", "--yes"); !strings.Contains(stderr, "the old one is not revoked") {
		t.Errorf("revoke: %s", stderr)
	}
	after, orders := n.storedSerial("a.x.test", "first"), authority.Orders()
	if out, _ = n.certs(0, "show", "a.x.test"); after == before || !strings.Contains(out, before+" was to be revoked, which is not done") {
		t.Errorf("%s was replaced by %s; shown: %s", before, after, out)
	}
	authority.KeepAll(false)
	if out, _ = n.certs(0, "revoke", "a.x.test", "--yes"); !strings.Contains(out, "revoked serial number "+before+", replaced by "+after) || authority.Orders() != orders {
		t.Errorf("%d orders more; revoked: %s", authority.Orders()-orders, out)
	}
	if out, _ = n.certs(0, "show", "a.x.test"); strings.Contains(out, "was to be revoked") {
		t.Errorf("shown: %s", out)
	}

	if out, _ = n.certs(0, "renew", "a.x.test", "--issuer", "first"); !strings.Contains(out, "! it is not served: an imported one is, until ") {
		t.Errorf("renewed behind an imported one: %s", out)
	}
	n.certs(2, "rm", "a.x.test") // without --yes
	n.certs(0, "rm", "a.x.test", "--yes")
	eventually(t, "the one that was obtained", func() error {
		_, err := n.leaf("a.x.test", authority.Roots)
		return err
	})
	if out, _ = n.certs(0, "ls", "a.x.test"); strings.Contains(out, "imported") || !strings.Contains(out, "first") {
		t.Errorf("listed after rm: %s", out)
	}

	file := filepath.Join(n.dir, "shop.pem")
	n.certs(0, "export", "*.shop.test", "--out", file)
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Errorf("exported: %v, %v, want mode 0600", fi, err)
	}
	if _, err := tls.LoadX509KeyPair(file, file); err != nil {
		t.Errorf("exported: %v", err)
	}
	n.certs(2, "export", "*.shop.test", "--out", file) // it exists
	if out, _ = n.certs(0, "export", "*.shop.test"); !strings.Contains(out, "PRIVATE KEY") {
		t.Errorf("exported to a pipe: %d bytes", len(out))
	}
	if out := onTerminal(t, n, "certs", "--config", "sluice.yaml", "export", "*.shop.test"); strings.Contains(out, "PRIVATE KEY") || !strings.Contains(out, "would stand on the terminal") {
		t.Errorf("exported to a terminal: %s", out)
	}
	_, stderr = n.certs(2, "--cluster-key", filepath.Join(n.dir, "none"), "ls")
	if !strings.Contains(stderr, "there is no cluster key in") {
		t.Errorf("without the cluster key: %s", stderr)
	}
}

// onTerminal runs the program with a terminal as its output, and returns what
// stands there at the end.
func onTerminal(t *testing.T, n *node, args ...string) string {
	t.Helper()
	quoted := make([]string, len(args)+1)
	for i, arg := range append([]string{binary}, args...) {
		quoted[i] = "'" + arg + "'"
	}
	cmd := exec.CommandContext(within(t), "script", "-qec", strings.Join(quoted, " "), "/dev/null")
	cmd.Dir = n.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, _ := cmd.CombinedOutput() // its exit code is the program's
	return string(out)
}

// selfMade writes a certificate for name that signs itself and ends in an hour,
// and its key.
func selfMade(t *testing.T, dir, name string) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "elsewhere"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "own.crt"), filepath.Join(dir, "own.key")
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, blob := range map[string][]byte{certFile: chain, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(path, blob, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	return certFile, keyFile, roots
}
