package v1_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/remotegpu/sluice/control/api/v1"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/tokens"
)

func TestPast(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	var made struct{ Revision int64 }
	put := func(value string) int64 {
		t.Helper()
		a := r.ask(op, "PUT", "/mappings/tcp/20022", value)
		a.want(t, 200)
		if err := json.Unmarshal([]byte(a.body), &made); err != nil {
			t.Fatal(err)
		}
		return made.Revision
	}
	first := put(`"10.0.0.1:22"`)
	second := put(`"10.0.0.2:22"`)
	r.ask(op, "PUT", "/mappings/tcp/20023", `"10.0.0.3:22"`).want(t, 200)
	r.ask(op, "GET", "/history?under=ports/", nil).want(t, 200, `"by":"token platform from 127.0.0.1"`, `"before":"10.0.0.1:22","after":"10.0.0.2:22"`, fmt.Sprintf(`"revision":%d`, second))
	r.ask(op, "GET", fmt.Sprintf("/history?limit=1&after=%d", first), nil).want(t, 200, fmt.Sprintf(`"next":%d`, second))
	r.ask(op, "GET", fmt.Sprintf("/diff?from=%d", first), nil).want(t, 200, `{"key":"ports/tcp/20022","before":"10.0.0.1:22","after":"10.0.0.2:22"}`, `{"key":"ports/tcp/20023","after":"10.0.0.3:22"}`)
	r.ask(op, "GET", fmt.Sprintf("/diff?from=%d&to=%d", first, second), nil).want(t, 200, `"changes":[{"key":"ports/tcp/20022"`)
	r.ask(op, "GET", "/diff", nil).want(t, 400, `"field":"from"`)
	r.ask(op, "POST", "/rollback", fmt.Sprintf(`{"to":%d}`, first)).want(t, 403)
	r.ask(admin, "POST", "/rollback", fmt.Sprintf(`{"to":%d}`, first)).want(t, 409, "would remove keys, ports/tcp/20023")
	r.ask(admin, "POST", "/rollback", fmt.Sprintf(`{"to":%d,"dry_run":true}`, first)).want(t, 200, "ports/tcp/20023")
	r.ask(op, "GET", "/mappings/tcp/20023", nil).want(t, 200)
	r.ask(admin, "POST", "/rollback", fmt.Sprintf(`{"to":%d,"remove":true}`, first)).want(t, 200, `"revision":`)
	r.ask(op, "GET", "/mappings/tcp/20023", nil).want(t, 404)
	r.ask(op, "GET", "/mappings/tcp/20022", nil).want(t, 200, "10.0.0.1:22")
}

// What an environment had is not given back to it when somebody else has it.
func TestRollbackLeavesEnvironmentsAlone(t *testing.T) {
	r := newRig(t)
	r.put("pools/ssh", `{"ports":"20000","backend_port":22,"quarantine":"0s"}`)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	r.ask(admin, "PUT", "/mappings/tcp/20500", `"10.0.0.1:22"`).want(t, 200)
	r.ask(admin, "POST", "/environments", `{"id":"old","backend":"10.0.0.7","services":{"ssh":{}}}`).want(t, 201, `"port":20000`)
	a := r.ask(admin, "PUT", "/mappings/tcp/20500", `"10.0.0.2:22"`)
	var made struct{ Revision int64 }
	if err := json.Unmarshal([]byte(a.body), &made); err != nil {
		t.Fatal(err)
	}
	r.ask(admin, "PUT", "/mappings/tcp/20500", `"10.0.0.3:22"`).want(t, 200)
	r.ask(admin, "DELETE", "/environments/old", nil).want(t, 200)
	r.ask(admin, "POST", "/environments", `{"id":"new","backend":"10.0.0.8","services":{"ssh":{}}}`).want(t, 201, `"port":20000`)
	r.ask(admin, "POST", "/rollback", fmt.Sprintf(`{"to":%d,"remove":true}`, made.Revision)).want(t, 200, "ports/tcp/20500")
	r.ask(admin, "GET", "/mappings/tcp/20500", nil).want(t, 200, "10.0.0.2:22")
	r.ask(admin, "GET", "/mappings/tcp/20000", nil).want(t, 200, "10.0.0.8:22")
	if found := r.audit(); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
}

func TestManageTokens(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	r.ask(op, "GET", "/tokens", nil).want(t, 403)
	a := r.ask(admin, "POST", "/tokens", `{"name":"billing","role":"viewer","note":"reads"}`)
	a.want(t, 201, `"name":"billing"`, `"token":"sluice_billing_`)
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(a.body), &made); err != nil {
		t.Fatal(err)
	}
	r.reload()
	r.ask(made.Token, "GET", "/environments", nil).want(t, 200)
	r.ask(admin, "POST", "/tokens", `{"name":"billing","role":"viewer"}`).want(t, 409, "exists")
	r.ask(admin, "POST", "/tokens", `{"name":"b","role":"admin","envs":"a"}`).want(t, 400, `"field":"envs"`)
	r.ask(admin, "POST", "/tokens", `{"name":"b","role":"viewer","expires_at":"9999-12-31T23:59:59-23:00"}`).want(t, 400, `"field":"expires_at"`)
	if a := r.ask(admin, "GET", "/tokens", nil); strings.Contains(a.body, "hash") || !strings.Contains(a.body, "billing") {
		t.Errorf("the list is %s", a.body)
	}
	for _, grace := range []string{"169h", "-1s", "99999999999999999999", "604801", "1d", "h"} {
		r.ask(admin, "POST", "/tokens/billing/rotate?grace="+grace, nil).want(t, 400, `"field":"grace"`)
	}
	r.ask(admin, "POST", "/tokens/billing/rotate?grace=30m", nil).want(t, 200, `"token":"sluice_billing_`)
	r.reload()
	r.ask(made.Token, "GET", "/environments", nil).want(t, 200)
	r.ask(admin, "POST", "/tokens/billing/rotate?grace=0", nil).want(t, 200, `"token":"sluice_billing_`)
	r.reload()
	r.ask(made.Token, "GET", "/environments", nil).want(t, 401)
	r.ask(admin, "DELETE", "/tokens/billing", nil).want(t, 200)
	r.reload()
	r.ask(admin, "DELETE", "/tokens/billing", nil).want(t, 404)

	// An admin does not take the last way back in with itself.
	var last, other struct{ Token string }
	for name, made := range map[string]any{"last": &last, "other": &other} {
		a := r.ask(admin, "POST", "/tokens", `{"name":"`+name+`","role":"admin"}`)
		if err := json.Unmarshal([]byte(a.body), made); err != nil {
			t.Fatal(err)
		}
	}
	r.known = nil
	r.reload()
	r.ask(other.Token, "DELETE", "/tokens/other", nil).want(t, 200)
	r.ask(last.Token, "POST", "/tokens", `{"name":"expiring","role":"admin","expires_at":"2126-01-01T00:00:00Z"}`).want(t, 201)
	r.put("tokens/expired", `{"role":"admin","hash":"`+strings.Repeat("0", 64)+`","expires_at":"2020-01-01T00:00:00Z","created_at":"2019-01-01T00:00:00Z"}`)
	r.ask(last.Token, "DELETE", "/tokens/expiring", nil).want(t, 404) // not heard of yet
	r.reload()
	r.ask(last.Token, "DELETE", "/tokens/expiring", nil).want(t, 200)
	r.reload()
	r.ask(last.Token, "DELETE", "/tokens/last", nil).want(t, 409, "last_admin", "make one first")
}

// reload tells the API of the tokens in etcd, beside those that a test has made.
func (r *rig) reload() {
	r.t.Helper()
	resp, err := r.raw.Get(r.t.Context(), "/sluice/"+tokens.Folder, prefixed)
	if err != nil {
		r.t.Fatal(err)
	}
	all := r.known
	for _, kv := range resp.Kvs {
		all = append(all, etcd.KV{Key: strings.TrimPrefix(string(kv.Key), "/sluice/"), Value: kv.Value, ModRev: kv.ModRevision})
	}
	r.tokens.Load(resp.Header.Revision, all)
}

func TestWatch(t *testing.T) {
	r := newRig(t)
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	a := r.ask(op, "PUT", "/mappings/tcp/20022", `"10.0.0.1:22"`)
	var made struct{ Revision int64 }
	if err := json.Unmarshal([]byte(a.body), &made); err != nil {
		t.Fatal(err)
	}
	next := r.stream(op, "data: ", "topics=mappings,environments&after="+fmt.Sprint(made.Revision-1))
	if got := next(); !strings.HasPrefix(got, `{"time":`) {
		t.Errorf("at once comes %s, want a sign of life", got)
	}
	if got, want := next(), fmt.Sprintf(`{"key":"ports/tcp/20022","value":"10.0.0.1:22","revision":%d}`, made.Revision); got != want {
		t.Errorf("the first event is %s, want %s", got, want)
	}
	r.ask(op, "PUT", "/routes/web", `{"host":"web.x-gpu.com","backend":"10.0.0.1:80"}`).want(t, 200) // nobody asked for
	r.put("envs/a", `{"services":{"ssh":{"port":20000,"secrets":"c2VjcmV0"}},"created_at":"2026-11-01T12:00:00Z"}`)
	if got := next(); !strings.Contains(got, `"key":"envs/a"`) || strings.Contains(got, "c2VjcmV0") {
		t.Errorf("the second event is %s", got)
	}
	r.ask(op, "DELETE", "/mappings/tcp/20022", nil).want(t, 200)
	if got := next(); !strings.Contains(got, `{"key":"ports/tcp/20022","revision":`) {
		t.Errorf("the third event is %s", got)
	}
	r.ask(op, "GET", "/watch?topics=secrets", nil).want(t, 400)

	// Of an etcd that begins anew, clients have heard revisions to come.
	next = r.stream(op, "", "topics=mappings&after=99999")
	_, at, err := r.client.ReadUnder(t.Context(), "edits/", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprintf("id: %d", at), "event: lost", `data: {"detail":"etcd has not come as far as that revision`, "", fmt.Sprintf("id: %d", at), "event: alive", "data: ", ""} {
		if got := next(); !strings.HasPrefix(got, want) {
			t.Errorf("a client that is ahead hears %q, want %q", got, want)
		}
	}
	r.put("ports/tcp/20023", "10.0.0.1:22")
	if got, want := next(), fmt.Sprintf("id: %d", at+1); got != want {
		t.Errorf("then comes %q, want %q", got, want)
	}
}

// stream opens an event stream, and returns what waits for the next line that begins
// with prefix, and returns its rest.
func (r *rig) stream(secret, prefix, query string) (next func() string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), "GET", r.url+"/watch?"+query, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream" {
		r.t.Fatalf("%d %s", resp.StatusCode, ct)
	}
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		r.t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return data
			}
		}
		r.t.Fatalf("the stream has ended: %v", lines.Err())
		return ""
	}
}

// A client that lost an answer asks again.
func TestOnce(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	other := r.token("other", func(t *tokens.Token) { t.Role = tokens.Admin })
	body := `{"id":"a","backend":"10.0.0.1","services":{"ssh":{}}}`
	first := r.ask(admin, "POST", "/environments", body, "Idempotency-Key", "k1")
	first.want(t, 201)
	r.ask(admin, "DELETE", "/environments/a", nil).want(t, 200)
	again := r.ask(admin, "POST", "/environments", body, "Idempotency-Key", "k1")
	again.want(t, 201)
	if again.body != first.body || again.header.Get("ETag") != first.header.Get("ETag") || again.header.Get("Idempotency-Replayed") != "true" || again.header.Get("Content-Type") != first.header.Get("Content-Type") {
		t.Errorf("first %v %s, again %v %s", first.header, first.body, again.header, again.body)
	}
	r.ask(admin, "GET", "/environments/a", nil).want(t, 404)
	r.ask(admin, "POST", "/environments", `{"id":"b","backend":"10.0.0.1","services":{"ssh":{}}}`, "Idempotency-Key", "k1").want(t, 422, "another request came with this key")
	r.ask(other, "POST", "/environments", body, "Idempotency-Key", "k1").want(t, 201)
	r.ask(admin, "POST", "/environments", `{"id":"a","backend":"10.0.0.2","services":{"ssh":{}}}`, "Idempotency-Key", "k2").want(t, 409)
	r.ask(admin, "DELETE", "/environments/a", nil).want(t, 200)
	// What was refused is not kept: nothing was done that could be done twice.
	r.ask(admin, "POST", "/environments", `{"id":"a","backend":"10.0.0.2","services":{"ssh":{}}}`, "Idempotency-Key", "k2").want(t, 201)
	for range 5 {
		r.ask(admin, "DELETE", "/environments/nobody", nil, "Idempotency-Key", "k4").want(t, 404)
	}
	r.ask(admin, "POST", "/tokens", `{"name":"x","role":"viewer"}`, "Idempotency-Key", "k3").want(t, 400, "Idempotency-Key")
	kvs, _, err := r.client.ReadUnder(t.Context(), v1.IdempotencyFolder, 0)
	if err != nil || len(kvs) != 3 {
		t.Fatalf("%d are remembered, %v", len(kvs), err)
	}
	for _, kv := range kvs {
		if strings.Contains(string(kv.Value), "k1") || strings.Contains(string(kv.Value), admin) {
			t.Errorf("%s has %s", kv.Key, kv.Value)
		}
	}
	if old := v1.NewMemory(time.Now().Add(23*time.Hour), 10).Look(kvs); len(old) > 0 {
		t.Errorf("within a day %v", old)
	}
	if old := v1.NewMemory(time.Now().Add(25*time.Hour), 10).Look(kvs); len(old) != 3 {
		t.Errorf("after a day %v", old)
	}
}
