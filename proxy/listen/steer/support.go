package steer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Supported opens a Steerer and closes it again. The error says in words why
// that cannot be done here: the kernel is too old, a capability is missing.
func Supported() error {
	s, err := Open(Config{})
	if err != nil {
		return err
	}
	return s.Close()
}

// minKernel is the first Linux with sk_lookup programs.
const minKernel = "5.9"

// explain turns the error of a failed Open into one that says what is wrong and
// what would be right.
func explain(err error) error {
	if release := kernelRelease(); older(release, 5, 9) {
		return fmt.Errorf("steer ports: Linux %s is too old, it takes %s or later: %w", release, minKernel, err)
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("steer ports: %w", err)
	}
	if missing := missingCapabilities(); len(missing) > 0 {
		return fmt.Errorf("steer ports: this process lacks %s; run it as root or grant them (setcap, AmbientCapabilities=): %w",
			strings.Join(missing, " and "), err)
	}
	return fmt.Errorf("steer ports: the kernel refuses although the capabilities are there; a container's seccomp profile or user namespace may forbid bpf(2): %w", err)
}

func kernelRelease() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

// older reports whether release, such as 6.1.0-18-amd64, comes before the given
// version. What cannot be read does not.
func older(release string, major, minor int) bool {
	var isMajor, isMinor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &isMajor, &isMinor); n != 2 {
		return false
	}
	return isMajor < major || isMajor == major && isMinor < minor
}

// missingCapabilities returns which of the needed ones this thread lacks.
func missingCapabilities() []string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return nil
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	var missing []string
	if !has(unix.CAP_BPF) && !has(unix.CAP_SYS_ADMIN) {
		missing = append(missing, "CAP_BPF")
	}
	if !has(unix.CAP_NET_ADMIN) {
		missing = append(missing, "CAP_NET_ADMIN")
	}
	return missing
}
