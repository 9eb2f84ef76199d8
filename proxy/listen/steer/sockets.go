package steer

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

// The sockets are bound to an address that nobody has (RFC 5737), so that
// nothing reaches them but what the program sends there. As an IPv4 address in
// a socket of IPv6 it leaves the socket open to both families, also where IPv6
// is switched off.
//
// Sockets of single ports are bound to another: one that is shared would get
// what is steered to the sockets it shares with.
var nowhere, asideOf = [4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2}

const (
	// backlog is how many connections may wait to be accepted, over all ports;
	// the kernel lowers it to net.core.somaxconn.
	backlog = 1 << 16
	// udpBuffer is what may wait at the UDP socket, in bytes: the first
	// datagrams of ports that have no socket of their own yet.
	udpBuffer = 4 << 20
)

// openSocket makes a socket and binds it to at, to the given port or, if that
// is 0, to a free one. One at nowhere can be shared.
func openSocket(kind int, at [4]byte, port int) (fd int, err error) {
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
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: at}
	if family == unix.AF_INET6 {
		mapped := &unix.SockaddrInet6{Port: port}
		mapped.Addr[10], mapped.Addr[11] = 0xff, 0xff
		copy(mapped.Addr[12:], at[:])
		addr = mapped
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	// Sockets at the same number share it: other listeners of ours, and those
	// of the one mapped port that may be this one.
	shared := []struct{ level, option int }{{unix.IPPROTO_IP, unix.IP_FREEBIND}}
	if at == nowhere {
		shared = append(shared, struct{ level, option int }{unix.SOL_SOCKET, unix.SO_REUSEPORT})
	}
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
	fd, err := openSocket(unix.SOCK_STREAM, nowhere, port)
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
	fd, err := openSocket(unix.SOCK_DGRAM, nowhere, 0)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "steered udp")
	defer f.Close()
	err = askFor(fd, unix.IP_PKTINFO, unix.IPV6_RECVPKTINFO)
	if err == nil {
		err = askFor(fd, unix.IP_RECVORIGDSTADDR, unix.IPV6_RECVORIGDSTADDR)
	}
	if err != nil {
		return nil, err
	}
	// What we get instead is up to the machine's owner, and no reason to fail.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer)
	}
	return listen.UDPConn(f)
}

// askFor has the kernel tell of each datagram, by an option of IPv4 and, for a
// socket of IPv6, by one of that as well.
func askFor(fd, option, option6 int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, option, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || family != unix.AF_INET6 {
		return os.NewSyscallError("getsockopt", err)
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option6, 1))
}

// openAside opens a socket that tells and queues what those of listen.UDP do,
// but receives only what the program sends there. It can be had where sockets
// at other addresses have the port, except for one that takes all addresses.
func openAside(port int) (*net.UDPConn, error) {
	fd, err := openSocket(unix.SOCK_DGRAM, asideOf, port)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "udp aside")
	defer f.Close()
	if err := askFor(fd, unix.IP_PKTINFO, unix.IPV6_RECVPKTINFO); err != nil {
		return nil, err
	}
	listen.GrowBuffers(fd)
	return listen.UDPConn(f)
}

// inodeOf returns what tells a socket from others in lists of sockets.
func inodeOf(c syscall.Conn) (inode uint32, err error) {
	err = listen.WithFD(c, func(fd int) error {
		var stat unix.Stat_t
		err := unix.Fstat(fd, &stat)
		inode = uint32(stat.Ino)
		return os.NewSyscallError("fstat", err)
	})
	return inode, err
}
