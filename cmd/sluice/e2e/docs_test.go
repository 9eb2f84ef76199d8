package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestEveryMetricIsDocumented wants each metric that a node shows in
// METRICS.md.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	reference, err := os.ReadFile("../../../METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, metrics, err := httpGet("http://" + n.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(metrics) {
		name, ok := strings.CutPrefix(line, "# HELP sluice_")
		if !ok {
			continue
		}
		found++
		name, _, _ = strings.Cut("sluice_"+name, " ")
		if !strings.Contains(string(reference), "`"+name+"`") {
			t.Errorf("METRICS.md does not describe %s", name)
		}
	}
	if found < 20 {
		t.Errorf("the node shows %d metrics of its own", found)
	}
}
