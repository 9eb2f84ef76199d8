package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
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
	n := startLate(t, (*node).damageEtcd)
	n.wantServing()
	eventually(t, "the node says what would help", func() error {
		if !strings.Contains(n.output.String(), "If its data is damaged, make it anew") {
			return errors.New("it does not")
		}
		return nil
	})

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
	eventually(t, "the node says that it is another etcd", func() error {
		if !strings.Contains(n.output.String(), "etcd is another cluster than before") {
			return errors.New("it does not")
		}
		_, err := os.Stat(filepath.Join(n.dir, "data", "state.prev"))
		return err
	})
}

// damageEtcd overwrites the log of a stopped node's own etcd.
func (n *node) damageEtcd() {
	n.t.Helper()
	logs, err := filepath.Glob(filepath.Join(n.dir, "data", "etcd", "member", "wal", "0*.wal"))
	if err != nil || len(logs) == 0 {
		n.t.Fatalf("etcd has the logs %v, %v", logs, err)
	}
	for _, log := range logs {
		n.overwrite(log, strings.Repeat("damaged", 1000))
	}
}

func (n *node) overwrite(path, with string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(with), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// TestEtcdAndStateAreDamaged leaves a node nothing to serve from: it ends, and
// says what would help. A copy of its state does.
func TestEtcdAndStateAreDamaged(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	if code := n.stop(); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	state := filepath.Join(n.dir, "data", "state")
	good, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	n.damageEtcd()
	n.overwrite(state, "damaged")
	code, _, stderr := runSluice(t, n.dir, "run")
	last := lastLine(stderr)
	if code != 1 || !strings.Contains(last, "put back a copy of that file") || !strings.Contains(last, "move data/etcd away") {
		t.Errorf("exit code %d, the last line is\n%s", code, last)
	}
	n.overwrite(state, string(good))
	n.spawn()
	eventually(t, "the node serves from disk", func() error {
		return n.readiness(http.StatusServiceUnavailable, "disk", "the embedded etcd does not run")
	})
	visit(t, n.port(0), "backend", "from disk")
}

// TestStateScript has a shell put back what a node keeps on disk: more keys than
// one transaction may have, with values that neither the shell nor etcdctl may
// read anything into.
func TestStateScript(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{n.Etcd}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	demo, _ := n.get("routes/demo")
	want := map[string]string{"/routes/demo": demo}
	for batch := range 3 {
		var puts []clientv3.Op
		for i := range 100 {
			key := fmt.Sprintf("/routes/r-%d-%d", batch, i)
			body := fmt.Sprintf("%d '$HOME' `id` \\\"é\x7f\nKEYS\n\n<<\t%s", i, strings.Repeat("x", i*100))
			respond, err := json.Marshal(map[string]any{"host": "x.test", "path": fmt.Sprintf("/%d/%d", batch, i), "respond": map[string]any{"body": body}})
			if err != nil {
				t.Fatal(err)
			}
			want[key] = string(respond) + "\n"
			puts = append(puts, clientv3.OpPut("/sluice"+key, want[key]))
		}
		if _, err := etcd.Txn(t.Context()).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	n.wantVerdict("routes/r-2-99", "applied@")
	if code := n.stop(); code != 0 { // and with it all is on disk
		t.Fatalf("exit code %d, want 0", code)
	}
	code, script, stderr := runSluice(t, n.dir, "state", "data/state", "--endpoints", n.Etcd, "--prefix", "/it's a copy")
	if code != 0 || strings.Count(script, "etcdctl") != 3 {
		t.Fatalf("exit code %d, %s, %d calls of etcdctl", code, stderr, strings.Count(script, "etcdctl"))
	}
	n.start()
	sh := exec.Command("sh")
	sh.Stdin = strings.NewReader(script)
	if out, err := sh.CombinedOutput(); err != nil || string(out) != "put 301 keys\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := etcd.Get(t.Context(), "/it's a copy", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]string{}
	for _, kv := range got.Kvs {
		is[strings.TrimPrefix(string(kv.Key), "/it's a copy")] = string(kv.Value)
	}
	if diff := cmp.Diff(want, is); diff != "" {
		t.Errorf("what is in etcd (-want +got):\n%s", diff)
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
