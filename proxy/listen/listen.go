package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// udpBuffer is what a UDP socket asks the kernel to queue at most, each way, in
// bytes. The usual default of 208 KiB is some 90 full datagrams, overhead
// counted, which a fast client sends while this process waits for its turn on a
// small machine. It is a bound: idle sockets take nothing.
const udpBuffer = 1 << 20

// TCP listens on addr, "host:port" with an IP address, a name or nothing as the
// host; port 0 is a free one. Without a host the socket takes IPv4 and IPv6,
// or IPv4 alone where the machine has no IPv6. The caller owns the listener.
//
// The error is a *BusyError, without its owner, if the port is taken; see
// WithOwner. ctx bounds the look-up of a name, not the life of the listener.
func TCP(ctx context.Context, addr string) (*net.TCPListener, error) {
	var cfg net.ListenConfig
	// A BPF socket map refuses MPTCP sockets, which Go listens with by default,
	// and no client of a mapped port asks for a second path.
	cfg.SetMultipathTCP(false)
	ln, err := cfg.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, explain("tcp", addr, err)
	}
	return ln.(*net.TCPListener), nil
}

// UDP opens a socket on addr as TCP does. The kernel tells of each datagram
// which address it was sent to: read with ReadMsgUDPAddrPort or the like, into
// a control buffer of ControlSize bytes, and see LocalAddr. The caller owns the
// socket.
func UDP(ctx context.Context, addr string) (*net.UDPConn, error) {
	return openUDP(ctx, addr, prepareUDP)
}

// SharedUDP is UDP for a port that another socket of ours may have at another
// address. That one and this have to be willing to share (SO_REUSEPORT).
func SharedUDP(ctx context.Context, addr string) (*net.UDPConn, error) {
	return openUDP(ctx, addr, func(fd int, network string) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
		}
		return prepareUDP(fd, network)
	})
}

func openUDP(ctx context.Context, addr string, prepare func(fd int, network string) error) (*net.UDPConn, error) {
	var cfg net.ListenConfig
	cfg.Control = func(network, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = prepare(int(fd), network) }); cerr != nil {
			return cerr
		}
		return err
	}
	pc, err := cfg.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, explain("udp", addr, err)
	}
	return pc.(*net.UDPConn), nil
}

func prepareUDP(fd int, network string) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_PKTINFO", err)
	}
	if network == "udp6" {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_RECVPKTINFO", err)
		}
	}
	GrowBuffers(fd)
	return nil
}

// GrowBuffers has the kernel queue up to a megabyte for the UDP socket fd each
// way, as far as the machine's owner lets us: more than it does by default, which
// a fast sender fills while this process waits for its turn. Sockets of UDP have
// that already.
func GrowBuffers(fd int) {
	growBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE)
	growBuffer(fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE)
}

// growBuffer asks for udpBuffer bytes, past net.core.{r,w}mem_max where we may.
// What we get instead is up to the machine's owner, and no reason to fail.
func growBuffer(fd, option, force int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, udpBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, udpBuffer)
	}
}

// explain turns the error of a failed listen into one that says what is wrong
// and what would be right.
func explain(network, addr string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // without the address, which the message has already
	}
	at := network + " " + addr
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return &BusyError{Network: network, Addr: addr}
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listen on %s: %w%s", at, err, privilegeHint(addr))
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listen on %s: %w: no interface of this machine has that address; use one of its own, or none for all", at, err)
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return fmt.Errorf("listen on %s: %w: IPv6 is switched off on this machine; use an IPv4 address, or none for all", at, err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("listen on %s: %w: raise the limit of open files (ulimit -n, LimitNOFILE=)", at, err)
	}
	return fmt.Errorf("listen on %s: %w", at, err)
}

// privilegeHint says how to be allowed to listen on a low port, or nothing
// where that is not the trouble.
func privilegeHint(addr string) string {
	first := 1024
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			first = n
		}
	}
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	if port, err := strconv.Atoi(text); err != nil || port >= first {
		return ""
	}
	return fmt.Sprintf(": ports below %d need the capability CAP_NET_BIND_SERVICE; grant it (setcap cap_net_bind_service=+ep, AmbientCapabilities=), "+
		"lower net.ipv4.ip_unprivileged_port_start, or use a higher port", first)
}
