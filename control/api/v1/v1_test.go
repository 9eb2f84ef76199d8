package v1_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	v1 "github.com/remotegpu/sluice/control/api/v1"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/router"
)

var prefixed = clientv3.WithPrefix()

// rig is an API over an etcd of its own.
type rig struct {
	t      *testing.T
	url    string
	raw    *clientv3.Client
	tokens *tokens.Registry
	known  []etcd.KV
	envs   *envs.Manager
	reg    *envs.Registry
	client *etcd.Client
	// handler is the API's.
	handler http.Handler
}

// newRig starts one; change changes how environments are kept.
func newRig(t *testing.T, change ...func(*envs.Config)) *rig {
	t.Helper()
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	r := &rig{t: t, tokens: new(tokens.Registry)}
	r.tokens.Load(1, nil)
	if r.raw, err = clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint()}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.raw.Close() })
	r.put("pools/ssh", `{"ports":"20000-20009","backend_port":22,"access":{"host":"${env}.ssh.x-gpu.com","username":"root","command":"ssh -p ${port} ${username}@${host}"}}`)
	r.put("pools/jupyter", `{"ports":"30000-30009","backend_port":8888,"http":true,"access":{"url":"https://${env}.jupyter.x-gpu.com:${port}"}}`)

	client, err := etcd.Dial(etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	reg := envs.NewRegistry()
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	t.Cleanup(func() { cancel(); following.Wait(); client.Close() })
	rev, err := reg.Read(ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	following.Go(func() {
		err := client.Follow(ctx, envs.Folders, rev, func(changes []etcd.Change) (bool, error) {
			reg.Change(changes[len(changes)-1].ModRev, changes)
			return false, nil
		})
		if err != nil && ctx.Err() == nil {
			t.Errorf("follow: %v", err)
		}
	})
	ports := router.Ports{{First: 20000, Last: 32767}}
	cfg := envs.Config{Store: client, Registry: reg, Ports: ports, By: "test"}
	for _, c := range change {
		c(&cfg)
	}
	r.envs, r.reg, r.client = envs.New(cfg), reg, client
	api := v1.New(v1.Config{
		Envs: r.envs,
		Keys: &keys.Store{Client: client, Ports: ports, By: "test"}, Tokens: r.tokens, Logger: slog.New(slog.DiscardHandler),
	})
	r.handler = api.Handler()
	web := httptest.NewServer(r.handler)
	t.Cleanup(web.Close)
	r.url = web.URL + "/api/v1"
	return r
}

func (r *rig) put(key, value string) {
	r.t.Helper()
	if _, err := r.raw.Put(r.t.Context(), "/sluice/"+key, value); err != nil {
		r.t.Fatal(err)
	}
}

// audit returns what does not fit together, but for mappings that were made or
// deleted by themselves.
func (r *rig) audit() []envs.Finding {
	r.t.Helper()
	reg := envs.NewRegistry()
	if _, err := reg.Read(r.t.Context(), r.client); err != nil {
		r.t.Fatal(err)
	}
	found, err := envs.New(envs.Config{Store: r.client, Registry: reg, Ports: router.Ports{{First: 1, Last: 65535}}}).Audit(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(f envs.Finding) bool { return f.Kind == "unheld" || f.Kind == "unmapped" || f.Kind == "stranded" })
}

// token makes one that is known.
func (r *rig) token(name string, change func(*tokens.Token)) (secret string) {
	r.t.Helper()
	secret, t := tokens.New(name, time.Now())
	change(t)
	value, err := json.Marshal(t)
	if err != nil {
		r.t.Fatal(err)
	}
	r.known = append(r.known, etcd.KV{Key: tokens.Folder + name, Value: value, ModRev: 1})
	r.tokens.Load(1, r.known)
	return secret
}

// answer is what a request came to.
type answer struct {
	status int
	header http.Header
	body   string
	v1.Problem
}

// ask sends a request; body is a string, or marshalled.
func (r *rig) ask(secret, method, path string, body any, header ...string) answer {
	r.t.Helper()
	text, isText := body.(string)
	if !isText && body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			r.t.Fatal(err)
		}
		text = string(b)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	if text != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
	if resp.StatusCode >= 400 {
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			r.t.Errorf("%s %s: a problem of type %q: %s", method, path, ct, b)
		}
		if err := json.Unmarshal(b, &a.Problem); err != nil || a.Code == "" || a.Status != resp.StatusCode {
			r.t.Errorf("%s %s: %d with %s: %v", method, path, resp.StatusCode, b, err)
		}
	}
	return a
}

func (a answer) want(t *testing.T, status int, parts ...string) {
	t.Helper()
	if a.status != status {
		t.Errorf("status %d, want %d: %s", a.status, status, a.body)
	}
	for _, part := range parts {
		if !strings.Contains(a.body, part) {
			t.Errorf("no %q in %s", part, a.body)
		}
	}
}

func TestEnvironment(t *testing.T) {
	r := newRig(t)
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	body := map[string]any{"id": "6hif", "backend": "10.0.3.17", "services": map[string]any{"ssh": map[string]any{}, "jupyter": map[string]any{"mapping": map[string]any{"idle_timeout": "10m"}}}}
	made := r.ask(op, "POST", "/environments", body)
	made.want(t, 201, `"port":20000`, `"revision":`)
	r.ask(op, "POST", "/environments", body).want(t, 201, `"port":20000`)
	got := r.ask(op, "GET", "/environments/6hif", nil)
	got.want(t, 200, `"backend":"10.0.3.17:22"`)
	if got.header.Get("ETag") == "" || got.header.Get("ETag") != made.header.Get("ETag") || got.body != made.body {
		t.Errorf("made %s %s, got %s %s", made.header, made.body, got.header, got.body)
	}
	r.ask(op, "GET", "/environments/6hif/access", nil).want(t, 200,
		`{"code":0,"message":"success","data":{"environment_id":"6hif","access_info":{`,
		`"ssh":{"host":"6hif.ssh.x-gpu.com","port":20000,"username":"root","command":"ssh -p 20000 root@6hif.ssh.x-gpu.com"}`,
		`"url":"https://6hif.jupyter.x-gpu.com:30000"`)
	r.ask(op, "PATCH", "/environments/6hif", `{"backend":"10.0.3.18","services":{"jupyter":null}}`, "If-Match", `"1"`).want(t, 412, `"code":"stale"`)
	r.ask(op, "PATCH", "/environments/6hif", `{"backend":"10.0.3.18","services":{"jupyter":null}}`, "If-Match", got.header.Get("ETag")).want(t, 200, "10.0.3.18:22")
	for i := range 3 {
		r.ask(op, "POST", "/environments", map[string]any{"id": fmt.Sprintf("e%d", i), "backend": "10.0.3.17", "services": map[string]any{"ssh": map[string]any{}}}).want(t, 201)
	}
	r.ask(op, "GET", "/environments?limit=2", nil).want(t, 200, `"id":"6hif"`, `"id":"e0"`, `"next":"e0"`)
	r.ask(op, "GET", "/environments?limit=2&after=e0", nil).want(t, 200, `"id":"e1"`, `"id":"e2"}`[:9])
	r.ask(op, "DELETE", "/environments/6hif", nil).want(t, 200, `"revision":`)
	r.ask(op, "DELETE", "/environments/6hif", nil).want(t, 404, `"code":"not_found"`)
	r.ask(op, "GET", "/environments/6hif", nil).want(t, 404, `"code":"not_found"`)
}

func TestWhoMay(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	viewer := r.token("viewer", func(t *tokens.Token) { t.Role = tokens.Viewer })
	scoped := r.token("scoped", func(t *tokens.Token) { t.Role, t.Envs, t.Pools = tokens.Operator, "a", []string{"ssh"} })
	expired := r.token("expired", func(t *tokens.Token) { t.Role, t.ExpiresAt = tokens.Admin, time.Now() })
	env := func(id string, services ...string) map[string]any {
		m := map[string]any{}
		for _, s := range services {
			m[s] = map[string]any{}
		}
		return map[string]any{"id": id, "backend": "10.0.3.17", "services": m}
	}
	r.ask(admin, "POST", "/environments", env("b1", "ssh")).want(t, 201)
	r.ask(scoped, "POST", "/environments", env("a1", "ssh")).want(t, 201)
	for _, secret := range []string{"", "nonsense", expired, viewer[:len(viewer)-1]} {
		a := r.ask(secret, "GET", "/environments", nil)
		a.want(t, 401, `"code":"unauthorized"`)
		if a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("no WWW-Authenticate: %v", a.header)
		}
	}
	r.ask(viewer, "GET", "/environments/b1", nil).want(t, 200)
	r.ask(viewer, "POST", "/environments", env("b2", "ssh")).want(t, 403, "the token viewer is a viewer's; this takes one of an operator")
	r.ask(scoped, "POST", "/environments", env("b2", "ssh")).want(t, 403, `for environments that begin with \"a\"`)
	r.ask(scoped, "POST", "/environments", env("a2", "jupyter")).want(t, 403, "for the pools [ssh]")
	r.ask(scoped, "GET", "/environments/b1", nil).want(t, 404)
	r.ask(scoped, "DELETE", "/environments/b1", nil).want(t, 403)
	if a := r.ask(scoped, "GET", "/environments", nil); strings.Contains(a.body, "b1") || !strings.Contains(a.body, "a1") {
		t.Errorf("within its scope it sees %s", a.body)
	}
	r.ask(scoped, "GET", "/environments?prefix=b", nil).want(t, 200, `"items":[]`)

	// A token for some pools sees and changes nothing of others.
	r.ask(admin, "POST", "/environments", env("a9", "ssh", "jupyter")).want(t, 201)
	for _, path := range []string{"/environments", "/environments/a9", "/environments/a9/access"} {
		if a := r.ask(scoped, "GET", path, nil); a.status != 200 || strings.Contains(a.body, "jupyter") || !strings.Contains(a.body, "ssh") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	r.ask(scoped, "PATCH", "/environments/a9", `{"backend":"10.0.3.18"}`).want(t, 403, "has services beyond the pools [ssh]")
	r.ask(scoped, "PATCH", "/environments/a9", `{"expires_at":"2126-01-01T00:00:00Z"}`).want(t, 403)
	r.ask(scoped, "PATCH", "/environments/a9", `{"services":{"ssh":{"username":"ubuntu"}}}`).want(t, 200)
	r.ask(scoped, "DELETE", "/environments/a9", nil).want(t, 403)
	r.ask(scoped, "DELETE", "/environments/a1", nil).want(t, 200)

	// Strangers at one address do not keep others there out.
	for range 100 {
		if a := r.ask("sluice_x_y", "GET", "/environments", nil); a.status != 401 && a.status != 429 {
			t.Fatalf("a stranger: %d", a.status)
		}
	}
	r.ask("sluice_x_y", "GET", "/environments", nil).want(t, 429)
	r.ask(viewer, "GET", "/environments/b1", nil).want(t, 200)
}

func TestBadRequests(t *testing.T) {
	r := newRig(t)
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	for _, tc := range []struct{ method, path, body, code, field, detail string }{
		{"POST", "/environments", `{"id":"a","services":{"ssh":{}}}`, "invalid", "services.ssh.backend", "is missing"},
		{"POST", "/environments", `{"id":"a","backend":"h","services":{"vnc":{}}}`, "invalid", "services.vnc", "there is no pool"},
		{"POST", "/environments", `{"id":"A","backend":"h","services":{"ssh":{}}}`, "invalid", "id", "pattern"},
		{"POST", "/environments", `{"backend":"h","services":{"ssh":{}}}`, "invalid", "", "id"},
		{"POST", "/environments", `{"id":"a","backnd":"h","services":{"ssh":{}}}`, "invalid", "backnd", "unexpected property"},
		{"POST", "/environments", `{"id":"a","backend":"h","services":{"ssh":{"port":70000}}}`, "invalid", "services.ssh.port", "65535"},
		{"POST", "/environments", `{"id":"a","backend":"h","services":{"ssh":{"port":20100}}}`, "invalid", "services.ssh.port", "lies outside the pool ssh"},
		{"POST", "/environments", `{"id":"a","backend":"h","services":{"ssh":{"mapping":{"idle_timeot":"5m"}}}}`, "invalid", "services.ssh.mapping.idle_timeot", "did you mean"},
		{"POST", "/environments", `{"id":"a"`, "invalid", "", ""},
		{"POST", "/environments", ``, "invalid", "", "request body is required"},
		{"POST", "/environments", `null`, "invalid", "", ""},
		{"POST", "/environments", `[]`, "invalid", "", ""},
		{"GET", "/environments?limit=0", ``, "invalid", "limit", ""},
		{"GET", "/environments?limt=10", ``, "invalid", "limt", ""},
		{"PATCH", "/environments/none", `{}`, "not_found", "", "there is no environment none"},
		{"POST", "/environments", `{"id":"` + strings.Repeat("a", 1<<20) + `"}`, "too_large", "", ""},
	} {
		a := r.ask(op, tc.method, tc.path, tc.body)
		body := tc.body
		if len(body) > 200 {
			body = body[:200]
		}
		if a.Code != tc.code || a.Field != tc.field || !strings.Contains(a.Detail, tc.detail) || a.status >= 500 {
			t.Errorf("%s %s %s: %d %s", tc.method, tc.path, body, a.status, a.body)
		}
	}
}

func TestKeys(t *testing.T) {
	r := newRig(t)
	op := r.token("platform", func(t *tokens.Token) { t.Role = tokens.Operator })
	scoped := r.token("scoped", func(t *tokens.Token) { t.Role, t.Envs = tokens.Operator, "a" })
	made := r.ask(op, "PUT", "/mappings/tcp/20022", `"10.0.0.1:22"`)
	made.want(t, 200, `"changed":true`)
	got := r.ask(op, "GET", "/mappings/tcp/20022", nil)
	got.want(t, 200, `"key":"ports/tcp/20022"`, `"value":"10.0.0.1:22"`)
	if got.header.Get("ETag") == "" || got.header.Get("ETag") != made.header.Get("ETag") {
		t.Errorf("made %v, got %v", made.header, got.header)
	}
	r.ask(op, "PUT", "/mappings/tcp/20022", `"10.0.0.1:22"`).want(t, 200, `"changed":false`)
	r.ask(op, "PUT", "/mappings/tcp/20022", `{"backend":"10.0.0.2:22"}`, "If-Match", `"1"`).want(t, 412, "stale")
	r.ask(op, "PUT", "/mappings/tcp/20022?dry_run=true", `{"backend":"10.0.0.2:22"}`, "If-Match", got.header.Get("ETag")).want(t, 200, `"changed":false`)
	r.ask(op, "PUT", "/mappings/tcp/20022", `{"backend":"10.0.0.2:22"}`, "If-Match", got.header.Get("ETag")).want(t, 200, `"changed":true`)
	r.ask(op, "GET", "/mappings/tcp/20022", nil).want(t, 200, `"value":{"backend":"10.0.0.2:22"}`)
	r.ask(op, "PUT", "/routes/web", `{"host":"web.x-gpu.com","backend":"10.0.0.1:80"}`).want(t, 200)
	r.ask(op, "PUT", "/domains/*.x-gpu.com", `{}`).want(t, 200)
	for i := range 5 {
		r.ask(op, "PUT", fmt.Sprintf("/mappings/tcp/2010%d", i), `"10.0.0.1:22"`).want(t, 200)
	}
	r.ask(op, "GET", "/mappings?limit=2", nil).want(t, 200, "tcp/20022", "tcp/20100", `"next":"tcp/20100"`)
	r.ask(op, "GET", "/mappings?limit=10&after=tcp/20103", nil).want(t, 200, "tcp/20104")
	r.ask(op, "GET", "/pools", nil).want(t, 200, "pools/ssh", `"backend_port":22`)
	for _, tc := range []struct{ method, path, body, field, detail string }{
		{"PUT", "/mappings/tcp/70000", `"10.0.0.1:22"`, "", "port 70000 does not exist"},
		{"PUT", "/mappings/sctp/20000", `"10.0.0.1:22"`, "", "is not a mapping's key"},
		{"PUT", "/mappings/tcp/20023", `{"backend":"10.0.0.1:22","idle_timeout":"10"}`, "idle_timeout", "is not a duration"},
		{"PUT", "/mappings/tcp/20023", `17`, "", ""},
		{"PUT", "/mappings/tcp/20023", `127.0.0.1:22`, "", ""},
		{"PUT", "/pools/late", `{"ports":"20005-20100","backend_port":22}`, "ports", "overlaps"},
		{"PUT", "/routes/web2", `{"host":"web.x-gpu.com"}`, "backend", "is missing"},
	} {
		a := r.ask(op, tc.method, tc.path, tc.body)
		if a.status != 400 || a.Code != "invalid" || tc.field != "" && a.Field != tc.field || !strings.Contains(a.Detail, tc.detail) {
			t.Errorf("%s %s %s: %d %s", tc.method, tc.path, tc.body, a.status, a.body)
		}
	}
	r.ask(op, "DELETE", "/mappings/tcp/20022", nil).want(t, 200, `"changed":true`)
	r.ask(op, "DELETE", "/mappings/tcp/20022", nil).want(t, 404, "there is no key ports/tcp/20022")
	r.ask(scoped, "GET", "/mappings", nil).want(t, 403, "this concerns all")
	r.ask(scoped, "PUT", "/mappings/tcp/20022", `"10.0.0.1:22"`).want(t, 403)
	r.ask(op, "GET", "/status", nil).want(t, 200, `"nodes":[]`, `"keys":`)
}
