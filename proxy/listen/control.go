package listen

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ControlSize is the size of a control buffer that holds what the kernel tells
// of a datagram read from a socket of UDP.
const ControlSize = 128

// LocalAddr returns the address of this node that a datagram was sent to, given
// the control messages that came with it. It is invalid if they do not say. It
// does not allocate.
func LocalAddr(control []byte) netip.Addr {
	var local netip.Addr
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// A socket for both families tells of IPv4 datagrams in both ways,
			// and this is the better one: Spec_dst is an address of ours even
			// where the datagram was a broadcast, from whose address nothing
			// can be sent.
			return netip.AddrFrom4((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Spec_dst)
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			local = netip.AddrFrom16((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr).Unmap()
		}
		control = rest
	}
	return local
}

// AppendSource appends the control message with which a datagram leaves from
// addr, one of this node's addresses, whatever route it takes: what a client
// must see is an answer from the address that it wrote to. It fits sockets of
// either family. An invalid addr appends nothing, and the kernel chooses.
func AppendSource(control []byte, addr netip.Addr) []byte {
	switch {
	case addr.Is4(), addr.Is4In6():
		info := unix.Inet4Pktinfo{Spec_dst: addr.As4()}
		data := (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))
		return appendMessage(control, unix.IPPROTO_IP, unix.IP_PKTINFO, data[:])
	case addr.Is6():
		info := unix.Inet6Pktinfo{Addr: addr.As16()}
		data := (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))
		return appendMessage(control, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, data[:])
	}
	return control
}

func appendMessage(control []byte, level, typ int32, data []byte) []byte {
	header := unix.Cmsghdr{Level: level, Type: typ}
	header.SetLen(unix.CmsgLen(len(data)))
	end := len(control) + unix.CmsgSpace(len(data))
	control = append(control, (*[unix.SizeofCmsghdr]byte)(unsafe.Pointer(&header))[:]...)
	control = append(control, data...)
	for len(control) < end { // the next message begins aligned
		control = append(control, 0)
	}
	return control
}
