package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

func TestDrainOfAnIdleNode(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("1h")) // wait gives up long before
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if err := dialRefused(n.port(0)); err != nil {
		t.Error(err)
	}
}

func TestDrainWaitsForASession(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("1h"))
	s := n.drainWithSession()
	s.want("backend", "still here")
	// Whoever looks at the cluster sees it as well.
	eventually(t, "the node's record says draining", func() error {
		record, _ := n.get("nodes/test")
		var r struct{ State string }
		if err := json.Unmarshal([]byte(record), &r); err != nil || r.State != "draining" {
			return fmt.Errorf("it is %s (%v)", record, err)
		}
		return nil
	})
	s.want("backend", "even now")
	s.Close()
	if code := n.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "client_closed"})
}

func TestDrainCutsAtItsLimit(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("2s"))
	s := n.drainWithSession()
	s.wantCut()
	if code := n.wait(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if !strings.Contains(n.output.String(), "still open") {
		t.Error("the node does not say that it cut a flow")
	}
	n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "drain"})
}

func TestSecondSignalCutsAtOnce(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("1h"))
	s := n.drainWithSession()
	s.want("backend", "still here")
	n.signal(syscall.SIGTERM)
	s.wantCut()
	if code := n.wait(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "drain"})
}

// drainWithSession opens a session, has the node drain, and sees that it
// accepts nothing new.
func (n *node) drainWithSession() *session {
	t := n.t
	t.Helper()
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	s := openSession(t, n.port(0))
	s.want("backend", "hello")
	n.signal(syscall.SIGTERM)
	eventually(t, "readiness says draining", func() error {
		status, body, err := httpGet("http://" + n.Admin + "/readyz")
		if err != nil {
			return err
		}
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "draining") {
			return fmt.Errorf("it is %d %s", status, body)
		}
		return nil
	})
	for _, port := range []int{n.port(0), n.HTTPS, n.HTTP} {
		eventually(t, "new connections are refused", func() error { return dialRefused(port) })
	}
	return s
}
