package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNobodyReadsTheAccessLog has the log go to a pipe that nobody reads: it is
// full after a few dozen flows, and must harm neither them nor the stop.
func TestNobodyReadsTheAccessLog(t *testing.T) {
	t.Parallel()
	n, _ := startLogging(t)
	n.mustPut("routes/long", `{"host": "long.x.test", "respond": {"body": "answer"}}`)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))

	c := newClient(t, n, "h1")
	for i := range 300 { // 300 KB of records; the pipe holds 64
		path := fmt.Sprintf("/%d/%s", i, strings.Repeat("x", 1000))
		if resp, body := c.get("long.x.test", path); resp.StatusCode != http.StatusOK || body != "answer" {
			t.Fatalf("request %d: %s %q", i, resp.Status, body)
		}
	}
	for i := range 20 {
		visit(t, n.port(0), "backend", fmt.Sprint("flow ", i))
	}
	if dropped, ok := n.metric(`sluice_access_log_dropped_total{reason="queue"} `); dropped != "0" || !ok {
		t.Errorf("%q records dropped, want none: they fit into the queue", dropped)
	}
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if !strings.Contains(n.output.String(), "stopped without the whole access log") {
		t.Error("the node does not say that records are lost")
	}
}

// TestTheAccessLogIsMovedAway rotates the log as logrotate does.
func TestTheAccessLogIsMovedAway(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	s := openSession(t, n.port(0))
	s.want("backend", "hello")
	s.Close()
	n.accessRecord(map[string]any{"client": s.LocalAddr()})

	log, moved := filepath.Join(n.dir, "access.log"), filepath.Join(n.dir, "access.log.1")
	if err := os.Rename(log, moved); err != nil {
		t.Fatal(err)
	}
	n.signal(syscall.SIGUSR1)
	eventually(t, "there is a new file", func() error {
		_, err := os.Stat(log)
		return err
	})
	later := openSession(t, n.port(0))
	later.want("backend", "hello")
	later.Close()
	n.accessRecord(map[string]any{"client": later.LocalAddr()})
	old, err := os.ReadFile(moved)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(old), later.LocalAddr().String()) || !strings.Contains(string(old), s.LocalAddr().String()) {
		t.Errorf("the old file holds\n%s", old)
	}
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0: SIGUSR1 is no reason to stop", code)
	}
}

// TestTheReaderOfTheAccessLogDies breaks the pipe that the log goes to.
func TestTheReaderOfTheAccessLogDies(t *testing.T) {
	t.Parallel()
	n, r := startLogging(t)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	r.Close()
	visit(t, n.port(0), "backend", "hello")
	eventually(t, "the loss is counted", func() error {
		if got, _ := n.metric(`sluice_access_log_dropped_total{reason="write"} `); got != "1" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	visit(t, n.port(0), "backend", "still here")
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// startLogging starts a node whose access log goes to a pipe, and returns the
// end to read from.
func startLogging(t *testing.T) (*node, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	n := newNode(t)
	n.edit("access: ./access.log", "access: stdout")
	n.stdout = w
	n.start()
	w.Close()
	return n, r
}
