package l4

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

const (
	// batchSize is how many datagrams one system call moves at most.
	batchSize = 32
	// maxDatagram is more than any UDP payload (RFC 768: a 16-bit length that
	// counts the header).
	maxDatagram = 64 << 10
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch is room for some datagrams and where they came from, laid out for
// recvmmsg and sendmmsg: those of golang.org/x/net allocate an address per
// datagram. Pages that no datagram has touched cost no memory.
type batch struct {
	hdrs     [batchSize]mmsghdr
	iovs     [batchSize]unix.Iovec
	names    [batchSize]unix.RawSockaddrInet6 // which has room for IPv4 as well
	controls [batchSize][listen.ControlSize]byte
	payloads [batchSize][maxDatagram]byte // last, so that the garbage collector stops before
}

func newBatch() *batch {
	b := new(batch)
	for i := range b.hdrs {
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
		b.iovs[i].Base = &b.payloads[i][0]
	}
	return b
}

// receive fills the batch with at most n datagrams from the socket fd, senders
// and control messages included, without waiting.
func (b *batch) receive(fd int32, n int) (int, syscall.Errno) {
	for i := range b.hdrs[:n] {
		h := &b.hdrs[i].hdr
		b.iovs[i].SetLen(maxDatagram)
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6
		h.Control = &b.controls[i][0]
		h.SetControllen(listen.ControlSize)
	}
	return mmsg(unix.SYS_RECVMMSG, fd, b.hdrs[:n])
}

// receiveMore fills the batch from place first on with datagrams from fd, a
// connected socket, whose sender is known.
func (b *batch) receiveMore(fd int32, first int) (int, syscall.Errno) {
	for i := first; i < batchSize; i++ {
		h := &b.hdrs[i].hdr
		b.iovs[i].SetLen(maxDatagram)
		h.Name, h.Namelen, h.Control = nil, 0, nil
		h.SetControllen(0)
	}
	return mmsg(unix.SYS_RECVMMSG, fd, b.hdrs[first:])
}

// receiveOne fills place i with a datagram from fd, a connected socket.
func (b *batch) receiveOne(fd int32, i int) syscall.Errno {
	n, errno := recv(fd, unsafe.Slice(b.iovs[i].Base, maxDatagram))
	b.hdrs[i].len = uint32(n)
	return errno
}

// received returns how long datagram i is that was received.
func (b *batch) received(i int) int { return int(b.hdrs[i].len) }

// size returns how long datagram i is that is to be sent.
func (b *batch) size(i int) int { return int(b.iovs[i].Len) }

// send sends datagrams first to n, as far as the socket takes them without
// waiting.
func (b *batch) send(fd int32, first, n int) (int, syscall.Errno) {
	if n-first == 1 {
		if errno := sendmsg(fd, &b.hdrs[first].hdr); errno != 0 {
			return 0, errno
		}
		return 1, 0
	}
	return mmsg(unix.SYS_SENDMMSG, fd, b.hdrs[first:n])
}

// payload returns datagram i as received.
func (b *batch) payload(i int) []byte {
	return unsafe.Slice(b.iovs[i].Base, b.hdrs[i].len)
}

// control returns the control messages of datagram i.
func (b *batch) control(i int) []byte {
	return b.controls[i][:b.hdrs[i].hdr.Controllen]
}

// keep makes datagram i the one at place to, for sending: what was there moves
// to i.
func (b *batch) keep(i, to int) {
	if i != to {
		b.iovs[i], b.iovs[to] = b.iovs[to], b.iovs[i]
	}
}

// address has datagram i, of size bytes, sent to name from the address that the
// control message source tells.
func (b *batch) address(i, size int, name *unix.RawSockaddrInet6, nameLen uint32, source []byte) {
	h := &b.hdrs[i].hdr
	b.iovs[i].SetLen(size)
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), nameLen
	h.Control = unsafe.SliceData(source)
	h.SetControllen(len(source))
}

// sessionKey tells sessions apart: by the client's address, by the address of
// ours that it wrote to, and by whom a PROXY header says it speaks for. It has
// no gaps, so that maps hash it in one go.
type sessionKey struct {
	peer, local, client  [16]byte // IPv4 mapped to IPv6; all zero: not known, nobody
	scope                uint32   // the interface that peer belongs to if it is link-local
	peerPort, clientPort uint16
}

// key returns which session datagram i belongs to, so far as the kernel can
// tell.
func (b *batch) key(i int) (k sessionKey) {
	name := &b.names[i]
	k.peerPort = netOrder(&name.Port)
	if name.Family == unix.AF_INET {
		k.peer = mapped4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
	} else {
		k.peer, k.scope = name.Addr, name.Scope_id
	}
	if local := listen.LocalAddr(b.control(i)); local.IsValid() {
		k.local = local.As16()
	}
	return k
}

func mapped4(a [4]byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
}

// from returns the peer as an address, IPv4 as IPv4.
func (k *sessionKey) from() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(k.peer).Unmap(), k.peerPort)
}

// to returns the address of ours as one, IPv4 as IPv4; invalid if not known.
func (k *sessionKey) to() netip.Addr {
	if k.local == ([16]byte{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(k.local).Unmap()
}

// putName writes the peer of k into name as a socket of its kind takes it, and
// returns its length. A socket for both families has IPv4 addresses mapped to
// IPv6.
func (k *sessionKey) putName(name *unix.RawSockaddrInet6, ipv4 bool) uint32 {
	port := netOrder(&k.peerPort)
	if ipv4 {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: [4]byte(k.peer[12:])}
		return unix.SizeofSockaddrInet4
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: k.peer, Scope_id: k.scope}
	return unix.SizeofSockaddrInet6
}

// netOrder turns a port from the network's byte order into the machine's, or the
// other way round.
func netOrder(port *uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(port))
	return uint16(b[0])<<8 | uint16(b[1])
}
