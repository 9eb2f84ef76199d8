package certstest

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// ACME is a certificate authority that validates for real, against one DNS
// server, and rejects some nonces as real ones do.
type ACME struct {
	DirectoryURL string
	// RootsFile is a PEM file with what to trust for the HTTPS of DirectoryURL.
	RootsFile string
	// Roots is what to trust for the certificates that it issues.
	Roots *x509.CertPool
	// IssuerFile is a PEM file with the same.
	IssuerFile string

	orders atomic.Int64
	down   atomic.Bool
}

// ACMEOptions vary an ACME server. The zero value is the usual one.
type ACMEOptions struct {
	Validity time.Duration // of the certificates, in whole seconds; 0: 90 days
}

// pebbleEnv guards the environment, from which Pebble reads settings that it
// takes from nowhere else.
var pebbleEnv sync.Mutex

// NewACME starts a certificate authority that looks names up at dnsAddr and
// ends with the test.
func NewACME(t testing.TB, dnsAddr string, opt ACMEOptions) *ACME {
	t.Helper()
	a := &ACME{}
	pages, admin := pebble(dnsAddr, opt)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.down.Load() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		if r.Method == http.MethodPost && r.URL.Path == "/order-plz" {
			a.orders.Add(1)
		}
		pages.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	a.DirectoryURL = srv.URL + wfe.DirectoryPath
	https := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	rec := httptest.NewRecorder()
	admin.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, wfe.RootCertPath+"0", nil))
	a.Roots = x509.NewCertPool()
	if !a.Roots.AppendCertsFromPEM(rec.Body.Bytes()) {
		t.Fatalf("ask Pebble for its root: %d %s", rec.Code, rec.Body)
	}
	dir := t.TempDir()
	a.RootsFile, a.IssuerFile = filepath.Join(dir, "https.pem"), filepath.Join(dir, "issuer.pem")
	for path, blob := range map[string][]byte{a.RootsFile: https, a.IssuerFile: rec.Body.Bytes()} {
		if err := os.WriteFile(path, blob, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// Orders returns how many orders were asked for, those with a rejected nonce included.
func (a *ACME) Orders() int { return int(a.orders.Load()) }

// Down makes every request fail with status 503 while on.
func (a *ACME) Down(on bool) { a.down.Store(on) }

// pebble builds the authority. Its validation worker has no way to stop and
// lives as long as the process.
func pebble(dnsAddr string, opt ACMEOptions) (pages, admin http.Handler) {
	pebbleEnv.Lock()
	defer pebbleEnv.Unlock()
	for key, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_AUTHZREUSE":      "0", // every order proves control anew
		"PEBBLE_WFE_NONCEREJECT": "10",
	} {
		old, had := os.LookupEnv(key)
		os.Setenv(key, value)
		defer func() {
			if os.Unsetenv(key); had {
				os.Setenv(key, old)
			}
		}()
	}
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	// A single profile: of several, Pebble picks one at random.
	profiles := map[string]ca.Profile{"default": {ValidityPeriod: uint64(opt.Validity / time.Second)}}
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, profiles)
	validator := va.New(quiet, 80, 443, true, dnsAddr, store)
	front := wfe.New(quiet, store, validator, authority, []string{"pebble.letsencrypt.org"}, true, false, 1, 1)
	return front.Handler(), front.ManagementHandler()
}
