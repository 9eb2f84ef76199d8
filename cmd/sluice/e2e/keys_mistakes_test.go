package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestKeyCommandsOfThoseInAHurry makes the mistakes that people make at night, and
// wants to be told.
func TestKeyCommandsOfThoseInAHurry(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	name, bad := fmt.Sprintf("tcp/%d", n.port(0)), fmt.Sprintf("tcp/%d", n.port(1))
	wantErr := func(code int, want string, args ...string) {
		t.Helper()
		if _, errOut := n.keyCommand(code, args...); !strings.Contains(errOut, want) {
			t.Errorf("sluice %s said %swant %q", strings.Join(args, " "), errOut, want)
		}
	}
	// What is there already may be refused.
	for _, want := range []string{"written, and refused", "there already, and refused", "there already, and refused"} {
		wantErr(1, want, "map", "put", bad, n.Admin)
	}
	// A key may be copied from wherever one has it.
	for i, form := range []string{"/sluice/ports/" + name, "ports/" + name, name} {
		n.keyCommand(0, "map", "put", form, fmt.Sprintf("10.0.0.1:%d", 22+i))
		if value, _ := n.get("ports/" + name); value != fmt.Sprintf("10.0.0.1:%d", 22+i) {
			t.Errorf("after put %s the value is %q", form, value)
		}
		if out, _ := n.keyCommand(0, "history", form, "-n", "1"); !strings.Contains(out, name) {
			t.Errorf("history %s said\n%s", form, out)
		}
	}
	wantErr(2, `"20022" is not PROTO/PORT`, "map", "put", "20022", "10.0.0.1:22")
	wantErr(1, "1 of 2 keys are not there (ports/tcp/1)", "map", "rm", name, "tcp/1")
	wantErr(2, "no keys begin so", "history", "prots/tcp")
	wantErr(2, "no keys begin so", "diff", "2", "--under", "zzz/")
	wantErr(2, "no keys begin so", "rollback", "--to", "2", "--under", "zzz/")
	wantErr(2, "--since", "history", "--since", "-1h")
	wantErr(2, "--wait", "map", "put", name, "10.0.0.1:22", "--wait", "-5s")

	// A key of a form that no node takes can be looked at and removed.
	for _, odd := range []string{"ports/tcp/022", "ports/sctp/22"} {
		n.etcdctl("put", "/sluice/"+odd, "10.0.0.1:22")
		n.keyCommand(0, "map", "get", odd)
		n.keyCommand(0, "map", "rm", odd)
		if value, _ := n.get(odd); value != "" {
			t.Errorf("%s is still %q", odd, value)
		}
	}
	if v := n.put("routes/latin", "{\"host\": \"a.test\", \"respond\": {\"body\": \"caf\xe9\"}}"); !strings.HasPrefix(v, "refused: the value is not UTF-8") {
		t.Errorf("the verdict on a value in Latin-1 is %s", v)
	}

	// What a rollback cannot bring back, it does not call done.
	n.etcdctl("put", "/sluice/ports/"+name, "garbage")
	garbage := n.modRevision("/sluice/ports/" + name)
	n.etcdctl("put", "/sluice/ports/"+name, "10.0.0.1:22")
	wantErr(1, "1 key left as it is", "rollback", "--to", fmt.Sprint(garbage), "--under", "ports/"+name)
}

// TestApplyOfThoseInAHurry gives apply what a program made that failed, and what
// other programs are given.
func TestApplyOfThoseInAHurry(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	key := func(i int) string { return fmt.Sprintf("ports/tcp/%d", n.port(i)) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("two.yaml", fmt.Sprintf("%s: 10.0.0.1:22\n---\n%s: 10.0.0.1:22\n", key(0), key(1)))
	write("third.json", fmt.Sprintf(`{"%s": "10.0.0.1:22"}`, key(2)))
	write("empty.yaml", "# the program that wrote this failed\n")
	n.keyCommand(0, "apply", "-f", "two.yaml", "-f", "third.json")
	for i := range 3 {
		if value, _ := n.get(key(i)); value != "10.0.0.1:22" {
			t.Errorf("%s is %q", key(i), value)
		}
	}
	out, _ := n.keyCommand(0, "apply", "-f", "two.yaml", "-f", "third.json", "--prune", "ports/", "--dry-run")
	if !strings.Contains(out, "nothing to change: 3 keys") {
		t.Errorf("of what is there apply said\n%s", out)
	}
	for _, args := range [][]string{
		{"-f", "empty.yaml", "--prune", "ports/", "--yes"}, {"-f", "two.yaml", "-f", "empty.yaml", "--prune", "ports/", "--yes"},
		{"-f", "/dev/null", "--prune", "ports/", "--yes"}, {"-f", "-", "--prune", "ports/", "--yes"},
	} {
		if _, errOut := n.keyCommand(1, append([]string{"apply"}, args...)...); !strings.Contains(errOut, "no keys there") {
			t.Errorf("apply %s said %s", strings.Join(args, " "), errOut)
		}
	}
	if _, errOut := n.keyCommand(2, "apply", "two.yaml"); !strings.Contains(errOut, "-f two.yaml") {
		t.Errorf("apply two.yaml said %s", errOut)
	}
	n.keyCommand(2, "apply", "-f", "two.yaml", "--prune", "", "--yes")
	write("confirm.yaml", "removals/confirmed: x\n")
	n.keyCommand(2, "apply", "-f", "confirm.yaml")
	if out := n.etcdctl("get", "--prefix", "--keys-only", "/sluice/ports/"); strings.Count(out, "ports/tcp/") != 3 {
		t.Errorf("the mappings are\n%s", out)
	}
}

// TestPrefixIsDeleted has somebody delete everything, the history included: all
// that was in force stays so, and what is on disk brings it back.
func TestPrefixIsDeleted(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := startLines(t, "backend")
	var files strings.Builder
	for i := range mappedPerNode {
		fmt.Fprintf(&files, "ports/tcp/%d: %s\n", n.port(i), backend)
	}
	fmt.Fprint(&files, "routes/few: {host: few.localhost, respond: {body: few}}\ndomains/few.localhost: {}\n")
	fmt.Fprintf(&files, "pools/ssh: {ports: \"%d\", backend_port: 22}\n", n.port(0))
	if err := os.WriteFile(filepath.Join(n.dir, "keys.yaml"), []byte(files.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	n.keyCommand(0, "apply", "-f", "keys.yaml")
	_, body, err := n.adminGet("/readyz")
	if err != nil {
		t.Fatal(err)
	}
	var before struct{ Fingerprint string }
	if err := json.Unmarshal([]byte(body), &before); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the state is on disk", func() error {
		state, err := os.ReadFile(filepath.Join(n.dir, "data", "state"))
		if err == nil && !strings.Contains(string(state), "routes/few") {
			err = fmt.Errorf("it has %d bytes", len(state))
		}
		return err
	})
	n.etcdctl("del", "--prefix", "/sluice/")
	for _, key := range []string{"routes/few", "domains/few.localhost", "pools/ssh", fmt.Sprintf("ports/tcp/%d", n.port(3))} {
		n.wantVerdict(key, "held: ")
	}
	if body := n.curl(n.url("few.localhost", "/")); body != "few" {
		t.Errorf("a route that was deleted with the rest answers %q", body)
	}
	out, _ := n.keyCommand(0, "status")
	if strings.Count(out, "held: ") > 20 || !strings.Contains(out, "more held; -o json has all") {
		t.Errorf("status said\n%s", out)
	}
	prev := filepath.Join("data", "state.prev")
	eventually(t, "the state of before is kept", func() error {
		_, err := os.Stat(filepath.Join(n.dir, prev))
		return err
	})
	sh := exec.Command("sh")
	sh.Stdin = strings.NewReader(n.command("state", prev, "--endpoints", n.Etcd))
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "all is as before", func() error {
		_, body, err := n.adminGet("/readyz")
		if err == nil && (!strings.Contains(body, before.Fingerprint) || strings.Contains(body, "held back")) {
			err = fmt.Errorf("want the fingerprint %s; it says %s", before.Fingerprint, body)
		}
		return err
	})
}

// TestDamagedStateIsNotWhole has sluice state read what is left of a file.
func TestDamagedStateIsNotWhole(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/a", `{"host": "a.localhost", "respond": {"body": "`+strings.Repeat("a", 3000)+`"}}`)
	path := filepath.Join(n.dir, "data", "state")
	eventually(t, "the state is on disk", func() error {
		state, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(state), "routes/a") {
			err = fmt.Errorf("it has %d bytes", len(state))
		}
		return err
	})
	n.mustPut("routes/b", `{"host": "b.localhost", "respond": {"body": "b"}}`)
	n.stop()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out := n.command("state", "data/state", "-o", "json"); !strings.Contains(out, `"key":"routes/b"`) {
		t.Errorf("state -o json said\n%.1000s", out)
	}
	at := strings.LastIndex(string(text), "b.localhost")
	text[at] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	code, script, stderr := runSluice(t, n.dir, "state", "data/state")
	if code != 1 || !strings.Contains(stderr, "the file is damaged") || !strings.Contains(script, "routes/a") || !strings.Contains(script, ">&2") {
		t.Errorf("exit code %d, %s\n%.300s", code, stderr, script)
	}
}

// TestCompletion has a shell ask for the names of keys.
func TestCompletion(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	for _, name := range []string{"alpha", "alps", "beta"} {
		n.mustPut("routes/"+name, `{"host": "x.localhost", "respond": {}}`)
	}
	for _, tc := range []struct {
		words []string
		want  []string
	}{
		{[]string{"route", "get", "al"}, []string{"alpha", "alps"}},
		{[]string{"route", "rm", "alpha", "b"}, []string{"beta"}},
		{[]string{"history", "routes/be"}, []string{"routes/beta"}},
		{[]string{"etcd", "replace", ""}, []string{"test"}},
		{[]string{"status", "-o", "j"}, []string{"text", "json"}},
		{[]string{"rou"}, []string{"route\tPut, read and remove routes"}},
	} {
		args := append([]string{"__complete"}, tc.words...)
		if len(tc.words) > 1 {
			args = append([]string{"__complete", tc.words[0], "--config", "sluice.yaml"}, tc.words[1:]...)
		}
		eventually(t, fmt.Sprintf("%q is completed", tc.words), func() error { // within a second, or not at all
			lines := strings.Split(strings.TrimSpace(n.command(args...)), "\n")
			if got := lines[:len(lines)-1]; !slices.Equal(got, tc.want) {
				return fmt.Errorf("by %q, want %q", got, tc.want)
			}
			return nil
		})
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if script := n.command("completion", shell); !strings.Contains(script, "sluice") {
			t.Errorf("the script for %s is %.200s", shell, script)
		}
	}
}

// TestEveryCommandSpeaksJSON looks at the flags of every command that answers.
func TestEveryCommandSpeaksJSON(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	silent := map[string]bool{"run": true, "help": true, "completion": true} // what these write is for no program to read
	var visit func(path []string)
	visit = func(path []string) {
		_, help, _ := runSluice(t, dir, append(path, "--help")...)
		_, commands, found := strings.Cut(help, "Available Commands:\n")
		if !found || len(path) > 0 && strings.Contains(help, "--output") {
			if !strings.Contains(help, "--output") {
				t.Errorf("sluice %s has no -o json:\n%s", strings.Join(path, " "), help)
			}
			if !found {
				return
			}
		}
		for line := range strings.Lines(commands) {
			if strings.TrimSpace(line) == "" {
				break
			}
			if name := strings.Fields(line)[0]; !silent[name] {
				visit(append(slices.Clone(path), name))
			}
		}
	}
	visit(nil)
}

// command runs a command that asks no node.
func (n *node) command(args ...string) string {
	n.t.Helper()
	code, stdout, stderr := runSluice(n.t, n.dir, args...)
	if code != 0 {
		n.t.Fatalf("sluice %s: exit code %d, %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}
