package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// laptop is a machine that reaches a node's control API and no etcd.
type laptop struct {
	t    *testing.T
	dir  string
	args []string // what says which API, and as whom
}

// newLaptop returns one with a token, over the node's admin address.
func (n *node) newLaptop(token string) *laptop {
	n.t.Helper()
	l := &laptop{t: n.t, dir: n.t.TempDir()}
	file := filepath.Join(l.dir, "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	l.args = []string{"--api", "http://" + n.Admin, "--token-file", file}
	return l
}

func (l *laptop) sluice(wantCode int, args ...string) (stdout, stderr string) {
	l.t.Helper()
	code, stdout, stderr := runSluice(l.t, l.dir, append(args, l.args...)...)
	if code != wantCode {
		l.t.Fatalf("sluice %s: exit code %d, want %d; it said\n%s%s", strings.Join(args, " "), code, wantCode, stdout, stderr)
	}
	return stdout, stderr
}

// says wants a command to say something.
func (l *laptop) says(want string, args ...string) string {
	l.t.Helper()
	out, _ := l.sluice(0, args...)
	if !strings.Contains(out, want) {
		l.t.Errorf("sluice %s said\n%s\nwant %q", strings.Join(args, " "), out, want)
	}
	return out
}

// refused wants a command to fail, with words.
func (l *laptop) refused(want string, args ...string) {
	l.t.Helper()
	if _, errOut := l.sluice(1, args...); !strings.Contains(errOut, want) {
		l.t.Errorf("sluice %s failed with\n%s\nwant %q", strings.Join(args, " "), errOut, want)
	}
}

// TestCommandsByAPI works on a cluster from a machine that does not reach its etcd.
func TestCommandsByAPI(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.edit("data: ./data", "data: ./data\nfleet: {drain_wait: 1ms}\napi: {deny_backends: []}") // environments are on this machine
	n.start()
	_, backend, err := net.SplitHostPort(startLines(t, "env"))
	if err != nil {
		t.Fatal(err)
	}
	admin := n.newLaptop(n.newToken("admin", "--role", "admin"))
	op := n.newLaptop(n.newToken("op", "--role", "operator"))
	viewer := n.newLaptop(n.newToken("viewer"))
	scoped := n.newLaptop(n.newToken("scoped", "--role", "operator", "--envs", "prod-", "--pools", "ssh"))

	// Keys.
	op.says("applied@", "pool", "put", "ssh", fmt.Sprintf(`{"ports": "%d-%d", "backend_port": %s, "access": {"command": "ssh -p ${port} root@${env}"}}`, n.port(0), n.port(2), backend))
	op.says("applied@", "pool", "put", "web", `{"backend_port": 80, "route": {"host": "env-${env}.localhost"}}`)
	mapped := fmt.Sprintf("tcp/%d", n.port(4))
	before := op.says("applied@", "map", "put", mapped, "127.0.0.1:"+backend, "-o", "json")
	visit(t, n.port(4), "env", "of a mapping put by the API")
	var put struct{ Committed int64 }
	if err := json.Unmarshal([]byte(before), &put); err != nil || put.Committed == 0 {
		t.Fatalf("map put said %s: %v", before, err)
	}
	op.says("nothing to change", "map", "put", mapped, "127.0.0.1:"+backend)
	op.refused("nothing was written: nodes would refuse 1 key", "map", "put", mapped, `{"backend": "nowhere"}`)
	viewer.says("127.0.0.1:"+backend, "map", "get", mapped)
	viewer.says("applied", "map", "ls")
	viewer.refused("the token viewer is a viewer's; this takes one of an operator", "map", "put", mapped, "127.0.0.1:1")
	viewer.refused("this takes one of an operator", "env", "create", "a", "--backend", "127.0.0.1", "--service", "ssh")
	viewer.refused("this takes one of an admin", "token", "ls")
	scoped.refused("this concerns all", "map", "ls")
	op.says("- ports/"+mapped, "map", "rm", mapped)
	viewer.refused("there is no key ports/"+mapped, "map", "get", mapped)
	op.refused("1 of 1 keys are not there", "map", "rm", mapped)

	// No node has a DNS provider.
	op.says("degraded: no_provider: no node that runs has a DNS provider", "name", "put", "edge.x-gpu.com", `{"zone": "x-gpu.com", "ttl": 60}`)
	viewer.says("edge.x-gpu.com", "name", "ls")
	viewer.refused("this takes one of an operator", "name", "rm", "edge.x-gpu.com")
	op.says("- names/edge.x-gpu.com", "name", "rm", "edge.x-gpu.com")

	// Environments and ports.
	scoped.refused(`"dev-a" is not one of them`, "env", "create", "dev-a", "--backend", "127.0.0.1", "--service", "ssh")
	scoped.refused("is for the pools [ssh]", "env", "create", "prod-a", "--backend", "127.0.0.1", "--service", "ssh,web")
	scoped.says(fmt.Sprint(n.port(0)), "env", "create", "prod-a", "--backend", "127.0.0.1", "--service", "ssh")
	s := openSession(t, n.port(0))
	s.want("env", "the port is open when the command returns")
	op.says("env.dev-a.web", "env", "create", "dev-a", "--backend", "127.0.0.1", "--service", "web")
	if out := scoped.says("prod-a", "env", "ls"); strings.Contains(out, "dev-a") {
		t.Errorf("a token of a scope sees %s", out)
	}
	scoped.says("127.0.0.1:"+backend, "env", "get", "prod-a")
	scoped.says(fmt.Sprintf("ssh -p %d root@prod-a", n.port(0)), "env", "access", "prod-a")
	op.says("prod-a", "flows", "--env", "prod-a")
	viewer.says("127.0.0.1:"+backend, "explain", fmt.Sprintf("tcp/%d", n.port(0)))
	op.says("127.0.0.2", "env", "patch", "dev-a", "--backend", "127.0.0.2")
	op.says(fmt.Sprint(n.port(1)), "port", "alloc", "dev-b", "ssh")
	op.says("", "port", "reserve", fmt.Sprint(n.port(2)), "--for", "the office VPN")
	op.says("the office VPN", "port", "ls")
	op.refused("the pool ssh is exhausted", "port", "alloc", "dev-c", "ssh")
	viewer.says("ssh", "port", "pools")
	op.refused("1 finding", "port", "audit")
	op.says("", "port", "release", "dev-b", "ssh")
	op.says("", "port", "unreserve", fmt.Sprint(n.port(2)))
	op.says("", "env", "rm", "prod-a", "dev-a")
	s.wantCut()

	// The cluster, and its past.
	viewer.says("test", "status")
	viewer.says("every live node has applied revision", "wait")
	eventually(t, "the history", func() error {
		if out, _ := viewer.sluice(0, "history", mapped); !strings.Contains(out, "token op") || !strings.Contains(out, "- ports/"+mapped) {
			return fmt.Errorf("history said %s", out)
		}
		return nil
	})
	viewer.says("- ports/"+mapped, "diff", fmt.Sprint(put.Committed))
	op.refused("this takes one of an admin", "rollback", "--to", fmt.Sprint(put.Committed), "--under", "ports/")
	admin.says("+ ports/"+mapped, "rollback", "--to", fmt.Sprint(put.Committed), "--under", "ports/")
	visit(t, n.port(4), "env", "after the rollback")

	// Nodes.
	viewer.says("ready", "node", "ls")
	viewer.refused("this takes one of an operator", "node", "drain", "test", "--reason", "new disk")
	viewer.refused("this takes one of an operator", "node", "undrain", "test")
	scoped.refused("this concerns all", "node", "ls")
	eventually(t, "a shell is told the node's name", func() error { // it waits a second at most, and is asked again
		if _, out, errOut := runSluice(t, viewer.dir, append(append([]string{"__complete", "node", "drain"}, viewer.args...), "te")...); !strings.HasPrefix(out, "test\n") {
			return fmt.Errorf("it is told %s%s", out, errOut)
		}
		return nil
	})
	op.refused("there is no node", "node", "show", "nobody")
	op.refused("there is no node", "node", "drain", "nobody")
	op.refused("nobody wants test drained", "node", "undrain", "test")
	op.says("done", "node", "drain", "test", "--reason", "new disk", "--wait", "--timeout", "30s")
	viewer.says("it is drained: new disk", "node", "ls")
	viewer.says("done (new disk)", "node", "show", "test")
	op.says("test serves", "node", "undrain", "test")
	visit(t, n.port(4), "env", "after the drain")

	// Tokens.
	made := strings.TrimSpace(admin.says("sluice_extra_", "token", "create", "extra", "--role", "viewer"))
	extra := n.newLaptop(made)
	eventually(t, "the token", func() error {
		if code, _, errOut := runSluice(t, extra.dir, append([]string{"env", "ls"}, extra.args...)...); code != 0 {
			return fmt.Errorf("%s", errOut)
		}
		return nil
	})
	admin.says("sluice_extra_", "token", "rotate", "extra", "--grace", "0s")
	admin.says("extra", "token", "ls")
	admin.sluice(0, "token", "rm", "extra")
	eventually(t, "the end of the token", func() error {
		if code, _, errOut := runSluice(t, extra.dir, append([]string{"env", "ls"}, extra.args...)...); code != 1 || !strings.Contains(errOut, "give a token that is known") {
			return fmt.Errorf("%d %s", code, errOut)
		}
		return nil
	})

	// What is said in other ways, and wrongly.
	for _, tc := range []struct{ args, want string }{
		{"env ls --api http://" + n.Admin + " --endpoints 127.0.0.1:1", "give one or the other"},
		{"env ls --token-file token", "say which node to ask"},
		{"env ls --api " + n.Admin, "write https://host:port"},
		{"explain tcp/1 --api http://" + n.Admin + " --admin 127.0.0.1:1", "give one of them"},
		{"snapshot save x --api http://" + n.Admin, "unknown flag: --api"},
	} {
		if code, _, errOut := runSluice(t, op.dir, strings.Fields(tc.args)...); code != 2 || !strings.Contains(errOut, tc.want) {
			t.Errorf("sluice %s: exit code %d, %s, want 2 and %q", tc.args, code, errOut, tc.want)
		}
	}
}

// TestAPIByEnvironmentAndCertificate asks the API's own address, over TLS, with a
// client certificate in the place of a token, and by variables of the environment.
func TestAPIByEnvironmentAndCertificate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	staff, port := newSigner(t), reservePorts(t, 1)
	ca, key, _ := selfMade(t, n.dir, "localhost")
	n.edit("data: ./data", fmt.Sprintf("data: ./data\napi: {listen: %q, cert: %q, key: %q, client_ca: %q}", loopback(port), ca, key, staff.file("ca.pem")))
	n.start()
	n.keyCommand(0, "token", "create", "billing", "--role", "operator", "--certificate", "billing.x-gpu.com")
	if _, errOut := n.keyCommand(1, "token", "create", "billing-2", "--certificate", "billing.x-gpu.com"); !strings.Contains(errOut, "the token billing is of that certificate") {
		t.Errorf("another token of the certificate: %s", errOut)
	}
	dir, env := t.TempDir(), []string{fmt.Sprintf("SLUICE_API=https://localhost:%d", port)}
	put := []string{"pool", "put", "ssh", fmt.Sprintf(`{"ports": "%d", "backend_port": 22}`, n.port(0)), "--api-ca", ca}
	by := func(name string) []string {
		cert, key := staff.sign(t, name)
		return append(slices.Clone(put), "--api-cert", cert, "--api-key", key)
	}
	good := by("billing.x-gpu.com")
	eventually(t, "the token", func() error {
		if code, out, errOut := runSluiceWith(t, dir, env, good...); code != 0 {
			return fmt.Errorf("%s%s", out, errOut)
		}
		return nil
	})
	viewer := n.newToken("viewer")
	for what, tc := range map[string]struct {
		env  []string
		args []string
		code int
		want string
	}{
		"another certificate":   {nil, by("stranger.x-gpu.com"), 1, "give a token that is known"},
		"nothing":               {nil, put, 1, "give a token that is known"},
		"a token":               {[]string{"SLUICE_TOKEN=" + viewer}, []string{"pool", "get", "ssh", "--api-ca", ca}, 0, ""},
		"a token that may not":  {[]string{"SLUICE_TOKEN=" + viewer}, put, 1, "this takes one of an operator"},
		"another authority":     {[]string{"SLUICE_TOKEN=" + viewer}, []string{"env", "ls", "--api-ca", staff.file("ca.pem")}, 1, "certificate signed by unknown authority"},
		"a command for etcd":    {nil, []string{"snapshot", "save", "x"}, 2, "works with etcd itself"},
		"etcd, said explicitly": {nil, []string{"pool", "ls", "--endpoints", n.Etcd}, 0, ""},
	} {
		if code, out, errOut := runSluiceWith(t, dir, append(tc.env, env...), tc.args...); code != tc.code || !strings.Contains(errOut, tc.want) {
			t.Errorf("%s: exit code %d, %s%s, want %d and %q", what, code, out, errOut, tc.code, tc.want)
		}
	}
}
