package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
)

// Internet is a proxy by which a process reaches the fakes under the names of
// the hosts whose APIs they play, over TLS. Nobody else is to be reached by it.
type Internet struct {
	// Proxy is a URL for the environment variable HTTPS_PROXY.
	Proxy string
	// RootsFile is a PEM file for SSL_CERT_FILE, with what to trust.
	RootsFile string
}

// API is a fake of an HTTP API: *Alidns or *Cloudflare.
type API interface{ handler() http.Handler }

func (a *api) handler() http.Handler { return a.serve }

// NewInternet starts a proxy to fakes by the names of hosts, such as
// api.cloudflare.com. It ends with the test.
func NewInternet(t testing.TB, hosts map[string]API) *Internet {
	t.Helper()
	site := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts[r.Host].handler().ServeHTTP(w, r) // a certificate for no other name was shown
	}))
	site.Config.ErrorLog = log.New(io.Discard, "", 0)
	cert, root := certify(t, hosts)
	site.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	site.StartTLS()
	t.Cleanup(site.Close)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		if r.Method != http.MethodConnect || hosts[host] == nil {
			http.Error(w, "there is nobody else", http.StatusForbidden)
			return
		}
		tunnel(w, site.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)
	roots := filepath.Join(t.TempDir(), "internet.pem")
	write(t, roots, string(root))
	return &Internet{Proxy: proxy.URL, RootsFile: roots}
}

// tunnel connects the client of a CONNECT request with addr until either ends.
func tunnel(w http.ResponseWriter, addr string) {
	there, err := net.Dial("tcp", addr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	w.WriteHeader(http.StatusOK)
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(there, buffered)
		there.Close()
	}()
	io.Copy(here, there)
	here.Close()
	<-done
}

// certify makes an authority and a certificate of it for all hosts.
func certify(t testing.TB, hosts map[string]API) (cert tls.Certificate, root []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "certstest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	for host := range hosts {
		tmpl.DNSNames = append(tmpl.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
