package dns_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/router"
)

func TestNewAccepts(t *testing.T) {
	for name, cfg := range map[string]dns.Config{
		"alidns":             {Provider: "alidns", Settings: dns.Settings{"access_key_id": "id", "access_key_secret": "s"}},
		"alidns sts":         {Provider: "alidns", Settings: dns.Settings{"access_key_id": "id", "access_key_secret": "s", "security_token": "t", "region": "cn-beijing"}},
		"cloudflare":         {Provider: "cloudflare", Settings: dns.Settings{"api_token": "t"}},
		"cloudflare, two":    {Provider: "cloudflare", Settings: dns.Settings{"api_token": "t", "zone_token": "z"}},
		"rfc2136":            {Provider: "rfc2136", Settings: dns.Settings{"server": "127.0.0.1:5353", "key_name": "k.", "key": "c2VjcmV0"}},
		"rfc2136, no port":   {Provider: "rfc2136", Settings: dns.Settings{"server": "ns1.x.test", "key_name": "k", "key": "c2VjcmV0"}},
		"rfc2136, ipv6":      {Provider: "rfc2136", Settings: dns.Settings{"server": "::1", "key_name": "k", "key": "c2VjcmV0"}},
		"rfc2136, algorithm": {Provider: "rfc2136", Settings: dns.Settings{"server": "[::1]:53", "key_name": "k", "key": "c2VjcmV0", "key_algorithm": "HMAC-SHA512."}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := dns.New("mine", cfg, nil)
			if err != nil {
				t.Fatal(err)
			}
			if p.Name() != "mine" || p.Kind() != cfg.Provider {
				t.Errorf("Name, Kind = %q, %q; want mine, %q", p.Name(), p.Kind(), cfg.Provider)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  dns.Config
		want string
	}{
		{"nothing", dns.Config{}, `dns provider "mine": provider is missing: want one of alidns, cloudflare, rfc2136`},
		{"unknown", dns.Config{Provider: "route53"}, `dns provider "mine": provider "route53" is unknown: want one of alidns, cloudflare, rfc2136`},
		{"alidns, no id", dns.Config{Provider: "alidns", Settings: dns.Settings{"access_key_secret": "s"}}, "(alidns): access_key_id is missing: want the id of an Aliyun access key"},
		{"alidns, no secret", dns.Config{Provider: "alidns", Settings: dns.Settings{"access_key_id": "i"}}, "access_key_secret is missing: want the secret that belongs to access_key_id"},
		{"another's field", dns.Config{Provider: "alidns", Settings: dns.Settings{"access_key_id": "i", "access_key_secret": "s", "api_token": "t"}},
			"api_token has no meaning here: alidns takes access_key_id, access_key_secret, region, security_token"},
		{"cloudflare, no token", dns.Config{Provider: "cloudflare"}, "api_token is missing: want a Cloudflare API token with Zone.DNS:Edit"},
		{"cloudflare, bearer", dns.Config{Provider: "cloudflare", Settings: dns.Settings{"api_token": "Bearer abc"}}, "leave out spaces, quotes and Bearer"},
		{"rfc2136, no server", dns.Config{Provider: "rfc2136", Settings: dns.Settings{"key_name": "k", "key": "c2VjcmV0"}}, "server is missing: want the primary server of the zone as host:port"},
		{"rfc2136, url", dns.Config{Provider: "rfc2136", Settings: dns.Settings{"server": "http://ns1", "key_name": "k", "key": "c2VjcmV0"}}, `server "http://ns1": want host or host:port`},
		{"rfc2136, no key name", dns.Config{Provider: "rfc2136", Settings: dns.Settings{"server": "ns1", "key": "c2VjcmV0"}}, "key_name is missing: want the name of a TSIG key"},
		{"rfc2136, no key", dns.Config{Provider: "rfc2136", Settings: dns.Settings{"server": "ns1", "key_name": "k"}}, "key is missing: want the TSIG key in base64"},
		{"rfc2136, bad key", dns.Config{Provider: "rfc2136", Settings: dns.Settings{"server": "ns1", "key_name": "k", "key": "not base64"}}, "key is not base64"},
		{"rfc2136, md5", dns.Config{Provider: "rfc2136", Settings: dns.Settings{"server": "ns1", "key_name": "k", "key": "c2VjcmV0", "key_algorithm": "hmac-md5"}},
			`key_algorithm "hmac-md5" is not supported: want one of hmac-sha256`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dns.New("mine", tt.cfg, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v\nwant one with %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "not base64\"") {
				t.Error("the error shows the key")
			}
		})
	}
}

func TestNewAllNamesEveryBadProvider(t *testing.T) {
	_, err := dns.NewAll(map[string]dns.Config{
		"a": {Provider: "cloudflare"},
		"b": {Provider: "cloudflare", Settings: dns.Settings{"api_token": "t"}},
		"c": {Provider: "none"},
	}, nil)
	if err == nil || !strings.Contains(err.Error(), `"a"`) || !strings.Contains(err.Error(), `"c"`) || strings.Contains(err.Error(), `"b"`) {
		t.Errorf("error = %v, want one about a and c", err)
	}
	all, err := dns.NewAll(map[string]dns.Config{"b": {Provider: "cloudflare", Settings: dns.Settings{"api_token": "t"}}}, nil)
	if err != nil || all["b"] == nil || len(all) != 1 {
		t.Errorf("NewAll = %v, %v; want b alone", all, err)
	}
}

// Every setting of every kind is taken, and described where one is missing.
func TestKinds(t *testing.T) {
	kinds := dns.Kinds()
	if got, want := slices.Sorted(maps.Keys(kinds)), []string{"alidns", "cloudflare", "rfc2136"}; !slices.Equal(got, want) {
		t.Errorf("kinds = %q, want %q", got, want)
	}
	for kind, settings := range kinds {
		_, err := dns.New("mine", dns.Config{Provider: kind}, nil)
		if err == nil || !strings.Contains(err.Error(), settings[0]+" is missing: want ") {
			t.Errorf("%s without settings: %v", kind, err)
		}
		for _, name := range settings {
			_, err := dns.New("mine", dns.Config{Provider: kind, Settings: dns.Settings{name: "x"}}, nil)
			if err != nil && strings.Contains(err.Error(), "has no meaning here") {
				t.Errorf("%s does not take its own %s: %v", kind, name, err)
			}
		}
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	cfg := dns.Config{
		Provider: "visible",
		Settings: dns.Settings{"access_key_secret": "hush", "security_token": "hush", "key": "hush"},
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "cfg", cfg, "one", cfg.Settings["key"])
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "cfg", cfg, "one", cfg.Settings["key"])
	blob, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{fmt.Sprintf("%v %+v %#v %s %q", cfg, cfg, cfg, cfg, cfg), log.String(), string(blob)} {
		if strings.Contains(got, "hush") || !strings.Contains(got, "visible") {
			t.Errorf("got %s, want the secrets hidden and the rest shown", got)
		}
	}
}

func TestConfigDecodes(t *testing.T) {
	for _, tt := range []struct {
		text string
		want dns.Config
		err  string
	}{
		{`{"provider":"rfc2136","server":"127.0.0.1:15353","key_name":"edge-key.","key":"c2VjcmV0","zones":["X.test"],"nameservers":["127.0.0.1:15353"]}`,
			dns.Config{
				Provider: "rfc2136", Zones: []string{"X.test"}, Nameservers: []string{"127.0.0.1:15353"},
				Settings: dns.Settings{"server": "127.0.0.1:15353", "key_name": "edge-key.", "key": "c2VjcmV0"},
			}, ""},
		{`{"provider":"cloudflare","api_token":null}`, dns.Config{Provider: "cloudflare"}, ""},
		{`{"provider":"cloudflare","api_token":5}`, dns.Config{}, "main: api_token must be a string; put it in quotes"},
		{`{"provider":"cloudflare","settings":{"api_token":"t"}}`, dns.Config{}, "main: settings must be a string"},
		{`{"provider":"cloudflare","zones":"x.test"}`, dns.Config{}, "main.zones: must be a list"},
		{`"cloudflare"`, dns.Config{}, "main: must be an object"},
	} {
		var got struct {
			Main dns.Config `json:"main"`
		}
		err := router.Decode([]byte(`{"main":`+tt.text+`}`), &got)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error = %v, want %q", tt.text, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", tt.text, err)
		}
		if diff := cmp.Diff(tt.want, got.Main); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", tt.text, diff)
		}
	}
}

func TestZonesAndNameservers(t *testing.T) {
	token := dns.Settings{"api_token": "t"}
	p, err := dns.New("cf", dns.Config{
		Provider: "cloudflare", Settings: token,
		Zones: []string{"X.test", "y.test."}, Nameservers: []string{"192.0.2.1", "ns.y.test:5353", "::1"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Zones(), []string{"x.test.", "y.test."}; !slices.Equal(got, want) {
		t.Errorf("Zones = %q, want %q", got, want)
	}
	if got, want := p.Nameservers(), []string{"192.0.2.1:53", "ns.y.test:5353", "[::1]:53"}; !slices.Equal(got, want) {
		t.Errorf("Nameservers = %q, want %q", got, want)
	}
	for want, cfg := range map[string]dns.Config{
		`zones: "*.x.test" is not a zone`:                    {Zones: []string{"*.x.test"}},
		`zones: "" is not a zone`:                            {Zones: []string{""}},
		`zones: "X.TEST." is there twice`:                    {Zones: []string{"x.test", "X.TEST."}},
		"nameservers: say which zones they answer for":       {Nameservers: []string{"ns1"}},
		`nameservers: "https://ns1": want host or host:port`: {Zones: []string{"x.test"}, Nameservers: []string{"https://ns1"}},
	} {
		cfg.Provider, cfg.Settings = "cloudflare", token
		if _, err := dns.New("cf", cfg, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want one with %q", err, want)
		}
	}
}
