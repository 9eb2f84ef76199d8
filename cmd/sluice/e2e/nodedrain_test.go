package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestNodeIsDrainedAndBack takes a node out by a command, over a restart too, and
// back in, with a session that goes on all the while it can.
func TestNodeIsDrainedAndBack(t *testing.T) {
	t.Parallel()
	n := startNode(t, withYAML("fleet: {drain_wait: 1ms, region: hk, addresses: [192.0.2.1]}"))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	s := openSession(t, n.port(0))
	s.want("backend", "hello")
	sluice := func(args ...string) string {
		t.Helper()
		return n.command(append(args, "--config", "sluice.yaml")...)
	}
	wantRow := func(words ...string) {
		t.Helper()
		eventually(t, "sluice node ls shows it", func() error {
			out := sluice("node", "ls")
			for _, word := range words {
				if !strings.Contains(out, word) {
					return fmt.Errorf("no %q in\n%s", word, out)
				}
			}
			return nil
		})
	}
	wantRow("ready", "ok", "hk")
	sluice("node", "drain", "test", "--reason", "new disk")
	wantRow("draining", "it is drained: new disk", "1 flow left")
	for _, port := range []int{n.port(0), n.HTTPS, n.HTTP} {
		eventually(t, "new connections are refused", func() error { return dialRefused(port) })
	}
	s.want("backend", "even now")
	n.wantMetric("sluice_fleet_draining", "1")

	// It is called off, and drained again until nothing is left.
	sluice("node", "undrain", "test")
	visit(t, n.port(0), "backend", "again")
	s.want("backend", "as ever")
	s.Close()
	if out := sluice("node", "drain", "test", "--wait", "--timeout", "30s"); !strings.Contains(out, "done") {
		t.Errorf("node drain --wait said\n%s", out)
	}
	wantRow("down", "done")
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	n.spawn()
	eventually(t, "the drained node has read etcd", func() error { return n.readiness(503, "etcd", "draining") })
	wantRow("down", "done")
	if err := dialRefused(n.port(0)); err != nil {
		t.Error(err)
	}
	sluice("node", "undrain", "test")
	n.waitReady()
	visit(t, n.port(0), "backend", "after a restart")
	var shown struct {
		State   string
		Healthy bool
		Weight  int
	}
	if out := sluice("node", "show", "test", "-o", "json"); json.Unmarshal([]byte(out), &shown) != nil || shown.State != "ready" || !shown.Healthy || shown.Weight != 1 {
		t.Errorf("node show said\n%s", out)
	}
	if out := sluice("history", "drain/"); strings.Count(out, "drain/test") != 4 {
		t.Errorf("history said\n%s", out)
	}
}
