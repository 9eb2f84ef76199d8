package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// raiseCapabilities has the process use the capabilities that it may use. A
// container engine gives a user other than root none by itself: the image's
// program has them as file capabilities, permitted and not effective, for a
// program whose file says effective does not start at all where one of them is
// withheld. Call it before anything is done that takes a capability.
func raiseCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("read the process's capabilities: %w", err)
	}
	if has[0].Permitted&^has[0].Effective == 0 && has[1].Permitted&^has[1].Effective == 0 {
		return nil // nothing to raise, as everywhere but in a container
	}
	for i := range has {
		has[i].Effective = has[i].Permitted
	}
	header = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	// Capabilities are a thread's, and the runtime has made some by now.
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&has[0])), 0)
	if errno == syscall.ENOTSUP {
		return fmt.Errorf("use the capabilities of the program's file: a build with cgo cannot; build it with CGO_ENABLED=0")
	}
	if errno != 0 {
		return fmt.Errorf("use the capabilities of the program's file: %w", errno)
	}
	return nil
}
