package router

import "net/netip"

// EndOf returns the address that a connection to addr ends at: the IPv4 address of
// one that is mapped (RFC 4291 section 2.5.5.2) or translated (RFC 6052 section 2.1),
// and no zone.
func EndOf(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap().WithZone(""); !nat64.Contains(addr) {
		return addr
	}
	last := addr.As16()
	return netip.AddrFrom4([4]byte(last[12:]))
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")
