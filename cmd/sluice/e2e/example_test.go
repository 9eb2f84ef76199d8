package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExample follows the text of the three nodes on one machine word for word,
// and sees that nothing is left of them.
func TestExample(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "deploy/example/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	// A tree of its own, of copies and not of links: cluster finds bin/sluice
	// from where it stands, and is to find the program under test there.
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "deploy/example"), os.DirFS(filepath.Join(repository, "deploy/example"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(dir, "bin/sluice")); err != nil {
		t.Fatal(err)
	}
	// Beside whoever else walks through it on this machine.
	name := fmt.Sprintf("sluice-test-%d", os.Getpid())
	t.Setenv("NAME", name)
	t.Setenv("DIR", filepath.Join(dir, "example"))
	walk := &process{t: t, cmd: &exec.Cmd{Dir: dir}}
	t.Cleanup(func() {
		if out, err := exec.Command(filepath.Join(dir, "deploy/example/cluster"), "down").CombinedOutput(); err != nil {
			t.Errorf("cluster down: %v\n%s", err, out)
		}
	})
	steps := stepsOf(t, string(text), "A walk")
	for _, s := range steps {
		walk.try(t, s)
	}
	if len(steps) < 10 {
		t.Errorf("found %d commands", len(steps))
	}
	left, err := exec.Command("ip", "netns", "list").CombinedOutput()
	if err != nil || strings.Contains(string(left), name) {
		t.Errorf("network namespaces are left: %v\n%s", err, left)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), dir) {
			t.Errorf("a process is left: %q", line)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "example")); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}
