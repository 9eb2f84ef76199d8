package router_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func TestClientAuthOfDomains(t *testing.T) {
	for value, want := range map[string]string{
		`{"client_auth":{}}`:                               "client_auth.ca: is missing",
		`{"client_auth":{"mode":"off","ca":"a"}}`:          `client_auth.ca: has no meaning`,
		`{"client_auth":{"ca":"a","mode":"optional"}}`:     `client_auth.mode: "optional" is not known`,
		`{"client_auth":{"ca":"a","crl":"b"}}`:             "client_auth.crl: ",
		`{"client_auth":{"ca":"a","mode":"require"}}`:      "",
		`{"client_auth":{"ca":"a"}}`:                       "",
		`{"client_auth":{"mode":"off"},"provider":"main"}`: "",
		`{"must_staple":true,"issuer":"main"}`:             "",
		`{"must_staple":"yes"}`:                            "must_staple: must be true or false",
	} {
		_, err := router.ParseDomain("x.test", []byte(value))
		if got := ""; err != nil {
			got = err.Error()
			if want == "" || !strings.HasPrefix(got, want) {
				t.Errorf("%s: %q, want %q", value, got, want)
			}
		} else if want != "" {
			t.Errorf("%s is taken, want %q", value, want)
		}
	}
}

func TestClientAuthByHost(t *testing.T) {
	var b router.Builder
	if b.Table(1).AsksClients() {
		t.Error("an empty table asks clients")
	}
	set := func(name, value string) bool {
		t.Helper()
		d, err := router.ParseDomain(name, []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		return b.SetDomain(d)
	}
	for i, step := range []struct {
		changed, want bool
	}{
		{set("*.x.test", `{"client_auth":{"ca":"wild"}}`), true},
		{set("a.x.test", `{"client_auth":{"ca":"exact","mode":"verify_if_given"}}`), true},
		{set("off.x.test", `{"client_auth":{"mode":"off"}}`), true},
		{set("silent.x.test", `{}`), false},
		{set("a.x.test", `{"client_auth":{"ca":"exact","mode":"verify_if_given"},"provider":"p"}`), false},
	} {
		if step.changed != step.want {
			t.Errorf("step %d: changed %v", i, step.changed)
		}
	}
	before := b.Table(2)
	check := func(table *router.Table, want map[string]string) {
		t.Helper()
		for host, ca := range want {
			got := ""
			if a := table.ClientAuth(host); a != nil {
				got = a.CA
			}
			if got != ca {
				t.Errorf("%s at revision %d: %q, want %q", host, table.Rev, got, ca)
			}
		}
	}
	check(before, map[string]string{"a.x.test": "exact", "b.x.test": "wild", "off.x.test": "", "silent.x.test": "wild", "x.test": "", "a.b.x.test": "wild", "a.off.x.test": "wild", "": "", "x": "", "test": ""})
	if allocs := testing.AllocsPerRun(100, func() { before.ClientAuth("b.x.test") }); allocs != 0 {
		t.Errorf("a lookup allocates %v times", allocs)
	}
	// The nearest wildcard is the one that counts, one that asks for nothing too.
	set("*.near.x.test", `{"client_auth":{"ca":"near"}}`)
	set("*.free.x.test", `{"client_auth":{"mode":"off"}}`)
	check(b.Table(3), map[string]string{"a.near.x.test": "near", "a.b.near.x.test": "near", "a.free.x.test": "", "a.b.free.x.test": "", "near.x.test": "wild"})
	b.DeleteDomain("*.near.x.test")
	b.DeleteDomain("*.free.x.test")
	if !b.DeleteDomain("*.x.test") || b.DeleteDomain("silent.x.test") {
		t.Error("deleting: wrong about what changes")
	}
	check(b.Table(3), map[string]string{"a.x.test": "exact", "b.x.test": "", "silent.x.test": ""})
	check(before, map[string]string{"b.x.test": "wild"})
	b.DeleteDomain("a.x.test")
	b.DeleteDomain("off.x.test")
	if b.Table(4).AsksClients() {
		t.Error("a table without such domains asks clients")
	}
}
