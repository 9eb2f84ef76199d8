package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMissingPackages(t *testing.T) {
	there := tool{pkg: "dpkg", file: "/bin/sh"}
	gone := tool{pkg: "no-such-package", file: "no-such-program"}
	file := tool{pkg: "no-such-module", file: filepath.Join(t.TempDir(), "module.so")}
	got := missingPackages([]tool{there, gone, file, gone})
	if want := []string{"no-such-package", "no-such-module"}; !slices.Equal(got, want) {
		t.Errorf("missingPackages = %q, want %q", got, want)
	}
}

func TestProvideNamesWhatIsMissing(t *testing.T) {
	var out bytes.Buffer
	err := provide(t.Context(), []tool{{pkg: "no-such-package", file: "no-such-program"}}, false, &out)
	if err == nil || !strings.Contains(err.Error(), "apt-get install no-such-package") {
		t.Errorf("provide = %v, want the command that helps", err)
	}
}

func TestForbidServices(t *testing.T) {
	hook := filepath.Join(t.TempDir(), "policy-rc.d")
	restore, err := forbidServices(hook)
	if err != nil {
		t.Fatal(err)
	}
	if err := command(t.Context(), hook, "nginx", "start").Run(); err == nil || err.Error() != "exit status 101" {
		t.Errorf("the hook: %v, want exit status 101", err)
	}
	restore()
	if _, err := os.Stat(hook); !os.IsNotExist(err) {
		t.Errorf("the hook is still there: %v", err)
	}
	if err := os.WriteFile(hook, []byte("theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if restore, err = forbidServices(hook); err != nil {
		t.Fatal(err)
	}
	restore()
	if b, _ := os.ReadFile(hook); string(b) != "theirs" {
		t.Errorf("the administrator's hook is now %q", b)
	}
}
