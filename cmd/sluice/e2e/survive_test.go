package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// startLate starts a node on data of an earlier life, in which a clear-text
// route and a mapping were put, after break has been at work on it.
func startLate(t *testing.T, breakIt func(n *node)) *node {
	t.Helper()
	n := startNode(t)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	n.mustPut("routes/clear", fmt.Sprintf(`{"host": "clear.x.test", "ports": %d, "respond": {"body": "in the clear"}}`, n.HTTP))
	if code := n.stop(); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	breakIt(n)
	n.spawn()
	return n
}

// wantServing wants the keys of startLate in force, from disk.
func (n *node) wantServing() {
	n.t.Helper()
	eventually(n.t, "the node serves from disk", func() error {
		return n.readiness(http.StatusServiceUnavailable, "disk", "the embedded etcd does not run")
	})
	visit(n.t, n.port(0), "backend", "from disk")
	n.wantMetric("sluice_etcd_embedded_up", "0")
	if got := n.curl("-H", "Host: clear.x.test", fmt.Sprintf("http://127.0.0.1:%d/", n.HTTP)); got != "in the clear" {
		n.t.Errorf("the clear-text route answers %q", got)
	}
}

// TestEmbeddedEtcdIsDamaged damages the data of a node's own etcd. The node
// serves what it has on disk, and its operator makes the data anew.
func TestEmbeddedEtcdIsDamaged(t *testing.T) {
	t.Parallel()
	n := startLate(t, func(n *node) {
		logs, err := filepath.Glob(filepath.Join(n.dir, "data", "etcd", "member", "wal", "0*.wal"))
		if err != nil || len(logs) == 0 {
			t.Fatalf("etcd has the logs %v, %v", logs, err)
		}
		for _, log := range logs {
			if err := os.WriteFile(log, []byte(strings.Repeat("damaged", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	n.wantServing()
	if !strings.Contains(n.output.String(), "If its data is damaged, make it anew") {
		t.Error("the node does not say what would help")
	}

	code, script, stderr := runSluice(t, n.dir, "state", "data/state", "--endpoints", n.Etcd)
	if code != 0 {
		t.Fatalf("sluice state: exit code %d, %s", code, stderr)
	}
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if err := os.Rename(filepath.Join(n.dir, "data", "etcd"), filepath.Join(n.dir, "data", "etcd.damaged")); err != nil {
		t.Fatal(err)
	}
	n.start()
	sh := exec.Command("sh")
	sh.Stdin = strings.NewReader(script)
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "the mapping is back", func() error {
		c, err := net.Dial("tcp", loopback(n.port(0)))
		if err == nil {
			c.Close()
		}
		return err
	})
	visit(t, n.port(0), "backend", "again")
	if !strings.Contains(n.output.String(), "etcd has gone back in time") {
		t.Error("the node does not say that etcd has gone back")
	}
	if _, err := os.Stat(filepath.Join(n.dir, "data", "state.prev")); err != nil {
		t.Error(err)
	}
}

// TestEmbeddedEtcdComesLate has another program hold the port of a node's own
// etcd when it starts.
func TestEmbeddedEtcdComesLate(t *testing.T) {
	t.Parallel()
	var holder net.Listener
	n := startLate(t, func(n *node) {
		var err error
		if holder, err = net.Listen("tcp", n.Etcd); err != nil {
			t.Fatal(err)
		}
	})
	// The very first answer is the route's, not that of a node without routes.
	eventually(t, "the http listener is open", func() error {
		c, err := net.Dial("tcp", loopback(n.HTTP))
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: clear.x.test\r\nConnection: close\r\n\r\n")
		if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") || !strings.HasSuffix(string(answer), "in the clear") {
			t.Errorf("the first answer is %q, %v", answer, err)
		}
		return nil
	})
	n.wantServing()
	s := openSession(t, n.port(0))
	s.want("backend", "hello")
	holder.Close()
	n.waitReady()
	n.wantMetric("sluice_etcd_embedded_up", "1")
	if err := n.readiness(http.StatusOK, "etcd", ""); err != nil {
		t.Error(err)
	}
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), startLines(t, "new"))
	visit(t, n.port(1), "new", "hello")
	s.want("backend", "still here")
	s.Close()
}

// TestSecondProcessOnTheData starts a second process on the data of one that
// has keys in force: it must not serve them as well.
func TestSecondProcessOnTheData(t *testing.T) {
	t.Parallel()
	first := startLate(t, func(*node) {})
	first.waitReady()
	second := newNode(t)
	second.edit("data: ./data", fmt.Sprintf("data: %q", filepath.Join(first.dir, "data")))
	code, _, stderr := runSluice(t, second.dir, "run")
	if last := lastLine(stderr); code != 1 || !strings.Contains(last, "in use by another process") {
		t.Errorf("exit code %d, the last line is\n%s", code, last)
	}
	visit(t, first.port(0), "backend", "unharmed")
}

// TestCopiedNode runs a copy of a node's machine beside it. To etcd both are the
// same node; the older one serves on, and has its name back in the end.
func TestCopiedNode(t *testing.T) {
	t.Parallel()
	host, n, copied := startHost(t), newNode(t), newNode(t)
	for _, node := range []*node{n, copied} {
		node.useEtcdOf(host)
	}
	n.start()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	s := openSession(t, n.port(0))
	s.want("backend", "hello")
	if err := os.Mkdir(filepath.Join(copied.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	instance, err := os.ReadFile(filepath.Join(n.dir, "data", "instance"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(copied.dir, "data", "instance"), instance, 0o600); err != nil {
		t.Fatal(err)
	}

	copied.start()
	eventually(t, "the older one knows of the other", func() error {
		return n.readiness(http.StatusOK, "etcd", "has taken over its record")
	})
	n.wantMetric("sluice_etcd_name_conflict", "1")
	copied.wantMetric("sluice_etcd_registered", "1")
	s.want("backend", "still here")
	visit(t, n.port(0), "backend", "new flow")
	n.etcdctl("put", fmt.Sprintf("/sluice/ports/tcp/%d", n.port(1)), startLines(t, "edited"))
	eventually(t, "the older one follows edits", func() error {
		c, err := net.Dial("tcp", loopback(n.port(1)))
		if err == nil {
			c.Close()
		}
		return err
	})
	if code := copied.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	n.wantMetric("sluice_etcd_registered", "1")
	n.wantMetric("sluice_etcd_name_conflict", "0")
	if err := n.readiness(http.StatusOK, "etcd", ""); err != nil {
		t.Error(err)
	}
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(2)), startLines(t, "later"))
	s.Close()
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
