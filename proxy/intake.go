package proxy

import (
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// intake reads datagrams from the common socket of steered ports, one after the
// other.
type intake struct {
	raw     syscall.RawConn
	payload []byte
	control [listen.ControlSize]byte

	// Of the datagram that was read last.
	n, controls int
	from        unix.Sockaddr
	to          netip.AddrPort
	err         error

	waiting, now func(fd uintptr) bool
}

func newIntake(pc *net.UDPConn) (*intake, error) {
	raw, err := pc.SyscallConn()
	in := &intake{raw: raw, payload: make([]byte, 64<<10)} // the longest datagram
	in.waiting = func(fd uintptr) bool { in.receive(fd); return in.err == nil }
	in.now = func(fd uintptr) bool { in.receive(fd); return true }
	return in, err
}

// wait reads the next datagram. It fails when the socket is closed.
func (in *intake) wait() error { return in.raw.Read(in.waiting) }

// more reads the next datagram if there is one by now.
func (in *intake) more() bool { return in.raw.Read(in.now) == nil && in.err == nil }

// receive does not wait. An error that is not for the want of a datagram is as
// good as that: the poller tells when there is one.
func (in *intake) receive(fd uintptr) {
	for {
		in.n, in.controls, _, in.from, in.err = unix.RecvmsgBuffers(int(fd), [][]byte{in.payload}, in.control[:], unix.MSG_DONTWAIT)
		if in.err != unix.EINTR {
			break
		}
	}
	in.to = steer.Destination(in.control[:in.controls])
}

// datagram returns what was read; the payload is valid until the next.
func (in *intake) datagram() l4.Datagram {
	d := l4.Datagram{Payload: in.payload[:in.n], Local: listen.LocalAddr(in.control[:in.controls])}
	switch from := in.from.(type) {
	case *unix.SockaddrInet4:
		d.From = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
	case *unix.SockaddrInet6:
		d.From = netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), uint16(from.Port))
		d.Scope = from.ZoneId
	}
	return d
}
