package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// listedFlow is a flow as `sluice flows` lists it.
type listedFlow struct {
	ID      uint64
	Client  string
	Process int
}

// listed returns the flows that the node lists, by the addresses of clients.
func (n *node) listed() map[string]listedFlow {
	n.t.Helper()
	all := map[string]listedFlow{}
	for line := range strings.Lines(n.command("flows", "--admin", n.Admin, "-o", "json")) {
		var f listedFlow
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			n.t.Fatalf("sluice flows says %q: %v", line, err)
		}
		all[f.Client] = f
	}
	return all
}

// TestFlowsOfOlderProcesses lists, cuts and drains a node whose flows are in two
// processes.
func TestFlowsOfOlderProcesses(t *testing.T) {
	t.Parallel()
	n := startReplaceable(t, withYAML("fleet: {drain_wait: 1ms}"))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), startLines(t, "backend"))
	first, second := openSession(t, n.port(0)), openSession(t, n.port(0))
	first.want("backend", "one")
	second.want("backend", "two")
	pid := n.cmd.Process.Pid
	old := n.upgrade()
	n.waitReady()
	third := openSession(t, n.port(0))
	third.want("backend", "three")

	listed := n.listed()
	one, two, three := listed[first.LocalAddr().String()], listed[second.LocalAddr().String()], listed[third.LocalAddr().String()]
	if len(listed) != 3 || one.Process != pid || two.Process != pid || three.Process != 0 {
		t.Fatalf("listed are %v, of which two are of process %d", listed, pid)
	}
	if one.ID == two.ID || three.ID <= max(one.ID, two.ID) {
		t.Errorf("the IDs are %d, %d and %d", one.ID, two.ID, three.ID)
	}
	for _, command := range [][]string{{"status"}, {"node", "ls"}, {"node", "show", "test"}} {
		eventually(t, "sluice "+strings.Join(command, " ")+" tells of the older process", func() error {
			if out := n.command(append(command, "--config", "sluice.yaml")...); !strings.Contains(out, "1 older process, 2 flows, until 2") {
				return fmt.Errorf("it shows\n%s", out)
			}
			return nil
		})
	}
	cut := func(args ...string) string {
		t.Helper()
		return n.command(append([]string{"flows", "cut", "--admin", n.Admin}, args...)...)
	}
	if out := cut("--id", fmt.Sprint(one.ID)); out != "cut 1 flows\n" {
		t.Errorf("flows cut said %q", out)
	}
	first.wantCut()
	second.want("backend", "still here")
	third.want("backend", "likewise")

	waiting := exec.Command(binary, "node", "drain", "test", "--wait", "--config", "sluice.yaml")
	waiting.Dir = n.dir
	drain := startProcess(t, waiting)
	wantRow := func(words string) {
		t.Helper()
		eventually(t, "sluice node ls shows "+words, func() error {
			if out := n.command("node", "ls", "--config", "sluice.yaml"); !strings.Contains(out, words) {
				return fmt.Errorf("it shows\n%s", out)
			}
			return nil
		})
	}
	wantRow("2 flows left")
	waiting.Process.Signal(syscall.SIGTERM)
	if code := drain.wait(); code != 1 || !strings.Contains(drain.stderr.String(), "ended by a signal (terminated)") {
		t.Errorf("a command that waits and is to end: exit code %d, %q", code, drain.stderr)
	}
	third.Close()
	wantRow("1 flow left") // which only the older process has
	second.want("backend", "to the end")
	if out := cut("--port", fmt.Sprint(n.port(0))); out != "cut 1 flows\n" {
		t.Errorf("flows cut said %q", out)
	}
	second.wantCut()
	old.wantGone(t)
	wantRow("done")
}
