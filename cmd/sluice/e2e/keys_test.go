package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// keyCommand runs a command that reads or changes the node's keys.
func (n *node) keyCommand(wantCode int, args ...string) (stdout, stderr string) {
	n.t.Helper()
	code, stdout, stderr := runSluice(n.t, n.dir, append(args, "--config", "sluice.yaml")...)
	if code != wantCode {
		n.t.Fatalf("sluice %s: exit code %d, want %d; it said\n%s%s", strings.Join(args, " "), code, wantCode, stdout, stderr)
	}
	return stdout, stderr
}

// TestKeyCommands changes keys by the program's own commands, as people would
// in turn.
func TestKeyCommands(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	name := fmt.Sprintf("tcp/%d", n.port(0))
	key := "ports/" + name

	out, _ := n.keyCommand(0, "map", "put", name, startLines(t, "first"))
	openSession(t, n.port(0)).want("first", "the port is open when the command returns")
	if _, rev := n.get(key); !strings.Contains(out, fmt.Sprintf("applied@%d", rev)) {
		t.Errorf("map put said\n%s", out)
	}

	_, errOut := n.keyCommand(1, "map", "put", name, `{"backend": "10.0.0.1:22", "idle_timeout": "10"}`)
	if value, _ := n.get(key); strings.Contains(value, "idle_timeout") || !strings.Contains(errOut, "nothing was written") {
		t.Errorf("of a bad value: %s; the key is %s", errOut, value)
	}
	_, rev := n.get(key)
	n.keyCommand(0, "map", "put", name, "10.0.0.1:22", "--dry-run")
	if _, now := n.get(key); now != rev {
		t.Error("a dry run wrote")
	}
	n.keyCommand(2, "map", "put", "tcp/70000", "10.0.0.1:22")
	n.keyCommand(2, "map", "put", name)
	n.keyCommand(2, "map", "delete", name)
	n.keyCommand(2, "rollback")

	// Only a node knows that; the command waits for it and fails.
	n.keyCommand(1, "map", "put", fmt.Sprintf("tcp/%d", n.port(1)), n.Admin)

	n.keyCommand(0, "route", "put", "site", `{"host": "site.localhost", "respond": {"body": "hello"}}`)
	if body := n.curl(n.url("site.localhost", "/")); body != "hello" {
		t.Errorf("the route answers %q", body)
	}
	out, _ = n.keyCommand(0, "map", "ls", "-o", "json")
	var listed []string
	for line := range strings.Lines(out) {
		var e struct {
			Key      string
			Verdicts map[string]struct{ State string }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		listed = append(listed, e.Key+" "+e.Verdicts["test"].State)
	}
	if want := []string{key + " applied", fmt.Sprintf("ports/tcp/%d refused", n.port(1))}; !slices.Equal(listed, want) {
		t.Errorf("map ls: %q, want %q", listed, want)
	}
	out, _ = n.keyCommand(0, "status")
	if !strings.Contains(out, "test") || !strings.Contains(out, "the admin address of this node") {
		t.Errorf("status said\n%s", out)
	}
	n.keyCommand(0, "map", "rm", name, fmt.Sprintf("tcp/%d", n.port(1)))
	n.keyCommand(1, "map", "rm", name)
	n.keyCommand(1, "map", "get", name)
}

// TestApply makes keys as files say.
func TestApply(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	files := filepath.Join(n.dir, "keys")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(files, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, second := startLines(t, "first"), startLines(t, "second")
	var many strings.Builder
	for i := range 3 {
		fmt.Fprintf(&many, "ports/tcp/%d: %s\n", n.port(i), first)
	}
	for i := range 300 { // several transactions
		fmt.Fprintf(&many, "routes/r%d: {host: r%d.localhost, respond: {body: r%d}}\n", i, i, i)
	}
	write("ports.yaml", many.String())
	n.keyCommand(0, "check", "keys")
	out, _ := n.keyCommand(0, "apply", "-f", "keys", "--dry-run")
	if value, _ := n.get(fmt.Sprintf("ports/tcp/%d", n.port(0))); value != "" || !strings.Contains(out, "303 changes; nothing was written") {
		t.Errorf("a dry run said\n%s", out)
	}
	n.keyCommand(0, "apply", "-f", "keys")
	s := openSession(t, n.port(2))
	s.want("first", "hello")
	if body := n.curl(n.url("r299.localhost", "/")); body != "r299" {
		t.Errorf("a route answers %q", body)
	}
	out, _ = n.keyCommand(0, "apply", "-f", "keys")
	if !strings.Contains(out, "nothing to change: 303 keys as wanted") {
		t.Errorf("the second time it said\n%s", out)
	}

	// One that a node would refuse stops all of them.
	write("ports.yaml", fmt.Sprintf("ports/tcp/%d: %s\nports/tcp/%d: nonsense\n", n.port(0), second, n.port(1)))
	n.keyCommand(2, "check", "keys")
	n.keyCommand(1, "apply", "-f", "keys")
	openSession(t, n.port(0)).want("first", "as before")

	// Keys that no file has stay, or go where somebody says so twice.
	write("ports.yaml", fmt.Sprintf("ports/tcp/%d: %s\n", n.port(0), second))
	n.keyCommand(0, "apply", "-f", "keys")
	openSession(t, n.port(0)).want("second", "hello")
	n.keyCommand(2, "apply", "-f", "keys", "--prune", "ports/")
	s.want("first", "still there")
	n.keyCommand(2, "apply", "-f", "keys", "--prune", "nodes/", "--yes")
	n.keyCommand(0, "apply", "-f", "keys", "--prune", "ports/", "--yes")
	if value, _ := n.get(fmt.Sprintf("ports/tcp/%d", n.port(2))); value != "" {
		t.Errorf("a pruned key is %q", value)
	}
	openSession(t, n.port(0)).want("second", "stays")
}

// TestWait waits for what the nodes of a cluster have applied.
func TestWait(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.etcdctl("put", "/sluice/routes/a", `{"host": "a.localhost", "respond": {"body": "a"}}`)
	rev := n.modRevision("/sluice/routes/a")
	n.keyCommand(0, "wait", "--rev", fmt.Sprint(rev))
	n.keyCommand(0, "wait")
	n.etcdctl("del", "/sluice/routes/a") // which leaves no key of that revision
	if out, _ := n.keyCommand(0, "wait"); strings.Contains(out, fmt.Sprintf(" %d\n", rev)) {
		t.Errorf("after a deletion at a revision behind %d it said %s", rev, out)
	}
	// One that is live and never gets there.
	n.etcdctl("put", "/sluice/nodes/stuck", `{"name": "stuck", "applied_revision": 1}`)
	_, errOut := n.keyCommand(1, "wait", "--rev", fmt.Sprint(rev), "--timeout", "300ms")
	if !strings.Contains(errOut, "stuck") || strings.Contains(errOut, "test") {
		t.Errorf("it said %s", errOut)
	}
	_, errOut = n.keyCommand(1, "route", "put", "b", `{"host": "b.localhost", "respond": {"body": "b"}}`, "--wait", "300ms")
	if !strings.Contains(errOut, "stuck") {
		t.Errorf("it said %s", errOut)
	}
	n.keyCommand(0, "route", "put", "c", `{"host": "c.localhost", "respond": {"body": "c"}}`, "--wait", "0s")

	// A deletion is a change that a node can be behind.
	n.etcdctl("put", "/sluice/nodes/stuck", fmt.Sprintf(`{"name": "stuck", "applied_revision": %d}`, n.modRevision("/sluice/routes/c")))
	n.etcdctl("del", "/sluice/routes/c")
	out, _ := n.keyCommand(0, "status", "-o", "json")
	var status struct {
		Nodes []struct {
			Name   string
			Behind int
		}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatal(err)
	}
	if len(status.Nodes) != 2 || status.Nodes[0].Name != "stuck" || status.Nodes[0].Behind != 1 {
		t.Errorf("after a deletion that a node has not seen it said %s", out)
	}
	if _, errOut := n.keyCommand(1, "wait", "--timeout", "300ms"); !strings.Contains(errOut, "stuck") {
		t.Errorf("it said %s", errOut)
	}
	n.keyCommand(2, "wait", "--timeout", "0s")
	n.keyCommand(2, "wait", "--rev", "-3")

	// Where no node is live, as below a prefix that is a slip of the hand, nothing is in force.
	for _, args := range [][]string{{"wait"}, {"confirm"}, {"route", "put", "d", `{"host": "d.localhost", "respond": {"body": "d"}}`}} {
		if _, errOut := n.keyCommand(1, append(args, "--prefix", "/slucie")...); !strings.Contains(errOut, "no node is live that reads keys below /slucie/") {
			t.Errorf("%s said %s", args[0], errOut)
		}
	}
}

// TestHistory finds out what happened, and undoes it, by what the nodes have
// recorded, after etcd has forgotten.
func TestHistory(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	first, second := startLines(t, "first"), startLines(t, "second")
	name := fmt.Sprintf("tcp/%d", n.port(0))
	n.keyCommand(0, "map", "put", name, first)
	n.etcdctl("put", "/sluice/routes/site", `{"host": "site.localhost", "respond": {"body": "before"}}`)
	good := n.modRevision("/sluice/routes/site")
	n.keyCommand(0, "token", "create", "robot", "--role", "admin")
	n.keyCommand(0, "snapshot", "save", "before.snap")
	n.keyCommand(0, "token", "rm", "robot")

	n.etcdctl("put", "/sluice/ports/"+name, second)
	n.etcdctl("del", "/sluice/routes/site")
	n.etcdctl("put", "/sluice/routes/odd", `{"host": "odd.localhost", "respond": {"body": "odd"}}`)
	last := n.modRevision("/sluice/routes/odd")
	eventually(t, "the changes are recorded", func() error {
		text, _ := n.get("history/recorded")
		var recorded struct{ To int64 }
		if err := json.Unmarshal([]byte(text), &recorded); err != nil || recorded.To < last {
			return fmt.Errorf("it is %q, %v", text, err)
		}
		return nil
	})
	n.etcdctl("compact", fmt.Sprint(last))

	out, _ := n.keyCommand(0, "history", "ports/"+name)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], ": sluice map put") || !strings.Contains(lines[1], "+ ports/"+name) ||
		!strings.Contains(lines[2], first+"  ->  "+second) {
		t.Errorf("history said\n%s", out)
	}
	out, _ = n.keyCommand(0, "diff", fmt.Sprint(good))
	if want := fmt.Sprintf("~ ports/%s %s  ->  %s\n+ routes/odd", name, first, second); !strings.HasPrefix(out, want) || !strings.Contains(out, "- routes/site") {
		t.Errorf("diff said\n%swant\n%s", out, want)
	}
	out, _ = n.keyCommand(0, "diff", fmt.Sprint(good), fmt.Sprint(good))
	if out != "no difference\n" {
		t.Errorf("of a revision and itself, diff said\n%s", out)
	}
	if out, _ = n.keyCommand(0, "history", "tokens/"); !strings.Contains(out, `- tokens/robot {"role":"admin"`) || strings.Contains(out, "hash") {
		t.Errorf("of a token, history said\n%s", out)
	}

	n.etcdctl("put", "/sluice/drain/elsewhere", "{}")
	n.keyCommand(2, "rollback", "--to", fmt.Sprint(good)) // it removes a key
	n.keyCommand(0, "rollback", "--to", fmt.Sprint(good), "--under", "routes/", "--yes")
	if body := n.curl(n.url("site.localhost", "/")); body != "before" {
		t.Errorf("after the rollback the route answers %q", body)
	}
	openSession(t, n.port(0)).want("second", "not below routes/")
	n.keyCommand(0, "rollback", "--to", fmt.Sprint(good))
	openSession(t, n.port(0)).want("first", "as it was")
	n.keyCommand(0, "rollback", "--to", fmt.Sprint(last), "--yes") // and back
	openSession(t, n.port(0)).want("second", "rolled back the rollback")
	n.keyCommand(1, "rollback", "--to", "1")
	n.keyCommand(2, "diff", "yesterday")

	n.keyCommand(0, "snapshot", "restore", "before.snap", "--prune", "--yes")
	openSession(t, n.port(0)).want("first", "of the snapshot")
	if value, _ := n.get("drain/elsewhere"); value != "{}" {
		t.Errorf("after a rollback and a restore a node is no longer drained: %q", value)
	}
	if value, _ := n.get("tokens/robot"); value != "" {
		t.Errorf("a token that was revoked is good again: %q", value)
	}
	n.keyCommand(0, "snapshot", "restore", "before.snap", "--tokens") // on which no node acts
	if value, _ := n.get("tokens/robot"); value == "" {
		t.Error("a token did not come back")
	}
	if value, _ := n.get("routes/odd"); value != "" {
		t.Errorf("a key that the snapshot does not have is %q", value)
	}
	text, err := os.ReadFile(filepath.Join(n.dir, "before.snap"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "cut.snap"), text[:len(text)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	_, errOut := n.keyCommand(1, "snapshot", "restore", "cut.snap")
	if !strings.Contains(errOut, "cut") {
		t.Errorf("of half a snapshot: %s", errOut)
	}
}

// TestShrinkGuard deletes by a wrong prefix, and finds that nobody noticed but
// the operator.
func TestShrinkGuard(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := startLines(t, "backend")
	var files strings.Builder
	for i := range mappedPerNode {
		fmt.Fprintf(&files, "ports/tcp/%d: %s\n", n.port(i), backend)
	}
	for i := range 100 {
		fmt.Fprintf(&files, "routes/r%d: {host: r%d.localhost, respond: {body: r%d}}\n", i, i, i)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "keys.yaml"), []byte(files.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	n.keyCommand(0, "apply", "-f", "keys.yaml")

	n.etcdctl("del", "--prefix", "/sluice/routes/")
	n.wantVerdict("routes/r7", "held: its deletion at revision ")
	if body := n.curl(n.url("r7.localhost", "/")); body != "r7" {
		t.Errorf("a route whose deletion is held back answers %q", body)
	}
	if err := n.readiness(200, "etcd", "101 deletions are held back"); err != nil { // the demo's route as well
		t.Error(err)
	}
	if _, errOut := n.keyCommand(0, "snapshot", "save", "night.snapshot"); !strings.Contains(errOut, "more than are saved: their deletion is held back") {
		t.Errorf("saving a snapshot meanwhile said %q", errOut)
	}
	// After a restart as well, with the state on disk and in etcd apart.
	n.stop()
	n.start()
	n.wantVerdict("routes/r8", "held: ")
	if body := n.curl(n.url("r8.localhost", "/")); body != "r8" {
		t.Errorf("after a restart the route answers %q", body)
	}

	n.keyCommand(0, "route", "put", "r7", `{"host": "r7.localhost", "respond": {"body": "again"}}`)
	out, _ := n.keyCommand(0, "confirm")
	if !strings.Contains(out, "confirmed 100 deletions") {
		t.Errorf("confirm said %s", out)
	}
	if body := n.curl(n.url("r7.localhost", "/")); body != "again" {
		t.Errorf("a route that was put again answers %q", body)
	}
	if status := n.curl("-o", "/dev/null", "-w", "%{http_code}", n.url("r8.localhost", "/")); status != "404" {
		t.Errorf("after the confirmation a route answers %s", status)
	}
	out, _ = n.keyCommand(0, "confirm")
	if out != "no deletions are held back\n" {
		t.Errorf("confirm said %s", out)
	}

	// By a command it takes a word more.
	var names []string
	for i := range 60 {
		n.keyCommand(0, "route", "put", fmt.Sprintf("q%d", i), `{"host": "q.localhost", "respond": {}}`, "--wait", "0s")
		names = append(names, fmt.Sprintf("q%d", i))
	}
	n.keyCommand(2, append([]string{"route", "rm"}, names...)...)
	n.keyCommand(0, append([]string{"route", "rm", "--yes"}, names...)...)
}

// TestExplain asks which rule wins, and why the others do not.
func TestExplain(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	lines := startLines(t, "lines")
	n.mustPut("ports/tcp/"+fmt.Sprint(n.port(0)), fmt.Sprintf(`{"backend": %q, "deny": ["203.0.113.0/24"], "limits": {"connections": 7}}`, lines))
	n.mustPut("routes/env", `{"host": "~^env-(?<id>[a-z]+)\\.localhost$", "path": "/jupyter", "backend": "127.0.0.${id}:8888"}`)
	n.mustPut("routes/envs", `{"host": "*.localhost", "path": "/other", "respond": {"status": 204}}`)
	n.mustPut("routes/away", `{"host": "away.localhost", "redirect": "https://${host}/new"}`)
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"explain", fmt.Sprintf("127.0.0.1:%d", n.port(0)), "--from", "203.0.113.7"},
			[]string{"goes raw to " + lines, "keep 203.0.113.7 out", `{"connections":7}`, "applied@", "target"}},
		{[]string{"explain", fmt.Sprintf("udp/%d", n.port(0))}, []string{"is not mapped"}},
		{[]string{"explain", "https://env-abc.localhost/jupyter/tree"},
			[]string{"routes/env", "id=abc", "certificate", "env-abc.localhost", "routes/envs (*.localhost): path: /jupyter/tree does not begin with /other"}},
		{[]string{"explain", "https://away.localhost/"}, []string{"the client is sent to https://away.localhost/new"}},
		{[]string{"explain", "https://nobody.example/"}, []string{"no route answers: 404"}},
		{[]string{"explain", "https://x.localhost:1/other"}, []string{"does not listen at port 1 for https, but at "}},
		{[]string{"explain", fmt.Sprintf("https://x.localhost:%d/other", n.port(0))}, []string{"is mapped, and no route is asked there"}},
		{[]string{"explain", "http://demo.localhost/"}, []string{"the client is sent to https"}},
		{[]string{"explain", fmt.Sprintf("tcp/%d", n.HTTPS)}, []string{"is the https listener at", fmt.Sprintf("https://www.x-gpu.com:%d/", n.HTTPS)}},
		{[]string{"explain", "https://x.localhost/other", "-o", "json"}, []string{`"key": "routes/envs"`, `"outcome": "the node answers by itself: 204"`}},
	} {
		out := n.sluice(tc.args...)
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s said\n%swant %q in it", strings.Join(tc.args, " "), out, want)
			}
		}
	}
	if out := n.sluice("explain", n.url("x.localhost", "/other")); strings.Contains(out, "note") {
		t.Errorf("of a request that comes to its listener it says\n%s", out)
	}
	if code, _, stderr := runSluice(t, n.dir, "explain", "ftp://x", "--admin", n.Admin); code != 2 || !strings.Contains(stderr, "no URL of a request") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// TestExplainFields holds what is said of the fields of a route against what a
// client is answered.
func TestExplainFields(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	up := startLines(t, "up")
	n.mustPut("routes/only", fmt.Sprintf(`{"host": "only.localhost", "ports": "%d,%d", "https_only": true, "backend": %q}`, n.HTTP, n.HTTPS, up))
	n.mustPut("routes/strip", fmt.Sprintf(`{"host": "strip.localhost", "path": "/code", "strip_prefix": true, "backend": %q}`, up))
	n.mustPut("routes/rewrite", fmt.Sprintf(`{"host": "rewrite.localhost", "path": "/v1", "rewrite": "/v2", "backend": %q}`, up))
	n.mustPut("routes/basic", fmt.Sprintf(`{"host": "basic.localhost", "backend": %q,
		"basic_auth": {"users": {"u": "$2y$04$abcdefghijklmnopqrstuuO7kPVCZ0zhXYTtlNl2IwnbYO3ITFI4y"}}}`, up))
	n.mustPut("routes/asks", fmt.Sprintf(`{"host": "asks.localhost", "backend": %q, "forward_auth": {"backend": "127.0.0.1:9", "path": "/verify"},
		"limits": {"body": "1KB", "rate": {"requests": 5, "per": "1m"}}}`, up))
	n.mustPut("routes/cors", fmt.Sprintf(`{"host": "cors.localhost", "backend": %q, "cors": {"origins": ["https://app.localhost"]}}`, up))
	n.mustPut("routes/capture", `{"host": "~^(?<id>[a-z0-9.]+)\\.capture\\.localhost$", "backend": "${id}:9301"}`)
	n.mustPut("routes/away", `{"host": "away.localhost", "redirect": {"to": "https://${host}${uri}", "status": 308}}`)
	n.mustPut("routes/down", fmt.Sprintf(`{"host": "down.localhost", "backend": {"targets": ["127.0.0.1:9", %q], "health": {"interval": "1s", "timeout": "1s"}}}`, up))
	preflight := []string{"-X", "OPTIONS", "-H", "Access-Control-Request-Method: PUT", "-H"}
	for _, tc := range []struct {
		url  string
		more []string
		want []string
	}{
		{fmt.Sprintf("http://only.localhost:%d/a?b=c", n.HTTP), nil, []string{fmt.Sprintf("https_only: the client is sent to https://only.localhost:%d/a?b=c (301)", n.HTTPS)}},
		{fmt.Sprintf("http://only.localhost:%d/", n.HTTP), []string{"-X", "POST"}, []string{"(308)"}},
		{"https://only.localhost/", nil, []string{"goes to " + up + "\n"}},
		{"https://strip.localhost/code/a%2Fb?q=1", nil, []string{"goes to " + up + ", asking for /a%2Fb?q=1\n"}},
		{"https://rewrite.localhost/v1/x", nil, []string{"asking for /v2/x\n"}},
		{"https://basic.localhost/", nil, []string{"401: basic_auth"}},
		{"https://basic.localhost/", []string{"-H", "Authorization: Basic dTpw"}, []string{"goes to " + up, "not verified here"}},
		{"https://asks.localhost/", nil, []string{"goes to " + up, "forward_auth: GET /verify of 127.0.0.1:9", `"per":"1m"`, `"body":1000`}},
		{"https://cors.localhost/", append(preflight, "Origin: https://evil.localhost"), []string{"403: cors"}},
		{"https://cors.localhost/", append(preflight, "Origin: https://app.localhost"), []string{"answers this preflight by itself: 204"}},
		{"https://cors.localhost/", []string{"-X", "CONNECT"}, []string{"501: CONNECT"}},
		{"https://a.b.capture.localhost/", nil, []string{"400: backend ${id}:9301: the value \"a.b\" of ${id} is not a plain DNS label"}},
		{"https://away.localhost/x", nil, []string{"sent to https://away.localhost/x (308)"}},
	} {
		args := append([]string{"explain", tc.url}, tc.more...)
		out := n.sluice(args...)
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s said\n%swant %q in it", strings.Join(args, " "), out, want)
			}
		}
	}
	eventually(t, "a target is told to be down", func() error {
		if out := n.sluice("explain", "https://down.localhost/"); !strings.Contains(out, "goes to "+up+" (not to 127.0.0.1:9: down)") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
