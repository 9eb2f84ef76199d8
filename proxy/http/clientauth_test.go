package http_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/remotegpu/sluice/proxy/clienttls"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

// clientCA signs certificates of clients.
type clientCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newClientCA(t *testing.T, name string) *clientCA {
	t.Helper()
	ca := &clientCA{t: t}
	ca.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	ca.cert, _ = x509.ParseCertificate(der)
	return ca
}

// client signs a certificate for clients, edited by edits.
func (ca *clientCA) client(serial int64, edits ...func(*x509.Certificate)) *tls.Certificate {
	ca.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "Zoë, of ops", Organization: []string{"Example"}},
		DNSNames: []string{"zoe.example.com"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/a,b"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, edit := range edits {
		edit(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (ca *clientCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// crl lists serials as revoked.
func (ca *clientCA) crl(number int64, next time.Time, serials ...int64) []byte {
	ca.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: next}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// asking is a rig whose domains ask clients for certificates.
type asking struct {
	*rig
	ca      *clientCA
	terms   *clienttls.Terms
	caFile  string
	crlFile string

	registry *prometheus.Registry // of terms
	log      *syncWriter          // likewise
}

// syncWriter keeps what several goroutines write.
type syncWriter struct {
	mu   sync.Mutex // guards text
	text []byte
}

func (w *syncWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	return len(p), nil
}

func (w *syncWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.text)
}

// newAsking starts a rig with a backend that tells what it was told, at every
// host. must.x.test requires a certificate, may.x.test verifies one if it is
// given, and open.x.test asks for none.
func newAsking(t *testing.T, options ...rigOption) *asking {
	t.Helper()
	a := &asking{registry: prometheus.NewRegistry(), log: &syncWriter{}, ca: newClientCA(t, "clients"), caFile: filepath.Join(t.TempDir(), "ca.pem"), crlFile: filepath.Join(t.TempDir(), "crl.pem")}
	a.write(a.caFile, a.ca.pem())
	a.write(a.crlFile, a.ca.crl(1, time.Now().Add(time.Hour)))
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if strings.Contains(strings.ToLower(strings.ReplaceAll(name, "_", "-")), "client-cert") {
				fmt.Fprintf(w, "%s: %s\n", name, strings.Join(values, "|"))
			}
		}
	})
	option := func(cfg *proxyhttp.Config, r *rig) {
		a.terms = clienttls.New(clienttls.Config{
			Table:       r.table.Load,
			Authorities: map[string]clienttls.AuthorityFiles{"plain": {CA: a.caFile}, "listed": {CA: a.caFile, CRL: a.crlFile}},
			Logger:      slog.New(slog.NewTextHandler(a.log, nil)),
			Registerer:  a.registry,
		})
		cfg.Terms = a.terms
	}
	a.rig = newRig(t, map[string]string{"all": `{"host":"*","backend":"` + at + `"}`}, append([]rigOption{option}, options...)...)
	a.setDomains(map[string]string{
		"must.x.test": `{"client_auth":{"ca":"plain"}}`, "may.x.test": `{"client_auth":{"ca":"plain","mode":"verify_if_given"}}`,
		"listed.x.test": `{"client_auth":{"ca":"listed","mode":"require"}}`, "unknown.x.test": `{"client_auth":{"ca":"nobody"}}`,
		"*.remotegpu.com": `{"client_auth":{"ca":"plain"}}`, "free.remotegpu.com": `{"client_auth":{"mode":"off"}}`,
	})
	return a
}

func (a *asking) write(file string, content []byte) {
	if err := os.WriteFile(file, content, 0o600); err != nil {
		panic(err)
	}
	// What was written within a moment has the same time otherwise.
	when := time.Now().Add(time.Duration(len(content)) * time.Second)
	if err := os.Chtimes(file, when, when); err != nil {
		panic(err)
	}
}

func (a *asking) setDomains(domains map[string]string) {
	a.t.Helper()
	for name, value := range domains {
		d, err := router.ParseDomain(name, []byte(value))
		if err != nil {
			a.t.Fatalf("domain %s: %v", name, err)
		}
		a.builder.SetDomain(d)
	}
	a.table.Store(a.builder.Table(2))
}

// visitor is a client with a certificate of its own, or none, that connects for
// one server name, whatever host it asks for.
type visitor struct {
	*http.Client
	resumed bool // the last request's connection was
}

// visitor returns a client by proto. cache, unless nil, is of sessions.
func (a *asking) visitor(proto, serverName string, cert *tls.Certificate, cache tls.ClientSessionCache) *visitor {
	cfg := &tls.Config{RootCAs: a.roots, ServerName: serverName, ClientSessionCache: cache}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	v := &visitor{Client: &http.Client{Timeout: patience}}
	if proto == "h3" {
		tr := &http3.Transport{TLSClientConfig: cfg, Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, a.quic.LocalAddr().String(), t, q)
		}}
		a.t.Cleanup(func() { tr.Close() })
		v.Transport = tr
		return v
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(proto == "h1")
	protocols.SetHTTP2(proto == "h2")
	tr := &http.Transport{Protocols: protocols, TLSClientConfig: cfg, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", a.secure.Addr().String())
	}}
	a.t.Cleanup(tr.CloseIdleConnections)
	v.Transport = tr
	return v
}

// get asks for host and returns status and body.
func (v *visitor) get(t *testing.T, host string, header http.Header) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := v.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.TLS != nil {
		v.resumed = resp.TLS.DidResume
	}
	return resp.StatusCode, string(body), err
}

// fields reads what the backend was told.
func fields(body string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		all[name] = value
	}
	return all
}

func overTLS(t *testing.T, test func(t *testing.T, proto string)) {
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) { test(t, proto) })
	}
}

// certificatesCounted returns what a registry has of clients' certificates, by
// outcome.
func certificatesCounted(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "sluice_tls_client_certificates_total" {
			for _, m := range f.GetMetric() {
				all[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return all
}

// forged are fields that only the node may send.
func forged() http.Header {
	return http.Header{
		"X-Client-Cert-Verify": {"verified"}, "x-client-cert-subject": {"CN=root"}, "X-Client-Cert-Anything": {"1"},
		"X_Client_Cert_Verify": {"verified"}, "X-Client_cert-Serial": {"1"},
	}
}

func TestBackendsAreToldOfClientCertificates(t *testing.T) {
	overTLS(t, func(t *testing.T, proto string) {
		a := newAsking(t)
		cert := a.ca.client(0xbeef)
		sum := sha256.Sum256(cert.Certificate[0])
		verified := map[string]string{
			"X-Client-Cert-Verify": "verified", "X-Client-Cert-Subject": `CN=Zo%C3%AB\, of ops,O=Example`,
			"X-Client-Cert-San": "DNS:zoe.example.com,URI:spiffe://example.com/a%2Cb", "X-Client-Cert-Serial": "beef",
			"X-Client-Cert-Fingerprint": hex.EncodeToString(sum[:]),
		}
		for _, tc := range []struct {
			host string
			cert *tls.Certificate
			want map[string]string
		}{
			{"must.x.test", cert, verified},
			{"may.x.test", cert, verified},
			{"any.remotegpu.com", cert, verified},
			{"listed.x.test", cert, verified},
			{"may.x.test", nil, map[string]string{"X-Client-Cert-Verify": "none"}},
			{"may.x.test", newClientCA(t, "others").client(1), map[string]string{"X-Client-Cert-Verify": "failed: the certificate comes from another authority"}},
			{"may.x.test", newClientCA(t, "clients").client(1), map[string]string{"X-Client-Cert-Verify": "failed: the certificate comes from another authority"}},
			{"may.x.test", a.ca.client(1, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
				map[string]string{"X-Client-Cert-Verify": "failed: the certificate has expired or is not valid yet"}},
			{"may.x.test", a.ca.client(1, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
				map[string]string{"X-Client-Cert-Verify": "failed: the certificate is not for clients"}},
			{"open.x.test", cert, map[string]string{}},
			{"free.remotegpu.com", cert, map[string]string{}},
		} {
			status, body, err := a.visitor(proto, tc.host, tc.cert, nil).get(t, tc.host, forged())
			if err != nil || status != 200 {
				t.Errorf("%s: %d, %v", tc.host, status, err)
				continue
			}
			if diff := cmp.Diff(tc.want, fields(body)); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", tc.host, diff)
			}
		}
	})
}

func TestNobodyGetsInWithoutTheCertificateThatIsRequired(t *testing.T) {
	overTLS(t, func(t *testing.T, proto string) {
		a := newAsking(t)
		others := newClientCA(t, "clients") // by name the same
		for name, v := range map[string]*visitor{
			"none":        a.visitor(proto, "must.x.test", nil, nil),
			"of another":  a.visitor(proto, "must.x.test", others.client(1), nil),
			"expired":     a.visitor(proto, "must.x.test", a.ca.client(1, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), nil),
			"of a server": a.visitor(proto, "must.x.test", a.ca.client(1, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), nil),
			"unknown ca":  a.visitor(proto, "unknown.x.test", a.ca.client(1), nil),
		} {
			if status, body, err := v.get(t, "must.x.test", nil); err == nil {
				t.Errorf("%s: got in, with %d %q", name, status, body)
			}
		}
		// On call, that is all there is to tell why. Clients know before the node is
		// done, and some of HTTP/3 try once more.
		eventually(t, "the refusals to be counted and logged", func() bool {
			count := certificatesCounted(t, a.registry)
			logged := strings.Count(a.log.String(), "a client is refused for its certificate")
			return count["none"] >= 1 && count["failed"] >= 4 && count["verified"] == 0 && float64(logged) == count["none"]+count["failed"]
		})
		for _, want := range []string{
			"server_name=must.x.test client_auth=plain reason=none not_logged=0",
			`client_auth=plain reason="failed: the certificate comes from another authority"`,
			`client_auth=plain reason="failed: the certificate has expired or is not valid yet"`,
			`client_auth=plain reason="failed: the certificate is not for clients"`,
			`server_name=unknown.x.test client_auth="" reason="failed: the certificate comes from another authority"`,
			"client=127.0.0.1:",
		} {
			if !strings.Contains(a.log.String(), want) {
				t.Errorf("the log has no %q:\n%s", want, a.log)
			}
		}
	})
}

// TestHostsThatAskAreNotReachedByOtherConnections opens connections for hosts
// that ask for nothing, or for something else, though the certificate shown
// covers them all.
func TestHostsThatAskAreNotReachedByOtherConnections(t *testing.T) {
	overTLS(t, func(t *testing.T, proto string) {
		a := newAsking(t)
		cert := a.ca.client(7)
		for _, tc := range []struct {
			opened, asked string
			cert          *tls.Certificate
			want          int
		}{
			{"open.x.test", "must.x.test", cert, 421},
			{"open.x.test", "may.x.test", cert, 421},
			{"may.x.test", "must.x.test", cert, 421},
			{"may.x.test", "must.x.test", nil, 421},
			{"must.x.test", "listed.x.test", cert, 421},
			{"must.x.test", "open.x.test", cert, 200},
			{"127.0.0.1", "must.x.test", cert, 421}, // no server name is sent for an address
			{"must.x.test", "must.x.test", cert, 200},
		} {
			v := a.visitor(proto, tc.opened, tc.cert, nil)
			if status, body, err := v.get(t, tc.asked, nil); status != tc.want {
				t.Errorf("%s over a connection for %s: %d %q %v, want %d", tc.asked, tc.opened, status, body, err, tc.want)
			}
		}
		// What is in force changes while the connection lives.
		v := a.visitor(proto, "open.x.test", cert, nil)
		if status, _, err := v.get(t, "open.x.test", nil); status != 200 {
			t.Fatalf("%d %v", status, err)
		}
		a.setDomains(map[string]string{"open.x.test": `{"client_auth":{"ca":"plain"}}`})
		if status, _, err := v.get(t, "open.x.test", nil); status != 421 {
			t.Errorf("a connection of before: %d %v", status, err)
		}
	})
}

// TestSessionsDoNotGetPast resumes sessions where they were not given.
func TestSessionsDoNotGetPast(t *testing.T) {
	overTLS(t, func(t *testing.T, proto string) {
		a := newAsking(t)
		good := a.ca.client(7)
		cache := &anyCache{}
		ask := func(host string, cert *tls.Certificate) (v *visitor, status int, body string, err error) {
			t.Helper()
			v = a.visitor(proto, host, cert, cache)
			status, body, err = v.get(t, host, nil)
			v.CloseIdleConnections()
			return v, status, body, err
		}
		if _, status, _, err := ask("open.x.test", nil); status != 200 {
			t.Fatalf("open.x.test: %d %v", status, err)
		}
		if _, status, body, err := ask("must.x.test", nil); err == nil {
			t.Errorf("with a session of open.x.test and no certificate: %d %q", status, body)
		}
		cache.Put("", nil)
		if _, status, body, err := ask("must.x.test", good); status != 200 || fields(body)["X-Client-Cert-Serial"] != "7" {
			t.Fatalf("must.x.test: %d %q %v", status, body, err)
		}
		// Over QUIC, hosts that ask give no tickets, with which 0-RTT would come.
		v, status, body, err := ask("must.x.test", good)
		if status != 200 || v.resumed != (proto != "h3") || fields(body)["X-Client-Cert-Serial"] != "7" {
			t.Errorf("resumed where it was given: %d %q resumed %v, %v", status, body, v.resumed, err)
		}
		if v, status, body, _ := ask("listed.x.test", good); status != 200 || v.resumed || fields(body)["X-Client-Cert-Serial"] != "7" {
			t.Errorf("another host that asks: %d, resumed %v, want a full handshake", status, v.resumed)
		}
		cache.Put("", nil)
		if _, status, _, err := ask("must.x.test", good); status != 200 {
			t.Fatalf("must.x.test: %d %v", status, err)
		}
		a.write(a.caFile, newClientCA(t, "others").pem())
		a.terms.Reread()
		if _, status, body, err := ask("must.x.test", good); err == nil {
			t.Errorf("with a session of before the authorities changed: %d %q", status, body)
		}
	})
}

// anyCache gives the last session there is for whatever host.
type anyCache struct {
	mu    sync.Mutex // guards state
	state *tls.ClientSessionState
}

func (c *anyCache) Get(string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.state != nil
}

func (c *anyCache) Put(_ string, s *tls.ClientSessionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = s
}

// TestFilesOfAuthoritiesAreTakenUp revokes a certificate, lets the list expire and
// mends it, while connections live.
func TestFilesOfAuthoritiesAreTakenUp(t *testing.T) {
	overTLS(t, func(t *testing.T, proto string) {
		a := newAsking(t)
		good, bad := a.ca.client(7), a.ca.client(8)
		before := map[int]*visitor{7: a.visitor(proto, "listed.x.test", good, nil), 8: a.visitor(proto, "listed.x.test", bad, nil)}
		for serial, v := range before {
			if status, _, err := v.get(t, "listed.x.test", nil); status != 200 {
				t.Fatalf("%d: %d %v", serial, status, err)
			}
		}
		a.write(a.crlFile, a.ca.crl(2, time.Now().Add(time.Hour), 8))
		a.terms.Reread()
		if status, _, err := before[7].get(t, "listed.x.test", nil); status != 200 {
			t.Errorf("who is not revoked: %d %v", status, err)
		}
		if status, _, err := before[8].get(t, "listed.x.test", nil); status != 421 {
			t.Errorf("who is revoked, on a connection of before: %d %v", status, err)
		}
		if status, _, err := a.visitor(proto, "listed.x.test", bad, nil).get(t, "listed.x.test", nil); err == nil {
			t.Errorf("who is revoked: %d", status)
		}
		auth := &router.ClientAuth{CA: "listed"}
		a.write(a.crlFile, []byte("nonsense"))
		if !a.terms.Reread() || !strings.HasPrefix(a.terms.Trouble(auth), "client_ca_unreadable: ") {
			t.Errorf("trouble with nonsense: %q", a.terms.Trouble(auth))
		}
		if status, _, err := a.visitor(proto, "listed.x.test", good, nil).get(t, "listed.x.test", nil); status != 200 {
			t.Errorf("with a list that cannot be read, which the last one outlives: %d %v", status, err)
		}
		a.write(a.crlFile, a.ca.crl(3, time.Now().Add(-time.Hour)))
		if !a.terms.Reread() || !strings.HasPrefix(a.terms.Trouble(auth), "client_crl_expired: ") {
			t.Errorf("trouble with an expired list: %q", a.terms.Trouble(auth))
		}
		if status, _, err := a.visitor(proto, "listed.x.test", good, nil).get(t, "listed.x.test", nil); err == nil {
			t.Errorf("with an expired list: %d", status)
		}
		a.write(a.crlFile, a.ca.crl(4, time.Now().Add(time.Hour)))
		if !a.terms.Reread() || a.terms.Trouble(auth) != "" {
			t.Errorf("trouble once it is mended: %q", a.terms.Trouble(auth))
		}
		if status, _, err := a.visitor(proto, "listed.x.test", bad, nil).get(t, "listed.x.test", nil); status != 200 {
			t.Errorf("who is revoked no longer: %d %v", status, err)
		}
	})
}

func TestClearTextReachesNoHostThatRequiresACertificate(t *testing.T) {
	a := newAsking(t)
	p := a.h1Clear()
	for host, want := range map[string]int{"must.x.test": 403, "may.x.test": 200, "open.x.test": 200} {
		req := p.request("GET", host, "/", nil)
		req.Header = forged()
		resp := p.send(t, req)
		got := fields(readAll(t, resp.Body))
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, resp.StatusCode, want)
		}
		if host == "may.x.test" && !cmp.Equal(got, map[string]string{"X-Client-Cert-Verify": "none"}) {
			t.Errorf("%s: the backend was told %v", host, got)
		}
	}
}

// TestNoEarlyDataWhereACertificateIsAsked comes back with a session that allows
// requests with the first packet, to the host that gave it and to one that asks.
func TestNoEarlyDataWhereACertificateIsAsked(t *testing.T) {
	a := newAsking(t)
	cache := &anyCache{}
	dial := func(host string) *quic.Conn {
		t.Helper()
		cfg := &tls.Config{RootCAs: a.roots, ServerName: host, NextProtos: []string{"h3"}, ClientSessionCache: cache,
			Certificates: []tls.Certificate{*a.ca.client(7)}}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := quic.DialAddrEarly(ctx, a.quic.LocalAddr().String(), cfg, &quic.Config{})
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		t.Cleanup(func() { c.CloseWithError(0, "") })
		soon(t, "the handshake", c.HandshakeComplete())
		return c
	}
	dial("open.x.test")
	eventually(t, "a ticket", func() bool { _, ok := cache.Get(""); return ok })
	given, _ := cache.Get("")
	for host, want := range map[string]bool{"open.x.test": true, "must.x.test": false, "may.x.test": false} {
		cache.Put("", given)
		if state := dial(host).ConnectionState(); state.Used0RTT != want || state.TLS.DidResume != want {
			t.Errorf("%s: 0-RTT %v, resumed %v, want %v", host, state.Used0RTT, state.TLS.DidResume, want)
		}
	}
}

// TestKeyExchangeIsHybrid has clients offer nothing else.
func TestKeyExchangeIsHybrid(t *testing.T) {
	r := newRig(t, map[string]string{"all": `{"host":"*","respond":{"body":"here"}}`})
	cfg := &tls.Config{RootCAs: r.roots, ServerName: "app.x.test", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"h3", "h2"}}
	c, err := tls.Dial("tcp", r.secure.Addr().String(), cfg)
	if err != nil {
		t.Fatalf("over TCP: %v", err)
	}
	if id := c.ConnectionState().CurveID; id != tls.X25519MLKEM768 {
		t.Errorf("over TCP: %v", id)
	}
	c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	q, err := quic.DialAddr(ctx, r.quic.LocalAddr().String(), cfg, nil)
	if err != nil {
		t.Fatalf("over QUIC: %v", err)
	}
	if id := q.ConnectionState().TLS.CurveID; id != tls.X25519MLKEM768 {
		t.Errorf("over QUIC: %v", id)
	}
	q.CloseWithError(0, "")
	// What is old or weak is not spoken.
	for name, weak := range map[string]*tls.Config{
		"TLS 1.1":        {MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
		"CBC":            {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA}},
		"RSA's exchange": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		weak.RootCAs, weak.ServerName = r.roots, "app.x.test"
		if c, err := tls.Dial("tcp", r.secure.Addr().String(), weak); err == nil {
			t.Errorf("%s is spoken: %+v", name, c.ConnectionState())
			c.Close()
		} else if _, refused := errors.AsType[tls.AlertError](err); !refused && !strings.Contains(err.Error(), "remote error") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
