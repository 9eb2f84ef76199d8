package steer

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Destination returns the address and port that a datagram read from the UDP
// socket was sent to, IPv4 as IPv4, given the control messages that came with
// it; listen.ControlSize bytes have room for them. It is invalid if they do not
// say. It does not allocate. To answer, see listen.LocalAddr: a broadcast's
// destination is nobody's address.
func Destination(control []byte) netip.AddrPort {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
			// struct sockaddr_in: family, port, address
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:8])), binary.BigEndian.Uint16(data[2:]))
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			// struct sockaddr_in6: family, port, flow, address
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:24])).Unmap(), binary.BigEndian.Uint16(data[2:]))
		}
		control = rest
	}
	return netip.AddrPort{}
}
