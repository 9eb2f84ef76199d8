package dns_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/remotegpu/sluice/certs/certstest"
	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/dns01"
)

// failure is a way for a provider to fail, and what it comes to.
type failure struct {
	name     string
	call     string            // that it befalls; empty: none is scripted
	replies  []certstest.Reply // to it, one after the other
	settings dns.Settings      // in place of the good ones
	change   func(fake)        // what the account is like
	want     []string          // of the error; none: the challenge is met all the same
	limit    time.Duration     // of each call; 0: more than enough
}

// spoiled returns what may befall the answer to a call, once, which has to be
// overcome, and time after time, which has to be told.
func spoiled(call string) []failure {
	var all []failure
	for _, way := range []struct {
		name  string
		reply certstest.Reply
		want  string
	}{
		{"slow", certstest.Reply{Slow: 20 * time.Millisecond, After: true}, ""},
		{"connection reset", certstest.Reply{Wire: certstest.Reset}, "connection reset by peer"},
		{"half-written", certstest.Reply{Wire: certstest.Half, After: true}, "and the reply ends too early: unexpected EOF"},
		{"too short a length", certstest.Reply{Wire: certstest.Short, After: true}, "unexpected end of JSON input"},
		{"HTML with 502", certstest.Reply{Status: 502, Type: "text/html", Body: "<h1>Bad Gateway</h1>", After: true}, "HTTP 502 Bad Gateway (text/html): <h1>Bad Gateway</h1>"},
		{"HTML with 200", certstest.Reply{Type: "text/html", Body: "<h1>Log in</h1>"}, "HTTP 200 OK (text/html): <h1>Log in</h1>"},
		{"null", certstest.Reply{Body: "null", After: true}, "HTTP 200 OK (application/json): null"},
		{"a list", certstest.Reply{Body: "[]", After: true}, "cannot unmarshal array"},
		{"no fields", certstest.Reply{Body: "{}", After: true}, "HTTP 200 OK (application/json): {}"},
		{"other types", certstest.Reply{Body: `{"success":"x","errors":7,"RequestId":7}`, After: true}, "cannot unmarshal"},
	} {
		all = append(all, failure{name: way.name + " once at " + call, call: call, replies: times(1, way.reply)})
		if way.want != "" {
			all = append(all, failure{name: way.name + " at " + call, call: call, replies: times(4, way.reply), want: []string{way.want, "4 attempts"}})
		}
	}
	return append(all, failure{
		name: "no answer at " + call, call: call, replies: times(4, certstest.Reply{Wire: certstest.Hang}),
		want: []string{"context deadline exceeded"}, limit: 100 * time.Millisecond,
	})
}

// refusal is an answer of the API to every call from now on.
func refusal(status int, body string) []certstest.Reply {
	return times(40, certstest.Reply{Status: status, Body: body})
}

func ali(status int, code, message string) []certstest.Reply {
	return refusal(status, `{"RequestId":"1","HostId":"alidns.aliyuncs.com","Code":"`+code+`","Message":"`+message+`"}`)
}

func cf(status int, code, message string) []certstest.Reply {
	return refusal(status, `{"success":false,"errors":[{"code":`+code+`,"message":"`+message+`"}],"messages":[],"result":null}`)
}

func TestAlidnsFailures(t *testing.T) {
	const add = "AddDomainRecord"
	cases := []failure{
		{name: "wrong key", settings: dns.Settings{"access_key_id": "other"},
			want: []string{"HTTP 404 InvalidAccessKeyId.NotFound: Specified access key is not found.", "access_key_id is not a key that Aliyun knows"}},
		{name: "wrong secret", settings: dns.Settings{"access_key_secret": "other"},
			want: []string{"HTTP 400 SignatureDoesNotMatch: ", "access_key_secret does not belong to access_key_id"}},
		{name: "expired temporary key", settings: dns.Settings{"security_token": "old"}, change: func(f fake) { f.(*certstest.Alidns).Token = "new" },
			want: []string{"HTTP 400 InvalidSecurityToken.Expired: Specified SecurityToken is expired.", "security_token has expired"}},
		{name: "temporary key", settings: dns.Settings{"security_token": "new"}, change: func(f fake) { f.(*certstest.Alidns).Token = "new" }},
		{name: "no permission", call: add, replies: ali(403, "Forbidden.RAM", "User not authorized to operate on the specified resource."),
			want: []string{"HTTP 403 Forbidden.RAM: User not authorized", "alidns:DescribeDomains"}},
		{name: "no permission to look", call: "DescribeDomains", replies: ali(403, "Forbidden.RAM", "User not authorized."),
			want: []string{"HTTP 403 Forbidden.RAM: User not authorized."}},
		{name: "throttled", call: add, replies: ali(400, "Throttling.User", "Request was denied due to user flow control.")[:4],
			want: []string{"HTTP 400 Throttling.User: Request was denied due to user flow control.", "4 attempts"}},
		{name: "throttled a while", call: add, replies: ali(400, "Throttling.User", "Request was denied due to user flow control.")[:3]},
		{name: "throttled by 429", call: add, replies: times(3, certstest.Reply{Status: 429, Body: "{}"})},
		{name: "record exists", call: add, replies: []certstest.Reply{{Status: 400, Body: `{"RequestId":"1","Code":"DomainRecordDuplicate","Message":"The DNS record already exists."}`, After: true}}},
		{name: "zone missing", change: func(f fake) { f.(*certstest.Alidns).Domain = "y.test" },
			want: []string{"the account of access_key_id has no domain x.test"}},
		{name: "somebody else's zone", call: add, replies: ali(400, "IncorrectDomainUser", "The domain name belongs to another user."),
			want: []string{"HTTP 400 IncorrectDomainUser: ", "the account of access_key_id has no domain x.test"}},
		{name: "quota exceeded", call: add, replies: ali(400, "QuotaExceeded.Record", "The number of records exceeds the limit."),
			want: []string{"HTTP 400 QuotaExceeded.Record: ", "delete records, or have the limit raised"}},
		{name: "a CNAME in the way", call: add, replies: ali(400, "DomainRecordConflict", "The DNS record conflicts with others."),
			want: []string{"HTTP 400 DomainRecordConflict: ", "is in the way"}},
	}
	const remove = "DeleteDomainRecord"
	cases = append(cases,
		failure{name: "deletion is not permitted", call: remove, replies: ali(403, "Forbidden.RAM", "User not authorized to operate on the specified resource."),
			want: []string{"delete TXT record", "HTTP 403 Forbidden.RAM: User not authorized"}},
		failure{name: "deletion is throttled", call: remove, replies: ali(400, "Throttling.User", "Request was denied due to user flow control."),
			want: []string{"delete TXT record", "HTTP 400 Throttling.User: Request was denied due to user flow control.", "4 attempts"}},
		failure{name: "deletion is throttled a while", call: remove, replies: times(3, certstest.Reply{Status: 429, Body: "{}"})},
		failure{name: "the record is gone", call: remove, replies: []certstest.Reply{{Status: 400, Body: `{"RequestId":"1","Code":"DomainRecordNotBelongToUser","Message":"The record does not exist."}`, After: true}}},
	)
	for _, call := range []string{"DescribeDomains", add, remove} {
		cases = append(cases, spoiled(call)...)
	}
	play(t, cases, func(t *testing.T, c failure) (*dns.Provider, fake) {
		f := certstest.NewAlidns(t)
		hookDefaultClient(t, f.Transport())
		return newProvider(t, "alidns", with(dns.Settings{"access_key_id": dns.Secret(f.KeyID), "access_key_secret": dns.Secret(f.KeySecret)}, c.settings)), f
	})
}

func TestCloudflareFailures(t *testing.T) {
	const add = "POST dns_records"
	cases := []failure{
		{name: "wrong token", settings: dns.Settings{"api_token": "other"},
			want: []string{"HTTP 403 code 10000: Authentication error", "check api_token: it needs Zone.Zone:Read and Zone.DNS:Edit on x.test, and must not have expired"}},
		{name: "expired token", call: "GET zones", replies: cf(401, "9109", "Invalid access token"),
			want: []string{"HTTP 401 code 9109: Invalid access token", "must not have expired"}},
		{name: "no permission", call: add, replies: cf(403, "10000", "Authentication error"),
			want: []string{"HTTP 403 code 10000: Authentication error", "check api_token"}},
		{name: "throttled", call: add, replies: cf(429, "971", "Please wait and consider throttling your request speed")[:4],
			want: []string{"HTTP 429 code 971: Please wait", "4 attempts"}},
		{name: "throttled a while", call: add, replies: cf(429, "971", "Please wait and consider throttling your request speed")[:3]},
		{name: "record exists", call: add, replies: []certstest.Reply{{Status: 400, Body: `{"success":false,"errors":[{"code":81058,"message":"An identical record already exists."}]}`, After: true}}},
		{name: "zone missing", change: func(f fake) { f.(*certstest.Cloudflare).Domain = "y.test" },
			want: []string{"the token sees no zone x.test: it needs Zone.Zone:Read and Zone.DNS:Edit there"}},
		{name: "quota exceeded", call: add, replies: cf(400, "81045", "The record quota has been exceeded."),
			want: []string{"HTTP 400 code 81045: The record quota has been exceeded.", "zone x.test is at its limit of records"}},
		{name: "errors with status 200", call: add, replies: cf(200, "1004", "DNS Validation Error"), want: []string{"HTTP 200 code 1004: DNS Validation Error"}},
		{name: "another record in the reply", call: add, replies: times(4, certstest.Reply{Body: `{"success":true,"errors":[],"result":{"id":"1","type":"A","name":"x","content":"192.0.2.1"}}`, After: true}),
			want: []string{"the API's reply is about another record"}},
		{name: "a zone without an id", call: "GET zones", replies: times(4, certstest.Reply{Body: `{"success":true,"errors":[],"result":[{"name":"x.test"}]}`}),
			want: []string{"the reply is no list of what has an id"}},
		{name: "deletion cannot look", call: "GET dns_records", replies: cf(403, "10000", "Authentication error")},
		{name: "deletion sees null", call: "GET dns_records", replies: times(4, certstest.Reply{Body: `{"success":true,"errors":[],"result":null}`})},
		{name: "deletion sees nothing of use", call: "GET dns_records", replies: times(4, certstest.Reply{Body: `{"success":true,"errors":[],"result":[null]}`})},
	}
	const remove = "DELETE dns_records"
	cases = append(cases,
		failure{name: "deletion is not permitted", call: remove, replies: cf(403, "10000", "Authentication error"),
			want: []string{"delete TXT record", "HTTP 403 code 10000: Authentication error"}},
		failure{name: "deletion is throttled", call: remove, replies: cf(429, "971", "Please wait and consider throttling your request speed"),
			want: []string{"delete TXT record", "HTTP 429 code 971: Please wait", "4 attempts"}},
		failure{name: "deletion is throttled a while", call: remove, replies: cf(429, "971", "Please wait and consider throttling your request speed")[:3]},
		failure{name: "the record is gone", call: remove, replies: []certstest.Reply{{Status: 404, Body: `{"success":false,"errors":[{"code":81044,"message":"Record does not exist."}]}`, After: true}}},
	)
	for _, call := range []string{"GET zones", add, "GET dns_records", remove} {
		cases = append(cases, spoiled(call)...)
	}
	play(t, cases, func(t *testing.T, c failure) (*dns.Provider, fake) {
		f := certstest.NewCloudflare(t)
		settings := with(dns.Settings{"api_token": dns.Secret(f.Token)}, c.settings)
		return newProvider(t, "cloudflare", settings).OverCloudflare(settings, f.Transport()), f
	})
}

func newProvider(t *testing.T, kind string, settings dns.Settings) *dns.Provider {
	t.Helper()
	p, err := dns.New("mine", dns.Config{Provider: kind, Settings: settings}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func with(good, other dns.Settings) dns.Settings {
	for name, value := range other {
		good[name] = value
	}
	return good
}

// play has a challenge met by way of a provider that fails, and another one by
// way of one that works, as an ACME client does. Whatever happens, the other is
// met, the error names the provider and says what it said, nobody calls a record
// deleted that is there, and in the end none is.
func play(t *testing.T, cases []failure, start func(*testing.T, failure) (*dns.Provider, fake)) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, f := start(t, c)
			names := certstest.NewDNS(t)
			f.PublishAt(names)
			s, err := dns01.New(dns01.Config{
				Resolvers: []string{names.Addr}, Stale: time.Nanosecond, Memory: &certmagic.FileStorage{Path: t.TempDir()},
				Providers: map[string]*dns.Provider{"mine": p, "other": newRFC2136(t, rfc2136Config(names.Addr))},
			})
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(f)
			}
			limit := c.limit
			if limit == 0 {
				limit = 10 * time.Second
			}
			p.ForTest(limit, time.Millisecond)
			f.Next(c.call, c.replies...)
			c.meet(t, s, f, names)
			// The provider works again: what was left is deleted.
			f.Forget()
			p.ForTest(10*time.Second, time.Millisecond)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			waitFor(t, "the zone to be empty", func() bool { return len(f.Records()) == 0 })
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if got := names.TXT("_acme-challenge.x.test"); len(got) > 0 {
				t.Errorf("the zone's server still has %q", got)
			}
			f.End() // calls that were left behind end before the next test
			waitFor(t, "the calls left behind", func() bool { return p.Stuck() == 0 })
		})
	}
}

func (c failure) meet(t *testing.T, s *dns01.Solver, f fake, names *certstest.DNS) {
	t.Helper()
	other := make(chan error, 1)
	go func() { other <- meet(t.Context(), s.For("other"), "b.x.test") }()
	err := meet(t.Context(), s.For("mine"), "x.test")
	if o := <-other; o != nil {
		t.Errorf("the other provider: %v", o)
	}
	atDeletion := strings.Contains(strings.ToLower(c.call), "delete") || c.call == "GET dns_records"
	switch {
	case len(c.want) == 0 && !atDeletion && err != nil:
		t.Errorf("error = %v, want none", err)
	case len(c.want) > 0 && err == nil && (!atDeletion || strings.HasPrefix(c.name, "deletion is")): // else it may have been carried out
		t.Errorf("there is no error, want %q", c.want)
	}
	if err == nil && len(f.Records()) > 0 {
		t.Errorf("all went well, and the zone still has %v", f.Records())
	}
	if err == nil {
		return
	}
	de, ok := errors.AsType[*dns.Error](err)
	if !ok || de.Provider != "mine" || !strings.Contains(err.Error(), "TXT record _acme-challenge ") || !strings.Contains(err.Error(), " zone x.test.: ") {
		t.Errorf("error = %v, want a *dns.Error that names provider, record and zone", err)
	}
	for _, want := range c.want {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v\nwant it to say %q", err, want)
		}
	}
}

// meet does what acmez does with a challenge: it cleans up in any case.
func meet(ctx context.Context, c *dns01.Challenges, name string) error {
	ch := acme.Challenge{
		Type: acme.ChallengeTypeDNS01, Token: "tok", KeyAuthorization: "tok." + name,
		Identifier: acme.Identifier{Type: "dns", Value: name},
	}
	err := c.Present(ctx, ch)
	if err == nil {
		err = c.Wait(ctx, ch)
	}
	return errors.Join(err, c.CleanUp(ctx, ch))
}
