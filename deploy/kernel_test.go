package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs f, on a goroutine of its own, in a new network namespace, and
// the programs that f starts.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a network namespace takes root: run the tests as root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in a network namespace: %v", err)
	}
}

var setting = regexp.MustCompile(`^(-?)([a-z0-9_.-]+) = (.+)$`)

// TestSysctlsTakeHold puts the settings in force in a network namespace and reads
// them back. Those that are the machine's as a whole have to be there and are
// left alone.
func TestSysctlsTakeHold(t *testing.T) {
	t.Parallel()
	text := read(t, "sysctl.conf")
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !setting.MatchString(line) {
			t.Errorf("sysctl.conf: %q is no setting", line)
		}
	}
	applied := 0
	inNamespace(t, func() error {
		of := func(key string) string { return "/proc/thread-self/root/proc/sys/" + strings.ReplaceAll(key, ".", "/") }
		own, wanted := "", map[string]string{}
		for line := range strings.Lines(text) {
			m := setting.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			info, err := os.Stat(of(m[2]))
			if strings.HasPrefix(m[2], "net.") && err == nil && info.Mode()&0o200 != 0 {
				own += line
				wanted[m[2]] = m[3]
			}
		}
		file := filepath.Join(t.TempDir(), "60-sluice.conf")
		if err := os.WriteFile(file, []byte(own), 0o600); err != nil {
			return err
		}
		if _, err := try("sysctl", "-p", file); err != nil {
			return err
		}
		for key, want := range wanted {
			got, err := os.ReadFile(of(key))
			if err != nil || strings.Join(strings.Fields(string(got)), " ") != want {
				t.Errorf("%s is %q, %v; want %q", key, got, err, want)
			}
			applied++
		}
		return nil
	})
	if applied < 8 {
		t.Errorf("%d settings are a namespace's own", applied)
	}
	for line := range strings.Lines(text) {
		m := setting.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[1] == "-" {
			continue // may be missing
		}
		if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(m[2], ".", "/")); err != nil {
			t.Errorf("the kernel has no %s", m[2])
		}
	}
}

// TestEverySysctlHasItsReason wants a comment right above each group of settings.
func TestEverySysctlHasItsReason(t *testing.T) {
	t.Parallel()
	explained := false
	for line := range strings.Lines(read(t, "sysctl.conf")) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "#"):
			explained = true
		case line == "":
			explained = false
		case !explained:
			t.Errorf("sysctl.conf does not say why %s", line)
		}
	}
}

// TestFirewallLoads has the kernel take the rules, twice, as a reload does.
func TestFirewallLoads(t *testing.T) {
	t.Parallel()
	inNamespace(t, func() error {
		var rules string
		for _, command := range []string{"nft -c -f nftables.conf", "nft -f nftables.conf", "nft -f nftables.conf", "nft list table inet sluice"} {
			var err error
			if rules, err = try(strings.Fields(command)...); err != nil {
				return err
			}
		}
		for _, want := range []string{"20000-29999", "notrack", "policy drop", "untrack_out"} {
			if !strings.Contains(rules, want) {
				t.Errorf("the kernel's rules lack %q:\n%s", want, rules)
			}
		}
		return nil
	})
}
