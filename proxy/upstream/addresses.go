package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"strings"
)

// A name with several addresses is one target, whose flows are spread over the
// addresses: each in turn, those passed over that failed lately. Addresses of
// the other family than the first are for when those fail: where a name has
// both, they are mostly two ways to one machine, and the resolver knows which is
// the better one (RFC 6724).

// choice is among which of a name's addresses a flow may begin.
type choice struct {
	a  *Attempt
	n  int
	at func(int) netip.AddrPort
}

// pick returns the number of the address to begin with. Where the backend keeps
// clients at a target, or goes by a key, so it is among the addresses.
func (c choice) pick() int {
	first, well := -1, 0
	for i := range c.n {
		if c.a.isWell(c.at(i)) {
			if first < 0 {
				first = i
			}
			if c.isLike(first, i) {
				well++
			}
		}
	}
	if well < 2 {
		return max(first, 0)
	}
	if c.a.balance == byKey || c.a.stuckAt != 0 && c.a.at == c.a.stuck-1 {
		return c.fixed(first)
	}
	turn := int(c.a.dialer.names.turn(c.a.ep.Host) % uint32(well))
	for i := first; i < c.n; i++ {
		if !c.isLike(first, i) || !c.a.isWell(c.at(i)) {
			continue
		}
		if turn == 0 {
			return i
		}
		turn--
	}
	return first // one has failed just now
}

// isLike reports whether address i is of the same family as first.
func (c choice) isLike(first, i int) bool {
	return c.at(i).Addr().Is4() == c.at(first).Addr().Is4()
}

// fixed returns the address that the client is to stay at or, where it is none
// of them, the one that its key leads to.
func (c choice) fixed(first int) int {
	best, most := first, -1.0
	for i := first; i < c.n; i++ {
		addr := c.at(i)
		if !c.isLike(first, i) || !c.a.isWell(addr) {
			continue
		}
		if c.a.stuckAt != 0 && c.a.at == c.a.stuck-1 && c.a.dialer.tag(addr) == c.a.stuckAt {
			return i
		}
		if s := score(c.a.key, hashAddr(addr.Addr()), 1); s > most {
			best, most = i, s
		}
	}
	return best
}

// isWell reports whether nothing lately speaks against addr.
func (a *Attempt) isWell(addr netip.AddrPort) bool {
	return !a.dialer.failedAddrs.recent(addr) &&
		(a.backend == nil || !a.dialer.ejections.isOutAt(a.ep, addr, a.backend.Eject))
}

// arrange puts the addresses of the target's name in the order to try. Where the
// caller has set a.addr, that one comes first if it is one of them and well.
func (a *Attempt) arrange(addrs []netip.AddrPort) {
	if len(addrs) < 2 || a.quiet {
		return
	}
	first := -1
	if a.addr.IsValid() && a.isWell(a.addr) {
		for i, addr := range addrs {
			if addr == a.addr {
				first = i
			}
		}
	}
	if first < 0 {
		first = choice{a, len(addrs), func(i int) netip.AddrPort { return addrs[i] }}.pick()
	}
	chosen := addrs[first]
	copy(addrs[1:first+1], addrs[:first])
	addrs[0] = chosen
}

// Address returns the address that the flow is to be at, for callers who keep
// connections to the target that NextTarget gave by address. The zero AddrPort
// is none in particular: the target is an address itself, or nothing is known
// yet of what its name stands for. It waits for nothing, and asks again behind
// the flow's back for a name that was not used for long.
func (a *Attempt) Address() netip.AddrPort {
	if a.step != atName {
		return netip.AddrPort{}
	}
	found := a.dialer.names.remembered(a.ep.Host)
	if len(found) == 0 {
		return netip.AddrPort{}
	}
	for _, addr := range found {
		if a.ep.FromClient && isOfTheLink(addr) {
			return netip.AddrPort{} // connecting finds out
		}
	}
	at := func(i int) netip.AddrPort { return netip.AddrPortFrom(found[i].Unmap(), uint16(a.ep.Port)) }
	a.several = len(found) > 1
	if a.addr = at(0); a.several {
		a.addr = at(choice{a, len(found), at}.pick())
	}
	return a.addr
}

// Used says which address the flow is at after all, where Address was asked and
// another one had to do.
func (a *Attempt) Used(addr netip.AddrPort) {
	if a.several {
		a.addr = addr
	}
}

// tag names addr to clients as token does with targets. It is never 0.
func (d *Dialer) tag(addr netip.AddrPort) uint64 {
	h := hmac.New(sha256.New, d.cookieKey)
	h.Write([]byte("sluice sticky address\n" + addr.String()))
	return binary.BigEndian.Uint64(h.Sum(nil)) | 1
}

// tagged appends to a target's token which of its addresses is meant.
func tagged(token string, tag uint64) string {
	return token + "." + base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, tag))
}

// untagged takes apart what tagged has made; tag is 0 where there is none.
func untagged(s string) (token string, tag uint64) {
	token, text, _ := strings.Cut(s, ".")
	var b [8]byte
	if n, err := base64.RawURLEncoding.Decode(b[:], []byte(text[:min(len(text), 11)])); err != nil || n != len(b) {
		return token, 0
	}
	return token, binary.BigEndian.Uint64(b[:])
}
