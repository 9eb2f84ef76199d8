package v1_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/tokens"
)

// Whoever ends an environment can say for how long its sessions go on: that is
// what its mappings say when they are deleted.
func TestDrainAtTheEnd(t *testing.T) {
	r := newRig(t)
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	for query, want := range map[string]string{"": "", "?drain=30s": "drain 30s", "?drain=1m30s": "drain 1m30s", "?drain=0s": "cut"} {
		made := r.ask(op, http.MethodPost, "/environments", `{"id":"a","backend":"10.0.0.1","services":{"ssh":{}}}`)
		made.want(t, 201)
		var rev int64
		ended := r.ask(op, http.MethodDelete, "/environments/a"+query, nil, "If-Match", made.header.Get("ETag"))
		ended.want(t, 200)
		if _, err := fmt.Sscanf(ended.body, `{"revision":%d}`, &rev); err != nil {
			t.Fatalf("%s: %v", ended.body, err)
		}
		before, err := r.raw.Get(t.Context(), "/sluice/ports/tcp/20000", clientv3.WithRev(rev-1))
		if err != nil || len(before.Kvs) != 1 {
			t.Fatal(before, err)
		}
		said := `"on_delete":"` + want + `"`
		if value := string(before.Kvs[0].Value); strings.Contains(value, "on_delete") != (want != "") || want != "" && !strings.Contains(value, said) {
			t.Errorf("%s: the mapping was %s", query, value)
		}
	}
	r.ask(op, http.MethodPost, "/environments", `{"id":"a","backend":"10.0.0.1","services":{"ssh":{}}}`).want(t, 201)
	for _, drain := range []string{"30", "-1s", "keep"} {
		if got := r.ask(op, http.MethodDelete, "/environments/a?drain="+drain, nil); got.status != 400 || got.Field != "drain" {
			t.Errorf("%q: %d %s", drain, got.status, got.body)
		}
	}
	r.ask(op, http.MethodGet, "/environments/a", nil).want(t, 200)
}

// A token for some environments leads no port to the nodes themselves, and nobody
// takes another's name.
func TestWhatEnvironmentsMayNotBe(t *testing.T) {
	r := newRig(t, func(c *envs.Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}; c.Space = 2000 })
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	some := r.token("some", func(t *tokens.Token) { t.Role, t.Envs = tokens.Operator, "a" })
	const local = `{"id":"a","backend":"127.0.0.1","services":{"ssh":{}}}`
	if got := r.ask(some, http.MethodPost, "/environments", local); got.status != 400 || got.Field != "services.ssh.backend" {
		t.Errorf("%d %s", got.status, got.body)
	}
	r.ask(op, http.MethodPost, "/environments", local).want(t, 201)
	if got := r.ask(some, http.MethodPatch, "/environments/a", `{"services":{"jupyter":{}}}`); got.status != 400 || got.Field != "services.jupyter.backend" {
		t.Errorf("%d %s", got.status, got.body)
	}
	r.put("pools/web", `{"backend_port":80,"route":{"host":"${env}.x-gpu.com"}}`)
	r.put("routes/www", `{"host":"www.x-gpu.com","backend":"10.0.0.1:80"}`)
	got := r.ask(op, http.MethodPost, "/environments", `{"id":"www","backend":"10.0.0.1","services":{"web":{}}}`)
	for got.status != 409 { // until the node knows of both
		if got.status == 201 {
			r.ask(op, http.MethodDelete, "/environments/www", nil).want(t, 200)
		}
		got = r.ask(op, http.MethodPost, "/environments", `{"id":"www","backend":"10.0.0.1","services":{"web":{}}}`)
	}
	got.want(t, 409, "routes/www answers at www.x-gpu.com already")
	if got.Code != "taken" || got.Field != "services.web" {
		t.Error(got.body)
	}
	for i := 0; ; i++ {
		got := r.ask(op, http.MethodPost, "/environments", fmt.Sprintf(`{"id":"e%d","backend":"10.0.0.1","services":{"web":{}}}`, i))
		if got.status == 409 && got.Code == "exhausted" && strings.Contains(got.Detail, "(api.space in sluice.yaml)") {
			break
		}
		if got.status != 201 || i > 20 {
			t.Fatalf("%d: %d %s", i, got.status, got.body)
		}
	}
}
