package dns01_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"))
}

// world is some servers of x.test, a resolver that finds them, and a solver.
type world struct {
	servers  []*certstest.DNS
	resolver *certstest.Resolver
	cfg      dns01.Config
	log      *buffer
	reg      *prometheus.Registry
}

// newWorld has servers at the addresses, the first of which takes updates.
func newWorld(t *testing.T, ips ...string) *world {
	t.Helper()
	w := &world{servers: certstest.NewServers(t, ips...), log: &buffer{}, reg: prometheus.NewRegistry()}
	for i, ip := range ips {
		kind := "A"
		if strings.Contains(ip, ":") {
			kind = "AAAA"
		}
		w.servers[0].AddRecord(t, fmt.Sprintf("x.test. 60 NS ns%d.x.test.", i+1))
		w.servers[0].AddRecord(t, fmt.Sprintf("ns%d.x.test. 60 %s %s", i+1, kind, ip))
	}
	w.resolver = certstest.NewResolver(t, w.servers[0])
	w.cfg = dns01.Config{
		Resolvers:  []string{w.resolver.Addr},
		Delay:      time.Millisecond,
		Timeout:    time.Minute,
		Providers:  providers(t, map[string]dns.Config{"knot": entry(w.servers[0])}),
		Memory:     &certmagic.FileStorage{Path: t.TempDir()},
		Logger:     slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: w.reg,
	}
	return w
}

func entry(s *certstest.DNS, zones ...string) dns.Config {
	cfg := dns.Config{
		Provider: "rfc2136", Zones: zones,
		Settings: dns.Settings{"server": dns.Secret(s.Addr), "key_name": certstest.KeyName, "key": certstest.Key},
	}
	if len(zones) > 0 {
		cfg.Nameservers = []string{s.Addr}
	}
	return cfg
}

func providers(t *testing.T, cfgs map[string]dns.Config) map[string]*dns.Provider {
	t.Helper()
	all, err := dns.NewAll(cfgs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (w *world) solver(t *testing.T) *dns01.Solver {
	t.Helper()
	s, err := dns01.New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s.ForTest(w.servers[0].Port(), 5*time.Second)
}

// metric returns the sum of a metric's series; of a histogram, how many it counts.
func (w *world) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, mf := range families {
		for _, m := range mf.GetMetric() {
			if mf.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// buffer is a log that a test reads.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) count(part string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), part)
}

func (b *buffer) has(t *testing.T, parts ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, part := range parts {
		if !strings.Contains(b.text.String(), part) {
			t.Errorf("the log does not say %q:\n%s", part, b.text.String())
		}
	}
}

// challenge is one for name; the token makes its record's value.
func challenge(name, token string) acme.Challenge {
	return acme.Challenge{
		Type: acme.ChallengeTypeDNS01, Token: token, KeyAuthorization: token + ".thumb",
		Identifier: acme.Identifier{Type: "dns", Value: name},
	}
}

// eventually polls until ok, which must come true within a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
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

// meet presents ch and waits, as an ACME client does.
func meet(t *testing.T, c *dns01.Challenges, ch acme.Challenge) {
	t.Helper()
	if err := c.Present(t.Context(), ch); err != nil {
		t.Fatalf("Present: %v", err)
	}
	if err := c.Wait(t.Context(), ch); err != nil {
		t.Fatalf("Wait: %v", err)
	}
}

func wantTXT(t *testing.T, s *certstest.DNS, name string, want ...string) {
	t.Helper()
	got := s.TXT(name)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("TXT of %s = %q, want %q", name, got, want)
	}
}

// asked counts the questions for a type of a name.
func asked(log []certstest.Query, name, kind string) int {
	n := 0
	for _, q := range log {
		if q.Name == name && q.Type == kind && q.Op == "QUERY" {
			n++
		}
	}
	return n
}

// Wildcard and apex have their records at one name at the same time, and each
// goes by itself. No resolver is asked for that name, before or after.
func TestWildcardAndApex(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1", "127.0.0.2")
	s := w.solver(t)
	c := s.For("knot")
	apex, wild := challenge("x.test", "one"), challenge("x.test", "two")
	meet(t, c, apex)
	meet(t, c, wild)
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", apex.DNS01KeyAuthorization(), wild.DNS01KeyAuthorization())
	if err := c.CleanUp(t.Context(), apex); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", wild.DNS01KeyAuthorization())
	for range 2 { // acmez calls it again after a failure
		if err := c.CleanUp(t.Context(), wild); err != nil {
			t.Fatal(err)
		}
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
	if n := s.Presented(); n != 0 {
		t.Errorf("%d records are remembered, want none", n)
	}
	if left, err := w.cfg.Memory.List(t.Context(), "challenges/_acme-challenge.x.test", true); err == nil && len(left) > 0 {
		t.Errorf("notes are left: %q", left)
	}
	for _, q := range w.resolver.Log() {
		if strings.HasPrefix(q.Name, "_") {
			t.Errorf("the resolver was asked for %s %s", q.Type, q.Name)
		}
	}
	for i, srv := range w.servers {
		if asked(srv.Log(), "_acme-challenge.x.test.", "TXT") == 0 {
			t.Errorf("server %d was not asked for the record", i+1)
		}
	}
	if n := w.metric(t, "sluice_certs_publication_duration_seconds"); n != 2 {
		t.Errorf("sluice_certs_publication_duration_seconds counts %v, want 2", n)
	}
}

// Names that do not exist yet, below a zone, are found to be in it.
func TestZoneOfANameThatDoesNotExist(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	c := w.solver(t).For("knot")
	ch := challenge("a.b.c.x.test", "tok")
	meet(t, c, ch)
	wantTXT(t, w.servers[0], "_acme-challenge.a.b.c.x.test", ch.DNS01KeyAuthorization())
	if n := len(w.resolver.Log()); n > 4 { // SOA, NS, A and AAAA of its server
		t.Errorf("%d questions to the resolver, want 4: %v", n, w.resolver.Log())
	}
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
}

// _acme-challenge leads over two CNAME records into a zone of another provider.
func TestDelegationByCNAME(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	other := certstest.NewDNS(t)
	other.AddZone("acme.test.")
	w.servers[0].AddRecord(t, "_acme-challenge.www.x.test. 60 CNAME hop.x.test.")
	w.servers[0].AddRecord(t, "hop.x.test. 60 CNAME www-x.acme.test.")
	w.resolver = certstest.NewResolver(t, w.servers[0], other)
	w.cfg.Resolvers = []string{w.resolver.Addr}
	w.cfg.Providers = providers(t, map[string]dns.Config{"knot": entry(w.servers[0]), "acme": entry(other, "acme.test")})
	c := w.solver(t).For("knot")
	ch := challenge("www.x.test", "tok")
	meet(t, c, ch)
	wantTXT(t, other, "www-x.acme.test", ch.DNS01KeyAuthorization())
	wantTXT(t, w.servers[0], "_acme-challenge.www.x.test")
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, other, "www-x.acme.test")
}

// _acme-challenge is a zone of its own, on other servers, by NS.
func TestDelegationByNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	other := certstest.NewDNS(t)
	other.AddZone("_acme-challenge.x.test.")
	w.servers[0].AddRecord(t, "_acme-challenge.x.test. 60 NS ns1.x.test.")
	w.cfg.Providers = providers(t, map[string]dns.Config{"knot": entry(w.servers[0]), "acme": entry(other, "_acme-challenge.x.test")})
	c := w.solver(t).For("knot")
	ch := challenge("x.test", "tok")
	meet(t, c, ch)
	wantTXT(t, other, "_acme-challenge.x.test", ch.DNS01KeyAuthorization())
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, other, "_acme-challenge.x.test")
}

// A CNAME for * is meant for hosts: it delegates no challenge.
func TestWildcardCNAMEIsNoDelegation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.servers[0].AddRecord(t, "*.x.test. 60 CNAME edge.example.com.")
	c := w.solver(t).For("knot")
	ch := challenge("x.test", "tok")
	meet(t, c, ch)
	wantTXT(t, w.servers[0], "_acme-challenge.x.test", ch.DNS01KeyAuthorization())
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
}

func TestDelegationErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	for _, rr := range []string{
		"_acme-challenge.a.x.test. 60 CNAME b.x.test.", "b.x.test. 60 CNAME _acme-challenge.a.x.test.",
		"_acme-challenge.c.x.test. 60 CNAME c.nowhere.test.",
	} {
		w.servers[0].AddRecord(t, rr)
	}
	w.servers[0].AddZone("y.test.")
	listed := entry(w.servers[0], "x.test")
	w.cfg.Providers = providers(t, map[string]dns.Config{"knot": listed})
	s := w.solver(t)
	for _, tt := range []struct{ name, provider, want string }{
		{"a.x.test", "knot", "challenge _acme-challenge.a.x.test: it leads in circles or too far: _acme-challenge.a.x.test. leads to b.x.test. leads to "},
		{"c.x.test", "knot", "no resolver says which zone nowhere.test. is in: " + w.resolver.Addr + " says that nowhere.test. does not exist at all"},
		{"y.test", "knot", "zone y.test. is not among the zones of DNS provider knot (x.test.) nor of any other"},
		{"y.test", "none", `DNS provider "none" is not configured`},
		{"unknown.example", "knot", "does not exist at all"},
	} {
		ch := challenge(tt.name, "tok")
		err := s.For(tt.provider).Present(t.Context(), ch)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error = %v\nwant one that says %q", tt.name, err, tt.want)
		}
		if err := s.For(tt.provider).CleanUp(t.Context(), ch); err != nil {
			t.Errorf("%s: clean-up of what never was: %v", tt.name, err)
		}
		if err := s.For(tt.provider).Wait(t.Context(), ch); err == nil {
			t.Errorf("%s: waited for what was not added", tt.name)
		}
	}
}

// Resolvers that refuse, break, or speak of something else are passed over.
func TestResolversThatRefuseOrLie(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	refuses, lies, other := certstest.NewResolver(t, w.servers[0]), certstest.NewResolver(t, w.servers[0]), certstest.NewResolver(t, w.servers[0])
	refuses.Twist(func(m *mdns.Msg) bool { m.Rcode = mdns.RcodeRefused; return true })
	other.Twist(func(m *mdns.Msg) bool { m.Question[0].Name = "another.test."; return true })
	lies.Twist(func(m *mdns.Msg) bool {
		for _, rr := range slices.Concat(m.Answer, m.Ns) {
			if rr.Header().Rrtype == mdns.TypeSOA {
				rr.Header().Name = "blocked.example."
			}
		}
		return true
	})
	good := w.cfg.Resolvers
	w.cfg.Resolvers = []string{refuses.Addr, lies.Addr, other.Addr, good[0]}
	ch := challenge("www.x.test", "tok")
	c := w.solver(t).For("knot")
	meet(t, c, ch)
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	w.cfg.Resolvers, w.cfg.Registerer = w.cfg.Resolvers[:3], nil
	err := w.solver(t).For("knot").Present(t.Context(), ch)
	for _, want := range []string{
		refuses.Addr + " says REFUSED",
		lies.Addr + " answers with zone blocked.example., which www.x.test. is not in",
		other.Addr + " gives no proper answer: ", "answers another question",
	} {
		if err == nil || !strings.Contains(err.Error(), want) && want != other.Addr+" gives no proper answer: " {
			t.Errorf("error = %v\nwant one that says %q", err, want)
		}
	}
}

// background calls Wait and returns what it comes to.
func background(c *dns01.Challenges, ctx context.Context, ch acme.Challenge) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.Wait(ctx, ch) }()
	return ended
}

// With the rule "all" nothing goes on before the last server has the record.
func TestAllServersHaveIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1", "127.0.0.2", "::1")
	slow := w.servers[2]
	slow.Hide(true)
	c := w.solver(t).For("knot")
	ch := challenge("x.test", "tok")
	if err := c.Present(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	ended := background(c, t.Context(), ch)
	eventually(t, "looks at the slow server", func() bool {
		return asked(slow.Log(), "_acme-challenge.x.test.", "TXT") > dns01.SilentAfter
	})
	select {
	case err := <-ended:
		t.Fatalf("the wait ended with %v before the slow server had the record", err)
	default:
	}
	slow.Hide(false)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
}

// Most servers are enough where the rule says so.
func TestMajority(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1", "127.0.0.2", "::1")
	w.cfg.Rule = dns01.RuleMajority
	w.servers[1].Hide(true)
	ch := challenge("x.test", "tok")
	meet(t, w.solver(t).For("knot"), ch)

	// With two that do not answer there is no majority: the delay is waited.
	for _, s := range w.servers[1:] {
		s.Twist(refuse)
	}
	w.cfg.Registerer = nil
	meet(t, w.solver(t).For("knot"), challenge("x.test", "again"))
	w.log.has(t, "nobody can be asked whether a challenge record is published; waiting instead",
		"ns1.x.test. has it; ns2.x.test. says REFUSED; ns3.x.test. says REFUSED")
}

func refuse(m *mdns.Msg) bool {
	m.Answer, m.Ns, m.Rcode, m.Authoritative = nil, nil, mdns.RcodeRefused, false
	return true
}

// A server that is down, or behind something that answers in its place, is named
// and left out.
func TestSilentServerIsLeftOut(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		twist func(*mdns.Msg) bool
		says  string
	}{
		"refuses":      {refuse, "ns2.x.test. says REFUSED"},
		"says nothing": {func(*mdns.Msg) bool { return false }, "ns2.x.test. does not answer"},
		"intercepted":  {func(m *mdns.Msg) bool { m.Authoritative = false; return true }, "ns2.x.test. answers without authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "127.0.0.1", "127.0.0.2")
			w.servers[1].Twist(tt.twist)
			c := w.solver(t).ForTest(w.servers[0].Port(), 500*time.Millisecond).For("knot")
			ch := challenge("x.test", "tok")
			meet(t, c, ch)
			w.log.has(t, "servers of a zone do not answer", tt.says)
		})
	}
}

// Where no server can be asked the delay is waited, and an error of the
// resolvers about a delegation does not matter.
func TestNobodyCanBeAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.servers[0].AddRecord(t, "_acme-challenge.www.x.test. 60 CNAME www.acme.x.test.")
	w.servers[0].Twist(func(m *mdns.Msg) bool { return m.Opcode == mdns.OpcodeUpdate || refuse(m) })
	c := w.solver(t).For("knot")
	for name, at := range map[string]string{"x.test": "_acme-challenge.x.test", "www.x.test": "www.acme.x.test"} {
		ch := challenge(name, "tok")
		meet(t, c, ch)
		wantTXT(t, w.servers[0], at, ch.DNS01KeyAuthorization())
		if err := c.CleanUp(t.Context(), ch); err != nil {
			t.Fatal(err)
		}
	}
	w.log.has(t, "waiting instead", "ns1.x.test. says REFUSED")
}

func TestDelayAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.cfg.Rule = dns01.RuleDelay
	ch := challenge("x.test", "tok")
	meet(t, w.solver(t).For("knot"), ch)
	if n := asked(w.servers[0].Log(), "_acme-challenge.x.test.", "TXT"); n != 0 {
		t.Errorf("the server was asked %d times for the record, want none", n)
	}
}

// What is not published in time is an error that says which server lacks it.
func TestNotPublishedInTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1", "127.0.0.2")
	w.cfg.Timeout = time.Second
	w.servers[1].Hide(true)
	c := w.solver(t).For("knot")
	ch := challenge("x.test", "tok")
	if err := c.Present(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	err := c.Wait(t.Context(), ch)
	want := "challenge _acme-challenge.x.test: record _acme-challenge.x.test is not published after 1s: ns1.x.test. has it; ns2.x.test. does not have it yet"
	if err == nil || err.Error() != want {
		t.Errorf("error = %v\nwant %s", err, want)
	}
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
}

// Whoever is called off in the middle leaves nothing behind.
func TestCleanUpAfterCancellation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "127.0.0.1")
	w.servers[0].Hide(true)
	c := w.solver(t).For("knot")
	ch := challenge("x.test", "tok")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := c.Present(ctx, ch); err != nil {
		t.Fatal(err)
	}
	ended := background(c, ctx, ch)
	eventually(t, "a look", func() bool { return asked(w.servers[0].Log(), "_acme-challenge.x.test.", "TXT") > 0 })
	cancel()
	if err := <-ended; err == nil {
		t.Error("the wait succeeded")
	}
	if err := c.CleanUp(ctx, ch); err != nil {
		t.Fatal(err)
	}
	wantTXT(t, w.servers[0], "_acme-challenge.x.test")
}

func TestConfigIsRefused(t *testing.T) {
	for want, cfg := range map[string]dns01.Config{
		`propagation "most": want all, majority or delay`: {Rule: "most"},
		`resolver ":53": want host or host:port`:          {Resolvers: []string{":53"}},
	} {
		if _, err := dns01.New(cfg); err == nil || err.Error() != want {
			t.Errorf("error = %v, want %s", err, want)
		}
	}
	if _, err := dns01.New(dns01.Config{}); err != nil {
		t.Errorf("the smallest config is refused: %v", err)
	}
}
