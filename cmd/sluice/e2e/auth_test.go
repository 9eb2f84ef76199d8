package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// secretEtcd is Debian's etcd with users, whose tokens are good for a second after
// they were used last.
type secretEtcd struct {
	t      *testing.T
	url    string
	output *syncBuffer
}

// startSecretEtcd starts it and makes the roles and users that OPERATIONS.md tells
// operators to make, by the very commands.
func startSecretEtcd(t *testing.T) *secretEtcd {
	t.Helper()
	e := &secretEtcd{t: t, url: "http://" + loopback(reservePorts(t, 1)), output: &syncBuffer{}}
	cmd := exec.Command("etcd", "--data-dir", t.TempDir(), "--listen-client-urls", e.url, "--advertise-client-urls", e.url,
		"--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync", "--auth-token-ttl", "1", "--logger", "zap", "--log-level", "debug", "--bcrypt-cost", "4")
	cmd.Stdout, cmd.Stderr = e.output, e.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			out := e.output.String()
			t.Logf("etcd said last\n%s", out[max(0, len(out)-3000):])
		}
	})
	eventually(t, "etcd answers", func() error {
		_, err := e.run("root", "etcdctl get x")
		return err
	})
	text, err := os.ReadFile("../../../OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## An etcd apart from the nodes")
	section, _, _ = strings.Cut(section, "\n## ")
	var script []string
	for line := range strings.Lines(section) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			// It asks for a password where none is given.
			script = append(script, regexp.MustCompile(`user add (\w+)`).ReplaceAllString(command, "user add $1:secret"))
		}
	}
	if len(script) != 8 {
		t.Fatalf("OPERATIONS.md has the commands\n%s", strings.Join(script, ""))
	}
	script = append(script, "etcdctl user add root:secret && etcdctl user grant-role root root && etcdctl auth enable\n")
	if out, err := e.run("", "set -e\n"+strings.Join(script, "")); err != nil {
		t.Fatalf("%v\n%s\n%s", err, strings.Join(script, ""), out)
	}
	return e
}

// run has a shell run a script whose etcdctl are a user's.
func (e *secretEtcd) run(user, script string) (string, error) {
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS="+e.url)
	if user != "" && strings.Contains(e.output.String(), "enabled authentication") {
		cmd.Env = append(cmd.Env, "ETCDCTL_USER="+user+":secret")
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return string(out), err
}

// expire waits until all tokens of a user's have been too old.
func (e *secretEtcd) expire(user string) {
	e.t.Helper()
	eventually(e.t, "the tokens of "+user+" expire", func() error {
		given, gone := 0, 0
		for line := range strings.Lines(e.output.String()) {
			if !strings.Contains(line, `"user-name":"`+user+`"`) {
				continue
			}
			if strings.Contains(line, `"authenticated a user"`) {
				given++
			} else if strings.Contains(line, `"deleted a simple token"`) {
				gone++
			}
		}
		if given == 0 || gone < given {
			return fmt.Errorf("%d of %d have", gone, given)
		}
		return nil
	})
}

// TestLeastPrivilege has a node and an operator go on for the lives of several
// tokens, with no more rights than the documents give them.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	e := startSecretEtcd(t)
	n := newNode(t)
	n.edit(fmt.Sprintf("etcd: {listen: %q}", n.Etcd), fmt.Sprintf("etcd: {endpoints: [%q], username: hk1, password: secret}", e.url))
	n.edit(fmt.Sprintf("demo: %q\n", n.Demo), "")
	n.start()
	alice := fmt.Sprintf("node: test\nports: [\"%d-%d\"]\netcd: {endpoints: [%q], username: alice, password: secret}\n", n.Ports[0], n.Ports[1], e.url)
	if err := os.WriteFile(filepath.Join(n.dir, "alice.yaml"), []byte(alice), 0o600); err != nil {
		t.Fatal(err)
	}
	sluice := func(args ...string) string {
		t.Helper()
		return n.command(append(args, "--config", "alice.yaml")...)
	}
	for round := range 3 {
		// The watch, then verdicts under the lease, of a node whose token has expired.
		name := fmt.Sprintf("tcp/%d", n.port(round))
		if out := sluice("map", "put", name, startLines(t, name)); !strings.Contains(out, "applied@") {
			t.Errorf("map put said\n%s", out)
		}
		openSession(t, n.port(round)).want(name, "hello")
		e.expire("hk1")
		if _, err := e.run("alice", fmt.Sprintf("etcdctl put /sluice/routes/r%d '{\"host\": \"r.localhost\", \"respond\": {}}'", round)); err != nil {
			t.Error(err)
		}
		eventually(t, "the history has it", func() error {
			out, err := e.run("alice", "etcdctl get --prefix /sluice/history/changes/")
			if err == nil && !strings.Contains(out, fmt.Sprintf("routes/r%d", round)) {
				err = fmt.Errorf("it has %d bytes", len(out))
			}
			return err
		})
		if out := sluice("history", "routes/"); strings.Count(out, "routes/r") != round+1 {
			t.Errorf("history said\n%s", out)
		}
	}
	sluice("wait")
	if out := sluice("status"); !strings.Contains(out, "ready") {
		t.Errorf("status said\n%s", out)
	}
	sluice("snapshot", "save", "all.snap")
	sluice("map", "rm", fmt.Sprintf("tcp/%d", n.port(0)), "--yes")
	sluice("snapshot", "restore", "all.snap")
	sluice("confirm")
	if err := n.readiness(200, "etcd", ""); err != nil {
		t.Error(err)
	}
	if v, _ := n.metric("sluice_etcd_leases_total"); v != "1" {
		t.Errorf("the node has had %s leases, want one that lasts", v)
	}
	e.expire("hk1")
	if code := n.stop(); code != 0 && code != 3 || strings.Contains(n.output.String(), "could not give back the lease") {
		t.Errorf("exit code %d, or the lease was not given back", code)
	}
	for user, keys := range map[string][]string{
		"hk1":   {"/sluice/domains/a", "/sluice/pools/a", "/other"},
		"alice": {"/sluice/nodes/a", "/sluice/verdicts/a", "/sluice/history/a", "/sluice/leaders/a", "/sluice/acme/a", "/other"},
	} {
		for _, key := range keys {
			if _, err := e.run(user, "etcdctl put "+key+" x"); err == nil || !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("%s may put %s: %v", user, key, err)
			}
		}
	}
}
