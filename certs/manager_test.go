package certs_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Neither library has a way to end these.
		goleak.IgnoreAnyFunction("github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"),
	)
}

// alone returns cfg with storage that no other node has.
func alone(cfg certs.Config) certs.Config {
	cfg.Store = certstest.NewStore()
	return cfg
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// metric returns the value of a counter or gauge, with one label value if any.
func metric(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, mf := range families {
		if mf.GetName() != name {
			continue
		}
		for _, m := range mf.GetMetric() {
			if label == "" || len(m.GetLabel()) > 0 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func providers(t testing.TB, cfgs map[string]dns.Config) map[string]*dns.Provider {
	t.Helper()
	all, err := dns.NewAll(cfgs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestChoiceOfProvider(t *testing.T) {
	cf := dns.Config{Provider: "cloudflare", Settings: dns.Settings{"api_token": "t"}}
	one := map[string]dns.Config{"main": cf}
	two := map[string]dns.Config{"alpha": cf, "beta": cf}
	for _, tt := range []struct {
		name   string
		cfgs   map[string]dns.Config
		domain certs.Domain
		choose string // "" and want: refused
		want   string
	}{
		{"the only one", one, certs.Domain{Name: "*.x.test"}, "main", ""},
		{"by name", two, certs.Domain{Name: "x.test", Provider: "beta"}, "beta", ""},
		{"none configured", nil, certs.Domain{Name: "x.test"}, "", "no DNS provider is configured: add one to sluice.yaml"},
		{"none configured but named", nil, certs.Domain{Name: "x.test", Provider: "ali"}, "", "no DNS provider is configured"},
		{"unknown", two, certs.Domain{Name: "x.test", Provider: "gamma"}, "", `DNS provider "gamma" is not configured: use one of alpha, beta, or add it under dns in sluice.yaml`},
		{"ambiguous", two, certs.Domain{Name: "x.test"}, "", `several DNS providers are configured: say which one with {"provider": ...}, one of alpha, beta`},
		{"no name", one, certs.Domain{Name: "a b.test"}, "", `"a b.test" is not a DNS name`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := certs.New(alone(certs.Config{DataDir: t.TempDir(), Providers: providers(t, tt.cfgs)}))
			if err != nil {
				t.Fatal(err)
			}
			m.SetDomains([]certs.Domain{tt.domain})
			s, ok := m.Status(tt.domain.Name)
			if !ok || s.Provider != tt.choose {
				t.Fatalf("Status = %+v, %v; want provider %q", s, ok, tt.choose)
			}
			if tt.choose != "" {
				if s.State != certs.StateObtaining || s.String() != "obtaining" {
					t.Errorf("status = %v, want obtaining", s)
				}
				return
			}
			if got := s.String(); s.State != certs.StateFailed || !strings.HasPrefix(got, "failed: "+tt.want) || strings.Contains(got, "next attempt") {
				t.Errorf("status = %v\nwant failed: %s, and no next attempt", s, tt.want)
			}
		})
	}
}

func TestCheckDomain(t *testing.T) {
	for name, want := range map[string]string{
		"x-gpu.com": "", "*.ssh.x-gpu.com": "", "a.b.c.d.example.com": "", "xn--fiqs8s.example.com": "",
		"":                        "the name is empty",
		"*":                       "first label only",
		"*.*.x.test":              "first label only",
		"a.*.x.test":              "first label only",
		"a*.x.test":               "first label only",
		"bücher.example.com":      "xn--",
		"x.test.":                 "is not a DNS name",
		"-x.test":                 "is not a DNS name",
		"a_b.x.test":              "is not a DNS name",
		"https://x.test":          "is not a DNS name",
		"localhost":               "single label",
		"*.test":                  "single label",
		"192.0.2.1":               "is an address",
		"2001:db8::1":             "is not a DNS name",
		strings.Repeat("a.", 127): "is not a DNS name",
	} {
		err := certs.CheckDomain(name)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("CheckDomain(%q) = %v, want %q", name, err, want)
		}
	}
}

func FuzzCheckDomain(f *testing.F) {
	for _, s := range []string{"x.test", "*.x.test", "", "*", "a..b", "xn--", "\xff.test", "1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		name = strings.ToLower(name)
		if certs.CheckDomain(name) != nil {
			return
		}
		base := strings.TrimPrefix(name, "*.")
		if len(base) > 253 || strings.ContainsAny(base, "* /\\:\x00_") || strings.Contains(base, "..") || !strings.Contains(base, ".") {
			t.Errorf("%q was let through", name)
		}
	})
}

func TestConfigIsRefusedInWords(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "empty.pem", nil)
	for _, tt := range []struct {
		cfg  certs.Config
		want string
	}{
		{certs.Config{}, "no store to keep them in"},
		{certs.Config{NamesFromRoutes: "all"}, `acme.names_from_routes "all": want off, exact or wildcards`},
		{certs.Config{LocalCA: true}, "local_ca: no place to keep it: set data to a directory"},
		{by(certs.Issuer{Name: "a", Directory: "acme.example.com"}), `issuer a: directory "acme.example.com": want a URL such as https://`},
		{by(certs.Issuer{Directory: "http://acme.example.com/dir"}), "want https (RFC 8555 section 6.1)"},
		{by(certs.Issuer{Name: "a", Staging: "http://acme.example.com/dir"}), "want https (RFC 8555 section 6.1)"},
		{by(certs.Issuer{Email: "ops"}), `issuer acme-v02.api.letsencrypt.org: email "ops": want an address`},
		{by(certs.Issuer{CAFile: dir + "/none.pem"}), "ca_file: open "},
		{by(certs.Issuer{Roots: dir + "/empty.pem"}), "no certificate in it: want PEM"},
		{by(certs.Issuer{EABKeyID: "id"}), "eab: key_id and hmac_key belong together"},
		{by(certs.Issuer{EABKeyID: "id", EABKey: "*"}), "eab.hmac_key: not base64"},
		{by(certs.Issuer{Orders: certs.Budget{Count: 3}}), "a budget of 3 in 0s"},
		{by(certs.Issuer{}, certs.Issuer{}), "issuer acme-v02.api.letsencrypt.org: there are two of that name"},
		{certs.Config{Resolvers: []string{"8.8.8.8", "[::1]:53", "ns1.x.test", "https://dns"}}, `acme.resolvers "https://dns": want a DNS server`},
		{certs.Config{Resolvers: []string{"8.8.8.8:0"}}, `acme.resolvers "8.8.8.8:0"`},
		{certs.Config{Propagation: "most"}, `acme.propagation "most": want all, majority or delay`},
		{certs.Config{PropagationDelay: -1}, "acme.propagation_delay -1ns"},
		{certs.Config{RetryMin: time.Hour, RetryMax: time.Minute}, "retry from 1h0m0s to 1m0s"},
	} {
		_, err := certs.New(tt.cfg)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v): error = %v\nwant one that says %q", tt.cfg, err, tt.want)
		}
	}
	if err := alone(certs.Config{}).Validate(); err != nil {
		t.Errorf("the smallest config is refused: %v", err)
	}
}

func TestNoCertificate(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := certs.New(alone(certs.Config{DataDir: t.TempDir(), Registerer: reg}))
	if err != nil {
		t.Fatal(err)
	}
	m.SetDomains([]certs.Domain{{Name: "*.x.test"}})
	for name, want := range map[string]string{
		"a.y.test": `no certificate for server name "a.y.test": no key under domains/ covers it`,
		"a.x.test": `no certificate for server name "a.x.test" yet: domains/*.x.test is failed: no DNS provider is configured`,
		"":         "the client named no server",
	} {
		if _, err := m.GetCertificate(hello(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("GetCertificate(%q): error = %v\nwant one that says %q", name, err, want)
		}
	}
	if n := metric(t, reg, "sluice_certs_missing_total", ""); n != 3 {
		t.Errorf("sluice_certs_missing_total = %v, want 3", n)
	}
	if n := metric(t, reg, "sluice_certs_domains", "failed"); n != 1 {
		t.Errorf("sluice_certs_domains{state=failed} = %v, want 1", n)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}

// by returns a config with these issuers.
func by(issuers ...certs.Issuer) certs.Config {
	return certs.Config{Issuers: issuers}
}

func TestBackoff(t *testing.T) {
	m, err := certs.New(alone(certs.Config{DataDir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]time.Duration{
		1: 5 * time.Second, 2: 10 * time.Second, 3: 20 * time.Second, 8: 640 * time.Second, 11: time.Hour, 1000: time.Hour,
	} {
		if got := m.Backoff(n, errors.New("x")); got > want || got < want*9/10 {
			t.Errorf("pause after %d failures = %v, want %v less up to a tenth", n, got, want)
		}
	}
	limited := fmt.Errorf("obtain: %w", &certs.LimitError{Until: time.Now().Add(2 * time.Hour)})
	if got := m.Backoff(1, limited); got < 119*time.Minute || got > 132*time.Minute {
		t.Errorf("pause after a limit that holds for two hours = %v, want that or a tenth more", got)
	}
}

// SetDomains is called from wherever etcd's watch runs, at any rate, while
// handshakes go on.
func TestSetDomainsConcurrently(t *testing.T) {
	m, err := certs.New(alone(certs.Config{DataDir: t.TempDir(), LocalCA: true, Providers: providers(t, map[string]dns.Config{
		"dead": {Provider: "rfc2136", Settings: dns.Settings{"server": "127.0.0.1:1", "key_name": "k", "key": "c2VjcmV0"}},
	}), Issuers: []certs.Issuer{{Directory: "https://127.0.0.1:1/dir"}}, RetryMin: time.Millisecond, RetryMax: time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, m)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 50 {
				m.SetDomains([]certs.Domain{{Name: "a.x.test"}, {Name: fmt.Sprintf("n%d.x.test", n%3+i)}})
				if _, err := m.GetCertificate(hello("a.x.test")); err != nil {
					t.Error(err)
				}
				m.Status("a.x.test")
				m.Statuses()
			}
		})
	}
	wg.Wait()
	m.SetDomains(nil)
	if got := m.Statuses(); len(got) != 0 {
		t.Errorf("Statuses = %v, want none", got)
	}
	stop()
}

// run starts m.Run and returns what stops it and waits; the test's end does too.
func run(t testing.TB, m *certs.Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestRunOnce(t *testing.T) {
	m, err := certs.New(alone(certs.Config{DataDir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	run(t, m)()
	if err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "called before") {
		t.Errorf("second Run: error = %v, want a refusal", err)
	}
}
