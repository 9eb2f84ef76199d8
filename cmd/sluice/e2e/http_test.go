package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// named is a backend that says who it is and what it was asked for.
func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: %s %s for %s", name, r.Method, r.RequestURI, r.Host)
	}
}

// routeJSON puts together the value of a route.
func routeJSON(fields map[string]any) string {
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err) // the test's own text
	}
	return string(text)
}

func backendRoute(host, backend string) string {
	return routeJSON(map[string]any{"host": host, "backend": backend})
}

func respondRoute(host, body string) string {
	return routeJSON(map[string]any{"host": host, "respond": map[string]any{"body": body}})
}

func TestRouting(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	a, b := startBackend(t, named("a")), startBackend(t, named("b"))
	_, portB, _ := net.SplitHostPort(b)
	type fields = map[string]any
	body := func(text string) fields { return fields{"body": text} }
	for name, route := range map[string]fields{
		"exact":      {"host": "www.r.test", "backend": a},
		"two-names":  {"host": []string{"one.r.test", "two.r.test"}, "backend": a},
		"wild":       {"host": "*.r.test", "respond": body("wildcard")},
		"wild-long":  {"host": "*.deep.r.test", "respond": body("longer wildcard")},
		"regex-low":  {"host": `~^(?<id>[a-z0-9]+)\.re\.test$`, "priority": 1, "respond": body("low ${id}")},
		"regex-high": {"host": `~^b(?<id>[a-z0-9]+)\.re\.test$`, "priority": 2, "respond": body("high ${id} $${id} ${host}")},
		"regex-port": {"host": `~^to-(?<to>[0-9]+)\.cap\.test$`, "backend": "127.0.0.1:${to}"},
		"regex-host": {"host": `~^at-(?<id>.+)\.cap\.test$`, "backend": "${id}:80"},
		"path":       {"host": "p.r.test", "path": "/jupyter", "backend": a},
		"path-long":  {"host": "p.r.test", "path": "/jupyter/lab", "respond": body("longer path")},
		"path-strip": {"host": "p.r.test", "path": "/code", "strip_prefix": true, "backend": b},
		"post":       {"host": "m.r.test", "methods": []string{"POST", "PUT"}, "respond": body("changes")},
		"other":      {"host": "m.r.test", "respond": body("looks")},
		"header":     {"host": "h.r.test", "headers": fields{"X-Canary": "1"}, "respond": body("canary")},
		"any-value":  {"host": "h.r.test", "headers": fields{"x-debug": "*"}, "priority": -1, "respond": body("debug")},
		"no-header":  {"host": "h.r.test", "priority": -2, "respond": body("plain")},
		"status":     {"host": "respond.r.test", "respond": fields{"status": 418, "body": "teapot", "headers": fields{"X-Pot": "${host}"}}},
		"redirect":   {"host": "old.r.test", "redirect": "https://new.r.test${uri}"},
		"moved":      {"host": "moved.r.test", "redirect": fields{"to": "https://new.r.test/", "status": 301}},
		"denied":     {"host": "denied.r.test", "deny": []string{"127.0.0.0/8", "::1"}, "backend": a},
		"strangers":  {"host": "strangers.r.test", "allow": []string{"192.0.2.0/24"}, "backend": a},
		"friends":    {"host": "friends.r.test", "allow": []string{"127.0.0.1", "::1"}, "backend": a},
		"dead":       {"host": "dead.r.test", "backend": loopback(n.port(0))},
		"spare":      {"host": "spare.r.test", "backend": []string{loopback(n.port(0)), a}},
		"elsewhere":  {"host": "ports.r.test", "ports": strconv.Itoa(n.HTTP), "respond": body("only in clear text")},
	} {
		n.mustPut("routes/"+name, routeJSON(route))
	}
	port := strconv.Itoa(n.HTTPS)

	for _, tt := range []struct {
		name         string
		method       string
		host, path   string
		header       http.Header
		status       int    // 0: 200
		body         string // "": any
		field, value string // of the response
	}{
		{name: "exact name", host: "www.r.test", path: "/x?y=1;z=2", body: "a: GET /x?y=1;z=2 for www.r.test:" + port},
		{name: "name in capitals", host: "WWW.r.test", path: "/", body: "a: GET / for WWW.r.test:" + port},
		{name: "second name of a list", host: "two.r.test", path: "/", body: "a: GET / for two.r.test:" + port},
		{name: "wildcard", host: "any.r.test", path: "/", body: "wildcard"},
		{name: "wildcard of several labels", host: "a.b.c.r.test", path: "/", body: "wildcard"},
		{name: "longest wildcard", host: "any.deep.r.test", path: "/", body: "longer wildcard"},
		{name: "wildcard is not its parent", host: "r.test", path: "/", status: 404},
		{name: "regex of high priority", host: "bcd.re.test", path: "/", body: "high cd ${id} bcd.re.test"},
		{name: "regex of low priority", host: "cde.re.test", path: "/", body: "low cde"},
		{name: "capture chooses the backend", host: "to-" + portB + ".cap.test", path: "/", body: "b: GET / for to-" + portB + ".cap.test:" + port},
		{name: "capture is no port", host: "to-99999.cap.test", path: "/", status: 400},
		{name: "capture leaves its label", host: "at-127.0.0.1.cap.test", path: "/", status: 400},
		{name: "path", host: "p.r.test", path: "/jupyter", body: "a: GET /jupyter for p.r.test:" + port},
		{name: "below the path", host: "p.r.test", path: "/jupyter/tree", body: "a: GET /jupyter/tree for p.r.test:" + port},
		{name: "escaped path goes on as it is", host: "p.r.test", path: "/%6aupyter/a%2Fb", body: "a: GET /%6aupyter/a%2Fb for p.r.test:" + port},
		{name: "beside the path", host: "p.r.test", path: "/jupyterlab", body: "wildcard"},
		{name: "dots leave the path", host: "p.r.test", path: "/jupyter/../other", body: "wildcard"},
		{name: "longest path", host: "p.r.test", path: "/jupyter/lab/x", body: "longer path"},
		{name: "stripped to nothing", host: "p.r.test", path: "/code", body: "b: GET / for p.r.test:" + port},
		{name: "stripped", host: "p.r.test", path: "/code/x/?q", body: "b: GET /x/?q for p.r.test:" + port},
		{name: "method", method: "POST", host: "m.r.test", path: "/", body: "changes"},
		{name: "second method", method: "PUT", host: "m.r.test", path: "/", body: "changes"},
		{name: "any other method", method: "DELETE", host: "m.r.test", path: "/", body: "looks"},
		{name: "header", host: "h.r.test", path: "/", header: http.Header{"X-Canary": {"1"}, "X-Debug": {"0"}}, body: "canary"},
		{name: "another value", host: "h.r.test", path: "/", header: http.Header{"X-Canary": {"2"}}, body: "plain"},
		{name: "any value", host: "h.r.test", path: "/", header: http.Header{"X-Debug": {"x"}}, body: "debug"},
		{name: "respond", host: "respond.r.test", path: "/", status: 418, body: "teapot", field: "X-Pot", value: "respond.r.test"},
		{name: "redirect", host: "old.r.test", path: "/a/b?c=d", status: 302, field: "Location", value: "https://new.r.test/a/b?c=d"},
		{name: "redirect for good", host: "moved.r.test", path: "/x", status: 301, field: "Location", value: "https://new.r.test/"},
		{name: "denied", host: "denied.r.test", path: "/", status: 403},
		{name: "not allowed", host: "strangers.r.test", path: "/", status: 403},
		{name: "allowed", host: "friends.r.test", path: "/", body: "a: GET / for friends.r.test:" + port},
		{name: "nothing listens at the backend", host: "dead.r.test", path: "/", status: 502},
		{name: "another target", host: "spare.r.test", path: "/", body: "a: GET / for spare.r.test:" + port},
		{name: "route of another port", host: "ports.r.test", path: "/", body: "wildcard"},
		{name: "no route", host: "nobody.test", path: "/", status: 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachProto(t, n, func(t *testing.T, c *client) {
				req := c.request(within(t), cmp.Or(tt.method, http.MethodGet), tt.host, tt.path, nil)
				for name, values := range tt.header {
					req.Header[name] = values
				}
				resp, body := c.mustDo(req)
				if want := cmp.Or(tt.status, 200); resp.StatusCode != want {
					t.Errorf("status %d, want %d; body %q", resp.StatusCode, want, body)
				}
				if tt.body != "" && body != tt.body {
					t.Errorf("body %q, want %q", body, tt.body)
				}
				if got := resp.Header.Get(tt.field); tt.field != "" && got != tt.value {
					t.Errorf("%s: %q, want %q", tt.field, got, tt.value)
				}
			})
		})
	}

	t.Run("catch-all", func(t *testing.T) {
		n := n.in(t)
		n.mustPut("routes/all", respondRoute("*", "catch-all"))
		for host, want := range map[string]string{"nobody.test": "catch-all", "any.r.test": "wildcard", "cde.re.test": "low cde"} {
			eachProto(t, n, func(t *testing.T, c *client) {
				if _, body := c.get(host, "/"); body != want {
					t.Errorf("%s: body %q, want %q", host, body, want)
				}
			})
		}
		n.delete("routes/all")
		eachProto(t, n, func(t *testing.T, c *client) {
			if resp, _ := c.get("nobody.test", "/"); resp.StatusCode != 404 {
				t.Errorf("status %d after the route was deleted, want 404", resp.StatusCode)
			}
		})
	})
}

// A request sees the routes of before an edit or of after it, never anything
// else, whatever connection it comes by.
func TestRouteEditsUnderRequests(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	for _, proto := range []string{"h2", "h3"} {
		t.Run(proto, func(t *testing.T) { editUnderRequests(t, newClient(t, n, proto)) })
	}
}

func editUnderRequests(t *testing.T, c *client) {
	const edits, requests = 20, 200
	key, host := "routes/edited-"+c.proto, "edited-"+c.proto+".r.test"
	version := func(i int64) string { return respondRoute(host, strconv.FormatInt(i, 10)) }
	c.n.mustPut(key, version(0))

	// begun is the newest version that may be seen, settled the oldest.
	var begun, settled atomic.Int64
	edited := make(chan struct{})
	go func() {
		defer close(edited)
		for i := int64(1); i <= edits; i++ {
			begun.Store(i)
			if _, err := c.n.tryEtcdctl("put", "/sluice/"+key, version(i)); err != nil {
				t.Error(err)
				return
			}
			if !verdictFollows(t, c.n, key) {
				return
			}
			settled.Store(i)
		}
	}()
	ask := func(i int) {
		oldest := settled.Load()
		resp, body, err := c.do(c.request(within(t), http.MethodGet, host, "/", nil))
		if err != nil {
			t.Errorf("request %d: %v", i, err)
			return
		}
		got, err := strconv.ParseInt(body, 10, 64)
		if newest := begun.Load(); resp.StatusCode != 200 || err != nil || got < oldest || got > newest {
			t.Errorf("request %d: status %d, body %q, want a version from %d to %d", i, resp.StatusCode, body, oldest, newest)
		}
	}
	ask(0) // opens the connection
	// Four at a time, until both the requests and the edits are through.
	var next atomic.Int64
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for {
				i := next.Add(1)
				if i >= requests && settled.Load() == edits || t.Failed() {
					return
				}
				ask(int(i))
			}
		})
	}
	asking.Wait()
	<-edited
	if got := c.dials.Load(); got != 1 {
		t.Errorf("%d connections, want all requests on one", got)
	}
}

// verdictFollows waits, off the test's goroutine, until the node's verdict on
// key is about the value that is there now.
func verdictFollows(t *testing.T, n *node, key string) bool {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	revision := func(key string) (string, int64, error) {
		out, err := n.tryEtcdctl("get", "/sluice/"+key, "-w", "json")
		if err != nil {
			return "", 0, err
		}
		var answer struct {
			Kvs []struct {
				Value       []byte
				ModRevision int64 `json:"mod_revision"`
			}
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Kvs) == 0 {
			return "", 0, err
		}
		return string(answer.Kvs[0].Value), answer.Kvs[0].ModRevision, nil
	}
	_, rev, err := revision(key)
	for err == nil && ctx.Err() == nil {
		var record, verdict string
		if record, _, err = revision("nodes/test"); err != nil {
			break
		}
		var node struct {
			Applied int64 `json:"applied_revision"`
		}
		if err = json.Unmarshal([]byte(record), &node); err != nil {
			break
		}
		verdict, _, err = revision("verdicts/test/" + key)
		if err == nil && (verdict == fmt.Sprintf("applied@%d", rev) || verdict == "" && node.Applied >= rev) { // "": right after many others
			return true
		}
	}
	t.Errorf("no verdict on revision %d of %s: %v", rev, key, err)
	return false
}

// An exchange ends at the backend it began with, though its route is edited and
// deleted meanwhile.
func TestExchangesOutliveTheirRoute(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	eachProto(t, n, func(t *testing.T, c *client) {
		const held = 50
		arrived, release := make(chan struct{}, held), make(chan struct{})
		old := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			select {
			case <-release:
				io.WriteString(w, "old")
			case <-r.Context().Done():
			}
		}))
		host := "held-" + c.proto + ".r.test"
		c.n.mustPut("routes/held", backendRoute(host, old))
		c.get(host, "/health-proxy") // opens the connection
		results := make(chan error, held)
		for range held {
			req := c.request(within(t), http.MethodGet, host, "/", nil)
			go func() {
				_, body, err := c.do(req)
				if err == nil && body != "old" {
					err = fmt.Errorf("body %q, want it from the old backend", body)
				}
				results <- err
			}()
		}
		for range held {
			await(t, arrived, "a request at the backend")
		}
		c.n.mustPut("routes/held", respondRoute(host, "new"))
		if _, body := c.get(host, "/"); body != "new" {
			t.Errorf("body %q after the edit, want the new route's", body)
		}
		c.n.delete("routes/held")
		if resp, _ := c.get(host, "/"); resp.StatusCode != 404 {
			t.Errorf("status %d after the route was deleted, want 404", resp.StatusCode)
		}
		close(release)
		for range held {
			if err := await(t, results, "a response"); err != nil {
				t.Error(err)
			}
		}
		if got := c.dials.Load(); c.proto != "h1" && got != 1 {
			t.Errorf("%d connections, want all requests on one", got)
		}
	})
}

// clearRequest sends a request to the node's clear-text port.
func (n *node) clearRequest(method, host, path string) (*http.Response, string) {
	n.t.Helper()
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, toLoopback(addr))
		},
	}
	req, err := http.NewRequestWithContext(within(n.t), method, fmt.Sprintf("http://%s:%d%s", host, n.HTTP, path), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp, string(body)
}

func TestClearTextPort(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/secure", respondRoute("site.r.test", "secure"))
	n.mustPut("routes/both", routeJSON(map[string]any{
		"host": "site.r.test", "path": "/both", "ports": fmt.Sprintf("%d,%d", n.HTTP, n.HTTPS), "respond": map[string]any{"body": "both"}}))
	for _, tt := range []struct {
		method, path string
		status       int
		location     string
	}{
		{"GET", "/a/b?c=d", 301, n.url("site.r.test", "/a/b?c=d")},
		{"HEAD", "/", 301, n.url("site.r.test", "/")},
		{"POST", "/form", 308, n.url("site.r.test", "/form")},
		{"DELETE", "/%2e%2E/x", 308, n.url("site.r.test", "/%2e%2E/x")},
	} {
		resp, _ := n.clearRequest(tt.method, "site.r.test", tt.path)
		if got := resp.Header.Get("Location"); resp.StatusCode != tt.status || got != tt.location {
			t.Errorf("%s %s: %d to %q, want %d to %q", tt.method, tt.path, resp.StatusCode, got, tt.status, tt.location)
		}
	}
	if resp, body := n.clearRequest("GET", "site.r.test", "/both/x"); resp.StatusCode != 200 || body != "both" {
		t.Errorf("the route that names the port: %d %q, want its answer", resp.StatusCode, body)
	}
	eachProto(t, n, func(t *testing.T, c *client) {
		if _, body := c.get("site.r.test", "/both"); body != "both" {
			t.Errorf("the same route over TLS: %q", body)
		}
	})
	n.delete("routes/both")
	if resp, _ := n.clearRequest("GET", "site.r.test", "/both"); resp.StatusCode != 301 {
		t.Errorf("the route is deleted: status %d, want 301", resp.StatusCode)
	}
}

func TestPublicHealth(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/all", respondRoute("*", "a tenant's answer"))
	if resp, body := n.clearRequest("GET", "any.r.test", "/health-proxy"); resp.StatusCode != 200 || body != "ok\n" {
		t.Errorf("in clear text: %d %q", resp.StatusCode, body)
	}
	eachProto(t, n, func(t *testing.T, c *client) {
		if resp, body := c.get("any.r.test", "/health-proxy"); resp.StatusCode != 200 || body != "ok\n" {
			t.Errorf("%d %q, want the node's own answer", resp.StatusCode, body)
		}
	})
	if out := n.curl("-w", " %{http_code}", fmt.Sprintf("https://127.0.0.1:%d/health-proxy", n.HTTPS)); strings.TrimSpace(out) != "ok\n 200" {
		t.Errorf("curl to the bare address: %q", out)
	}
}

func TestCurl(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/curl", backendRoute("curl.localhost", startBackend(t, named("a"))))
	url := n.url("curl.localhost", "/x")
	for flag, version := range map[string]string{"--http1.1": "1.1", "--http2": "2"} {
		want := fmt.Sprintf("a: GET /x for curl.localhost:%d %s 200", n.HTTPS, version)
		if got := n.curl(flag, "-w", " %{http_version} %{http_code}", url); got != want {
			t.Errorf("curl %s: %q, want %q", flag, got, want)
		}
	}
}

// Every exchange leaves a record in the access log and counts in the metrics.
func TestAccessLogAndMetrics(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "0123456789")
	}))
	n.mustPut("routes/logged", routeJSON(map[string]any{
		"host": `~^(?<id>[a-z0-9]+)\.log\.test$`, "path": "/app", "backend": backend, "service": "jupyter"}))
	n.mustPut("routes/dead", backendRoute("dead.log.test", loopback(n.port(0))))
	eachProto(t, n, func(t *testing.T, c *client) {
		n := c.n
		host, path := "env"+c.proto+".log.test", "/app/"+c.proto
		req := c.request(within(t), http.MethodPut, host, path+"?token=secret", strings.NewReader("12345"))
		req.Header.Set("Authorization", "Bearer secret")
		c.mustDo(req)
		record := n.accessRecord(map[string]any{"route": "logged", "path": path})
		for key, want := range map[string]any{
			"msg": "request", "proto": c.proto, "method": "PUT", "host": host, "path": path, "status": 201.0,
			"env": "env" + c.proto, "service": "jupyter", "backend": backend, "bytes_up": 5.0, "bytes_down": 10.0,
			"listener": fmt.Sprintf("https/%d", n.HTTPS), "port": float64(n.HTTPS),
		} {
			if record[key] != want {
				t.Errorf("access record: %s is %v, want %v", key, record[key], want)
			}
		}
		if client, _ := record["client"].(string); !strings.Contains(client, "127.0.0.1") {
			t.Errorf("access record: client is %v, want loopback", record["client"])
		}
		ttfb, _ := record["ttfb"].(float64)
		duration, _ := record["duration"].(float64)
		if ttfb <= 0 || duration < ttfb || duration > patience.Seconds() {
			t.Errorf("access record: %v seconds, %v to the first byte", record["duration"], record["ttfb"])
		}
		if text, err := os.ReadFile(filepath.Join(n.dir, "access.log")); err != nil || bytes.Contains(text, []byte("secret")) {
			t.Errorf("the access log gives a secret away (%v)", err)
		}

		before := n.requests(c.proto, "logged")
		for range 3 {
			c.get(host, path)
		}
		eventually(t, "three more requests are counted", func() error {
			if got := n.requests(c.proto, "logged") - before; got != 3 {
				return fmt.Errorf("%v more", got)
			}
			return nil
		})

		c.get("dead.log.test", "/")
		failed := n.accessRecord(map[string]any{"route": "dead", "proto": c.proto})
		if end := fmt.Sprint(failed["end"]); failed["status"] != 502.0 || failed["end"] == nil || end == "" || end == "done" {
			t.Errorf("record of a failure: %v", failed)
		}
		c.get("nobody.test", "/"+c.proto)
		if lost := n.accessRecord(map[string]any{"host": "nobody.test", "proto": c.proto}); lost["status"] != 404.0 {
			t.Errorf("record of a request without a route: %v", lost)
		}
	})
	n.clearRequest("GET", "clear.log.test", "/")
	if record := n.accessRecord(map[string]any{"host": "clear.log.test"}); record["status"] != 301.0 || record["listener"] != fmt.Sprintf("http/%d", n.HTTP) {
		t.Errorf("record of a redirect to https: %v", record)
	}
}

// requests returns how many requests the metrics count by a version of HTTP on
// a route.
func (n *node) requests(proto, route string) (sum float64) {
	n.t.Helper()
	_, body, err := httpGet("http://" + n.Admin + "/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(series, "sluice_http_requests_total{") ||
			!strings.Contains(series, `proto="`+proto+`"`) || !strings.Contains(series, `route="`+route+`"`) {
			continue
		}
		count, err := strconv.ParseFloat(value, 64)
		if err != nil {
			n.t.Fatalf("metrics: %q: %v", line, err)
		}
		sum += count
	}
	return sum
}

// What operators see is on the admin address alone.
func TestAdminIsNotPublic(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	paths := []string{"/metrics", "/healthz", "/readyz", "/debug/pprof/", "/debug/pprof/cmdline"}
	for _, path := range paths {
		if status, body, err := httpGet("http://" + n.Admin + path); err != nil || status != 200 || body == "" {
			t.Errorf("admin %s: %d, %v", path, status, err)
		}
		if resp, _ := n.clearRequest("GET", "127.0.0.1", path); resp.StatusCode != 301 {
			t.Errorf("clear text %s: %d, want the redirect to https", path, resp.StatusCode)
		}
	}
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, path := range paths {
			if resp, _ := c.get("demo.localhost", "/x"+path); resp.StatusCode != 404 {
				t.Errorf("%s below a path: %d, want 404", path, resp.StatusCode)
			}
			if resp, _ := c.get("nobody.test", path); resp.StatusCode != 404 {
				t.Errorf("%s: %d, want 404", path, resp.StatusCode)
			}
		}
	})
}
