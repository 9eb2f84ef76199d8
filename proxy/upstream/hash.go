package upstream

import (
	"encoding/binary"
	"math"
	"net/netip"
)

// score returns how well a target suits a client, both given as hashes, for
// weighted rendezvous hashing: of all targets the one that scores highest has
// the client, and each has a share of the clients in proportion to its weight
// (a logarithm of a number even between 0 and 1 falls like the time to an event
// at rate 1, and the first of several such events is the one of rate w as often
// as w is of their sum).
func score(client, target, weight uint64) float64 {
	h := mix(client ^ mix(target))
	unit := (float64(h>>11) + 0.5) / (1 << 53) // above 0 and below 1
	return float64(weight) / -math.Log(unit)
}

// hashAddr hashes an IP address; an IPv4 address is the same in both its forms.
func hashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return mix(mix(binary.BigEndian.Uint64(b[:8])) ^ binary.BigEndian.Uint64(b[8:]))
}

// The numbers of FNV-1a.
const fnvOffset, fnvPrime = 14695981039346656037, 1099511628211

// hashEndpoint hashes a target's host and port, by FNV-1a.
func hashEndpoint(ep Endpoint) uint64 {
	h := fnv(ep.Host)
	h = (h ^ uint64(ep.Port&0xff)) * fnvPrime
	return (h ^ uint64(ep.Port>>8)) * fnvPrime
}

func fnv(s string) uint64 {
	h := uint64(fnvOffset)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return h
}

// hashString hashes what a client sends.
func hashString(s string) uint64 { return mix(fnv(s)) }

// mix spreads every bit of h over all of them (the finalizer of SplitMix64).
func mix(h uint64) uint64 {
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
