package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write writes a file of the test's.
func (n *node) write(name, text string) (path string) {
	n.t.Helper()
	path = filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// TestEnvironments gives environments ports and a route, changes and ends them,
// by the program's own commands.
func TestEnvironments(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	_, first, err := net.SplitHostPort(startLines(t, "first"))
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := net.SplitHostPort(startLines(t, "second"))
	if err != nil {
		t.Fatal(err)
	}
	n.keyCommand(0, "pool", "put", "ssh", fmt.Sprintf(`{"ports": "%d-%d", "backend_port": %s, "quarantine": "0s",
		"access": {"host": "${env}.ssh.x-gpu.com", "username": "root", "command": "ssh -p ${port} ${username}@${host}"}}`, n.port(0), n.port(1), first))
	n.keyCommand(0, "pool", "put", "web", `{"backend_port": 80, "route": {"host": "env-${env}.localhost", "path": "/web"}}`)

	out, _ := n.keyCommand(0, "env", "create", "a", "--backend", "127.0.0.1", "--service", "ssh,web", "-o", "json")
	var made struct {
		Revision int64
		Services map[string]struct {
			Port           int
			Backend, Route string
		}
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	if s := made.Services; s["ssh"].Port != n.port(0) || s["web"].Route != "env.a.web" || made.Revision == 0 {
		t.Errorf("env create said %s", out)
	}
	a := openSession(t, n.port(0))
	a.want("first", "the port is open when the command returns")
	if value, _ := n.get("routes/env.a.web"); !strings.Contains(value, "env-a.localhost") {
		t.Errorf("the route is %q", value)
	}
	out, _ = n.keyCommand(0, "env", "access", "a")
	if want := fmt.Sprintf("ssh -p %d root@a.ssh.x-gpu.com", n.port(0)); !strings.Contains(out, want) {
		t.Errorf("env access said %s, want %q", out, want)
	}
	_, errOut := n.keyCommand(1, "env", "create", "a", "--backend", "127.0.0.2", "--service", "ssh,web")
	if !strings.Contains(errOut, `environment a exists already, with the backend "127.0.0.1"`) {
		t.Errorf("a second one of the name: %s", errOut)
	}

	n.keyCommand(0, "env", "create", "b", "--backend", "127.0.0.1", "--service", "ssh")
	visit(t, n.port(1), "first", "of b")
	_, errOut = n.keyCommand(1, "env", "create", "c", "--backend", "127.0.0.1", "--service", "ssh,web")
	if !strings.Contains(errOut, "the pool ssh is exhausted: of its 2 ports 2 are held") {
		t.Errorf("of an exhausted pool: %s", errOut)
	}
	if value, _ := n.get("routes/env.c.web"); value != "" {
		t.Errorf("what came to nothing left a route: %s", value)
	}

	// A pool that shrinks under what is held says so, and until when.
	whole, _ := n.get("pools/ssh")
	shrunk := strings.Replace(whole, fmt.Sprintf("%d-%d", n.port(0), n.port(1)), fmt.Sprint(n.port(1)), 1)
	out, _ = n.keyCommand(0, "pool", "put", "ssh", shrunk)
	outside := fmt.Sprintf("ports_outside: environments hold 1 port outside of it, %d, and keep them", n.port(0))
	if !strings.Contains(out, outside) {
		t.Errorf("pool put said %s, want %q", out, outside)
	}
	if out, _ = n.keyCommand(0, "pool", "ls"); !strings.Contains(out, "degraded: ports_outside") {
		t.Errorf("pool ls said %s", out)
	}
	if out, _ = n.keyCommand(0, "pool", "get", "ssh"); !strings.Contains(out, outside) {
		t.Errorf("pool get said %s, want %q", out, outside)
	}
	a.want("first", "of a port that its pool does not have any more")
	held := "2 environments hold 2 ports of the pool ssh: they keep them"
	if _, errOut := n.keyCommand(2, "pool", "rm", "ssh"); !strings.Contains(errOut, held) {
		t.Errorf("pool rm said %s, want %q", errOut, held)
	}
	if _, errOut := n.keyCommand(0, "pool", "rm", "ssh", "--yes"); !strings.Contains(errOut, held) {
		t.Errorf("pool rm --yes said %s, want %q", errOut, held)
	}
	a.want("first", "of a port that has no pool any more")
	n.keyCommand(0, "pool", "put", "ssh", whole)
	out, _ = n.keyCommand(1, "pool", "put", "old", `{"ports": "70000-89999", "backend_port": 22}`)
	if want := "port 70000 does not exist; ports run from 1 to 65535; "; !strings.Contains(out, want) {
		t.Errorf("the ports of the old plan: %s, want %q", out, want)
	}

	// Without sluice.yaml nodes say by their verdicts which pools are in force.
	n.keyCommand(0, "pool", "put", "bad", fmt.Sprintf(`{"ports": "%d", "backend_port": %s}`, n.port(2), first))
	n.put("pools/bad", fmt.Sprintf(`{"ports": "1-9", "backend_port": %s}`, first))
	code, out, errOut := runSluice(t, n.dir, "env", "create", "x", "--backend", "127.0.0.1", "--service", "bad", "--endpoints", n.Etcd)
	if want := `the pool "bad" is not in force, nodes refuse its value: ports: `; code != 1 || !strings.Contains(errOut, want) {
		t.Errorf("of a pool that nodes refuse: exit code %d, %s%s, want %q", code, out, errOut, want)
	}
	if _, out, _ = runSluice(t, n.dir, "port", "pools", "--endpoints", n.Etcd); strings.Contains(out, "bad") || !strings.Contains(out, "ssh") {
		t.Errorf("port pools counts a pool that is refused: %s", out)
	}
	n.keyCommand(0, "pool", "rm", "bad")

	// Any port inside that an environment allows, named by the client.
	_, inner, err := net.SplitHostPort(startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "inner") })))
	if err != nil {
		t.Fatal(err)
	}
	n.keyCommand(0, "pool", "put", "any", `{"backend_port": 80, "route": {"host": "${inner}--env-${env}.localhost"}}`)
	n.keyCommand(0, "env", "create", "e", "--file", n.write("e.json", fmt.Sprintf(`{"backend": "127.0.0.1", "services": {"any": {"inner_ports": "1-9,%s"}}}`, inner)))
	if body := n.curl(n.url(inner+"--env-e.localhost", "/")); body != "inner" {
		t.Errorf("a port inside answers %q", body)
	}
	if body := n.curl(n.url("10--env-e.localhost", "/")); body == "inner" {
		t.Error("a port inside that is not allowed answers")
	}

	n.keyCommand(0, "env", "rm", "a")
	a.wantCut()
	for _, drain := range []string{"1h", "1s"} {
		n.keyCommand(0, "env", "create", "drained", "--backend", "127.0.0.1", "--service", "ssh")
		slow := openSession(t, n.port(0))
		slow.want("first", "of an environment that is to drain")
		n.keyCommand(0, "env", "rm", "drained", "--drain", drain)
		if drain == "1s" {
			slow.wantCut()
			n.accessRecord(map[string]any{"client": slow.LocalAddr(), "end": "deleted"})
			continue
		}
		slow.want("first", "of an environment that is gone, for as long as it was told to drain")
		if _, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.port(0))); err == nil {
			t.Error("the port of an environment that drains takes new sessions")
		}
		slow.Close()
	}
	n.keyCommand(0, "env", "create", "d", "--file", n.write("d.json", fmt.Sprintf(`{"backend": "127.0.0.1", "services": {"ssh": {"backend": ":%s"}}, "expires_at": %q}`,
		second, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))))
	visit(t, n.port(0), "second", "of d")
	out, _ = n.keyCommand(0, "port", "ls", "ssh", "-o", "json")
	if got := strings.Count(out, `"state":"allocated"`); got != 2 {
		t.Errorf("port ls said %s", out)
	}
	n.keyCommand(0, "port", "audit")
	eventually(t, "d is to end soon", func() error { // a second or two from now, which may be over before it is written
		if code, out, errOut := runSluice(t, n.dir, "env", "patch", "d", "--expires", "2s", "--wait", "0", "--config", "sluice.yaml"); code != 0 {
			return fmt.Errorf("env patch: %s%s", out, errOut)
		}
		return nil
	})
	eventually(t, "the end of d", func() error {
		if value, _ := n.get("envs/d"); value != "" {
			return errors.New("envs/d is there")
		}
		return nil
	})
	if value, _ := n.get(fmt.Sprintf("ports/tcp/%d", n.port(0))); value != "" {
		t.Errorf("an expired environment left %s", value)
	}
	out, _ = n.keyCommand(0, "port", "pools", "-o", "json")
	var pools map[string]map[string]int
	if err := json.Unmarshal([]byte(out), &pools); err != nil {
		t.Fatal(err)
	}
	if want := (map[string]int{"size": 2, "held": 1, "available": 1, "reserved": 0, "quarantined": 0, "mapped": 0}); !cmp.Equal(pools["ssh"], want) {
		t.Errorf("port pools said %s", out)
	}
	n.put(fmt.Sprintf("ports/tcp/%d", n.port(0)), "127.0.0.1:"+first)
	out, _ = n.keyCommand(1, "port", "audit")
	if !strings.Contains(out, "that nobody holds") {
		t.Errorf("port audit said %s", out)
	}
}

// TestSecretsOfEnvironments has secrets given on the command line: sealed in etcd,
// told who asks with the key, and sealed anew when that changes.
func TestSecretsOfEnvironments(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.keyCommand(0, "pool", "put", "jupyter", fmt.Sprintf(`{"ports": "%d-%[1]d", "backend_port": 8888,
		"access": {"host": "x-gpu.com", "url": "https://${host}:${port}/?token=${secret.token}"}}`, n.port(0)))
	file := filepath.Join(n.dir, "a.json")
	if err := os.WriteFile(file, []byte(`{"id": "a", "backend": "127.0.0.1", "services": {"jupyter": {"secrets": {"token": "hunter2"}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(n.dir, "data", "cluster.key")
	eventually(t, "the node has made a key", func() error { _, err := os.Stat(key); return err })
	n.keyCommand(0, "env", "create", "--file", file)
	if value, _ := n.get("envs/a"); !strings.Contains(value, "secrets") || strings.Contains(value, "hunter2") {
		t.Errorf("envs/a is %s, want the secret, sealed", value)
	}
	if out, _ := n.keyCommand(0, "env", "access", "a"); strings.Contains(out, "hunter2") {
		t.Errorf("env access said %s", out)
	}
	access := func() {
		t.Helper()
		want := fmt.Sprintf("https://x-gpu.com:%d/?token=hunter2", n.port(0))
		if out, _ := n.keyCommand(0, "env", "access", "a", "--secrets"); !strings.Contains(out, want) {
			t.Errorf("env access --secrets said %s, want %s", out, want)
		}
	}
	access()

	_, _, before := n.keyUses()
	var added struct{ Key string }
	out, _ := n.keyCommand(0, "certs", "key", "add", "-o", "json")
	if err := json.Unmarshal([]byte(out), &added); err != nil {
		t.Fatal(err)
	}
	n.roleOf(added.Key, "opens") // which a busy machine takes its time for
	n.keyCommand(0, "certs", "key", "use", added.Key)
	eventually(t, "nothing is sealed with the old key", func() error {
		n.keyCommand(0, "certs", "reseal")
		code, _, errOut := runSluice(t, n.dir, "certs", "key", "rm", before, "--config", "sluice.yaml")
		if code != 0 {
			return errors.New(errOut)
		}
		return nil
	})
	access()
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, errOut := n.keyCommand(1, "env", "access", "a", "--secrets"); !strings.Contains(errOut, "there is no cluster key") {
		t.Errorf("env access --secrets without the key: %s", errOut)
	}
}

// TestSnapshotOfEnvironments brings environments back from a file, whole, and
// leaves to others what is theirs by now.
func TestSnapshotOfEnvironments(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	_, backend, err := net.SplitHostPort(startLines(t, "first"))
	if err != nil {
		t.Fatal(err)
	}
	n.keyCommand(0, "pool", "put", "ssh", fmt.Sprintf(`{"ports": "%d-%d", "backend_port": %s, "quarantine": "0s"}`, n.port(0), n.port(1), backend))
	n.keyCommand(0, "env", "create", "a", "--backend", "127.0.0.1", "--service", "ssh")
	n.keyCommand(0, "env", "create", "b", "--backend", "127.0.0.1", "--service", "ssh")
	n.keyCommand(0, "snapshot", "save", "all.snap")
	n.keyCommand(0, "env", "rm", "a", "b")
	n.keyCommand(0, "env", "create", "c", "--backend", "127.0.0.1", "--service", "ssh")

	_, errOut := n.keyCommand(1, "snapshot", "restore", "all.snap")
	if want := fmt.Sprintf("envs/a is left out: its tcp port %d is held by ssh of environment c by now", n.port(0)); !strings.Contains(errOut, want) {
		t.Errorf("restore said %s, want %q", errOut, want)
	}
	visit(t, n.port(1), "first", "of b, which is back")
	n.keyCommand(0, "port", "audit")
	n.keyCommand(2, "snapshot", "restore", "all.snap", "--prune") // it ends one
	n.keyCommand(0, "snapshot", "restore", "all.snap", "--prune", "--yes")
	n.keyCommand(0, "port", "audit")
	out, _ := n.keyCommand(0, "env", "ls", "-o", "json")
	for id, want := range map[string]bool{"a": true, "b": true, "c": false} {
		if strings.Contains(out, `"id":"`+id+`"`) != want {
			t.Errorf("%s is there: %t; env ls said %s", id, !want, out)
		}
	}
	visit(t, n.port(0), "first", "of a, which is back")
}
