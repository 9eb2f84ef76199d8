package l4

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
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
// datagram. A place may take several datagrams of one sender and one size that
// the kernel has joined (UDP_GRO). Pages that no datagram has touched cost no
// memory.
type batch struct {
	hdrs     [batchSize]mmsghdr // for receiving: place i is described by hdrs[i]
	msgs     [batchSize]mmsghdr // for sending: see put
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

// receive fills at most n places from the first one on with what the socket fd
// has, without waiting. It asks for the senders if peers is set, which a
// connected socket has no use for.
func (b *batch) receive(fd int32, first, n int, peers bool) (int, syscall.Errno) {
	for i := first; i < first+n; i++ {
		h := &b.hdrs[i].hdr
		b.iovs[i].SetLen(maxDatagram)
		h.Control = &b.controls[i][0]
		h.SetControllen(listen.ControlSize)
		h.Name, h.Namelen = nil, 0
		if peers {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6
		}
	}
	return mmsg(unix.SYS_RECVMMSG, fd, b.hdrs[first:first+n])
}

// receiveOne fills place i with a datagram from fd, a connected socket that
// joins none.
func (b *batch) receiveOne(fd int32, i int) syscall.Errno {
	n, errno := event.Recv(fd, unsafe.Slice(b.iovs[i].Base, maxDatagram))
	b.hdrs[i].len = uint32(n)
	b.hdrs[i].hdr.SetControllen(0)
	return errno
}

// payload returns what place i has received.
func (b *batch) payload(i int) []byte {
	return unsafe.Slice(b.iovs[i].Base, b.hdrs[i].len)
}

// control returns the control messages of place i.
func (b *batch) control(i int) []byte {
	return b.controls[i][:b.hdrs[i].hdr.Controllen]
}

// segment returns the size of each of the datagrams that place i has received,
// of which the last may be shorter. One that came alone is a segment by itself.
func (b *batch) segment(i int) int {
	for control := b.control(i); len(control) >= unix.SizeofCmsghdr; {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		if header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO && len(data) >= 4 {
			if size := int(*(*int32)(unsafe.Pointer(&data[0]))); size > 0 {
				return size
			}
		}
		control = rest
	}
	return int(b.hdrs[i].len)
}

// trim has the iovec of place i tell what it has received.
func (b *batch) trim(i int) { b.iovs[i].SetLen(int(b.hdrs[i].len)) }

// run returns where the datagrams end, of the n there are, that go on after
// place i with the given key and segment so that they can be sent together. It
// trims the places before that.
func (b *batch) run(i, n int, key *sessionKey, segment int) (end int) {
	b.trim(i)
	size := int(b.hdrs[i].len)
	if size != segment || size == 0 {
		return i + 1 // joined ones already
	}
	for end = i + 1; end < n; end++ {
		more := int(b.hdrs[end].len)
		if more > segment || more == 0 || size+more > maxJoinedSize || b.key(end) != *key || b.segment(end) != more {
			return end
		}
		b.trim(end)
		size += more
		if more < segment {
			return end + 1
		}
	}
	return end
}

// keep moves what place i has received to the place to, and what was there to i.
func (b *batch) keep(i, to int) {
	if i != to {
		b.iovs[i], b.iovs[to] = b.iovs[to], b.iovs[i]
	}
}

// put makes message k of the places first to end, sent to name with the given
// control messages. Several places are joined: control says to what size they
// are cut up again.
func (b *batch) put(k, first, end int, name *unix.RawSockaddrInet6, nameLen uint32, control []byte) {
	h := &b.msgs[k].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), nameLen
	h.Iov = &b.iovs[first]
	h.SetIovlen(end - first)
	h.Control = unsafe.SliceData(control)
	h.SetControllen(len(control))
}

// send sends messages first to n, as far as the socket takes them without
// waiting.
func (b *batch) send(fd int32, first, n int) (int, syscall.Errno) {
	if n-first == 1 {
		if errno := sendmsg(fd, &b.msgs[first].hdr); errno != 0 {
			return 0, errno
		}
		return 1, 0
	}
	return mmsg(unix.SYS_SENDMMSG, fd, b.msgs[first:n])
}

// maxJoinedSize is how many bytes the kernel takes to cut them up, as many as fit
// a datagram. A batch has fewer datagrams than it takes (64).
const maxJoinedSize = 65000

// maxSource is how long a control message with the address to send from is.
const maxSource = 40

// segmentControl is room for a control message as appendSegment makes it.
const segmentControl = 24

// appendSegment appends the control message by which the kernel cuts a message
// into datagrams of the given size (UDP_SEGMENT).
func appendSegment(control []byte, size int) []byte {
	var m [segmentControl]byte
	h := (*unix.Cmsghdr)(unsafe.Pointer(&m[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&m[unix.CmsgLen(0)])) = uint16(size)
	return append(control, m[:unix.CmsgSpace(2)]...)
}

// refusesJoined reports whether errno is how the kernel says that it does not
// cut up a message: the datagrams do not fit the path, or something on the way
// cannot.
func refusesJoined(errno syscall.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.EIO, unix.EMSGSIZE, unix.EOPNOTSUPP:
		return true
	}
	return false
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
