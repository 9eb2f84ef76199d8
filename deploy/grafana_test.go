package deploy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// dashboard is what is looked at of a dashboard of Grafana.
type dashboard struct {
	UID, Title string
	Templating struct{ List []struct{ Name string } }
	Panels     []struct {
		ID          int
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ Expr string }
	}
}

// TestDashboards wants each expression to be one of PromQL, by promtool, about
// metrics that there are, and panels that do not lie on each other.
func TestDashboards(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("grafana/*.json")
	if err != nil || len(files) < 2 {
		t.Fatalf("found the dashboards %q, %v", files, err)
	}
	reference := read(t, "../METRICS.md")
	var asRules strings.Builder
	asRules.WriteString("groups:\n- name: dashboards\n  rules:\n")
	n := 0
	for _, file := range files {
		var d dashboard
		if err := json.Unmarshal([]byte(read(t, file)), &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		variables := map[string]bool{"__rate_interval": true}
		for _, v := range d.Templating.List {
			variables[v.Name] = true
		}
		taken := map[[2]int]string{}
		for _, p := range d.Panels {
			where := fmt.Sprintf("%s, %s", file, p.Title)
			for x := range p.GridPos.W {
				for y := range p.GridPos.H {
					at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
					if taken[at] != "" || at[0] >= 24 {
						t.Fatalf("%s lies on %q, or beyond the edge", where, taken[at])
					}
					taken[at] = p.Title
				}
			}
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s shows nothing", where)
			}
			for _, target := range p.Targets {
				n++
				if wantKnown(t, reference, where, target.Expr) == 0 {
					t.Errorf("%s asks for no metric of a node: %s", where, target.Expr)
				}
				expr := regexp.MustCompile(`\$(\w+)`).ReplaceAllStringFunc(target.Expr, func(v string) string {
					if !variables[v[1:]] {
						t.Errorf("%s uses %s, which the dashboard does not have", where, v)
					}
					return "5m"
				})
				fmt.Fprintf(&asRules, "  - record: dashboard:%d\n    expr: %q\n", n, expr)
			}
		}
	}
	if n < 50 {
		t.Errorf("found %d expressions", n)
	}
	path := filepath.Join(t.TempDir(), "dashboards.yaml")
	if err := os.WriteFile(path, []byte(asRules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "promtool", "check", "rules", path)
}
