package main_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/remotegpu/sluice"

// arrows says which other packages of ours each may import, besides packages
// below itself. Whatever is not said is refused. ARCHITECTURE.md draws it.
var arrows = map[string][]string{
	"cmd":              {"router", "portpool", "certs", "proxy", "control", "cmd", "deploy"},
	"router":           {},
	"portpool":         {"router"},
	"certs":            {"certs"},
	"certs/dns":        {},
	"certs/etcdstore":  {"certs", "control/etcd"},
	"certs/tlskeys":    {"certs"},
	"certs/seal":       {},
	"proxy":            {"router", "proxy"},
	"proxy/clienttls":  {"router"},
	"proxy/listen":     {},
	"proxy/sniff":      {},
	"proxy/upstream":   {"router", "proxy/listen"},
	"proxy/l4":         {"router", "proxy/listen", "proxy/sniff", "proxy/upstream"},
	"proxy/l4/loop":    {"proxy/l4/event"},
	"proxy/l4/event":   {},
	"proxy/http":       {"router", "proxy/clienttls", "proxy/upstream"},
	"proxy/http/h1":    {"proxy/http/field"},
	"proxy/http/h2":    {"proxy/http/field"},
	"proxy/http/h3":    {"proxy/http/field", "proxy/http/h2"},
	"proxy/http/field": {},
	"control":          {"router", "portpool", "control"},
	"control/envs":     {"router", "portpool", "control", "control/etcd"},
	"control/etcd":     {},
	"control/history":  {"control/etcd"},
	"control/keys":     {"router", "control"},
	"control/names":    {"router", "control/etcd"},
	"control/fleet":    {"router", "control/etcd"},
	"control/api":      {"control/wire"},
	"control/api/v1":   {"router", "portpool", "control", "control/api", "control/etcd", "control/envs", "control/history", "control/keys", "control/tokens", "control/wire"},
	"control/wire":     {"router", "portpool"},
	"control/tokens":   {"router", "control/etcd"},
	"deploy":           {},
	"bench":            {"router", "certs", "certs/etcdstore", "certs/seal", "control/etcd", "control/fleet", "bench"},

	"control/api/client": {"control/wire"},
	"proxy/listen/netns": {},
}

// foreign says which parts of the tree may not import which libraries, and why.
var foreign = []struct{ part, library, why string }{
	{"router", ".", "the decisions use the standard library only"},
	{"portpool", ".", "the allocator uses the standard library only"},
	{"proxy/sniff", ".", "bytes in, answer out"},
	{"proxy/http/h1", ".", "bytes in, answer out"},
	{"proxy/http/h2", ".", "bytes in, answer out"},
	{"proxy/http/h3", ".", "bytes in, answer out"},
	{"proxy/http/field", ".", "a list of strings"},
	{"proxy", "go.etcd.io", "the data plane outlives its control plane"},
	{"proxy", "github.com/caddyserver", "the data plane asks GetCertificate and nobody else"},
	{"proxy", "github.com/libdns", "the data plane never touches DNS records"},
	{"control", "github.com/quic-go", "the control plane serves no public traffic"},
	{"certs", "go.etcd.io", "certificates reach etcd through certmagic.Storage"},
}

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	// With the profile each package of a command would be listed as a variant too.
	cmd := exec.Command("go", "list", "-pgo=off", "-json=ImportPath,Dir,Imports,GoFiles", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
}

func TestArrowsBetweenPackages(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		rule, allowed := ruleOf(from)
		if rule == "" {
			t.Errorf("%s has no place in the design: give it a line in arrows and in ARCHITECTURE.md", from)
			continue
		}
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module+"/")
			if ours && !within(to, rule) && !slices.ContainsFunc(allowed, func(a string) bool { return within(to, a) }) {
				t.Errorf("%s imports %s: that arrow is not in the design", from, to)
			}
			if ours && to == "bench" {
				t.Errorf("%s imports bench, which nobody may", from)
			}
			checkForeign(t, from, imported, ours)
		}
	}
}

func checkForeign(t *testing.T, from, imported string, ours bool) {
	t.Helper()
	host, _, _ := strings.Cut(imported, "/")
	for _, f := range foreign {
		if ours || !within(from, f.part) || !strings.Contains(host, ".") {
			continue
		}
		if f.library == "." || strings.HasPrefix(imported, f.library) {
			t.Errorf("%s imports %s: %s", from, imported, f.why)
		}
	}
}

// ruleOf returns the longest entry of arrows that path lies within.
func ruleOf(path string) (rule string, allowed []string) {
	for part, to := range arrows {
		if within(path, part) && len(part) > len(rule) {
			rule, allowed = part, to
		}
	}
	return rule, allowed
}

func within(path, part string) bool {
	return path == part || strings.HasPrefix(path, part+"/")
}

func TestEveryPackageHasItsComment(t *testing.T) {
	for _, p := range packages(t) {
		found := 0
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				found++
			}
		}
		if len(p.GoFiles) > 0 && found != 1 {
			t.Errorf("%s has %d package comments, want one", p.ImportPath, found)
		}
	}
}

// TestEveryDirectDependencyHasItsReason wants each module that go.mod requires
// directly in ARCHITECTURE.md.
func TestEveryDirectDependencyHasItsReason(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	reasons, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) != 2 || !strings.HasPrefix(fields[1], "v") {
			continue // not a requirement, or one that bears the mark "// indirect"
		}
		found++
		if !strings.Contains(string(reasons), fields[0]) {
			t.Errorf("ARCHITECTURE.md does not say why %s is there", fields[0])
		}
	}
	if found < 10 {
		t.Errorf("found %d direct requirements in go.mod", found)
	}
}
