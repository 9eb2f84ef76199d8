package deploy_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// try runs a program of the machine and returns what it says.
func try(command ...string) (string, error) {
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
	}
	return string(out), nil
}

// tool runs a program that has to end well.
func tool(t *testing.T, command ...string) string {
	t.Helper()
	out, err := try(command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestUnitIsSandboxed holds the unit to what `systemd-analyze security` gives for
// its exposure: 2.5 at most, of 10.
func TestUnitIsSandboxed(t *testing.T) {
	t.Parallel()
	tool(t, "systemd-analyze", "--no-pager", "security", "--offline=true", "--threshold=25", "sluice.service")
}

// TestReservedPortsAreThoseOfTheNode compares the two files that have to be
// changed together.
func TestReservedPortsAreThoseOfTheNode(t *testing.T) {
	t.Parallel()
	var node struct{ Ports []string }
	if err := yaml.Unmarshal([]byte(read(t, "sluice.yaml")), &node); err != nil {
		t.Fatal(err)
	}
	reserved := regexp.MustCompile(`(?m)^net\.ipv4\.ip_local_reserved_ports = (\S+)$`).FindStringSubmatch(read(t, "sysctl.conf"))
	if reserved == nil || reserved[1] != strings.Join(node.Ports, ",") {
		t.Errorf("sysctl.conf reserves %q, sluice.yaml has ports %q", reserved, node.Ports)
	}
	if firewall := read(t, "nftables.conf"); len(node.Ports) == 0 || !strings.Contains(firewall, "define mapped = { "+node.Ports[0]+" }") {
		t.Errorf("nftables.conf does not open the ports %q", node.Ports)
	}
}

// rules are the alert rules, as Prometheus reads them.
type rules struct {
	Groups []struct {
		Rules []struct {
			Alert, Expr         string
			Labels, Annotations map[string]string
		}
	}
}

func alerts(t *testing.T) rules {
	t.Helper()
	var all rules
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts.yaml")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestAlerts has promtool try every rule: with series that it is for, and with
// others beside them.
func TestAlerts(t *testing.T) {
	t.Parallel()
	tool(t, "promtool", "check", "rules", "prometheus/alerts.yaml")
	tool(t, "promtool", "test", "rules", "prometheus/alerts_test.yaml")
}

// TestEveryAlertIsTriedAndHasItsRunbook also wants no runbook without an alert.
func TestEveryAlertIsTriedAndHasItsRunbook(t *testing.T) {
	t.Parallel()
	var tried struct {
		Tests []struct {
			Alerts []struct {
				Name  string           `yaml:"alertname"`
				Fires []map[string]any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts_test.yaml")), &tried); err != nil {
		t.Fatal(err)
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tried.Tests {
		for _, a := range test.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Fires) > 0
			silent[a.Name] = silent[a.Name] || len(a.Fires) == 0
		}
	}
	var names []string
	for _, g := range alerts(t).Groups {
		for _, r := range g.Rules {
			names = append(names, r.Alert)
			if !fires[r.Alert] || !silent[r.Alert] {
				t.Errorf("alerts_test.yaml does not try %s both ways", r.Alert)
			}
			if want := "https://github.com/remotegpu/sluice/blob/main/deploy/runbooks/" + r.Alert + ".md"; r.Annotations["runbook_url"] != want {
				t.Errorf("%s has the runbook %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
			}
			if s := r.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("%s has the severity %q", r.Alert, s)
			}
			if text, err := os.ReadFile("runbooks/" + r.Alert + ".md"); err != nil || !strings.HasPrefix(string(text), "# "+r.Alert+"\n") {
				t.Errorf("runbooks/%s.md is not there, or of another alert: %v", r.Alert, err)
			}
		}
	}
	if len(names) < 40 {
		t.Errorf("found %d alerts", len(names))
	}
	books, err := filepath.Glob("runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, book := range books {
		if name := strings.TrimSuffix(filepath.Base(book), ".md"); !slices.Contains(names, name) {
			t.Errorf("%s is of no alert", book)
		}
	}
}

var metricName = regexp.MustCompile(`\b(?:sluice|process|go|up)(?:_[a-z0-9_]+)?\b`)

// known says whether METRICS.md describes a metric, or one that it is a part of.
func known(reference, name string) bool {
	for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && strings.Contains(reference, "`"+base+"`") {
			return true
		}
	}
	return false
}

// wantKnown fails for each metric of an expression that no node has.
func wantKnown(t *testing.T, reference, where, expr string) (found int) {
	t.Helper()
	literals := regexp.MustCompile(`"[^"]*"`)
	for _, name := range metricName.FindAllString(literals.ReplaceAllString(expr, `""`), -1) {
		switch {
		case name == "up", strings.HasPrefix(name, "process_"), strings.HasPrefix(name, "go_"):
			found++
		case strings.HasPrefix(name, "sluice_"):
			found++
			if !known(reference, name) {
				t.Errorf("%s asks for %s, which METRICS.md does not have", where, name)
			}
		}
	}
	return found
}

func TestAlertsAskForMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	reference := read(t, "../METRICS.md")
	for _, g := range alerts(t).Groups {
		for _, r := range g.Rules {
			if wantKnown(t, reference, r.Alert, r.Expr) == 0 {
				t.Errorf("%s asks for no metric of a node: %s", r.Alert, r.Expr)
			}
		}
	}
}
