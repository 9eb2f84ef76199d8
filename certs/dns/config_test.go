package dns_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/certs/dns"
)

func TestNewAccepts(t *testing.T) {
	for name, cfg := range map[string]dns.Config{
		"alidns":             {Provider: "alidns", AccessKeyID: "id", AccessKeySecret: "s"},
		"alidns sts":         {Provider: "alidns", AccessKeyID: "id", AccessKeySecret: "s", SecurityToken: "t", Region: "cn-beijing"},
		"cloudflare":         {Provider: "cloudflare", APIToken: "t"},
		"cloudflare, two":    {Provider: "cloudflare", APIToken: "t", ZoneToken: "z"},
		"rfc2136":            {Provider: "rfc2136", Server: "127.0.0.1:5353", KeyName: "k.", Key: "c2VjcmV0"},
		"rfc2136, no port":   {Provider: "rfc2136", Server: "ns1.x.test", KeyName: "k", Key: "c2VjcmV0"},
		"rfc2136, ipv6":      {Provider: "rfc2136", Server: "::1", KeyName: "k", Key: "c2VjcmV0"},
		"rfc2136, algorithm": {Provider: "rfc2136", Server: "[::1]:53", KeyName: "k", Key: "c2VjcmV0", KeyAlgorithm: "HMAC-SHA512."},
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
		{"alidns, no id", dns.Config{Provider: "alidns", AccessKeySecret: "s"}, "(alidns): access_key_id is missing: want the id of an Aliyun access key"},
		{"alidns, no secret", dns.Config{Provider: "alidns", AccessKeyID: "i"}, "access_key_secret is missing: want the secret that belongs to access_key_id"},
		{"another's field", dns.Config{Provider: "alidns", AccessKeyID: "i", AccessKeySecret: "s", APIToken: "t"},
			"api_token has no meaning here: alidns takes access_key_id, access_key_secret, region, security_token"},
		{"cloudflare, no token", dns.Config{Provider: "cloudflare"}, "api_token is missing: want a Cloudflare API token with Zone.DNS:Edit"},
		{"cloudflare, bearer", dns.Config{Provider: "cloudflare", APIToken: "Bearer abc"}, "leave out spaces, quotes and Bearer"},
		{"rfc2136, no server", dns.Config{Provider: "rfc2136", KeyName: "k", Key: "c2VjcmV0"}, "server is missing: want the primary server of the zone as host:port"},
		{"rfc2136, url", dns.Config{Provider: "rfc2136", Server: "http://ns1", KeyName: "k", Key: "c2VjcmV0"}, `server "http://ns1": want host or host:port`},
		{"rfc2136, no key name", dns.Config{Provider: "rfc2136", Server: "ns1", Key: "c2VjcmV0"}, "key_name is missing: want the name of a TSIG key"},
		{"rfc2136, no key", dns.Config{Provider: "rfc2136", Server: "ns1", KeyName: "k"}, "key is missing: want the TSIG key in base64"},
		{"rfc2136, bad key", dns.Config{Provider: "rfc2136", Server: "ns1", KeyName: "k", Key: "not base64"}, "key is not base64"},
		{"rfc2136, md5", dns.Config{Provider: "rfc2136", Server: "ns1", KeyName: "k", Key: "c2VjcmV0", KeyAlgorithm: "hmac-md5"},
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
		"b": {Provider: "cloudflare", APIToken: "t"},
		"c": {Provider: "none"},
	}, nil)
	if err == nil || !strings.Contains(err.Error(), `"a"`) || !strings.Contains(err.Error(), `"c"`) || strings.Contains(err.Error(), `"b"`) {
		t.Errorf("error = %v, want one about a and c", err)
	}
	all, err := dns.NewAll(map[string]dns.Config{"b": {Provider: "cloudflare", APIToken: "t"}}, nil)
	if err != nil || all["b"] == nil || len(all) != 1 {
		t.Errorf("NewAll = %v, %v; want b alone", all, err)
	}
}

// Every field of Config belongs to some provider; a new one must be given to one.
func TestEveryFieldIsTaken(t *testing.T) {
	taken := map[string]bool{"provider": true}
	for _, kind := range []string{"alidns", "cloudflare", "rfc2136"} {
		for f := range reflect.TypeFor[dns.Config]().Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			cfg := dns.Config{Provider: kind}
			if name == "provider" {
				continue
			}
			reflect.ValueOf(&cfg).Elem().FieldByName(f.Name).SetString("x")
			if _, err := dns.New("mine", cfg, nil); err == nil || !strings.Contains(err.Error(), name+" has no meaning here") {
				taken[name] = true
			}
		}
	}
	for f := range reflect.TypeFor[dns.Config]().Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); !taken[name] {
			t.Errorf("%s (%s) is taken by no provider", f.Name, name)
		}
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	cfg := dns.Config{
		Provider: "alidns", AccessKeyID: "visible",
		AccessKeySecret: "hush", SecurityToken: "hush", APIToken: "hush", ZoneToken: "hush", Key: "hush",
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "cfg", cfg, "one", cfg.Key)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "cfg", cfg, "one", cfg.Key)
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
	var got dns.Config
	err := json.Unmarshal([]byte(`{"provider":"rfc2136","server":"127.0.0.1:15353","key_name":"edge-key.","key_algorithm":"hmac-sha256","key":"c2VjcmV0"}`), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := dns.Config{Provider: "rfc2136", Server: "127.0.0.1:15353", KeyName: "edge-key.", KeyAlgorithm: "hmac-sha256", Key: "c2VjcmV0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decoded entry differs (-want +got):\n%s", diff)
	}
}
