// Package systemd speaks the two protocols by which systemd supervises a program:
// sd_notify(3), and the sockets that it opens for one (sd_listen_fds(3)). Each is a
// few lines of text; none needs a library. Without systemd nothing here does
// anything.
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The variables by which systemd tells a program what it needs to know.
const (
	notifySocket = "NOTIFY_SOCKET"
	watchdogUsec = "WATCHDOG_USEC"
	watchdogPID  = "WATCHDOG_PID"
	listenFDs    = "LISTEN_FDS"
	listenPID    = "LISTEN_PID"
	listenNames  = "LISTEN_FDNAMES"
)

// firstFD is the descriptor of the first socket that systemd gives.
const firstFD = 3

// Notify tells systemd what is given, such as "READY=1", in one message. It does
// nothing where nobody listens, and never waits for long.
func Notify(states ...string) error {
	path := os.Getenv(notifySocket)
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // an @ is an abstract address
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// Monotonic is what has to be told with RELOADING=1: systemd's own clock.
func Monotonic() string {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return "MONOTONIC_USEC=0"
	}
	return fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000)
}

// Watchdog returns how long systemd waits for a WATCHDOG=1; 0: it does not. It
// counts for this process only, unless systemd does not say which it means.
func Watchdog() time.Duration {
	if pid := os.Getenv(watchdogPID); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(os.Getenv(watchdogUsec), 10, 64)
	if err != nil || usec <= 0 {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// Sockets returns the sockets that systemd has opened for this process, which are
// the caller's, and takes the variables away that say so.
func Sockets() (files []*os.File) {
	defer func() {
		for _, name := range []string{listenFDs, listenPID, listenNames} {
			os.Unsetenv(name)
		}
	}()
	if os.Getenv(listenPID) != strconv.Itoa(os.Getpid()) {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv(listenFDs))
	if err != nil {
		return nil
	}
	names := strings.Split(os.Getenv(listenNames), ":")
	for i := range n {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		_ = unix.SetNonblock(fd, true)
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files
}

// Environment returns the environment for a process that is to take this one's
// place: without what systemd has told this one alone.
func Environment() (env []string) {
	for _, of := range os.Environ() {
		switch name, _, _ := strings.Cut(of, "="); name {
		case watchdogPID, listenFDs, listenPID, listenNames:
		default:
			env = append(env, of)
		}
	}
	return env
}
