package dns_test

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitFor polls until ok, which must come true within 10 s.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

func rfc2136Config(server string) dns.Config {
	return dns.Config{
		Provider: "rfc2136",
		Settings: dns.Settings{"server": dns.Secret(server), "key_name": certstest.KeyName, "key_algorithm": certstest.KeyAlgorithm, "key": certstest.Key},
	}
}

func newRFC2136(t *testing.T, cfg dns.Config) *dns.Provider {
	t.Helper()
	p, err := dns.New("knot", cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p.ForTest(5*time.Second, time.Millisecond)
}

func TestRFC2136(t *testing.T) {
	srv := certstest.NewDNS(t)
	p := newRFC2136(t, rfc2136Config(srv.Addr))
	one := mustAppend(t, p, "token-one")
	mustAppend(t, p, "token-one")
	two := mustAppend(t, p, "token-two")
	got := srv.TXT("_acme-challenge.x.test")
	if want := []string{"token-one", "token-two"}; !slices.Equal(got, want) {
		t.Fatalf("TXT = %q, want %q", got, want)
	}
	if _, err := p.DeleteRecords(t.Context(), zone, one); err != nil {
		t.Fatal(err)
	}
	if got := srv.TXT("_acme-challenge.x.test"); !slices.Equal(got, []string{"token-two"}) {
		t.Fatalf("TXT = %q, want token-two alone", got)
	}
	for range 2 { // the second deletes what is gone
		if _, err := p.DeleteRecords(t.Context(), zone, two); err != nil {
			t.Fatal(err)
		}
	}
	if got := srv.TXT("_acme-challenge.x.test"); len(got) != 0 {
		t.Errorf("TXT = %q, want none", got)
	}
}

func TestRFC2136Refusals(t *testing.T) {
	srv := certstest.NewDNS(t)
	srv.RefuseUpdates(func(name string) bool { return name == "_acme-challenge.locked.x.test." })
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	with := func(change func(*dns.Config)) dns.Config {
		cfg := rfc2136Config(srv.Addr)
		change(&cfg)
		return cfg
	}
	for _, tt := range []struct {
		name     string
		cfg      dns.Config
		zone     string
		attempts int
		want     []string
	}{
		{"wrong key", with(func(c *dns.Config) { c.Settings["key"] = "d3Jvbmc=" }), zone, 1,
			[]string{"dns provider knot (rfc2136): add TXT record _acme-challenge to zone x.test.: dns: bad authentication", "does not accept TSIG key edge-key. with hmac-sha256"}},
		{"wrong key name", with(func(c *dns.Config) { c.Settings["key_name"] = "other" }), zone, 1,
			[]string{"does not accept TSIG key other with hmac-sha256"}},
		{"another's zone", rfc2136Config(srv.Addr), "y.test.", 1,
			[]string{`"NOTZONE"`, "is not the primary server of zone y.test."}},
		{"nobody there", with(func(c *dns.Config) { c.Settings["server"] = dns.Secret(dead.Addr().String()) }), zone, 4,
			[]string{"connection refused", "4 attempts"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newRFC2136(t, tt.cfg).AppendRecords(t.Context(), tt.zone, challenge("token"))
			if err == nil {
				t.Fatal("append succeeded")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error = %v\nwant it to say %q", err, want)
				}
			}
			if got := strings.Contains(err.Error(), "attempts"); got != (tt.attempts > 1) {
				t.Errorf("error = %v, want %d attempts", err, tt.attempts)
			}
		})
	}
	t.Run("policy", func(t *testing.T) {
		rec := challenge("token")
		rr := rec[0].RR()
		rr.Name = "_acme-challenge.locked"
		rec[0] = rr
		_, err := newRFC2136(t, rfc2136Config(srv.Addr)).AppendRecords(t.Context(), zone, rec)
		if err == nil || !strings.Contains(err.Error(), "look at its update policy") {
			t.Errorf("error = %v, want one about the update policy", err)
		}
	})
}
