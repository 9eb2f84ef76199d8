package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackage builds the .deb and has lintian look at it. `make deb-test` installs
// it on a clean Debian as well.
func TestPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "sluice")
	// As the other tests build it, so that little is compiled once more. It is dynamic then.
	tool(t, "go", "build", "-race", "-pgo=off", "-ldflags", "-s -w", "-o", program, "../cmd/sluice")
	build := func(to string) string {
		cmd := exec.Command("deb/build", program, "v1.2.3-4-gabcdef0", filepath.Join(dir, to))
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "DEB_FAST=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the package: %v\n%s", err, out)
		}
		made, err := filepath.Glob(filepath.Join(dir, to, "*.deb"))
		if err != nil || len(made) != 1 || !strings.HasPrefix(filepath.Base(made[0]), "sluice_1.2.3+4.gabcdef0_") {
			t.Fatalf("made %q, %v", made, err)
		}
		return made[0]
	}
	deb := build("one")
	if string(read(t, deb)) != string(read(t, build("two"))) {
		t.Error("two builds of the same differ")
	}
	tool(t, "lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", "missing-dependency-on-libc,mismatched-override,hardening-no-pie,hardening-no-relro", deb)

	listed := tool(t, "dpkg-deb", "--contents", deb)
	for _, want := range []string{"./usr/bin/sluice", "./lib/systemd/system/sluice.service", "./etc/sluice/sluice.yaml", "./etc/sysctl.d/60-sluice.conf",
		"./usr/lib/sysusers.d/sluice.conf", "./usr/share/man/man1/sluice-map-put.1.gz", "./usr/share/bash-completion/completions/sluice",
		"./usr/share/doc/sluice/examples/nftables.conf", "./usr/share/doc/sluice/runbooks/SluiceNodeDown.md"} {
		if !strings.Contains(listed, want) {
			t.Errorf("the package lacks %s", want)
		}
	}
	conffiles := tool(t, "dpkg-deb", "--info", deb, "conffiles")
	if conffiles != "/etc/logrotate.d/sluice\n/etc/sluice/sluice.yaml\n/etc/sysctl.d/60-sluice.conf\n" {
		t.Errorf("configuration files are %q", conffiles)
	}
	if out, err := try(program, "check", "--config", "sluice.yaml"); err != nil {
		t.Errorf("the node's first file: %v\n%s", err, out)
	}
}
