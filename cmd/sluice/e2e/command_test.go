package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := runSluice(t, t.TempDir(), "version")
	if form := regexp.MustCompile(`^sluice \S+ go1\.\S+ \S+/\S+\n$`); code != 0 || stderr != "" || !form.MatchString(stdout) {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, file, want string }{
		{"an address", "listeners:\n  https:\n    - \":8443\"\n    - \"8443\"\n",
			`sluice: sluice.yaml:4: listeners.https[1]: "8443" is not an address; write host:port such as 127.0.0.1:8443, or :8443 for every address`},
		{"a typing error", "node: a\nlistners: {}\n", `sluice: sluice.yaml:2: listners: unknown field; did you mean "listeners"?`},
		{"a port", "ports: [\"50000-89999\"]\n", `sluice: sluice.yaml:1: ports: port 89999 does not exist; ports run from 1 to 65535`},
		{"ports twice", "ports:\n  - \"20000-20999\"\n  - \"20500-21999\"\n", `sluice: sluice.yaml:1: ports: the ranges 20000-20999 and 20500-21999 overlap; give each port once`},
		{"a listener among the ports", "ports: [\"8000-8999\"]\nlisteners: {https: [\":8443\"]}\n", `sluice: sluice.yaml:2: listeners.https[0]: port 8443 lies in ports (8000-8999), which is for mappings; choose another port or take it out there`},
		{"a duration", "drain_timeout: 10\n", `sluice: sluice.yaml:1: drain_timeout: `},
		{"a secret", "dns:\n  main:\n    provider: cloudflare\n    api_token: ${SLUICE_TEST_NOT_SET}\n",
			`sluice: sluice.yaml:4: dns.main.api_token: the environment variable SLUICE_TEST_NOT_SET is not set`},
		{"not YAML", "node: [\n", `sluice: sluice.yaml: not valid YAML: line `},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "sluice.yaml"), []byte(tc.file), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"check", "run"} {
				code, stdout, stderr := runSluice(t, dir, command)
				if code != 2 || stdout != "" || !strings.HasPrefix(stderr, tc.want) || strings.Count(stderr, "\n") != 1 {
					t.Errorf("%s: exit code %d, %q and\n%swant 2 and one line\n%s", command, code, stdout, stderr, tc.want)
				}
			}
		})
	}
	t.Run("a good file", func(t *testing.T) {
		t.Parallel()
		n := newNode(t)
		code, stdout, stderr := runSluice(t, n.dir, "check", "--config", "sluice.yaml")
		if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "sluice.yaml is good: node test, ") || !strings.Contains(stdout, n.Admin) {
			t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
		}
		if _, err := os.Stat(filepath.Join(n.dir, "data")); err == nil {
			t.Error("the check made the data directory")
		}
	})
	t.Run("the file of make run", func(t *testing.T) {
		t.Parallel()
		if code, _, stderr := runSluice(t, ".", "check", "--config", "../../../deploy/dev.yaml"); code != 0 {
			t.Errorf("exit code %d, %q", code, stderr)
		}
	})
}

func TestWrongCommandLines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, tc := range []struct{ args, want string }{
		{"serve", `unknown command "serve"`},
		{"ru", `unknown command "ru"`},
		{"--loud", "unknown flag: --loud"},
		{"run --loud", "unknown flag: --loud"},
		{"run sluice.yaml", `unknown command "sluice.yaml"`},
		{"check --config", "flag needs an argument: --config"},
		{"check --config nowhere.yaml", "open nowhere.yaml: no such file or directory (give its path with --config)"},
		{"run", "open sluice.yaml: no such file or directory (give its path with --config)"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := runSluice(t, dir, strings.Fields(tc.args)...)
			if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "sluice: ") || !strings.Contains(stderr, tc.want) {
				t.Errorf("exit code %d, %q, %q, want 2 and %q", code, stdout, stderr, tc.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--help":       "check",
		"run --help":   "drain_timeout",
		"check --help": "--config",
	} {
		code, stdout, stderr := runSluice(t, t.TempDir(), strings.Fields(args)...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%s: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// TestAddressInUse takes each of a node's own addresses before the node can.
func TestAddressInUse(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		address func(*node) string
		want    string // besides the address
	}{
		{"admin", func(n *node) string { return n.Admin }, "admin address"},
		{"https", func(n *node) string { return loopback(n.HTTPS) }, ownName(t)},
		{"http", func(n *node) string { return loopback(n.HTTP) }, ownName(t)},
		{"etcd", func(n *node) string { return n.Etcd }, "etcd"},
		{"demo", func(n *node) string { return n.Demo }, "demo address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, openEyed)
			addr := tc.address(n)
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			code, _, stderr := runSluice(t, n.dir, "run")
			last := lastLine(stderr)
			_, port, _ := net.SplitHostPort(addr)
			if code != 1 || !strings.HasPrefix(last, "sluice: ") || !strings.Contains(last, port) ||
				!strings.Contains(last, "in use") || !strings.Contains(last, tc.want) {
				t.Errorf("exit code %d, the last line is\n%s\nwant 1, %s, \"in use\" and %q", code, last, port, tc.want)
			}
		})
	}
	t.Run("HTTP/3", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, openEyed)
		pc, err := net.ListenPacket("udp", loopback(n.HTTPS))
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		code, _, stderr := runSluice(t, n.dir, "run")
		if last := lastLine(stderr); code != 1 || !strings.Contains(last, "HTTP/3") || !strings.Contains(last, ownName(t)) {
			t.Errorf("exit code %d, the last line is\n%s\nwant 1, \"HTTP/3\" and %s...)", code, last, ownName(t))
		}
	})
}

func TestDataDirectoryInUse(t *testing.T) {
	t.Parallel()
	first := startNode(t)
	second := newNode(t)
	second.edit("data: ./data", fmt.Sprintf("data: %q", filepath.Join(first.dir, "data")))
	code, _, stderr := runSluice(t, second.dir, "run")
	if last := lastLine(stderr); code != 1 || !strings.Contains(last, first.dir) || !strings.Contains(last, "in use by another process") {
		t.Errorf("exit code %d, the last line is\n%s", code, last)
	}
	first.mustPut(fmt.Sprintf("ports/tcp/%d", first.port(0)), startLines(t, "backend"))
	visit(t, first.port(0), "backend", "unharmed")
}

// TestNodeNameInUse has two nodes of one cluster share a name, which would have
// them overwrite each other's verdicts.
func TestNodeNameInUse(t *testing.T) {
	t.Parallel()
	first := startNode(t)
	second := newNode(t)
	second.useEtcdOf(first)
	code, _, stderr := runSluice(t, second.dir, "run")
	if last := lastLine(stderr); code != 1 || !strings.Contains(last, `the node name "test" is held by another live node`) {
		t.Errorf("exit code %d, the last line is\n%s", code, last)
	}
	if record, rev := first.get("nodes/test"); rev == 0 {
		t.Errorf("the first node's record is gone: %q", record)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
