package dns01_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
)

// knotEntry is an entry for a real server, changed by change.
func knotEntry(k *certstest.Knot, zones, servers []string, change dns.Settings) dns.Config {
	cfg := dns.Config{
		Provider: "rfc2136", Zones: zones, Nameservers: servers,
		Settings: dns.Settings{"server": dns.Secret(k.Addr), "key_name": certstest.KeyName, "key": certstest.Key},
	}
	for name, value := range change {
		cfg.Settings[name] = value
	}
	return cfg
}

func realSolver(t *testing.T, resolver *certstest.Knot, log *buffer, entries map[string]dns.Config) *dns01.Solver {
	t.Helper()
	s, err := dns01.New(dns01.Config{
		Resolvers: []string{resolver.Addr}, Timeout: time.Minute, Providers: providers(t, entries),
		Memory: &certmagic.FileStorage{Path: t.TempDir()},
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A real primary, and a real secondary that lags behind: the wait lasts until
// the secondary has transferred the zone.
func TestKnotWithSlowSecondary(t *testing.T) {
	t.Parallel()
	primary := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test"})
	secondary := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test", Primary: primary.Addr})
	log := &buffer{}
	s := realSolver(t, primary, log, map[string]dns.Config{
		"knot": knotEntry(primary, []string{"x.test"}, []string{primary.Addr, secondary.Addr}, nil),
	})
	c := s.For("knot")
	ch := challenge("www.x.test", "tok")
	if err := c.Present(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	ended := background(c, t.Context(), ch)
	eventually(t, "looks that find the record at the primary alone", func() bool {
		return log.count(primary.Addr+" has it; "+secondary.Addr+" does not have it yet") > 2
	})
	select {
	case err := <-ended:
		t.Fatalf("the wait ended with %v before the secondary had the record", err)
	default:
	}
	secondary.Refresh(t, "x.test")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := secondary.TXT(t, "_acme-challenge.www.x.test"); len(got) != 1 || got[0] != ch.DNS01KeyAuthorization() {
		t.Errorf("the secondary has %q, want the record", got)
	}
	if err := c.CleanUp(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	if got := primary.TXT(t, "_acme-challenge.www.x.test"); len(got) > 0 {
		t.Errorf("the primary still has %q", got)
	}
}

// Zones that are cut, nested and delegated to each other, as a real server has
// them; wildcard and apex at once.
func TestKnotZonesAndDelegation(t *testing.T) {
	t.Parallel()
	first := certstest.NewKnot(t,
		certstest.KnotZone{Name: "x.test", Records: []string{
			"_acme-challenge CNAME hop.acme.test.", "deep NS ns.deep", "ns.deep A 127.0.0.1",
			"* CNAME edge.example.com.", "other TXT \"something else\"",
		}},
		certstest.KnotZone{Name: "deep.x.test"}, certstest.KnotZone{Name: "acme.test", Records: []string{"hop CNAME x-test"}})
	log := &buffer{}
	s := realSolver(t, first, log, map[string]dns.Config{
		"main": knotEntry(first, []string{"x.test", "deep.x.test"}, []string{first.Addr}, nil),
		"acme": knotEntry(first, []string{"acme.test"}, []string{first.Addr}, nil),
	})
	for name, at := range map[string]string{
		"x.test":          "x-test.acme.test",
		"www.x.test":      "_acme-challenge.www.x.test", // in spite of the CNAME for *
		"deep.x.test":     "_acme-challenge.deep.x.test",
		"a.b.deep.x.test": "_acme-challenge.a.b.deep.x.test",
		"other.x.test":    "_acme-challenge.other.x.test",
	} {
		c := s.For("main")
		apex, wild := challenge(name, "one"), challenge(name, "two")
		meet(t, c, apex)
		meet(t, c, wild)
		if got := first.TXT(t, at); len(got) != 2 {
			t.Errorf("%s: %s has %q, want both records", name, at, got)
		}
		for _, ch := range []string{"one", "two"} {
			if err := c.CleanUp(t.Context(), challenge(name, ch)); err != nil {
				t.Error(err)
			}
		}
		if got := first.TXT(t, at); len(got) > 0 {
			t.Errorf("%s: %s still has %q", name, at, got)
		}
	}
}

// What a real server says to wrong keys becomes words that help, in checks and
// in challenges alike, and a check leaves the zone's serial as it is.
func TestKnotTSIGFailures(t *testing.T) {
	t.Parallel()
	knot := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test"}, certstest.KnotZone{Name: "y.test"})
	serial := func() string {
		m, err := knot.Ask("x.test", 6)
		if err != nil || len(m.Answer) != 1 {
			t.Fatalf("SOA: %v, %v", m, err)
		}
		return m.Answer[0].String()
	}
	before := serial()
	for _, tt := range []struct {
		name     string
		settings dns.Settings
		zone     string
		want     []string
	}{
		{"good", nil, "x.test.", nil},
		{"wrong key", dns.Settings{"key": "d3Jvbmc="}, "x.test.", []string{"bad authentication", "does not accept TSIG key edge-key. with hmac-sha256: compare key_name, key_algorithm and key"}},
		{"wrong name", dns.Settings{"key_name": "other"}, "x.test.", []string{"does not accept TSIG key other"}},
		{"wrong algorithm", dns.Settings{"key_algorithm": "hmac-sha512"}, "x.test.", []string{"does not accept TSIG key edge-key. with hmac-sha512"}},
		{"zone that it does not have", nil, "z.test.", []string{"zone z.test."}},
	} {
		p := providers(t, map[string]dns.Config{"knot": knotEntry(knot, nil, nil, tt.settings)})["knot"]
		checked := p.Check(t.Context(), tt.zone, "_acme-challenge")
		s := realSolver(t, knot, &buffer{}, map[string]dns.Config{"knot": knotEntry(knot, nil, nil, tt.settings)})
		errs := []error{checked}
		if tt.want != nil && tt.zone == "x.test." {
			ch := challenge("x.test", "tok")
			errs = append(errs, s.For("knot").Present(t.Context(), ch))
			if err := s.For("knot").CleanUp(t.Context(), ch); err != nil {
				t.Errorf("%s: clean-up: %v", tt.name, err)
			}
		}
		for _, err := range errs {
			if (err == nil) != (tt.want == nil) {
				t.Errorf("%s: error = %v", tt.name, err)
				continue
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "dns provider knot (rfc2136): ") {
					t.Errorf("%s: error = %v\nwant it to say %q", tt.name, err, want)
				}
			}
		}
	}
	if after := serial(); after != before {
		t.Errorf("the zone has changed: %s, before %s", after, before)
	}
}
