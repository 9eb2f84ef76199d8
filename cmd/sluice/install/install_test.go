package install_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/cmd/sluice/install"
)

// tree returns the files below dir with their content and mode.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[strings.TrimPrefix(path, dir)] = info.Mode().String() + " " + string(content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func paths(all map[string]string) []string {
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func program(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sluice")
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestInstall walks a machine's life: a dry run, the first time, again, a change
// by its administrator, another version, the end.
func TestInstall(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/logrotate.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o := install.Options{Root: root, Binary: program(t, "one"), Say: func(s install.Step) { fmt.Fprintln(&out, s) }}
	do := func(f func() error) map[string]string {
		t.Helper()
		out.Reset()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		return tree(t, root)
	}
	put := func() error { return install.Install(t.Context(), o) }

	o.DryRun = true
	if there := do(put); len(there) != 0 || !strings.Contains(out.String(), "+ /usr/local/bin/sluice\n") {
		t.Errorf("a dry run put %q, and said\n%s", paths(there), out.String())
	}
	o.DryRun = false
	first := do(put)
	want := []string{"/etc/logrotate.d/sluice", "/etc/sluice/sluice.yaml", "/etc/sysctl.d/60-sluice.conf", "/etc/systemd/system/sluice.service",
		"/etc/sysusers.d/sluice.conf", "/etc/tmpfiles.d/sluice.conf", "/usr/local/bin/sluice"}
	if got := paths(first); !slices.Equal(got, want) {
		t.Fatalf("put %q, want %q", got, want)
	}
	if got := first["/usr/local/bin/sluice"]; got != "-rwxr-xr-x one" {
		t.Errorf("the program is %q", got)
	}
	if unit := first["/etc/systemd/system/sluice.service"]; !strings.Contains(unit, "ExecStart=/usr/local/bin/sluice run") || strings.Contains(unit, "/usr/bin/sluice") {
		t.Errorf("the unit is\n%s", unit)
	}
	if do(put); strings.Contains(out.String(), "+ ") {
		t.Errorf("the second time changed something:\n%s", out.String())
	}

	node := filepath.Join(root, "etc/sluice/sluice.yaml")
	if err := os.WriteFile(node, []byte("node: hk1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.Binary = program(t, "two")
	later := do(put)
	if !strings.HasSuffix(later["/usr/local/bin/sluice"], " two") || !strings.HasSuffix(later["/etc/sluice/sluice.yaml"], "node: hk1\n") {
		t.Errorf("another version left the program %q, the node's file %q", later["/usr/local/bin/sluice"], later["/etc/sluice/sluice.yaml"])
	}

	left := do(func() error { return install.Uninstall(t.Context(), o) })
	if got := paths(left); !slices.Equal(got, []string{"/etc/sluice/sluice.yaml", "/etc/sysctl.d/60-sluice.conf"}) {
		t.Errorf("uninstalling left %q", got)
	}
	o.Purge = true
	if left := do(func() error { return install.Uninstall(t.Context(), o) }); len(left) != 0 {
		t.Errorf("purging left %q", paths(left))
	}
}

func TestInstallLeavesPackagesAlone(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	packaged := filepath.Join(root, "usr/lib/sysusers.d")
	if err := os.MkdirAll(packaged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(packaged, "sluice.conf"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	o := install.Options{Root: root, Binary: program(t, "one"), Say: func(install.Step) {}}
	if err := install.Install(t.Context(), o); err == nil || !strings.Contains(err.Error(), "a package has put Sluice on this machine") {
		t.Errorf("installed beside a package: %v", err)
	}
	if err := install.Uninstall(t.Context(), o); err == nil {
		t.Error("uninstalled what is a package's")
	}
}
