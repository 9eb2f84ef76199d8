package loop

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// These are made like the calls of package event: without telling the scheduler.

func splice(from, to int32, n int) (int, syscall.Errno) {
	for {
		m, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if errno == 0 {
			return int(m), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func shutdownWrite(fd int32) { syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) }

func setInt(fd int32, level, option, value int) syscall.Errno {
	v := int32(value)
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return errno
}

// resetFD closes fd so that its peer gets an RST instead of a FIN.
func resetFD(fd int32) {
	linger := unix.Linger{Onoff: 1}
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	event.CloseFD(fd)
}

// socketError returns, and clears, what went wrong with fd on its own account.
func socketError(fd int32) syscall.Errno {
	var v int32
	size := uint32(unsafe.Sizeof(v))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(v)
}

// unsent returns how many written bytes the peer of fd has not acknowledged.
func unsent(fd int32) int {
	var n int32
	_, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0
	}
	return int(n)
}

func newSocket(family int) (int32, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return int32(fd), errno
}

// accept takes a connection from the listening socket fd.
func accept(fd int32, from *unix.RawSockaddrAny) (int32, syscall.Errno) {
	size := uint32(unix.SizeofSockaddrAny)
	c, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(c), errno
}

// localAddr returns the address that fd is bound to.
func localAddr(fd int32) netip.AddrPort {
	var sa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

// connect begins to connect fd, of the family of to.
func connect(fd int32, to netip.AddrPort) syscall.Errno {
	var sa unix.RawSockaddrAny
	size := putAddr(&sa, to)
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), size)
	return errno
}

// family returns what socket is to be asked for to connect to addr.
func family(addr netip.Addr) int {
	if addr.Is4() || addr.Is4In6() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addrPort returns sa, IPv4 as IPv4. Zones are left out.
func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), netOrder(&v4.Port))
	case unix.AF_INET6:
		v6 := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(v6.Addr).Unmap(), netOrder(&v6.Port))
	}
	return netip.AddrPort{}
}

// putAddr writes a into sa and returns its size.
func putAddr(sa *unix.RawSockaddrAny, a netip.AddrPort) uintptr {
	port := a.Port()
	if family(a.Addr()) == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: netOrder(&port), Addr: a.Addr().Unmap().As4()}
		return unix.SizeofSockaddrInet4
	}
	v6 := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
	*v6 = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: netOrder(&port), Addr: a.Addr().As16()}
	return unix.SizeofSockaddrInet6
}

// netOrder turns a port from the network's byte order into the machine's, or the
// other way round.
func netOrder(port *uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(port))
	return uint16(b[0])<<8 | uint16(b[1])
}
