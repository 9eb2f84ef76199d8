package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestPlatformFlow follows the platform's flow in README.md word for word, with a
// node started as `make run` does. Only the browser is the test's own, so that
// what its page shows can be read. The addresses are fixed, so nothing else may
// have them.
func TestPlatformFlow(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	makeSSHDRoom(t)
	awaitFree(t, []int{2379, 8443, 8080, 9122, 9180, 9181, 20100, 20200})
	node := startTour(t)
	t.Cleanup(func() { endDaemon(t, filepath.Join(node.cmd.Dir, "data", "tour", "sshd.pid")) })
	b := startBrowser(t, filepath.Join(node.cmd.Dir, "data", "ca.pem"))
	var jupyter *page
	for _, s := range stepsOf(t, string(text), "The platform's flow") {
		if url, ok := strings.CutPrefix(s.command, "chromium "); ok {
			jupyter = b.open(url)
			jupyter.shows(s.want...)
			continue
		}
		node.try(t, s)
		if jupyter != nil && strings.Contains(s.command, "-X DELETE") {
			jupyter.shows("WebSocket: hello through the edge (closed)")
		}
	}
	if jupyter == nil {
		t.Error("README.md opens nothing in a browser")
	}
	node.interrupt()
}

// makeSSHDRoom makes the directory where root's sshd confines its children, which
// Debian makes at boot.
func makeSSHDRoom(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Mkdir("/run/sshd", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
}

// endDaemon ends the process whose ID is in a file, where a test that failed has
// left it.
func endDaemon(t *testing.T, pidFile string) {
	text, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return // it has ended, and removed it
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Errorf("%s: %v", pidFile, err)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Errorf("end process %d of %s: %v", pid, pidFile, err)
	}
}
