package systemd_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/systemd"
)

func TestNotify(t *testing.T) {
	if err := systemd.Notify("READY=1"); err != nil { // nobody listens
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := systemd.Notify("RELOADING=1", systemd.Monotonic()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	first, second, _ := strings.Cut(string(b[:n]), "\n")
	usec, err := strconv.ParseInt(strings.TrimPrefix(second, "MONOTONIC_USEC="), 10, 64)
	if first != "RELOADING=1" || err != nil || usec <= 0 {
		t.Errorf("systemd was told %q", b[:n])
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"30000000", "", 30 * time.Second},
		{"30000000", strconv.Itoa(os.Getpid()), 30 * time.Second},
		{"30000000", "1", 0},
		{"soon", "", 0},
		{"-1", "", 0},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got := systemd.Watchdog(); got != c.want {
			t.Errorf("%q for %q is %v, want %v", c.usec, c.pid, got, c.want)
		}
	}
}

func TestSocketsOfAnotherProcess(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "3")
	if files := systemd.Sockets(); files != nil {
		t.Errorf("took %v, which were given to another process", files)
	}
	if _, ok := os.LookupEnv("LISTEN_FDS"); ok {
		t.Error("the variables are still there")
	}
}

func TestEnvironmentIsForAnother(t *testing.T) {
	t.Setenv("WATCHDOG_PID", "1")
	t.Setenv("WATCHDOG_USEC", "1000000")
	env := systemd.Environment()
	if slices.Contains(env, "WATCHDOG_PID=1") || !slices.Contains(env, "WATCHDOG_USEC=1000000") {
		t.Errorf("the environment is %q", env)
	}
}
