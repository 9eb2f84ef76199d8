package l4

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

const (
	// batchSize is how many datagrams one system call moves at most.
	batchSize = 16
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
	payloads [batchSize][maxDatagram]byte
}

var batches = sync.Pool{New: func() any {
	b := new(batch)
	for i := range b.hdrs {
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
		b.iovs[i].Base = &b.payloads[i][0]
	}
	return b
}}

// receive fills the batch from the socket fd without waiting. It asks for the
// senders' addresses and control messages if peers is set, which a connected
// socket has no use for.
func (b *batch) receive(fd uintptr, peers bool) (n int, err error) {
	for i := range b.hdrs {
		h := &b.hdrs[i].hdr
		b.iovs[i].SetLen(maxDatagram)
		if peers {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6
			h.Control = &b.controls[i][0]
			h.SetControllen(listen.ControlSize)
		} else {
			h.Name, h.Namelen, h.Control = nil, 0, nil
			h.SetControllen(0)
		}
	}
	return ignoringEINTR(func() (int, error) { return mmsg(unix.SYS_RECVMMSG, fd, b.hdrs[:]) })
}

// send sends the first n datagrams, as far as the socket takes them without
// waiting.
func (b *batch) send(fd uintptr, first, n int) (sent int, err error) {
	return ignoringEINTR(func() (int, error) { return mmsg(unix.SYS_SENDMMSG, fd, b.hdrs[first:n]) })
}

func mmsg(call, fd uintptr, hdrs []mmsghdr) (int, error) {
	n, _, errno := unix.Syscall6(call, fd, uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// payload returns datagram i as received.
func (b *batch) payload(i int) []byte {
	return unsafe.Slice(b.iovs[i].Base, b.hdrs[i].len)
}

// control returns the control messages of datagram i.
func (b *batch) control(i int) []byte {
	return b.controls[i][:b.hdrs[i].hdr.Controllen]
}

// peer returns the sender of datagram i, IPv4 as IPv4, and the interface that
// its address belongs to if it is link-local.
func (b *batch) peer(i int) (peer netip.AddrPort, scope uint32) {
	name := &b.names[i]
	port := unsafe.Slice((*byte)(unsafe.Pointer(&name.Port)), 2) // in network order
	number := uint16(port[0])<<8 | uint16(port[1])
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), number), 0
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), number), name.Scope_id
}

// putName writes peer into name as a socket of its kind takes it, and returns
// its length. A socket for both families has IPv4 addresses mapped to IPv6.
func putName(name *unix.RawSockaddrInet6, peer netip.AddrPort, scope uint32, ipv4 bool) uint32 {
	var port uint16 // in network order
	binary.BigEndian.PutUint16(unsafe.Slice((*byte)(unsafe.Pointer(&port)), 2), peer.Port())
	if ipv4 {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: peer.Addr().Unmap().As4()}
		return unix.SizeofSockaddrInet4
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: peer.Addr().As16(), Scope_id: scope}
	return unix.SizeofSockaddrInet6
}

// keep makes datagram i the one at place to, for sending: what was there moves
// to i.
func (b *batch) keep(i, to int) {
	b.iovs[i], b.iovs[to] = b.iovs[to], b.iovs[i]
}

// address has datagram i, of size bytes, sent to name from the address that the
// control message source tells.
func (b *batch) address(i, size int, name *unix.RawSockaddrInet6, nameLen uint32, source []byte) {
	h := &b.hdrs[i].hdr
	b.iovs[i].SetLen(size)
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), nameLen
	h.Control = nil
	if len(source) > 0 {
		h.Control = &source[0]
	}
	h.SetControllen(len(source))
}
