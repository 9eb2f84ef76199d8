package dns_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/libdns/libdns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
)

const zone = "x.test."

// challenge is a record as certmagic asks for it.
func challenge(data string) []libdns.Record {
	return []libdns.Record{libdns.RR{Type: "TXT", Name: "_acme-challenge", Data: data, TTL: time.Minute}}
}

// fake is what the fakes of HTTP APIs share.
type fake interface {
	Next(call string, replies ...certstest.Reply)
	Calls() []string
	Records() []certstest.Record
	PublishAt(*certstest.DNS)
	Forget()
	End()
}

// httpAPI is a provider behind an HTTP API, and how its fake plays failures.
type httpAPI struct {
	name     string
	start    func(*testing.T) (*dns.Provider, fake)
	add, del string // the requests that add and delete a record
	throttle certstest.Reply
	denied   certstest.Reply
	deny     string // what the error then says
	noZone   string // what the error about a foreign zone says
}

var apis = []httpAPI{
	{
		name: "alidns",
		start: func(t *testing.T) (*dns.Provider, fake) {
			f := certstest.NewAlidns(t)
			hookDefaultClient(t, f.Transport())
			return newAli(t, f, f.KeySecret, nil), f
		},
		add: "AddDomainRecord", del: "DeleteDomainRecord",
		throttle: certstest.Reply{Status: 400, Body: `{"Code":"Throttling.User","Message":"Request was denied due to user flow control."}`},
		denied:   certstest.Reply{Status: 403, Body: `{"Code":"Forbidden.RAM","Message":"User not authorized to operate on the specified resource."}`},
		deny:     "HTTP 403 Forbidden.RAM: User not authorized to operate on the specified resource.",
		noZone:   "the account of access_key_id has no domain y.test",
	},
	{
		name: "cloudflare",
		start: func(t *testing.T) (*dns.Provider, fake) {
			f := certstest.NewCloudflare(t)
			return newCF(t, f, f.Token, nil), f
		},
		add: "POST dns_records", del: "DELETE dns_records",
		throttle: certstest.Reply{Status: 429, Body: `{"success":false,"errors":[{"code":971,"message":"Please wait and consider throttling your request speed"}]}`},
		denied:   certstest.Reply{Status: 403, Body: `{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}`},
		deny:     "Authentication error",
		noZone:   "the token sees no zone y.test: it needs Zone.Zone:Read and Zone.DNS:Edit there",
	},
}

// newAli has room for a slow machine in every call that is meant to succeed.
func newAli(t *testing.T, f *certstest.Alidns, secret string, m *dns.Metrics) *dns.Provider {
	t.Helper()
	p, err := dns.New("ali", dns.Config{Provider: "alidns", Settings: dns.Settings{"access_key_id": dns.Secret(f.KeyID), "access_key_secret": dns.Secret(secret)}}, m)
	if err != nil {
		t.Fatal(err)
	}
	return p.ForTest(10*time.Second, time.Millisecond)
}

func newCF(t *testing.T, f *certstest.Cloudflare, token string, m *dns.Metrics) *dns.Provider {
	t.Helper()
	cfg := dns.Config{Provider: "cloudflare", Settings: dns.Settings{"api_token": dns.Secret(token)}}
	p, err := dns.New("cf", cfg, m)
	if err != nil {
		t.Fatal(err)
	}
	return p.OverCloudflare(cfg.Settings, f.Transport()).ForTest(10*time.Second, time.Millisecond)
}

// hookDefaultClient redirects http.DefaultClient, the only client that the
// alidns library uses.
func hookDefaultClient(t *testing.T, rt http.RoundTripper) {
	t.Helper()
	old := http.DefaultClient.Transport
	http.DefaultClient.Transport = rt
	t.Cleanup(func() { http.DefaultClient.Transport = old })
}

// eachAPI runs test against every provider with an HTTP API.
func eachAPI(t *testing.T, test func(*testing.T, httpAPI, *dns.Provider, fake)) {
	for _, api := range apis {
		t.Run(api.name, func(t *testing.T) {
			p, f := api.start(t)
			test(t, api, p, f)
		})
	}
}

func html502() certstest.Reply {
	return certstest.Reply{Status: 502, Type: "text/html", Body: "<html>\n<h1>502 Bad Gateway</h1></html>"}
}

// times returns n copies of r.
func times(n int, r certstest.Reply) []certstest.Reply {
	all := make([]certstest.Reply, n)
	for i := range all {
		all[i] = r
	}
	return all
}

func count(calls []string, call string) int {
	n := 0
	for _, c := range calls {
		if c == call {
			n++
		}
	}
	return n
}

func mustAppend(t *testing.T, p *dns.Provider, data string) []libdns.Record {
	t.Helper()
	got, err := p.AppendRecords(t.Context(), zone, challenge(data))
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	if len(got) != 1 || got[0].RR().Data != data || got[0].RR().Type != "TXT" || got[0].RR().Name != "_acme-challenge" {
		t.Fatalf("append returned %v, want the record with %q", got, data)
	}
	return got
}

func TestAppendAndDelete(t *testing.T) {
	eachAPI(t, func(t *testing.T, _ httpAPI, p *dns.Provider, f fake) {
		one, two := mustAppend(t, p, "token-one"), mustAppend(t, p, "token-two")
		if got := f.Records(); len(got) != 2 {
			t.Fatalf("the zone holds %v, want both tokens", got)
		}
		for _, recs := range [][]libdns.Record{one, two} {
			gone, err := p.DeleteRecords(t.Context(), zone, recs)
			if err != nil || len(gone) != 1 {
				t.Fatalf("delete = %v, %v; want one record", gone, err)
			}
		}
		if got := f.Records(); len(got) != 0 {
			t.Errorf("the zone holds %v, want nothing", got)
		}
	})
}

func TestAppendOfWhatIsThere(t *testing.T) {
	eachAPI(t, func(t *testing.T, _ httpAPI, p *dns.Provider, f fake) {
		mustAppend(t, p, "token")
		again := mustAppend(t, p, "token")
		if got := f.Records(); len(got) != 1 {
			t.Fatalf("the zone holds %v, want one record", got)
		}
		// The second answer has no identity in it; deletion must find the record.
		if _, err := p.DeleteRecords(t.Context(), zone, again); err != nil {
			t.Fatal(err)
		}
		if got := f.Records(); len(got) != 0 {
			t.Errorf("the zone holds %v, want nothing", got)
		}
	})
}

func TestDeleteOfWhatIsGone(t *testing.T) {
	eachAPI(t, func(t *testing.T, _ httpAPI, p *dns.Provider, _ fake) {
		recs := mustAppend(t, p, "token")
		for _, del := range [][]libdns.Record{recs, recs, challenge("never-there")} {
			if _, err := p.DeleteRecords(t.Context(), zone, del); err != nil {
				t.Errorf("delete %v: %v", del, err)
			}
		}
	})
}

func TestTransientFailuresPass(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		f.Next(api.add, api.throttle, html502(), certstest.Reply{Status: 500, Body: `{"Message":"inner error"}`})
		recs := mustAppend(t, p, "token")
		if got := count(f.Calls(), api.add); got != 4 {
			t.Errorf("%d requests to add, want 4", got)
		}
		f.Next(api.del, html502(), api.throttle)
		if _, err := p.DeleteRecords(t.Context(), zone, recs); err != nil {
			t.Error(err)
		}
		if got := f.Records(); len(got) != 0 {
			t.Errorf("the zone holds %v, want nothing", got)
		}
	})
}

func TestAnswerLostAfterTheRecordWasAdded(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		lost := html502()
		lost.After = true
		f.Next(api.add, lost)
		mustAppend(t, p, "token")
		if got := f.Records(); len(got) != 1 {
			t.Errorf("the zone holds %v, want one record", got)
		}
	})
}

func TestDoubtfulRecordIsRemoved(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		lost := html502()
		lost.After = true
		f.Next(api.add, times(4, lost)...)
		if got, err := p.AppendRecords(t.Context(), zone, challenge("token")); err == nil {
			t.Fatalf("append = %v, want an error", got)
		}
		if got := f.Records(); len(got) != 0 {
			t.Errorf("the zone holds %v, want nothing", got)
		}
	})
}

func TestPersistentFailure(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		f.Next(api.add, times(4, html502())...)
		_, err := p.AppendRecords(t.Context(), zone, challenge("token"))
		de, ok := errors.AsType[*dns.Error](err)
		if !ok || de.Attempts != 4 {
			t.Fatalf("error = %v, want a *dns.Error after 4 attempts", err)
		}
		for _, want := range []string{"dns provider " + p.Name() + " (" + p.Kind() + ")", "add TXT record _acme-challenge to zone x.test.", "4 attempts"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error = %v\nwant it to say %q", err, want)
			}
		}
	})
}

func TestRefusalIsNotRepeated(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		f.Next(api.add, api.denied)
		_, err := p.AppendRecords(t.Context(), zone, challenge("token"))
		if err == nil || !strings.Contains(err.Error(), api.deny) {
			t.Errorf("error = %v, want one that says %q", err, api.deny)
		}
		if got := count(f.Calls(), api.add); got != 1 {
			t.Errorf("%d requests to add, want 1", got)
		}
		if got := count(f.Calls(), api.del); got != 0 {
			t.Errorf("%d requests to delete, want none: the refusal left no doubt", got)
		}
	})
}

func TestForeignZone(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, _ fake) {
		_, err := p.AppendRecords(t.Context(), "y.test.", challenge("token"))
		if err == nil || !strings.Contains(err.Error(), api.noZone) {
			t.Errorf("error = %v, want one that says %q", err, api.noZone)
		}
	})
}

func TestHangingAPI(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		hang := certstest.Reply{Wire: certstest.Hang}
		f.Next(api.add, times(4, hang)...)
		p.ForTest(100*time.Millisecond, time.Millisecond)
		_, err := p.AppendRecords(t.Context(), zone, challenge("token"))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v, want a deadline", err)
		}
	})
}

func TestCancelEndsRetries(t *testing.T) {
	eachAPI(t, func(t *testing.T, api httpAPI, p *dns.Provider, f fake) {
		p.ForTest(10*time.Second, time.Hour)
		f.Next(api.add, html502())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := p.AppendRecords(ctx, zone, challenge("token"))
			ended <- err
		}()
		waitFor(t, "the first request", func() bool { return count(f.Calls(), api.add) == 1 })
		cancel()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("append succeeded, want an error")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("append goes on after its context ended")
		}
	})
}

func TestWrongCredentials(t *testing.T) {
	t.Run("alidns secret", func(t *testing.T) {
		f := certstest.NewAlidns(t)
		hookDefaultClient(t, f.Transport())
		_, err := newAli(t, f, "wrong", nil).AppendRecords(t.Context(), zone, challenge("token"))
		if err == nil || !strings.Contains(err.Error(), "HTTP 400 SignatureDoesNotMatch: Specified signature is not matched") ||
			!strings.Contains(err.Error(), "access_key_secret does not belong") {
			t.Errorf("error = %v, want the API's words", err)
		}
	})
	t.Run("cloudflare token", func(t *testing.T) {
		f := certstest.NewCloudflare(t)
		_, err := newCF(t, f, "wrong", nil).AppendRecords(t.Context(), zone, challenge("token"))
		if err == nil || !strings.Contains(err.Error(), "Authentication error") || !strings.Contains(err.Error(), "check api_token") {
			t.Errorf("error = %v, want the API's words and a hint", err)
		}
	})
}

// The alidns library races with itself when calls overlap.
func TestConcurrentCalls(t *testing.T) {
	eachAPI(t, func(t *testing.T, _ httpAPI, p *dns.Provider, f fake) {
		var wg sync.WaitGroup
		for _, data := range []string{"a1", "b2", "c3", "d4", "e5", "f6"} {
			wg.Go(func() {
				recs, err := p.AppendRecords(t.Context(), zone, challenge(data))
				if err == nil {
					_, err = p.DeleteRecords(t.Context(), zone, recs)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := f.Records(); len(got) != 0 {
			t.Errorf("the zone holds %v, want nothing", got)
		}
	})
}

// Calls that the alidns library never ends are left behind, but not without bound.
func TestStuckCallsAreBounded(t *testing.T) {
	f := certstest.NewAlidns(t)
	hookDefaultClient(t, f.Transport())
	p := newAli(t, f, f.KeySecret, nil).ForTest(20*time.Millisecond, time.Millisecond)
	f.Next("DescribeDomains", times(20, certstest.Reply{Wire: certstest.Hang})...)
	var err error
	for range 4 {
		_, err = p.AppendRecords(t.Context(), zone, challenge("token"))
	}
	if err == nil || !strings.Contains(err.Error(), "8 earlier calls to its API have not returned yet") {
		t.Errorf("error = %v, want one about earlier calls", err)
	}
	if got := p.Stuck(); got != dns.MaxStuck {
		t.Errorf("%d calls left behind, want %d", got, dns.MaxStuck)
	}
	// They end with the fake; the next test must not redirect the client under them.
	f.End()
	waitFor(t, "the calls left behind", func() bool { return p.Stuck() == 0 })
}

func TestRetryAfterIsHonoured(t *testing.T) {
	f := certstest.NewCloudflare(t)
	p := newCF(t, f, f.Token, nil).ForTest(time.Second, time.Millisecond)
	f.Next("POST dns_records", certstest.Reply{Status: 429, Retry: "60", Body: `{}`})
	start := time.Now()
	mustAppend(t, p, "token")
	// Asked for 60 s, granted no more than a call may take: 1 s.
	if took := time.Since(start); took < time.Second {
		t.Errorf("the next attempt came after %v, want at least 1s", took)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := certstest.NewCloudflare(t)
	p := newCF(t, f, f.Token, dns.NewMetrics(reg))
	f.Next("POST dns_records", html502())
	recs := mustAppend(t, p, "token")
	mustAppend(t, p, "token")
	if _, err := p.DeleteRecords(t.Context(), zone, recs); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, mf := range families {
		for _, m := range mf.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += " " + l.GetValue()
			}
			if mf.GetName() == "sluice_dns_calls_total" {
				got[labels] = m.GetCounter().GetValue()
			}
		}
	}
	want := map[string]float64{" append cf exists": 1, " append cf ok": 1, " append cf transient": 1, " delete cf ok": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sluice_dns_calls_total differs (-want +got):\n%s", diff)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}

func TestDefaultPauses(t *testing.T) {
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}
	if diff := cmp.Diff(want, dns.DefaultPauses()); diff != "" {
		t.Errorf("pauses differ (-want +got):\n%s", diff)
	}
}
