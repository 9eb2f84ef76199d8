package dns

import (
	"cmp"
	"math/bits"
	"net"
	"net/netip"
	"slices"
)

// order returns addrs in the order to try (RFC 6724 section 6), without what
// the kernel does not tell (rules 3, 4 and 7). Equal ones stay as the name
// server gave them, for those that spread load by it. It does not modify addrs.
func order(addrs []netip.Addr) []netip.Addr {
	if len(addrs) < 2 {
		return addrs
	}
	list := make([]destination, len(addrs))
	for i, a := range addrs {
		list[i] = destinationOf(a, sourceFor(a))
	}
	return sorted(list)
}

func sorted(list []destination) []netip.Addr {
	slices.SortStableFunc(list, compare)
	addrs := make([]netip.Addr, len(list))
	for i := range list {
		addrs[i] = list[i].addr
	}
	return addrs
}

// sourceFor returns the address that a packet to a would come from, the zero
// Addr where there is no way to a. Nothing is sent.
func sourceFor(a netip.Addr) netip.Addr {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 53)))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	source, _ := netip.AddrFromSlice(c.LocalAddr().(*net.UDPAddr).IP)
	return source.Unmap()
}

// destination is an address and what the rules go by.
type destination struct {
	addr         netip.Addr
	reachable    bool
	scopesMatch  bool
	labelsMatch  bool
	precedence   int
	scope        int
	commonPrefix int // with the source; IPv6 only
}

func destinationOf(a, source netip.Addr) destination {
	precedence, label := policyOf(a)
	d := destination{addr: a, reachable: source.IsValid(), precedence: precedence, scope: scopeOf(a)}
	if source.IsValid() {
		_, sourceLabel := policyOf(source)
		d.scopesMatch = d.scope == scopeOf(source)
		d.labelsMatch = label == sourceLabel
		if a.Is6() && source.Is6() {
			d.commonPrefix = commonPrefix(a, source)
		}
	}
	return d
}

func compare(a, b destination) int {
	yesFirst := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	if !a.reachable && !b.reachable {
		return 0
	}
	both6 := 0
	if a.addr.Is6() && b.addr.Is6() { // for IPv4 rule 9 would undo what servers do to spread load
		both6 = cmp.Compare(b.commonPrefix, a.commonPrefix)
	}
	return cmp.Or(
		yesFirst(a.reachable, b.reachable),     // rule 1
		yesFirst(a.scopesMatch, b.scopesMatch), // rule 2
		yesFirst(a.labelsMatch, b.labelsMatch), // rule 5
		cmp.Compare(b.precedence, a.precedence),
		cmp.Compare(a.scope, b.scope), // rule 8
		both6,                         // rule 9
	)
}

// policies is the table of RFC 6724 section 2.1, the longest prefix first.
var policies = []struct {
	prefix            netip.Prefix
	precedence, label int
}{
	{netip.MustParsePrefix("::1/128"), 50, 0},
	{netip.MustParsePrefix("::ffff:0:0/96"), 35, 4},
	{netip.MustParsePrefix("::/96"), 1, 3},
	{netip.MustParsePrefix("2001::/32"), 5, 5},
	{netip.MustParsePrefix("2002::/16"), 30, 2},
	{netip.MustParsePrefix("3ffe::/16"), 1, 12},
	{netip.MustParsePrefix("fec0::/10"), 1, 11},
	{netip.MustParsePrefix("fc00::/7"), 3, 13},
	{netip.MustParsePrefix("::/0"), 40, 1},
}

func policyOf(a netip.Addr) (precedence, label int) {
	a = netip.AddrFrom16(a.As16())
	for _, p := range policies {
		if p.prefix.Contains(a) || p.prefix.Bits() == 96 && a.Is4In6() && p.label == 4 {
			return p.precedence, p.label
		}
	}
	return 40, 1
}

// scopeOf returns the scope of a as IPv6 multicast numbers them (RFC 6724
// section 3.1): 2 is the link, 5 the site, 14 the world.
func scopeOf(a netip.Addr) int {
	switch {
	case a.IsLoopback(), a.IsLinkLocalUnicast():
		return 2
	case a.Is6() && a.IsMulticast():
		return int(a.As16()[1] & 0xf)
	case a.Is6() && netip.MustParsePrefix("fec0::/10").Contains(a):
		return 5
	}
	return 14
}

// commonPrefix returns how many leading bits a and b share, up to the 64 of the
// network.
func commonPrefix(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	n := 0
	for i := range 8 {
		if d := x[i] ^ y[i]; d != 0 {
			return n + bits.LeadingZeros8(d)
		}
		n += 8
	}
	return n
}
