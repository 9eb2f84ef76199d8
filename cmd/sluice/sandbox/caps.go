package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setIDs sets the IDs of the calling thread alone: those of package syscall do so
// for all threads.
func setIDs(id Identity, groups []uint32) error {
	for _, call := range []struct {
		what    string
		number  uintptr
		a, b, c uintptr
	}{
		{"groups", unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0},
		{"group", unix.SYS_SETRESGID, uintptr(id.GID), uintptr(id.GID), uintptr(id.GID)},
		{"user", unix.SYS_SETRESUID, uintptr(id.UID), uintptr(id.UID), uintptr(id.UID)},
	} {
		if _, _, errno := unix.RawSyscall(call.number, call.a, call.b, call.c); errno != 0 {
			return fmt.Errorf("set the %s: %w", call.what, errno)
		}
	}
	return nil
}

// capabilities returns those that the calling thread may use.
func capabilities() (uint64, error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return 0, fmt.Errorf("read the capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// setCapabilities has the calling thread, and what it executes, keep these alone.
func setCapabilities(keep uint64) error {
	var data [2]unix.CapUserData
	for i := range data {
		set := uint32(keep >> (32 * i))
		data[i] = unix.CapUserData{Effective: set, Permitted: set, Inheritable: set}
	}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	for n := range 64 {
		if keep&(1<<n) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
			return fmt.Errorf("keep capability %d: %w", n, err)
		}
	}
	return nil
}
