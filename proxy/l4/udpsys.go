package l4

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These are made like the calls of package event: without telling the scheduler.

func sendmsg(fd int32, hdr *unix.Msghdr) syscall.Errno {
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// mmsg is recvmmsg or sendmmsg.
func mmsg(call uintptr, fd int32, hdrs []mmsghdr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}
