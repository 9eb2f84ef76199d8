package steer

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The sockets are bound to an address that nobody has (RFC 5737), so that
// nothing reaches them but what the program sends there. As an IPv4 address in
// a socket of IPv6 it leaves the socket open to both families, also where IPv6
// is switched off.
var nowhere = [4]byte{192, 0, 2, 1}

const (
	// backlog is how many connections may wait to be accepted, over all ports;
	// the kernel lowers it to net.core.somaxconn.
	backlog = 1 << 16
	// udpBuffer is what may wait at the UDP socket, in bytes: the first
	// datagrams of ports that have no socket of their own yet.
	udpBuffer = 4 << 20
)

// openSocket makes a socket and binds it to nowhere, to the given port or, if
// that is 0, to a free one.
func openSocket(kind, port int) (fd int, err error) {
	family := unix.AF_INET6
	fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == unix.EAFNOSUPPORT {
		family = unix.AF_INET
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: nowhere}
	if family == unix.AF_INET6 {
		mapped := &unix.SockaddrInet6{Port: port}
		mapped.Addr[10], mapped.Addr[11] = 0xff, 0xff
		copy(mapped.Addr[12:], nowhere[:])
		addr = mapped
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	// Sockets at the same number share it: other listeners of ours, and those
	// of the one mapped port that may be this one.
	shared := []struct{ level, option int }{{unix.IPPROTO_IP, unix.IP_FREEBIND}, {unix.SOL_SOCKET, unix.SO_REUSEPORT}}
	if kind == unix.SOCK_STREAM {
		// Accepted connections inherit it, and then keep nobody from listening
		// on their port.
		shared = append(shared, struct{ level, option int }{unix.SOL_SOCKET, unix.SO_REUSEADDR})
	}
	for _, o := range shared {
		if err := unix.SetsockoptInt(fd, o.level, o.option, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	return fd, os.NewSyscallError("bind", unix.Bind(fd, addr))
}

// openTCP opens a listener on the given port of nowhere, 0 for a free one.
func openTCP(port int) (*net.TCPListener, error) {
	fd, err := openSocket(unix.SOCK_STREAM, port)
	if err != nil {
		return nil, fmt.Errorf("open a TCP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "steered tcp")
	defer f.Close()
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return tcpListener(f)
}

func tcpListener(f *os.File) (*net.TCPListener, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("a listener on %v is not one of TCP", ln.Addr())
	}
	return tcp, nil
}

// openUDP opens the UDP socket.
func openUDP() (*net.UDPConn, error) {
	fd, err := openSocket(unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "steered udp")
	defer f.Close()
	type option struct{ level, name int }
	ask := []option{{unix.IPPROTO_IP, unix.IP_PKTINFO}, {unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR}}
	if family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && family == unix.AF_INET6 {
		ask = append(ask, option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO}, option{unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR})
	}
	for _, o := range ask {
		if err := unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	// What we get instead is up to the machine's owner, and no reason to fail.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer)
	}
	return udpConn(f)
}

func udpConn(f *os.File) (*net.UDPConn, error) {
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	udp, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("a socket on %v is not one of UDP", pc.LocalAddr())
	}
	return udp, nil
}

// withFD calls f with the descriptor of c.
func withFD(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// inodeOf returns what tells a socket from others in lists of sockets.
func inodeOf(c syscall.Conn) (inode uint32, err error) {
	err = withFD(c, func(fd int) error {
		var stat unix.Stat_t
		err := unix.Fstat(fd, &stat)
		inode = uint32(stat.Ino)
		return os.NewSyscallError("fstat", err)
	})
	return inode, err
}
