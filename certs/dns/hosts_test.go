package dns_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

// eachHosts runs test with an account of every kind, for the zone x.test.
func eachHosts(t *testing.T, test func(t *testing.T, p *dns.Provider)) {
	t.Run("alidns", func(t *testing.T) {
		f := certstest.NewAlidns(t)
		f.LeastTTL = 1
		hookDefaultClient(t, f.Transport())
		test(t, newAli(t, f, f.KeySecret, nil))
	})
	t.Run("cloudflare", func(t *testing.T) {
		f := certstest.NewCloudflare(t)
		test(t, newCF(t, f, f.Token, nil))
	})
	t.Run("rfc2136", func(t *testing.T) {
		knot := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test"})
		test(t, newRFC2136(t, rfc2136Config(knot.Addr)))
	})
}

func readHosts(t *testing.T, p *dns.Provider, names ...string) []dns.Host {
	t.Helper()
	all, err := p.ReadHosts(t.Context(), "x.test", names)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b dns.Host) int { return strings.Compare(a.Name+a.Type+a.Data, b.Name+b.Type+b.Data) })
	return all
}

// plain leaves out by what a record is known.
func plain(all []dns.Host) []dns.Host {
	all = slices.Clone(all)
	for i := range all {
		all[i].ID = ""
	}
	return all
}

func TestHostsAreReadAddedUpdatedAndRemoved(t *testing.T) {
	eachHosts(t, func(t *testing.T, p *dns.Provider) {
		want := []dns.Host{
			{Name: "*.x.test", Type: "A", Data: "192.0.2.9", TTL: 60},
			{Name: "_sluice-a.x.test", Type: "TXT", Data: "heritage=sluice,cluster=c,name=a.x.test", TTL: 600},
			{Name: "a.x.test", Type: "A", Data: "192.0.2.1", TTL: 60},
			{Name: "a.x.test", Type: "A", Data: "192.0.2.2", TTL: 60},
			{Name: "a.x.test", Type: "AAAA", Data: "2001:db8::1", TTL: 60},
		}
		names := []string{"a.x.test", "_sluice-a.x.test", "*.x.test"}
		if got := readHosts(t, p, names...); len(got) != 0 {
			t.Fatalf("an empty zone has %v", got)
		}
		for range 2 { // the second finds them there
			for _, h := range want {
				if err := p.AddHost(t.Context(), "x.test", h); err != nil {
					t.Fatalf("add %v: %v", h, err)
				}
			}
		}
		got := readHosts(t, p, names...)
		if diff := cmp.Diff(want, plain(got)); diff != "" {
			t.Fatalf("added (-want +got):\n%s", diff)
		}
		for i := range got[2:] {
			got[2+i].TTL = 120
			if err := p.UpdateHost(t.Context(), "x.test", got[2+i]); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(plain(got), plain(readHosts(t, p, names...))); diff != "" {
			t.Fatalf("updated (-want +got):\n%s", diff)
		}
		for range 2 { // the second finds it gone
			if err := p.RemoveHost(t.Context(), "x.test", got[2]); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(plain(slices.Delete(got, 2, 3)), plain(readHosts(t, p, names...))); diff != "" {
			t.Fatalf("removed (-want +got):\n%s", diff)
		}
		// The wildcard answers for what has no records, and those are not its own.
		if got := readHosts(t, p, "b.x.test"); len(got) != 0 {
			t.Errorf("b.x.test has %v, which is the wildcard's", got)
		}
		if seconds, err := p.LeastTTL(t.Context(), "x.test"); err != nil || seconds < 1 || seconds > 60 {
			t.Errorf("the shortest TTL is %d, %v", seconds, err)
		}
	})
}

func TestWildcardWithTheSameAddressIsToldApart(t *testing.T) {
	knot := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test", Records: []string{"* A 192.0.2.1", "a A 192.0.2.1"}})
	p := newRFC2136(t, rfc2136Config(knot.Addr))
	if got := readHosts(t, p, "a.x.test"); len(got) != 1 || got[0].Data != "192.0.2.1" {
		t.Errorf("a.x.test has %v, want its own address", got)
	}
	if got := readHosts(t, p, "b.x.test"); len(got) != 0 {
		t.Errorf("b.x.test has %v, want nothing of its own", got)
	}
}

// What was changed since it was read is not overwritten, and nothing of an update
// is made that cannot be made whole.
func TestSwapIsWholeOrNothing(t *testing.T) {
	knot := certstest.NewKnot(t, certstest.KnotZone{Name: "x.test", Records: []string{"a A 192.0.2.1", "c CNAME a", "m MX 10 a"}})
	p := newRFC2136(t, rfc2136Config(knot.Addr))
	if !p.Swaps() {
		t.Fatal("rfc2136 does not swap")
	}
	host := func(name, data string) dns.Host { return dns.Host{Name: name, Type: "A", Data: data, TTL: 60} }
	swap := func(name string, before, after []dns.Host) dns.HostSwap {
		return dns.HostSwap{Name: name, Marker: dns.Host{Name: "_sluice-" + name, Type: "TXT", Data: "ours", TTL: 600}, Before: before, After: after}
	}
	good := swap("b.x.test", nil, []dns.Host{host("b.x.test", "192.0.2.7")})
	for what, bad := range map[string]dns.HostSwap{
		"an address that nobody read":   swap("a.x.test", nil, []dns.Host{host("a.x.test", "192.0.2.2")}),
		"an address that is not there":  swap("a.x.test", []dns.Host{host("a.x.test", "192.0.2.1"), host("a.x.test", "192.0.2.3")}, nil),
		"a CNAME where an A is to be":   swap("c.x.test", nil, []dns.Host{host("c.x.test", "192.0.2.2")}),
		"a marker that is not the same": {Name: "d.x.test", Marker: good.Marker, Found: []dns.Host{{Name: good.Marker.Name, Type: "TXT", Data: "theirs"}}, After: []dns.Host{host("d.x.test", "192.0.2.2")}},
	} {
		if err := p.SwapHosts(t.Context(), "x.test", []dns.HostSwap{good, bad}); err == nil || !strings.Contains(err.Error(), "not as they were read") {
			t.Errorf("%s: %v, want an error that says so", what, err)
		}
		if got := readHosts(t, p, "b.x.test", "_sluice-b.x.test", "d.x.test", "_sluice-a.x.test"); len(got) != 0 {
			t.Errorf("%s: half of it was made: %v", what, got)
		}
	}
	here := []dns.Host{{Name: "a.x.test", Type: "A", Data: "192.0.2.1"}}
	if err := p.SwapHosts(t.Context(), "x.test", []dns.HostSwap{good, swap("a.x.test", here, []dns.Host{host("a.x.test", "192.0.2.2")})}); err != nil {
		t.Fatal(err)
	}
	want := []dns.Host{host("a.x.test", "192.0.2.2"), host("b.x.test", "192.0.2.7")}
	if diff := cmp.Diff(want, readHosts(t, p, "a.x.test", "b.x.test")); diff != "" {
		t.Errorf("swapped (-want +got):\n%s", diff)
	}
}

func TestWeightsOfAlidns(t *testing.T) {
	f := certstest.NewAlidns(t)
	hookDefaultClient(t, f.Transport())
	p := newAli(t, f, f.KeySecret, nil)
	if !p.Weighted() {
		t.Fatal("alidns does not weight")
	}
	for _, h := range []dns.Host{{Data: "192.0.2.1", Weight: 100}, {Data: "192.0.2.2", Weight: 25}} {
		h.Name, h.Type, h.TTL = "a.x.test", "A", 600
		if err := p.AddHost(t.Context(), "x.test", h); err != nil {
			t.Fatal(err)
		}
	}
	// The first had nobody to be weighted with when it was added.
	got := readHosts(t, p, "a.x.test")
	got[0].Weight = 100
	if err := p.UpdateHost(t.Context(), "x.test", got[0]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, readHosts(t, p, "a.x.test")); diff != "" || got[1].Weight != 25 {
		t.Errorf("weights (-want +got):\n%s%v", diff, got)
	}
	if seconds, err := p.LeastTTL(t.Context(), "x.test"); err != nil || seconds != 600 {
		t.Errorf("the shortest TTL is %d, %v, want 600", seconds, err)
	}
}

func TestOddHosts(t *testing.T) {
	f := certstest.NewAlidns(t)
	hookDefaultClient(t, f.Transport())
	ali := newAli(t, f, f.KeySecret, nil)
	f.Put(certstest.Record{Type: "A", Name: "a", Data: "192.0.2.1", TTL: 600, Line: "telecom"})
	f.Put(certstest.Record{Type: "A", Name: "b", Data: "192.0.2.1", TTL: 600, Status: "DISABLE"})
	for name, want := range map[string]string{"a.x.test": "for the line telecom alone", "b.x.test": "switched off"} {
		if got := readHosts(t, ali, name); len(got) != 1 || got[0].Odd != want {
			t.Errorf("%s: %v, want one that is %s", name, got, want)
		}
	}
	c := certstest.NewCloudflare(t)
	c.Put(certstest.Record{Type: "A", Name: "a", Data: "192.0.2.1", TTL: 1, Proxied: true})
	if got := readHosts(t, newCF(t, c, c.Token, nil), "a.x.test"); len(got) != 1 || got[0].Odd == "" {
		t.Errorf("a proxied record is read as %v", got)
	}
}

// A failure of the provider as such is told from a refusal, and how long it wants
// to be left alone.
func TestHostsErrors(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		read := map[string]string{"alidns": "DescribeSubDomainRecords", "cloudflare": "GET dns_records"}[api.name]
		for what, test := range map[string]struct {
			reply   certstest.Reply
			passing bool
		}{"throttled": {api.throttle, true}, "a gateway's page": {html502(), true}, "denied": {api.denied, false}} {
			f.Next(read, test.reply)
			_, err := p.ReadHosts(t.Context(), "x.test", []string{"a.x.test"})
			e, ok := errors.AsType[*dns.Error](err)
			if !ok || e.Passing() != test.passing {
				t.Errorf("%s: %v, want one that passes: %v", what, err, test.passing)
			}
		}
		if _, err := p.ReadHosts(t.Context(), "y.test", []string{"a.y.test"}); err == nil || !strings.Contains(err.Error(), api.noZone) {
			t.Errorf("another zone: %v, want %q", err, api.noZone)
		}
	})
}
