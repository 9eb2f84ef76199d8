package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Inherited are sockets that this process was given by another one, by the
// network and the address that they were asked for: whoever would open such a
// socket takes it from here. The nil *Inherited has none, and so opens all. Its
// methods may be called from any goroutine.
type Inherited struct {
	mu    sync.Mutex // guards the following field
	files map[place][]*os.File
}

// place is where a socket is asked for.
type place struct{ network, addr string }

// placeOf takes all ways to write "every address" for one.
func placeOf(network, addr string) place {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return place{network, addr}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
		if ip.IsUnspecified() {
			host = ""
		}
	}
	return place{network, net.JoinHostPort(host, port)}
}

// Give adds a socket, which belongs to i from here on. network is "tcp" or "udp",
// or a word by which TakeAll is asked for it, and addr the address that it was
// asked for at first.
func (i *Inherited) Give(network, addr string, f *os.File) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.files == nil {
		i.files = map[place][]*os.File{}
	}
	at := placeOf(network, addr)
	i.files[at] = append(i.files[at], f)
}

// GiveBound is Give for a listening socket of TCP, or one of UDP, by the address
// that it is bound to: nobody says what it was asked for. On error f is closed.
func (i *Inherited) GiveBound(f *os.File) error {
	network, addr, err := bound(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("take over the socket %s: %w", f.Name(), err)
	}
	i.Give(network, addr, f)
	return nil
}

// bound returns what kind of socket f is, and its address.
func bound(f *os.File) (network, addr string, err error) {
	err = WithFD(f, func(fd int) error {
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return os.NewSyscallError("getsockopt SO_TYPE", err)
		}
		protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil {
			return os.NewSyscallError("getsockopt SO_PROTOCOL", err)
		}
		switch {
		case kind == unix.SOCK_STREAM && protocol == unix.IPPROTO_TCP:
			network = "tcp"
			if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening == 0 {
				return errors.New("it does not listen")
			}
		case kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_UDP:
			network = "udp"
		default:
			return errors.New("it is neither one of TCP that listens nor one of UDP")
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		switch at := name.(type) {
		case *unix.SockaddrInet4:
			addr = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)).String()
		case *unix.SockaddrInet6:
			addr = netip.AddrPortFrom(netip.AddrFrom16(at.Addr).Unmap(), uint16(at.Port)).String()
		default:
			return errors.New("it has no address of IP")
		}
		return nil
	})
	return network, addr, err
}

// take returns a socket that was asked for as this one is, or nil.
func (i *Inherited) take(network, addr string) *os.File {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	at := placeOf(network, addr)
	same := i.files[at]
	if len(same) == 0 {
		return nil
	}
	if i.files[at] = same[1:]; len(same) == 1 {
		delete(i.files, at)
	}
	return same[0]
}

// TakeAll returns the sockets of a network by their addresses, which are the
// caller's from here on.
func (i *Inherited) TakeAll(network string) map[string][]*os.File {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	all := map[string][]*os.File{}
	for at, files := range i.files {
		if at.network == network {
			all[at.addr] = files
			delete(i.files, at)
		}
	}
	return all
}

// CloseRest closes the sockets that nobody has taken, and says which they were,
// such as "tcp :20022".
func (i *Inherited) CloseRest() (closed []string) {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for at, files := range i.files {
		for _, f := range files {
			f.Close()
			closed = append(closed, strings.TrimSpace(at.network+" "+at.addr))
		}
	}
	i.files = nil
	slices.Sort(closed)
	return closed
}

// TCP is the function TCP, but takes the socket from i where it has one.
func (i *Inherited) TCP(ctx context.Context, addr string) (*net.TCPListener, error) {
	f := i.take("tcp", addr)
	if f == nil {
		return TCP(ctx, addr)
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the listener tcp %s: %w", addr, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("take over the listener tcp %s: it is not one of TCP", addr)
	}
	return tcp, nil
}

// UDP is the function UDP, but takes the socket from i where it has one.
func (i *Inherited) UDP(ctx context.Context, addr string) (*net.UDPConn, error) {
	f := i.take("udp", addr)
	if f == nil {
		return UDP(ctx, addr)
	}
	pc, err := AdoptUDP(f)
	if err != nil {
		return nil, fmt.Errorf("take over the socket udp %s: %w", addr, err)
	}
	return pc, nil
}

// AdoptUDP makes a socket of f, which it closes, as UDP would have opened it. The
// caller owns the socket.
func AdoptUDP(f *os.File) (*net.UDPConn, error) {
	defer f.Close()
	udp, err := UDPConn(f)
	if err != nil {
		return nil, err
	}
	err = WithFD(udp, func(fd int) error {
		network := "udp4"
		if family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && family == unix.AF_INET6 {
			network = "udp6"
		}
		return prepareUDP(fd, network)
	})
	if err != nil {
		udp.Close()
		return nil, err
	}
	return udp, nil
}

// UDPConn returns another descriptor of f's socket as a connection, with the
// options that it has. The caller owns it, and f still.
func UDPConn(f *os.File) (*net.UDPConn, error) {
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	udp, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, errors.New("it is not one of UDP")
	}
	return udp, nil
}

// Duplicate returns another descriptor of c's socket, closed on exec and as
// non-blocking as c, which the caller owns.
func Duplicate(c syscall.Conn, name string) (f *os.File, err error) {
	err = WithFD(c, func(fd int) error {
		f, err = DuplicateFD(fd, name)
		return err
	})
	return f, err
}

// DuplicateFD is Duplicate for a bare descriptor, which has to stay open meanwhile.
func DuplicateFD(fd int, name string) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

// TakeFD closes f and returns a descriptor of the same file that nobody else
// watches, which the caller owns.
func TakeFD(f *os.File) (int, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return fd, os.NewSyscallError("dup", err)
}

// WithFD calls f with the descriptor of c, which stays open until f returns, and
// returns f's error. Where c is closed already, f is not called, and the error says so.
func WithFD(c syscall.Conn, f func(fd int) error) error {
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
