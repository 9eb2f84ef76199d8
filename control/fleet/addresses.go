package fleet

import (
	"net"
	"net/netip"
	"slices"
)

// reachable returns the addresses, of a machine's own, at which clients may
// reach it: the public ones, or if there are none, such as behind NAT or in a
// laboratory, the private ones.
func reachable(own []net.Addr) []netip.Addr {
	var public, private []netip.Addr
	for _, a := range own {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		switch {
		case !ok || !ip.IsGlobalUnicast():
		case ip.IsPrivate() || sharedSpace.Contains(ip):
			private = append(private, ip)
		default:
			public = append(public, ip)
		}
	}
	if len(public) == 0 {
		public = private
	}
	slices.SortFunc(public, netip.Addr.Compare)
	return slices.Compact(public)
}

// sharedSpace is what providers use behind their own NAT (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")
