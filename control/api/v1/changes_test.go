package v1_test

import (
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// decoded reads the body of an answer.
func decoded[T any](t *testing.T, a answer) (v T) {
	t.Helper()
	if a.status/100 != 2 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return v
}

func TestChangesOfSeveralKeys(t *testing.T) {
	r := newRig(t)
	op := r.token("op", func(t *tokens.Token) { t.Role = tokens.Operator })
	viewer := r.token("viewer", func(t *tokens.Token) { t.Role = tokens.Viewer })
	both := `{"keys":[{"key":"ports/tcp/20100","value":"10.0.0.1:22"},{"key":"routes/web","value":{"host":"web.x-gpu.com","backend":"10.0.0.1:80"}}]`
	r.ask(op, "GET", "/tokens", nil).want(t, 403, "the token op is an operator's; this takes one of an admin")
	r.ask(viewer, "POST", "/changes", both+`}`).want(t, 403, "the token viewer is a viewer's; this takes one of an operator")
	plan := decoded[wire.KeyPlan](t, r.ask(op, "POST", "/changes", both+`,"dry_run":true}`))
	if len(plan.Changes) != 2 || plan.Committed != 0 || plan.Changes[0].Key != "ports/tcp/20100" {
		t.Fatalf("planned %+v", plan)
	}
	r.ask(op, "GET", "/mappings/tcp/20100", nil).want(t, 404)
	made := decoded[wire.KeyPlan](t, r.ask(op, "POST", "/changes", both+`}`))
	port := decoded[wire.Key](t, r.ask(op, "GET", "/mappings/tcp/20100", nil))
	route := decoded[wire.Key](t, r.ask(op, "GET", "/routes/web", nil))
	if made.Committed == 0 || port.Revision != made.Committed || route.Revision != made.Committed || port.Text() != "10.0.0.1:22" {
		t.Errorf("made %+v, port %+v, route %+v: want one revision", made, port, route)
	}
	// Or none of them.
	for _, tc := range []struct {
		body        string
		status      int
		code, field string
	}{
		{`{"keys":[{"key":"ports/tcp/20101","value":"10.0.0.1:22"},{"key":"ports/tcp/20102","value":{"backend":"nowhere"}}]}`, 400, "invalid", "backend.targets[0].address"},
		{`{"keys":[{"key":"ports/tcp/20101","value":"10.0.0.1:22"},{"key":"routes/gone","delete":true}]}`, 404, "not_found", ""},
		{`{"keys":[{"key":"ports/tcp/20101","value":"10.0.0.1:22","since":0},{"key":"routes/web","delete":true,"since":1}]}`, 412, "stale", ""},
		{`{"keys":[{"key":"ports/tcp/20101","value":"10.0.0.1:22"},{"key":"tokens/op","value":{}}]}`, 400, "invalid", "keys[1].key"},
		{`{"keys":[{"key":"ports/tcp/20101","value":"10.0.0.1:22"},{"key":"ports/tcp/20101","delete":true}]}`, 400, "invalid", "keys[1].key"},
		{`{"keys":[{"key":"ports/tcp/20101","value":"10.0.0.1:22","delete":true}]}`, 400, "invalid", "keys[0].value"},
		{`{"keys":[]}`, 400, "invalid", "keys"},
	} {
		a := r.ask(op, "POST", "/changes", tc.body)
		if a.status != tc.status || a.Code != tc.code || a.Field != tc.field {
			t.Errorf("%s: %d %s, want %d %s of %q", tc.body, a.status, a.body, tc.status, tc.code, tc.field)
		}
	}
	r.ask(op, "GET", "/mappings/tcp/20101", nil).want(t, 404)
	r.ask(op, "POST", "/changes?wait=applied", `{"keys":[{"key":"routes/web","delete":true,"since":`+strings.TrimSpace(jsonOf(t, route.Revision))+`}]}`).want(t, 504, "the change was made", "no node is live")
	r.ask(op, "GET", "/routes/web", nil).want(t, 404)
	// If-Match: * is for what there is (RFC 9110 section 13.1.1).
	r.ask(op, "PUT", "/routes/web", `{"host":"web.x-gpu.com","backend":"10.0.0.1:80"}`, "If-Match", "*").want(t, 412, "there is no key routes/web")
	r.ask(op, "PUT", "/mappings/tcp/20100", `"10.0.0.2:22"`, "If-Match", "*").want(t, 200, `"changed":true`)
	// If-None-Match: * is for what there is not (section 13.1.2).
	for _, value := range []string{`"10.0.0.2:22"`, `"10.0.0.3:22"`} {
		r.ask(op, "PUT", "/mappings/tcp/20100", value, "If-None-Match", "*").want(t, 412, `"code":"stale"`, "already")
	}
	r.ask(op, "GET", "/mappings/tcp/20100", nil).want(t, 200, "10.0.0.2:22")
	now := r.ask(op, "PUT", "/mappings/tcp/20103", `"10.0.0.3:22"`, "If-None-Match", "*")
	now.want(t, 200, `"changed":true`)
	r.ask(op, "PUT", "/mappings/tcp/20103", `"10.0.0.4:22"`, "If-None-Match", now.header.Get("ETag")).want(t, 412, "excludes")
	r.ask(op, "PUT", "/mappings/tcp/20103", `"10.0.0.4:22"`, "If-None-Match", "x").want(t, 400, `"field":"If-None-Match"`)
	r.ask(op, "PUT", "/mappings/tcp/20103", `"10.0.0.4:22"`, "If-None-Match", `"1"`).want(t, 200, `"changed":true`)
}

// What there is not, and what is not done with what there is, are problems too.
func TestUnknownPathsAreProblems(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct {
		method, path, code, allow string
		status                    int
	}{
		{"GET", "/nowhere", "not_found", "", 404},
		{"POST", "/mappings/tcp/20100", "method", "DELETE, GET, HEAD, PUT", 405},
	} {
		a := r.ask("", tc.method, tc.path, nil)
		if a.status != tc.status || a.Code != tc.code || a.header.Get("Allow") != tc.allow || a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %d %v %s", tc.method, tc.path, a.status, a.header, a.body)
		}
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStatusAndVerdicts(t *testing.T) {
	r := newRig(t)
	op := r.token("op", func(t *tokens.Token) { t.Role = tokens.Operator })
	r.ask(op, "PUT", "/mappings/tcp/20100", `"10.0.0.1:22"`).want(t, 200)
	r.ask(op, "PUT", "/routes/web", `{"host":"web.x-gpu.com","backend":"10.0.0.1:80"}`).want(t, 200)
	r.ask(op, "GET", "/applied?timeout=1", nil).want(t, 504, "no node is live")
	r.put("nodes/edge-1", `{"name":"edge-1","instance":"secret","version":"1","state":"ready","addresses":["192.0.2.1"],"started":"2026-11-01T12:00:00Z","applied_revision":1000}`)
	r.put("nodes/edge-2", `{"name":"edge-2","instance":"secret","version":"1","state":"ready","addresses":[],"started":"2026-11-01T12:00:00Z","applied_revision":1000}`)
	r.put("verdicts/edge-2/ports/tcp/20100", "refused: port 20100 is in use (nothing is in force)")
	status := r.ask(op, "GET", "/status", nil)
	if nodes := decoded[wire.Status](t, status).Nodes; len(nodes) != 2 || nodes[1].RefusedKeys != 1 || nodes[0].Addresses[0].String() != "192.0.2.1" || strings.Contains(status.body, "secret") {
		t.Errorf("status %s", status.body)
	}
	all := decoded[wire.Page[wire.NodeVerdict]](t, r.ask(op, "GET", "/verdicts", nil)).Items
	if len(all) != 8 { // with the pools
		t.Errorf("verdicts %+v", all)
	}
	refused := decoded[wire.Page[wire.NodeVerdict]](t, r.ask(op, "GET", "/verdicts?state=refused&under=ports/tcp/", nil)).Items
	if len(refused) != 1 || refused[0].Node != "edge-2" || refused[0].Verdict.State != "refused" {
		t.Errorf("refused %+v", refused)
	}
	var paged []wire.NodeVerdict
	for after, n := "", 0; ; n++ {
		page := decoded[wire.Page[wire.NodeVerdict]](t, r.ask(op, "GET", "/verdicts?node=edge-1&limit=1&after="+after, nil))
		paged = append(paged, page.Items...)
		if after = page.Next; after == "" || n > 10 {
			break
		}
	}
	if len(paged) != 4 {
		t.Errorf("by pages %+v", paged)
	}
	r.ask(op, "GET", "/applied?revision=900", nil).want(t, 200, `"revision":900`)
	late := r.ask(op, "GET", "/applied?revision=90000&timeout=1", nil)
	late.want(t, 504, "there is no revision 90000 yet: etcd is at revision ")
	if strings.Contains(late.body, "was made") {
		t.Errorf("a change that nobody made: %s", late.body)
	}
}

func TestPortsByThemselves(t *testing.T) {
	r := newRig(t)
	op := r.token("op", func(t *tokens.Token) { t.Role = tokens.Operator })
	scoped := r.token("scoped", func(t *tokens.Token) { t.Role, t.Envs, t.Pools = tokens.Operator, "prod-", []string{"ssh"} })
	got := decoded[wire.Service](t, r.ask(scoped, "POST", "/ports", `{"env":"prod-a","service":"ssh"}`))
	if got.Port != 20000 {
		t.Errorf("got %+v", got)
	}
	r.ask(scoped, "POST", "/ports", `{"env":"prod-a","service":"ssh"}`).want(t, 200, `"port":20000`)
	r.ask(scoped, "POST", "/ports", `{"env":"dev-a","service":"ssh"}`).want(t, 403, "begin with")
	r.ask(scoped, "POST", "/ports", `{"env":"prod-a","service":"jupyter"}`).want(t, 403, "pools")
	r.ask(op, "POST", "/ports", `{"env":"dev-a","service":"jupyter","port":30003}`).want(t, 200, `"port":30003`)
	r.ask(op, "POST", "/ports", `{"env":"dev-b","service":"jupyter","port":30003}`).want(t, 409, "is held by jupyter of environment dev-a")
	r.ask(scoped, "POST", "/reservations", `{"ports":"20005","for":"the office VPN"}`).want(t, 403)
	r.ask(op, "POST", "/reservations", `{"ports":"20005-20006","for":"the office VPN"}`).want(t, 200, `"revision":`)
	if a := r.ask(op, "POST", "/reservations", `{"ports":"20005,20007","for":"x"}`); a.status != 400 || a.Field != "ports" {
		t.Errorf("two ranges: %s", a.body)
	}
	var all []wire.Port
	for after := ""; ; {
		page := decoded[wire.Page[wire.Port]](t, r.ask(op, "GET", "/ports?limit=3&after="+after, nil))
		all = append(all, page.Items...)
		if after = page.Next; after == "" {
			break
		}
	}
	if len(all) != 4 || all[0].Port != 20000 || all[1].Reserved != "the office VPN" || all[3].Port != 30003 || all[3].State != "allocated" {
		t.Errorf("ports %+v", all)
	}
	if seen := decoded[wire.Page[wire.Port]](t, r.ask(scoped, "GET", "/ports", nil)).Items; len(seen) != 1 || seen[0].Env != "prod-a" {
		t.Errorf("within the scope are %+v", seen)
	}
	usage := decoded[wire.Page[wire.PoolUsage]](t, r.ask(scoped, "GET", "/usage", nil)).Items
	if len(usage) != 1 || usage[0].Held != 1 || usage[0].Reserved != 2 || usage[0].Size != 10 {
		t.Errorf("usage %+v", usage)
	}
	r.ask(op, "GET", "/audit", nil).want(t, 200, `"kind":"unmapped"`, "tcp/30003")
	r.ask(op, "DELETE", "/reservations?ports=20005-20006", nil).want(t, 200)
	r.ask(op, "DELETE", "/ports/dev-a/jupyter", nil).want(t, 200)
	r.ask(op, "DELETE", "/ports/dev-a/jupyter", nil).want(t, 200, `"revision":0`)
	r.ask(scoped, "DELETE", "/ports/dev-a/jupyter", nil).want(t, 403)
	r.ask(op, "GET", "/ports?service=jupyter", nil).want(t, 200, "quarantined")
}

// Two tokens of one certificate: the second is refused, and of two that were put
// by hand the lesser counts on every node.
func TestTokensOfACertificate(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	r.ask(admin, "POST", "/tokens", `{"name":"billing","role":"operator","certificate":"billing.x-gpu.com"}`).want(t, 201, `"certificate":"billing.x-gpu.com"`)
	r.reload()
	r.ask(admin, "POST", "/tokens", `{"name":"other","role":"admin","certificate":"billing.x-gpu.com"}`).want(t, 409, "the token billing is of that certificate")
	cert := &x509.Certificate{DNSNames: []string{"billing.x-gpu.com"}}
	for _, names := range [][]string{{"a-admin", "z-viewer"}, {"z-viewer", "a-admin"}} {
		for _, name := range names {
			_, role, _ := strings.Cut(name, "-")
			r.put("tokens/"+name, `{"role":"`+role+`","certificate":"billing.x-gpu.com"}`)
		}
		r.reload()
		if got, err := r.tokens.VerifyCertificate(cert, time.Now()); err != nil || got.Name != "z-viewer" {
			t.Errorf("the certificate stands for %+v, %v", got, err)
		}
	}
	r.ask(admin, "DELETE", "/tokens/z-viewer", nil).want(t, 200)
	r.reload()
	if got, err := r.tokens.VerifyCertificate(cert, time.Now()); err != nil || got.Name != "billing" {
		t.Errorf("after that it stands for %+v, %v", got, err)
	}
}
