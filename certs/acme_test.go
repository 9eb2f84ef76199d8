package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// world is an authority, a DNS server, and a config that uses both. Its records
// are not looked for before the authority is told: that costs two seconds.
type world struct {
	dns  *certstest.DNS
	acme *certstest.ACME
	cfg  certs.Config
	news *news

	store *certstest.Store
}

func newWorld(t *testing.T, opt certstest.ACMEOptions) *world {
	t.Helper()
	d := certstest.NewDNS(t)
	a := certstest.NewACME(t, d.Addr, opt)
	n := &news{seen: map[string]int{}}
	store := certstest.NewStore()
	return &world{dns: d, acme: a, news: n, store: store, cfg: certs.Config{
		Store:              store,
		DataDir:            t.TempDir(),
		Issuers:            []certs.Issuer{{Directory: a.DirectoryURL, CAFile: a.RootsFile}},
		Resolvers:          []string{d.Addr},
		PropagationTimeout: -1,
		Providers:          providers(t, map[string]dns.Config{"knot": knot(d)}),
		RetryMin:           20 * time.Millisecond,
		RetryMax:           200 * time.Millisecond,
		Changed:            n.changed,
		Logger:             slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}}
}

func knot(d *certstest.DNS) dns.Config {
	return dns.Config{
		Provider: "rfc2136",
		Settings: dns.Settings{"server": dns.Secret(d.Addr), "key_name": certstest.KeyName, "key_algorithm": certstest.KeyAlgorithm, "key": certstest.Key},
	}
}

// start makes a manager of w.cfg and runs it until the test ends or stop is called.
func (w *world) start(t *testing.T, ds ...certs.Domain) (m *certs.Manager, stop func()) {
	t.Helper()
	m, err := certs.New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.SetDomains(ds)
	return m, run(t, m)
}

// testLog shows the log of a failed test.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// news counts what Changed was called for.
type news struct {
	mu   sync.Mutex
	seen map[string]int
}

func (n *news) changed(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen[name]++
}

func (n *news) of(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[name]
}

// eventually polls until ok, which must come true within a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// status waits until the state of name is want and returns the status.
func status(t *testing.T, m *certs.Manager, name string, want certs.State) certs.Status {
	t.Helper()
	var s certs.Status
	eventually(t, name+" to be "+string(want), func() bool {
		s, _ = m.Status(name)
		return s.State == want
	})
	return s
}

const challengeName = "_acme-challenge.x.test"

func TestWildcardEndToEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.PropagationTimeout = 0 // this once, look
	w.cfg.Issuers[0].Email = "ops@x.test"
	reg := prometheus.NewRegistry()
	w.cfg.Registerer = reg
	m, _ := w.start(t, certs.Domain{Name: "*.x.test"})
	s := status(t, m, "*.x.test", certs.StateObtained)
	if s.Provider != "knot" || time.Until(s.NotAfter) < 89*24*time.Hour || s.Err != nil {
		t.Errorf("Status = %+v, want knot, 90 days, no error", s)
	}
	if want := "obtained until " + s.NotAfter.UTC().Format(time.RFC3339); s.String() != want {
		t.Errorf("status = %q, want %q", s, want)
	}
	handshake(t, m, "a.x.test", w.acme.Roots)
	handshake(t, m, "B.X.Test", w.acme.Roots)
	for _, name := range []string{"x.test", "a.b.x.test"} {
		if _, err := m.GetCertificate(hello(name)); err == nil {
			t.Errorf("the wildcard was given to %s", name)
		}
	}
	if got := w.dns.TXT(challengeName); len(got) != 0 {
		t.Errorf("challenge records left behind: %q", got)
	}
	looked := false
	for _, q := range w.dns.Log() {
		looked = looked || q.Op == "QUERY" && q.Type == "TXT" && q.Net == "udp" && q.Code == "NOERROR"
	}
	if !looked {
		t.Error("nobody looked for the record before the authority was told")
	}
	if w.news.of("*.x.test") < 2 {
		t.Errorf("Changed was called %d times, want one for the start and one for the certificate", w.news.of("*.x.test"))
	}
	if got := metric(t, reg, "sluice_certs_expiry_timestamp_seconds", "*.x.test"); got != float64(s.NotAfter.Unix()) {
		t.Errorf("sluice_certs_expiry_timestamp_seconds = %v, want %v", got, s.NotAfter.Unix())
	}
}

// handshake connects to a server that uses m, over TCP and TLS.
func handshake(t *testing.T, m *certs.Manager, name string, roots *x509.CertPool) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: m.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.(*tls.Conn).Handshake()
	})
	d := &net.Dialer{Timeout: 10 * time.Second}
	c, err := tls.DialWithDialer(d, "tcp", ln.Addr().String(), &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		t.Errorf("handshake for %s: %v", name, err)
		return
	}
	c.Close()
}

func TestExactBeforeWildcardBeforeLocalCA(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.LocalCA = true
	m, _ := w.start(t)
	mustGet(t, m, "a.x.test", caPool(t, w.cfg.DataDir))
	m.SetDomains([]certs.Domain{{Name: "*.x.test"}, {Name: "B.x.test", MustStaple: true}})
	status(t, m, "*.x.test", certs.StateObtained)
	status(t, m, "b.X.test", certs.StateObtained)
	for name, want := range map[string]string{"a.x.test": "*.x.test", "b.x.test": "b.x.test"} {
		cert := mustGet(t, m, name, w.acme.Roots)
		if got := cert.Leaf.DNSNames; len(got) != 1 || got[0] != want {
			t.Errorf("%s got the certificate of %q, want %s", name, got, want)
		}
		if got := certs.MustStaple(cert.Leaf); got != (name == "b.x.test") {
			t.Errorf("the certificate of %s asks for a stapled response: %v", name, got)
		}
	}
	mustGet(t, m, "a.b.x.test", caPool(t, w.cfg.DataDir))
}

// One name's provider refuses; the others are served meanwhile.
func TestOneFailureDelaysNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	wrong := knot(w.dns)
	wrong.Settings["key"] = "d3Jvbmc="
	w.cfg.Providers = providers(t, map[string]dns.Config{"good": knot(w.dns), "bad": wrong})
	m, _ := w.start(t,
		certs.Domain{Name: "bad.x.test", Provider: "bad"},
		certs.Domain{Name: "*.x.test", Provider: "good"},
		certs.Domain{Name: "nobody.x.test", Provider: "none"})
	s := status(t, m, "bad.x.test", certs.StateFailed)
	status(t, m, "*.x.test", certs.StateObtained)
	for _, want := range []string{
		"failed: dns provider bad (rfc2136): add TXT record _acme-challenge.bad to zone x.test.: dns: bad authentication",
		"does not accept TSIG key edge-key. with hmac-sha256",
		"; next attempt at ",
	} {
		if !strings.Contains(s.String(), want) {
			t.Errorf("status = %v\nwant it to say %q", s, want)
		}
	}
	if strings.Contains(s.String(), "d3Jvbmc=") || s.Retry.IsZero() {
		t.Errorf("status = %+v, want a time of the next attempt and no key", s)
	}
	mustGet(t, m, "bad.x.test", w.acme.Roots) // the wildcard covers it

	// Given the right provider, it is obtained.
	m.SetDomains([]certs.Domain{{Name: "bad.x.test", Provider: "good"}, {Name: "*.x.test", Provider: "good"}})
	status(t, m, "bad.x.test", certs.StateObtained)
	if got := mustGet(t, m, "bad.x.test", w.acme.Roots).Leaf.DNSNames; got[0] != "bad.x.test" {
		t.Errorf("bad.x.test got the certificate of %q, want its own", got)
	}
}

// What the authority says comes through, and its outage is waited out.
func TestAuthorityFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.dns.Hide(true)
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"})
	s := status(t, m, "a.x.test", certs.StateFailed)
	if !strings.Contains(s.String(), "failed: the certificate authority says: ") || !strings.Contains(s.String(), "urn:ietf:params:acme:error:") {
		t.Errorf("status = %v, want the authority's words", s)
	}
	w.acme.Down(true)
	eventually(t, "an attempt while the authority is down", func() bool {
		s, _ := m.Status("a.x.test")
		return s.Err != nil && strings.Contains(s.Err.Error(), "503")
	})
	w.dns.Hide(false)
	w.acme.Down(false)
	status(t, m, "a.x.test", certs.StateObtained)
	mustGet(t, m, "a.x.test", w.acme.Roots)
	if got := w.dns.TXT("_acme-challenge.a.x.test"); len(got) != 0 {
		t.Errorf("challenge records left behind: %q", got)
	}
}

// A name that is let go while its record propagates is given up at once, and
// the record is deleted.
func TestRemovalCallsOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.cfg.PropagationTimeout = time.Hour
	w.dns.Hide(true)
	m, stop := w.start(t, certs.Domain{Name: "a.x.test"})
	txt := func() []string { return w.dns.TXT("_acme-challenge.a.x.test") }
	eventually(t, "the challenge record", func() bool { return len(txt()) == 1 })
	m.SetDomains(nil)
	eventually(t, "the record to be deleted", func() bool { return len(txt()) == 0 })
	if s, ok := m.Status("a.x.test"); ok {
		t.Errorf("Status = %v, want none", s)
	}
	orders := w.acme.Orders()

	// The same while the previous attempt may still be ending.
	for range 5 {
		m.SetDomains([]certs.Domain{{Name: "a.x.test"}})
		m.SetDomains(nil)
	}
	m.SetDomains([]certs.Domain{{Name: "a.x.test"}})
	eventually(t, "the challenge record of a new attempt", func() bool { return len(txt()) == 1 })
	if got := w.acme.Orders(); got <= orders {
		t.Errorf("%d orders, want more than %d", got, orders)
	}
	stop()
	if got := txt(); len(got) != 0 {
		t.Errorf("Run has returned and left %q behind", got)
	}
}

func TestRemovedNameIsServedUntilExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{Validity: 8 * time.Second})
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"}, certs.Domain{Name: "*.x.test"})
	status(t, m, "a.x.test", certs.StateObtained)
	m.SetDomains(nil)
	cert, err := m.GetCertificate(hello("a.x.test"))
	if err != nil {
		t.Fatalf("after the removal: %v", err)
	}
	orders := w.acme.Orders()
	eventually(t, "the certificate to expire", func() bool {
		_, err := m.GetCertificate(hello("a.x.test"))
		return err != nil
	})
	if time.Now().Before(cert.Leaf.NotAfter) {
		t.Errorf("not served any more at %v, want until %v", time.Now(), cert.Leaf.NotAfter)
	}
	if got := w.acme.Orders(); got > orders+1 { // the wildcard's may have been on its way
		t.Errorf("%d orders after the removal", got-orders)
	}
}

// A node that starts while the authority, the DNS server and the provider are
// gone serves what it has.
func TestRestartWithoutAuthority(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	m, stop := w.start(t, certs.Domain{Name: "*.x.test"})
	status(t, m, "*.x.test", certs.StateObtained)
	first := mustGet(t, m, "a.x.test", w.acme.Roots)
	stop()
	mustGet(t, m, "a.x.test", w.acme.Roots) // still there after Run
	w.acme.Down(true)
	orders := w.acme.Orders()
	again, _ := w.start(t, certs.Domain{Name: "*.x.test"})
	status(t, again, "*.x.test", certs.StateObtained)
	if second := mustGet(t, again, "a.x.test", w.acme.Roots); !second.Leaf.Equal(first.Leaf) {
		t.Error("a restart brought another certificate")
	}
	if got := w.acme.Orders(); got != orders {
		t.Errorf("a restart made %d orders", got-orders)
	}
}

// A renewal replaces the certificate under running handshakes; while it fails,
// the old one is served and the status says why.
func TestRenewal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{RenewalPoll: time.Second})
	w.cfg.CheckEvery = time.Second
	m, _ := w.start(t, certs.Domain{Name: "*.x.test"})
	status(t, m, "*.x.test", certs.StateObtained)
	first := mustGet(t, m, "a.x.test", w.acme.Roots)
	w.acme.Refuse(&certstest.Refusal{Status: http.StatusInternalServerError, Problem: "serverInternal", Detail: "out of order"})
	w.acme.Renew(t, first.Leaf, time.Now().Add(-time.Hour), time.Now().Add(-time.Minute))
	eventually(t, "a renewal to fail", func() bool {
		s, _ := m.Status("*.x.test")
		return s.Err != nil
	})
	s, _ := m.Status("*.x.test")
	if s.State != certs.StateObtained || !strings.Contains(s.String(), "; the last attempt to renew it failed: ") || !strings.Contains(s.String(), "out of order") {
		t.Errorf("status = %v, want obtained and the failure", s)
	}
	mustGet(t, m, "a.x.test", w.acme.Roots)
	w.acme.Refuse(nil)
	eventually(t, "another certificate", func() bool {
		return !mustGet(t, m, "a.x.test", w.acme.Roots).Leaf.Equal(first.Leaf)
	})
	eventually(t, "the status to be clean", func() bool {
		s, _ := m.Status("*.x.test")
		return s.State == certs.StateObtained && s.Err == nil
	})
}

// Storage that breaks is a failure like any other.
func TestBrokenStorage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.ACMEOptions{})
	w.store.Fail(errors.New("the disk is full"))
	m, _ := w.start(t, certs.Domain{Name: "a.x.test"})
	s := status(t, m, "a.x.test", certs.StateFailed)
	if !strings.Contains(s.String(), "the disk is full") {
		t.Errorf("status = %v, want the storage's words", s)
	}
	w.store.Fail(nil)
	status(t, m, "a.x.test", certs.StateObtained)
}

func TestGetCertificateDoesNotAllocate(t *testing.T) {
	w := newWorld(t, certstest.ACMEOptions{})
	m, _ := w.start(t, certs.Domain{Name: "*.x.test"})
	status(t, m, "*.x.test", certs.StateObtained)
	h := hello("env-abc.x.test")
	if n := testing.AllocsPerRun(1000, func() { m.GetCertificate(h) }); n != 0 {
		t.Errorf("%v allocations for a lookup, want 0", n)
	}
}
