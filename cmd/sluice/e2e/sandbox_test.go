package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openEyed has a node look into other processes, to name those that have a port.
// A node in its sandbox cannot.
func openEyed(f *nodeFile) { f.Extra += "sandbox: off\n" }

// Passwords of alice, by bcrypt: "first" and "second".
const (
	firstPassword  = "alice:$2a$04$7x7wIbUAGGEf5y5PyyXl8.wn76baOw9bKv7sjFU0jlr3yEkEP8soS"
	secondPassword = "alice:$2a$04$rmfRwlzo0wikA8mFWBNZiugfazG0xcwWLxG96aqjTadOE1qxI/fMG"
)

// TestSandboxKeepsFilesApart has a file that routes refer to replaced by a link to
// one elsewhere, as somebody would who may write there and wants to read with the
// node's rights what he may not.
func TestSandboxKeepsFilesApart(t *testing.T) {
	t.Parallel()
	for _, sandbox := range []string{"require", "off"} {
		t.Run(sandbox, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, withYAML("password_files: {staff: ./passwords/users}\nsandbox: "+sandbox))
			users := filepath.Join(n.dir, "passwords", "users")
			elsewhere := filepath.Join(t.TempDir(), "shadow")
			if err := os.Mkdir(filepath.Dir(users), 0o755); err != nil {
				t.Fatal(err)
			}
			for path, text := range map[string]string{users: firstPassword, elsewhere: secondPassword} {
				if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.start()
			n.mustPut("routes/staff", `{"host": "staff.localhost", "basic_auth": {"file": "staff"}, "respond": {"status": 200}}`)
			c := newClient(t, n, "h1")
			if first, second := n.login(c, "first"), n.login(c, "second"); first != 200 || second != 401 {
				t.Fatalf("before: %d and %d", first, second)
			}
			// Another file in the same place is taken up.
			if err := os.WriteFile(users+".new", []byte(firstPassword+"\n"+strings.Replace(secondPassword, "alice", "bob", 1)+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(users+".new", users); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the new file is taken up", func() error { return wantStatus(n.loginAs(c, "bob", "second"), 200) })

			if err := os.Remove(users); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(elsewhere, users); err != nil {
				t.Fatal(err)
			}
			if sandbox == "off" {
				eventually(t, "the link is followed", func() error { return wantStatus(n.login(c, "second"), 200) })
				return
			}
			eventually(t, "the log says that the file cannot be read", func() error {
				n.login(c, "first") // which has the node look at the file
				if !strings.Contains(n.output.String(), "permission denied") {
					return fmt.Errorf("it says %s", n.output)
				}
				return nil
			})
			if first, second := n.login(c, "first"), n.login(c, "second"); first != 200 || second != 401 {
				t.Errorf("with a link to elsewhere: %d and %d, want what was read before", first, second)
			}
		})
	}
}

func wantStatus(got, want int) error {
	if got != want {
		return fmt.Errorf("status %d", got)
	}
	return nil
}

func (n *node) login(c *client, password string) int { return n.loginAs(c, "alice", password) }

func (n *node) loginAs(c *client, name, password string) int {
	req := c.request(within(n.t), http.MethodGet, "staff.localhost", "/", nil)
	req.SetBasicAuth(name, password)
	resp, _ := c.mustDo(req)
	return resp.StatusCode
}

// TestSandboxIsInForce looks at the threads of a node in its sandbox, and of one
// with a user of its own, which serves as any other.
func TestSandboxIsInForce(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("becoming another user takes root: run the tests as root")
	}
	n := newNode(t, withYAML("user: nobody\nsandbox: require"))
	for _, dir := range []string{buildDir, filepath.Dir(n.dir)} { // where the user gets at the program and its files
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(n.dir, "data")

	code, _, said := runSluice(t, n.dir, "run")
	if code != 2 || !strings.Contains(said, "sluice.yaml (the node's file) is not readable for nobody: `chgrp") {
		t.Errorf("with a file that the user cannot read: exit code %d, %s", code, said)
	}
	if err := os.Chown(data, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(n.dir, "sluice.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, said = runSluice(t, n.dir, "run")
	if code != 2 || !strings.Contains(said, "belongs to user 0, and the node is to run as nobody: `chown -R nobody: ") {
		t.Errorf("with a data directory of root: exit code %d, %s", code, said)
	}
	if err := os.Remove(data); err != nil {
		t.Fatal(err)
	}
	// Where the access log is, it has to make a file.
	if err := os.Chown(n.dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	visit(t, n.port(0), "backend", "hello")
	newClient(t, n, "h2").get("demo.localhost", "/echo")
	for part, want := range map[string]string{"files": "1", "calls": "1", "privileges": "1", "user": "1"} {
		n.wantMetric(fmt.Sprintf("sluice_sandbox_in_force{part=%q}", part), want)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", n.cmd.Process.Pid))
	if err != nil || len(tasks) < 3 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		// CAP_NET_ADMIN and CAP_BPF, for ports_mode steer.
		for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000008000001000", "CapBnd:\t0000008000001000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s does not say %q:\n%s", task, want, text)
			}
		}
	}
	if mode, _ := n.metric("sluice_proxy_ports_mode{mode=\"steer\"} "); mode != "1" {
		t.Errorf("the ports are not steered, by the metric %q", mode)
	}
	if code := n.stop(); code != 0 && code != 3 {
		t.Errorf("exit code %d", code)
	}
}

func TestKeyFilesOfEverybodyAreRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, withYAML("upstream_tls: {mine: {cert: ./a.crt, key: ./a.key}}"))
	if err := os.WriteFile(filepath.Join(n.dir, "a.key"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, said := runSluice(t, n.dir, "run")
	if code != 2 || !strings.Contains(said, "upstream_tls.mine.key: everybody on the machine can use ./a.key, which holds a private key (mode 0644): `chmod o= a.key`") {
		t.Errorf("exit code %d, %s", code, said)
	}
}
