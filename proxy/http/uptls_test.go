package http_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// testCA issues certificates.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
	next int64
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{t: t, cert: cert, key: key, pem: pemOf("CERTIFICATE", der), next: 2}
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// issue returns a certificate for name and its key, in PEM.
func (ca *testCA) issue(name string) (cert, key string) {
	ca.t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	ca.next++
	of := &x509.Certificate{SerialNumber: big.NewInt(ca.next), NotBefore: ca.cert.NotBefore, NotAfter: ca.cert.NotAfter, DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, of, ca.cert, &secret.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	secretDER, err := x509.MarshalECPrivateKey(secret)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemOf("EC PRIVATE KEY", secretDER)
}

// server starts a backend with a certificate for name that tells the server name
// it was asked for and the client's certificate. It wants one where clients is
// not nil.
func (ca *testCA) server(name string, clients *testCA, http2 bool) string {
	ca.t.Helper()
	certPEM, keyPEM := ca.issue(name)
	cert, err := tls.X509KeyPair([]byte(certPEM), []byte(keyPEM))
	if err != nil {
		ca.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			shown = r.TLS.PeerCertificates[0].DNSNames[0]
		}
		fmt.Fprintf(w, "HTTP/%d asked for %q by %s", r.ProtoMajor, r.TLS.ServerName, shown)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // half of them fail, as they are to
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	if clients != nil {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		s.TLS.ClientCAs.AddCert(clients.cert)
	}
	s.EnableHTTP2 = http2
	s.StartTLS()
	ca.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.Listener.Addr().String()
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	before, _ := os.Stat(path)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if before == nil {
		return
	}
	later := before.ModTime().Add(time.Second) // whatever the clock of the file system
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
}

func TestTLSToBackends(t *testing.T) {
	ca, others, clients := newTestCA(t), newTestCA(t), newTestCA(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeFile(t, at("ca.pem"), ca.pem)
	certPEM, keyPEM := clients.issue("edge.x.test")
	writeFile(t, at("cert.pem"), certPEM)
	writeFile(t, at("key.pem"), keyPEM)
	files := map[string]upstream.TLSFiles{"inner": {CA: at("ca.pem"), Cert: at("cert.pem"), Key: at("key.pem")}}

	inline, err := json.Marshal(ca.pem)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := json.Marshal(others.pem)
	if err != nil {
		t.Fatal(err)
	}
	for _, http2 := range []bool{false, true} {
		major := 1
		if http2 {
			major = 2
		}
		plain, mutual := ca.server("inner.x.test", nil, http2), ca.server("inner.x.test", clients, http2)
		routes, wants := map[string]string{}, map[string]string{}
		add := func(name, addr, tls, want string) {
			routes[name] = `{"host":"` + name + `.x.test","backend":{"targets":["` + addr + `"],"tls":{` + tls + `}}}`
			wants[name] = want
		}
		asked := func(name, by string) string {
			return fmt.Sprintf("200 HTTP/%d asked for %q by %s", major, name, by)
		}
		const refused = "502 the backend cannot be reached\n"
		add("pem", plain, `"server_name":"inner.x.test","ca":`+string(inline), asked("inner.x.test", "nobody"))
		add("file", plain, `"server_name":"inner.x.test","ca":"inner"`, asked("inner.x.test", "nobody"))
		add("system", plain, `"server_name":"inner.x.test"`, refused)
		add("wrong-ca", plain, `"server_name":"inner.x.test","ca":`+string(wrong), refused)
		add("wrong-name", plain, `"server_name":"other.x.test","ca":"inner"`, refused)
		add("pinned", plain, `"server_name":"sent.x.test","verify_name":"inner.x.test","ca":"inner"`, asked("sent.x.test", "nobody"))
		add("pinned-wrong", plain, `"server_name":"inner.x.test","verify_name":"other.x.test","ca":"inner"`, refused)
		add("client", mutual, `"server_name":"inner.x.test","ca":"inner","client":"inner"`, asked("inner.x.test", "edge.x.test"))
		// The backend says so only once it is spoken to.
		add("no-client", mutual, `"server_name":"inner.x.test","ca":"inner"`, "502")
		r := newRig(t, routes, func(cfg *proxyhttp.Config, _ *rig) {
			cfg.Dialer = upstream.NewDialer(upstream.Config{TLS: files})
		})
		p := r.h1Clear()
		for name, want := range wants {
			for range 2 { // a new connection, or a resumed session; and one from the pool
				resp, body := p.get(t, name+".x.test", "/")
				if got := fmt.Sprint(resp.StatusCode, " ", body); !strings.HasPrefix(got, want) {
					t.Errorf("HTTP/%d %s: %q, want %q", major, name, got, want)
				}
			}
		}
	}
}

// TestTLSFilesAreReread has a client's certificate replaced while it is in use,
// and then by something else.
func TestTLSFilesAreReread(t *testing.T) { synctest.Test(t, testTLSFilesAreReread) }

func testTLSFilesAreReread(t *testing.T) {
	clients := newTestCA(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	d := upstream.NewDialer(upstream.Config{TLS: map[string]upstream.TLSFiles{"inner": {Cert: cert, Key: key}}})
	defer d.Close()
	backendTLS := &router.BackendTLS{Client: "inner"}
	if err := d.CheckTLS(backendTLS); err == nil || !strings.Contains(err.Error(), "client: upstream_tls.inner of sluice.yaml: open "+cert) {
		t.Errorf("without the files: %v", err)
	}
	for _, bad := range []*router.BackendTLS{{Client: "other"}, {CA: authorities(t, "inner")}, {CA: authorities(t, "other")}} {
		if err := d.CheckTLS(bad); err == nil || !strings.Contains(err.Error(), "sluice.yaml of this node has no upstream_tls.") {
			t.Errorf("with %+v: %v", bad, err)
		}
	}
	shown := func() string {
		t.Helper()
		certificate, err := d.ClientTLS(upstream.SecureAs(backendTLS, "x.test"), nil).GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(certificate.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.DNSNames[0]
	}
	put := func(name string) {
		t.Helper()
		certPEM, keyPEM := clients.issue(name)
		writeFile(t, cert, certPEM)
		writeFile(t, key, keyPEM)
	}
	put("one.x.test")
	if err := d.CheckTLS(backendTLS); err != nil || shown() != "one.x.test" {
		t.Fatalf("with the files: %v, %s is shown", err, shown())
	}
	put("two.x.test")
	time.Sleep(11 * time.Second)
	if got := shown(); got != "two.x.test" {
		t.Errorf("after another was put there, %s is shown", got)
	}
	writeFile(t, cert, "nonsense")
	time.Sleep(11 * time.Second)
	if got := shown(); got != "two.x.test" {
		t.Errorf("with a file that cannot be read, %s is shown", got)
	}
	put("three.x.test")
	time.Sleep(11 * time.Second)
	if got := shown(); got != "three.x.test" {
		t.Errorf("after it was mended, %s is shown", got)
	}
}

func authorities(t *testing.T, text string) (a router.Authorities) {
	t.Helper()
	if err := a.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTLSValuesAreStrict(t *testing.T) {
	ca := newTestCA(t)
	_, key := ca.issue("x.test")
	quoted := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	for fields, want := range map[string]string{
		`"ca":"-----BEGIN CERTIFICATE-----\nnonsense"`: "backend.tls.ca: holds no certificate",
		`"ca":` + quoted(ca.pem+key):                   "backend.tls.ca: holds a private key",
		`"ca":"/etc/ca.pem"`:                           "backend.tls.ca: is neither PEM nor a name",
		`"client":` + quoted(key):                      "backend.tls.client: is not a name",
		`"verify_name":"a b"`:                          `backend.tls.verify_name: "a b" is not a host name`,
		`"ca":"x","insecure_skip_verify":true`:         "backend.tls.ca: has no meaning with insecure_skip_verify",
	} {
		_, err := router.ParseRoute("r", []byte(`{"host":"x.test","backend":{"targets":["a:1"],"tls":{`+fields+`}}}`))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "MHcCAQ") {
			t.Errorf("%.60s: %v, want %s", fields, err, want)
		}
	}
}
