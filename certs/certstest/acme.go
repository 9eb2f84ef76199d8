package certstest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	keeps  atomic.Bool   // revokes nothing
	poll   time.Duration // of renewal information; 0: Pebble's 6 hours
	begin  func(t testing.TB) (pages, admin http.Handler)

	mu     sync.Mutex // guards the following
	pages  http.Handler
	admin  http.Handler
	last   Order
	answer *Refusal
	after  func(path string, status int)
}

// ACMEOptions vary an ACME server. The zero value is the usual one.
type ACMEOptions struct {
	Validity time.Duration // of the certificates, in whole seconds; 0: 90 days
	// EAB are keys, in base64 for URLs, by their id, one of which an account
	// has to be bound by; none: it has not.
	EAB map[string]string
	// Profiles are the validities of certificates by what orders may ask for.
	// None: a single one, default.
	Profiles map[string]time.Duration
	// Alternates is how many chains are offered beside the first.
	Alternates int
	// RenewalPoll is how often clients are told to ask for renewal information,
	// in whole seconds. 0: every 6 hours.
	RenewalPoll time.Duration
	// Chaos has validation take up to 4 seconds, every fifth nonce rejected
	// and half of all authorizations reused.
	Chaos bool
}

// Order is what a client asked for in an order.
type Order struct {
	Profile  string `json:"profile"`
	Replaces string `json:"replaces"`
}

// Refusal is an answer that takes the place of an order.
type Refusal struct {
	Status     int
	RetryAfter string // empty: no such field
	Problem    string // type without its prefix; empty: the body is no problem document
	Detail     string
}

// pebbleEnv guards the environment, from which Pebble reads settings that it
// takes from nowhere else.
var pebbleEnv sync.Mutex

// NewACME starts a certificate authority that looks names up at dnsAddr and
// ends with the test.
func NewACME(t testing.TB, dnsAddr string, opt ACMEOptions) *ACME {
	t.Helper()
	a := &ACME{poll: opt.RenewalPoll}
	a.begin = func(t testing.TB) (pages, admin http.Handler) { return pebble(t, dnsAddr, opt) }
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.down.Load() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		if a.keeps.Load() && r.URL.Path == "/revoke-cert" {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		if r.Method == http.MethodPost && r.URL.Path == "/order-plz" && a.takeOrder(t, w, r) {
			return
		}
		if a.poll > 0 && strings.Contains(r.URL.Path, "/renewalInfo/") {
			w = pollEvery{w, a.poll}
		}
		a.serve(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	a.DirectoryURL = srv.URL + wfe.DirectoryPath
	https := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	dir := t.TempDir()
	a.RootsFile = filepath.Join(dir, "https.pem")
	if err := os.WriteFile(a.RootsFile, https, 0o644); err != nil {
		t.Fatal(err)
	}
	a.Roots = a.Reset(t)
	a.IssuerFile = a.Alternate(t, 0).File
	return a
}

// serve answers a request, and holds the answer back as long as After says.
func (a *ACME) serve(w http.ResponseWriter, r *http.Request) {
	pages, _ := a.handlers()
	a.mu.Lock()
	after := a.after
	a.mu.Unlock()
	if after == nil {
		pages.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	pages.ServeHTTP(rec, r)
	after(r.URL.Path, rec.Code)
	maps.Copy(w.Header(), rec.Header())
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes())
}

// After has f called with the path of each request that was carried out, and the
// status of its answer, which is sent once f returns; nil: nobody is.
func (a *ACME) After(f func(path string, status int)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.after = f
}

// Reset has the authority set up anew, at the same address: it knows neither
// accounts nor certificates of before, and issues by another root, which is
// returned.
func (a *ACME) Reset(t testing.TB) *x509.CertPool {
	t.Helper()
	pages, admin := a.begin(t)
	a.mu.Lock()
	a.pages, a.admin = pages, admin
	a.mu.Unlock()
	return a.Alternate(t, 0).Roots
}

// Root is one that certificates lead to by one of the chains on offer.
type Root struct {
	Name  string // its common name
	File  string // PEM
	Roots *x509.CertPool
}

// Alternate returns the root of a chain, 0 being the one that is offered first.
func (a *ACME) Alternate(t testing.TB, n int) Root {
	t.Helper()
	rec := a.manage(http.MethodGet, fmt.Sprintf("%s%d", wfe.RootCertPath, n), nil)
	r := Root{File: filepath.Join(t.TempDir(), "root.pem"), Roots: x509.NewCertPool()}
	block, _ := pem.Decode(rec.Body.Bytes())
	if block == nil || !r.Roots.AppendCertsFromPEM(rec.Body.Bytes()) {
		t.Fatalf("ask Pebble for its root %d: %d %s", n, rec.Code, rec.Body)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err == nil {
		r.Name = root.Subject.CommonName
		err = os.WriteFile(r.File, rec.Body.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// manage makes a request to Pebble's management interface.
func (a *ACME) manage(method, path string, body io.Reader) *httptest.ResponseRecorder {
	_, admin := a.handlers()
	req := httptest.NewRequest(method, path, body)
	req.Header.Set("User-Agent", "certstest") // Pebble wants one
	rec := httptest.NewRecorder()
	admin.ServeHTTP(rec, req)
	return rec
}

func (a *ACME) handlers() (pages, admin http.Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pages, a.admin
}

// takeOrder notes an order, and answers it if it is to be refused.
func (a *ACME) takeOrder(t testing.TB, w http.ResponseWriter, r *http.Request) (answered bool) {
	a.orders.Add(1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return true // the client is gone
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var jws struct{ Payload string }
	var order Order
	err = json.Unmarshal(body, &jws)
	if err == nil {
		body, err = base64.RawURLEncoding.DecodeString(jws.Payload)
	}
	if err == nil {
		err = json.Unmarshal(body, &order)
	}
	if err != nil {
		t.Errorf("an order that makes no sense: %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = order
	if a.answer == nil {
		return false
	}
	a.answer.write(w)
	return true
}

func (r *Refusal) write(w http.ResponseWriter) {
	if r.RetryAfter != "" {
		w.Header().Set("Retry-After", r.RetryAfter)
	}
	if r.Problem == "" {
		http.Error(w, r.Detail, r.Status)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(r.Status)
	json.NewEncoder(w).Encode(map[string]any{
		"type": "urn:ietf:params:acme:error:" + r.Problem, "detail": r.Detail, "status": r.Status,
	})
}

// pollEvery has renewal information asked for more often than Pebble says.
type pollEvery struct {
	http.ResponseWriter
	poll time.Duration
}

func (p pollEvery) WriteHeader(status int) {
	p.Header().Set("Retry-After", strconv.Itoa(int(p.poll/time.Second)))
	p.ResponseWriter.WriteHeader(status)
}

func (p pollEvery) Write(b []byte) (int, error) {
	p.Header().Set("Retry-After", strconv.Itoa(int(p.poll/time.Second)))
	return p.ResponseWriter.Write(b)
}

// LastOrder returns what the last order asked for.
func (a *ACME) LastOrder() Order {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// Refuse has all orders answered by r; nil: no longer.
func (a *ACME) Refuse(r *Refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = r
}

// Renew has the authority suggest to renew a certificate between two times.
func (a *ACME) Renew(t testing.TB, cert *x509.Certificate, from, to time.Time) {
	t.Helper()
	window := fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}}`, from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	body, err := json.Marshal(map[string]string{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), "ariResponse": window,
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := a.manage(http.MethodPost, "/set-renewal-info/", bytes.NewReader(body))
	if rec.Code != http.StatusOK {
		t.Fatalf("set renewal information: %d %s", rec.Code, rec.Body)
	}
}

// Revoked returns the reason for which a certificate is revoked (RFC 5280
// section 5.3.1), and false if it is not.
func (a *ACME) Revoked(t testing.TB, cert *x509.Certificate) (reason int, revoked bool) {
	t.Helper()
	rec := a.manage(http.MethodGet, "/cert-status-by-serial/"+cert.SerialNumber.Text(16), nil)
	var status struct {
		Status string
		Reason int
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &status); err != nil {
		t.Fatalf("status of certificate %x: %d %s", cert.SerialNumber, rec.Code, rec.Body)
	}
	return status.Reason, status.Status == "Revoked"
}

// Orders returns how many orders were asked for, those with a rejected nonce included.
func (a *ACME) Orders() int { return int(a.orders.Load()) }

// Down makes every request fail with status 503 while on.
func (a *ACME) Down(on bool) { a.down.Store(on) }

// KeepAll makes every request to revoke a certificate fail while on.
func (a *ACME) KeepAll(on bool) { a.keeps.Store(on) }

// pebble builds the authority. Its validation worker has no way to stop and
// lives as long as the process.
func pebble(t testing.TB, dnsAddr string, opt ACMEOptions) (pages, admin http.Handler) {
	t.Helper()
	pebbleEnv.Lock()
	defer pebbleEnv.Unlock()
	settings := map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_AUTHZREUSE":      "0", // every order proves control anew
		"PEBBLE_WFE_NONCEREJECT": "10",
	}
	if opt.Chaos {
		settings = map[string]string{
			"PEBBLE_VA_NOSLEEP": "", "PEBBLE_VA_SLEEPTIME": "4", "PEBBLE_AUTHZREUSE": "50", "PEBBLE_WFE_NONCEREJECT": "20",
		}
	}
	for key, value := range settings {
		old, had := os.LookupEnv(key)
		if os.Setenv(key, value); value == "" {
			os.Unsetenv(key)
		}
		defer func() {
			if os.Unsetenv(key); had {
				os.Setenv(key, old)
			}
		}()
	}
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	for id, key := range opt.EAB {
		if err := store.AddExternalAccountKeyByID(id, key); err != nil {
			t.Fatal(err)
		}
	}
	// A single profile: of several, Pebble picks one at random where none is asked for.
	profiles := map[string]ca.Profile{"default": {ValidityPeriod: uint64(opt.Validity / time.Second)}}
	if len(opt.Profiles) > 0 {
		clear(profiles)
	}
	for name, validity := range opt.Profiles {
		profiles[name] = ca.Profile{Description: name, ValidityPeriod: uint64(validity / time.Second)}
	}
	authority := ca.New(quiet, store, "", "ecdsa", opt.Alternates, 1, profiles)
	validator := va.New(quiet, 80, 443, true, dnsAddr, store)
	front := wfe.New(quiet, store, validator, authority, []string{"pebble.letsencrypt.org"}, true, len(opt.EAB) > 0, 1, 1)
	return front.Handler(), front.ManagementHandler()
}
