package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedCommand is the hidden subcommand under which this program is the
// bench within a network namespace of its own, where nobody else has ports.
const isolatedCommand = "isolated"

// isolate runs this program again with args in a new network namespace, which
// takes root, and returns its error, which it has printed by then as errShown.
func isolate(ctx context.Context, args []string, stdout io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("run in a network namespace: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, append([]string{isolatedCommand}, args...)...)
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	var failed *exec.ExitError
	if err := cmd.Run(); errors.As(err, &failed) {
		return errShown
	} else if err != nil {
		return fmt.Errorf("run in a network namespace: %w; -isolate=false does without", err)
	}
	return nil
}

// errShown is the error of a process that has said itself what is wrong.
var errShown = errors.New("the bench in its network namespace failed")

// loopbackUp makes 127.0.0.1 usable, which it is not in a new namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// ephemeralRange is where the kernel keeps the least and the greatest port that
// outgoing connections get, of the network namespace of who reads it.
const ephemeralRange = "/proc/sys/net/ipv4/ip_local_port_range"

// isolatedOrigin is the first of the origin's ports in a namespace of our own:
// above those that mappings and outgoing connections have there.
const isolatedOrigin = 61000

// room returns a picker that has n ports in a row to give, some thousand beside
// them, and what undoes what was done for that. In a namespace of our own
// the ports of outgoing connections make way.
func (b *bench) room(n int) (p *portPicker, undo func(), err error) {
	const beside = 4096
	if !b.options.isolated {
		if b.ports.end-b.ports.lowest < n+beside {
			return nil, nil, fmt.Errorf("%d mapped ports in a row have no room from %d to %d, below those of outgoing connections; "+
				"run as root, which has a network namespace of its own, or give a smaller -size", n, b.ports.lowest, b.ports.end-1)
		}
		return b.ports, func() {}, nil
	}
	wide := &portPicker{lowest: 2048, end: 2048 + n + beside, given: make(map[int]bool)}
	was, err := os.ReadFile(ephemeralRange)
	if err != nil {
		return nil, nil, err
	}
	outgoing := fmt.Sprintf("%d %d", max(wide.end, b.ports.end), isolatedOrigin-1)
	if err := os.WriteFile(ephemeralRange, []byte(outgoing), 0); err != nil {
		return nil, nil, fmt.Errorf("make room for %d mapped ports by %s to outgoing connections: %w", n, outgoing, err)
	}
	// It is the namespace's, which ends with us: a failure here has no victim.
	return wide, func() { _ = os.WriteFile(ephemeralRange, bytes.TrimSpace(was), 0) }, nil
}
