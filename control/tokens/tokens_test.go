package tokens_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/tokens"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func load(t *testing.T, reg *tokens.Registry, all ...*tokens.Token) {
	t.Helper()
	var kvs []etcd.KV
	for _, tok := range all {
		value, err := json.Marshal(tok)
		if err != nil {
			t.Fatal(err)
		}
		kvs = append(kvs, etcd.KV{Key: tokens.Folder + tok.Name, Value: value, ModRev: 1})
	}
	reg.Load(1, kvs)
}

func TestVerify(t *testing.T) {
	secret, tok := tokens.New("billing", now)
	tok.Role = tokens.Operator
	tok.ExpiresAt = now.Add(time.Hour)
	var reg tokens.Registry
	if _, err := reg.Verify(secret, now); !errors.Is(err, tokens.ErrNotLoaded) {
		t.Errorf("before anything was read: %v", err)
	}
	load(t, &reg)
	if _, err := reg.Verify(secret, now); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("before it is known: %v", err)
	}
	load(t, &reg, tok)
	got, err := reg.Verify(secret, now)
	if err != nil || got.Name != "billing" || !got.May(tokens.Viewer) || !got.May(tokens.Operator) || got.May(tokens.Admin) {
		t.Errorf("the token: %+v, %v", got, err)
	}
	if _, err := reg.Verify(secret, now.Add(time.Hour)); !errors.Is(err, tokens.ErrExpired) {
		t.Errorf("at its end: %v", err)
	}
	other, _ := tokens.New("billing", now)
	for _, bad := range []string{"", "sluice_", "sluice__", "sluice_billing_", other, secret + "x", secret[:len(secret)-1], strings.ToUpper(secret), strings.TrimPrefix(secret, "sluice_"), strings.Replace(secret, "billing", "nobody", 1)} {
		if _, err := reg.Verify(bad, now); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	renewed, changed := tok.Renew(now, time.Minute)
	load(t, &reg, changed)
	for _, tc := range []struct {
		secret string
		at     time.Time
		good   bool
	}{{renewed, now, true}, {secret, now, true}, {renewed, now.Add(time.Minute), true}, {secret, now.Add(time.Minute), false}} {
		if _, err := reg.Verify(tc.secret, tc.at); (err == nil) != tc.good {
			t.Errorf("renewed, %v later, is the new one %t: %v", tc.at.Sub(now), tc.secret == renewed, err)
		}
	}
	reg.Change(2, []etcd.Change{{Key: tokens.Folder + "billing", Deleted: true, ModRev: 2}})
	if _, err := reg.Verify(renewed, now); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("after its deletion: %v", err)
	}
}

func TestCertificates(t *testing.T) {
	var reg tokens.Registry
	load(t, &reg,
		&tokens.Token{Name: "billing", Role: tokens.Operator, Certificate: "billing.x-gpu.com"},
		&tokens.Token{Name: "old", Role: tokens.Viewer, Certificate: "old", ExpiresAt: now})
	if got, err := reg.VerifyCertificate(&x509.Certificate{DNSNames: []string{"a", "billing.x-gpu.com"}}, now); err != nil || got.Name != "billing" {
		t.Errorf("by a DNS name: %v, %v", got, err)
	}
	// A certificate with names is not known by what somebody wrote beside them.
	if _, err := reg.VerifyCertificate(&x509.Certificate{DNSNames: []string{"a"}, Subject: pkix.Name{CommonName: "billing.x-gpu.com"}}, now); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("by the common name beside another: %v", err)
	}
	if _, err := reg.VerifyCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: "old"}}, now); !errors.Is(err, tokens.ErrExpired) {
		t.Errorf("of an expired one: %v", err)
	}
	if _, err := reg.VerifyCertificate(&x509.Certificate{}, now); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("without a name: %v", err)
	}
}

func TestParse(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for _, tc := range []struct{ name, value, fail string }{
		{"a", `{"role":"viewer","hash":"` + hash + `"}`, ""},
		{"a", `{"role":"operator","hash":"` + hash + `","envs":"6h","pools":["ssh"]}`, ""},
		{"a", `{"role":"root","hash":"` + hash + `"}`, `role: "root" is none`},
		{"a", `{"role":"viewer","hash":"` + hash[1:] + `"}`, "hash: is not a SHA-256"},
		{"a", `{"role":"viewer"}`, "give either hash or certificate"},
		{"a", `{"role":"viewer","hash":"` + hash + `","certificate":"x"}`, "give either"},
		{"a", `{"role":"viewer","hash":"` + hash + `","former":"` + hash + `"}`, "former_until: is missing"},
		{"a", `{"role":"admin","hash":"` + hash + `","envs":"6h"}`, "an admin's token has no scope"},
		{"A_", `{"role":"viewer","hash":"` + hash + `"}`, "is no name for a token"},
	} {
		_, err := tokens.Parse(tc.name, []byte(tc.value))
		if tc.fail == "" && err != nil || tc.fail != "" && (err == nil || !strings.Contains(err.Error(), tc.fail)) {
			t.Errorf("%s: %v, want %q", tc.value, err, tc.fail)
		}
	}
	tok := &tokens.Token{Role: tokens.Operator, Envs: "6h", Pools: []string{"ssh"}}
	if !tok.HasEnv("6hif") || tok.HasEnv("7") || !tok.HasPool("ssh") || tok.HasPool("rdp") || tok.Unscoped() {
		t.Error("the scope is not what it says")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"role":"viewer","certificate":"x"}`))
	f.Add([]byte(`{"role":"viewer","certificate":"x","expires_at":"9999-12-31T23:59:59-23:00"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		tok, err := tokens.Parse("a", value)
		if err != nil {
			return
		}
		out, err := json.Marshal(tok)
		if err != nil {
			t.Fatalf("%q cannot be written: %v", value, err)
		}
		if _, err := tokens.Parse("a", out); err != nil {
			t.Fatalf("%q was written as %q: %v", value, out, err)
		}
	})
}
