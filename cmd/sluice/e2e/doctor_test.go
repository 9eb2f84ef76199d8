package e2e

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// finding is what sluice doctor -o json writes.
type finding struct{ Check, Severity, Text, Mend string }

// doctor runs sluice doctor for n.
func (n *node) doctor(flags ...string) (code int, all []finding) {
	n.t.Helper()
	args := append([]string{"doctor", "-c", filepath.Join(n.dir, "sluice.yaml"), "-o", "json", "--ntp", ""}, flags...)
	code, out, said := runSluice(n.t, n.dir, args...)
	for line := range strings.Lines(out) {
		var f finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			n.t.Fatalf("%q: %v\n%s", line, err, said)
		}
		all = append(all, f)
	}
	return code, all
}

func has(all []finding, check, severity, text string) bool {
	for _, f := range all {
		if f.Check == check && f.Severity == severity && strings.Contains(f.Text, text) {
			return true
		}
	}
	return false
}

// TestDoctor looks at a live node, and at one that cannot start.
func TestDoctor(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	code, all := n.doctor()
	for _, want := range [][3]string{
		{"config", "ok", "is good"}, {"node", "ok", "ready"}, {"etcd", "ok", "1 voting members"},
		{"sandbox", "ok", "seccomp filters"}, {"data", "ok", "the node's own"}, {"kernel", "ok", "GSO"},
	} {
		if !has(all, want[0], want[1], want[2]) {
			t.Errorf("nothing of %v in %v", want, all)
		}
	}
	if !has(all, "etcd", "ok", "answers in") && !has(all, "etcd", "warning", "for an answer") { // the latter on a busy machine
		t.Errorf("nothing of how soon etcd answers in %v", all)
	}
	for _, f := range all {
		if f.Severity == "critical" {
			t.Errorf("beside a node that is well: %v", f)
		}
	}
	if code != 0 && code != 3 { // the machine of the test may be short of something
		t.Errorf("exit code %d", code)
	}
	n.stop()

	ln, err := net.Listen("tcp", loopback(n.HTTPS))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if code, all := n.doctor(); code != 1 || !has(all, "ports", "critical", ownName(t)) || !has(all, "node", "note", "no node answers") {
		t.Errorf("with an address in use: exit code %d, %v", code, all)
	}
}
