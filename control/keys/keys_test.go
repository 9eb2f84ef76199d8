package keys

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/router"
)

var somePorts = router.Ports{{First: 20000, Last: 20999}}

func kv(key, value string, rev int64) etcd.KV {
	return etcd.KV{Key: key, Value: []byte(value), ModRev: rev}
}

func TestPlan(t *testing.T) {
	there := []etcd.KV{
		kv("ports/tcp/20001", "10.0.0.1:22", 3),
		kv("ports/tcp/20002", `{"backend": "10.0.0.2:22", "env": "a"}`, 4),
		kv("ports/tcp/20003", "nonsense", 5),
		kv("pools/ssh", `{"ports": "20100-20199", "backend_port": 22}`, 6),
	}
	p := planFor(somePorts, there, 9, []Wish{
		{Key: "ports/tcp/20010", Value: "10.0.0.3:22"},
		{Key: "ports/tcp/20001", Value: "10.0.0.9:22"},
		{Key: "ports/tcp/20002", Value: `{"env":"a","backend":"10.0.0.2:22"}`},
		{Key: "ports/tcp/20003", Delete: true},
		{Key: "ports/tcp/20004", Delete: true},
	})
	var said []string
	for _, c := range p.Changes {
		text := c.Key
		if c.Before != nil {
			text += " was " + *c.Before
		}
		if c.After != nil {
			text += " is " + *c.After
		}
		said = append(said, text)
	}
	want := []string{"ports/tcp/20001 was 10.0.0.1:22 is 10.0.0.9:22", "ports/tcp/20003 was nonsense", "ports/tcp/20010 is 10.0.0.3:22"}
	if diff := cmp.Diff(want, said); diff != "" || p.Same != 2 || p.Rev != 9 || len(p.Findings) > 0 {
		t.Errorf("plan %+v: %s", p, diff)
	}
}

// Nodes refuse some values for what other keys hold.
func TestPlanFindsWhatNodesRefuse(t *testing.T) {
	there := []etcd.KV{
		kv("pools/ssh", `{"ports": "20100-20199", "backend_port": 22}`, 6),
		kv("pools/old", `{"ports": "20150-20160", "backend_port": 22}`, 7), // refused already
		kv("ports/tcp/20001", "127.0.0.1:20002", 8),
	}
	for _, tc := range []struct{ key, value, want string }{
		{"ports/tcp/20002", "127.0.0.1:20001", "leads back here"},
		{"ports/tcp/30000", "10.0.0.1:22", "lies outside"},
		{"ports/tcp/20003", `{"backnd": "10.0.0.1:22"}`, "did you mean"},
		{"pools/web", `{"ports": "20190-20300", "backend_port": 80}`, "ssh"},
		{"routs/a", "{}", "did you mean"},
	} {
		p := planFor(somePorts, there, 9, []Wish{{Key: tc.key, Value: tc.value}})
		if len(p.Findings) != 1 || p.Findings[0].Key != tc.key || !strings.Contains(p.Findings[0].Why, tc.want) {
			t.Errorf("%s %s: found %+v, want %q", tc.key, tc.value, p.Findings, tc.want)
		}
	}
	// A value in force can lose its place to an edit of another key.
	p := planFor(somePorts, there, 9, []Wish{{Key: "ports/tcp/20002", Value: "10.0.0.1:22"}, {Key: "pools/old", Delete: true}})
	if len(p.Findings) > 0 {
		t.Errorf("found %+v", p.Findings)
	}
}

func TestTransactionsAreBounded(t *testing.T) {
	text := strings.Repeat("x", 200<<10)
	var all []Change
	for range maxBatch + 5 {
		all = append(all, Change{Key: "routes/a", After: new(string)})
	}
	if n := len(firstBatch(all)); n != maxBatch {
		t.Errorf("%d small edits in one", n)
	}
	large := []Change{{Key: "a", After: &text}, {Key: "b", After: &text}, {Key: "c", After: &text}}
	if n := len(firstBatch(large)); n != 2 {
		t.Errorf("%d large edits in one", n)
	}
	huge := strings.Repeat("x", 2<<20)
	if n := len(firstBatch([]Change{{Key: "a", After: &huge}})); n != 1 {
		t.Errorf("%d huge edits in one", n)
	}
}

func TestParseFile(t *testing.T) {
	const text = `# keys
ports/tcp/20022: 10.0.0.1:22
ports/tcp/20023: {backend: "10.0.0.1:23", limits: {connections: 10}}
routes/a:
  host: ["a.example.com", "~^b-(?<id>[a-z]+)\\.example\\.com$"]
  strip_prefix: true
  respond: {body: "a <b> ${id}\n", status: 200}
domains/*.example.com: {}
`
	got, err := ParseFile("f.yaml", []byte(text))
	want := []Wish{
		{Key: "ports/tcp/20022", Value: "10.0.0.1:22"},
		{Key: "ports/tcp/20023", Value: `{"backend": "10.0.0.1:23", "limits": {"connections": 10}}`},
		{Key: "routes/a", Value: `{"host": ["a.example.com", "~^b-(?<id>[a-z]+)\\.example\\.com$"], "strip_prefix": true, "respond": {"body": "a <b> ${id}\n", "status": 200}}`},
		{Key: "domains/*.example.com", Value: `{}`},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, %s", err, diff)
	}
	for _, tc := range []struct{ text, want string }{
		{"- a\n", `f.yaml:1: write keys and their values, such as "ports/tcp/20022: 127.0.0.1:22"`},
		{"a: 1\nb: 2\na: 3\n", "f.yaml:3: the key a is there already, in line 1"},
		{"a: 1\n---\nb: 2\n---\na: 3\n", "f.yaml:5: the key a is there already, in line 1"},
		{"a: 1\n...\ngarbage\n", "f.yaml: not valid YAML: "},
		{"{\"a\": \"1\"}\n{\"b\": \"2\"}\n", "f.yaml: not valid YAML: "},
		{"{\"a\": \"1\"} garbage\n", "f.yaml: not valid YAML: "},
		{"a: [\n", "f.yaml: not valid YAML: "},
		{"x: &n {a: 1}\ny: *n\n", "f.yaml:2: y: line 2: write the value itself rather than *n"},
		{"x: .inf\n", "f.yaml:1: x: line 1: \".inf\" is no number that JSON has"},
	} {
		if _, err := ParseFile("f.yaml", []byte(tc.text)); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%q: error %v, want %s", tc.text, err, tc.want)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("a: {b: [1, 0x10, ~, 2026-01-01, !!binary aGk=]}\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("<<: {a: b}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		wishes, err := ParseFile("f", text)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, w := range wishes {
			if seen[w.Key] {
				t.Fatalf("the key %q twice", w.Key)
			}
			seen[w.Key] = true
		}
	})
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("notes.txt", "not: keys\n")
	write(".hidden/a.yaml", "- nonsense\n")
	if _, err := ReadFiles([]string{dir}, nil); err == nil || !strings.Contains(err.Error(), "no keys there") {
		t.Errorf("of a directory without keys: %v", err)
	}
	write("a.yaml", "ports/tcp/20001: 10.0.0.1:22\n")
	write("sub/b.json", `{"routes/b": {"host": "b.example.com", "backend": "10.0.0.1:80"}}`)
	got, err := ReadFiles([]string{dir}, nil)
	want := []Wish{{Key: "ports/tcp/20001", Value: "10.0.0.1:22"}, {Key: "routes/b", Value: `{"host": "b.example.com", "backend": "10.0.0.1:80"}`}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, %s", err, diff)
	}
	write("c.yml", "ports/tcp/20001: 10.0.0.2:22\n")
	if _, err := ReadFiles([]string{dir}, nil); err == nil || !strings.Contains(err.Error(), "the key ports/tcp/20001 is in "+filepath.Join(dir, "a.yaml")+" too") {
		t.Errorf("of a key in two files: %v", err)
	}
	got, err = ReadFiles([]string{filepath.Join(dir, "a.yaml"), "-"}, strings.NewReader("---\na: b\n---\n---\nc: d\n"))
	if want := []Wish{want[0], {Key: "a", Value: "b"}, {Key: "c", Value: "d"}}; err != nil || !cmp.Equal(want, got) {
		t.Errorf("of standard input: %v, error %v", got, err)
	}
	// What is empty by mistake is not to be taken for a wish.
	for _, text := range []string{"", "# nothing\n", "---\n", "null\n", "{}\n"} {
		if got, err := ReadFiles([]string{filepath.Join(dir, "a.yaml"), "-"}, strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "standard input: no keys there") {
			t.Errorf("of %q: %v, error %v", text, got, err)
		}
	}
}

// A link to a folder is not left out, lest its keys be pruned.
func TestReadFilesByLinks(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "a.yaml"), []byte("routes/a: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"a.yaml": filepath.Join(other, "a.yaml"), ".hidden": other} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ReadFiles([]string{dir}, nil); err != nil || len(got) != 1 {
		t.Errorf("of a link to a file: %v, error %v", got, err)
	}
	if err := os.Symlink(other, filepath.Join(dir, "routes")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFiles([]string{dir}, nil); err == nil || !strings.Contains(err.Error(), "a link to a folder") {
		t.Errorf("of a link to a folder: %v", err)
	}
	if got, err := ReadFiles([]string{filepath.Join(dir, "routes")}, nil); err != nil || len(got) != 1 {
		t.Errorf("of a folder by a link: %v, error %v", got, err)
	}
}

func TestSameValue(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{`{"a": 1, "b": [true, null, {"c": "d"}]}`, `{"b":[true,null,{"c":"d"}],"a":1}`, true},
		{`{"a": 1.0}`, `{"a": 1}`, false},
		{`{"a": "x", "a": "y"}`, `{"a": "y"}`, false}, // nodes refuse the first
		{`{"a": {"b": 1, "b": 1}}`, `{"a": {"b": 1}}`, false},
		{`{} {}`, `{}`, false},
		{`10.0.0.1:22`, `10.0.0.1:22`, true},
		{`[1, 2]`, `[1,2]`, true},
		{`[1,`, `[1`, false},
	} {
		if got := sameValue(tc.a, tc.b); got != tc.same {
			t.Errorf("%s and %s: %v", tc.a, tc.b, got)
		}
	}
}

// A node says that it has applied a revision when its verdicts of that are there,
// however many there are: the one before them is not taken for the answer.
func TestAwaitTakesNoOlderVerdict(t *testing.T) {
	srv, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	dial := func() *etcd.Client {
		c, err := etcd.Dial(etcd.Config{Endpoints: []string{srv.Endpoint()}, Prefix: "/sluice"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	s, err := dial().NewSession(etcd.SessionConfig{Node: "n1", Instance: "i"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	record := func(rev int64) string {
		text, err := json.Marshal(fleet.Node{Name: "n1", Instance: "i", State: fleet.Ready, Applied: rev})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	s.SetRecord(record(1))
	v, store := s.Verdicts(), &Store{Client: dial(), Ports: somePorts}
	v.Set("ports/tcp/20999", "applied@1")
	if err := store.Client.Follow(ctx, []string{"verdicts/"}, 1, func([]etcd.Change) (bool, error) { return true, nil }); err != nil {
		t.Fatal(err) // the record comes before the first verdict
	}
	for round := range int64(5) {
		rev, err := store.Client.Commit(ctx, []etcd.Edit{{Key: "ports/tcp/20999", Value: []byte("x"), Blind: true}}, "test")
		if err != nil {
			t.Fatal(err)
		}
		// As a node does it: the verdicts, then the revision. With this edit came others.
		for i := range 2000 {
			v.Set(fmt.Sprintf("ports/tcp/%d", 18000+i), fmt.Sprintf("applied@%d", rev))
		}
		v.Set("ports/tcp/20999", fmt.Sprintf("refused: for the %d. time (last good @1 stays in force)", round))
		s.SetProgress(record(rev))
		got, err := store.Await(ctx, rev, []string{"ports/tcp/20999"})
		if err != nil || len(got) != 1 || got[0].Verdict.State != control.Refused || !strings.Contains(got[0].Verdict.Text, fmt.Sprint("the ", round)) {
			t.Fatalf("round %d: %v, error %v", round, got, err)
		}
	}
}
