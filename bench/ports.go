package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
)

// lowestPort is the least port a contender is given; common services are below.
const lowestPort = 10240

// portPicker finds free ports below the range that outgoing connections are
// given theirs from: the load itself would otherwise take, now and then, a port
// that a contender is about to listen on. It gives no port twice. It is used by
// one goroutine.
type portPicker struct {
	lowest, end int // ports are lowest <= p < end
	given       map[int]bool
}

func newPortPicker() *portPicker {
	end := 32768
	if b, err := os.ReadFile(ephemeralRange); err == nil {
		var low int
		if _, err := fmt.Sscan(string(b), &low); err == nil {
			end = low
		}
	}
	if end < 2*lowestPort {
		end = 1 << 16 // nearly all ports are ephemeral here: there is no room below
	}
	return &portPicker{lowest: lowestPort, end: end, given: make(map[int]bool)}
}

// pick returns a free address on 127.0.0.1.
func (p *portPicker) pick() (netip.AddrPort, error) {
	low, err := p.pickRange(1)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return loopback(low), nil
}

// pickRange returns the lowest of n free ports in a row.
func (p *portPicker) pickRange(n int) (low int, err error) {
	const tries = 100
	if n > p.end-p.lowest {
		return 0, fmt.Errorf("find %d free ports in a row: there are only those from %d to %d", n, p.lowest, p.end-1)
	}
	for range tries {
		low := p.lowest + rand.IntN(p.end-p.lowest-n+1)
		if p.takeRange(low, n) {
			return low, nil
		}
	}
	// A large range has few places, which chance may miss.
	for low := p.lowest; low+n <= p.end; {
		taken := p.firstTaken(low, n)
		if taken < 0 {
			p.give(low, n)
			return low, nil
		}
		low = taken + 1
	}
	return 0, fmt.Errorf("find %d free ports in a row from %d to %d: there are none", n, p.lowest, p.end-1)
}

func (p *portPicker) takeRange(low, n int) bool {
	if p.firstTaken(low, n) >= 0 {
		return false
	}
	p.give(low, n)
	return true
}

// firstTaken returns the first of n ports that cannot be had, or -1.
func (p *portPicker) firstTaken(low, n int) int {
	for port := low; port < low+n; port++ {
		if p.given[port] || !free(port) {
			return port
		}
	}
	return -1
}

func (p *portPicker) give(low, n int) {
	for port := low; port < low+n; port++ {
		p.given[port] = true
	}
}

// free reports whether a port can be had for TCP and UDP on every address, as
// a mapping has it.
func free(port int) bool {
	all := ":" + strconv.Itoa(port)
	l, err := net.Listen("tcp", all)
	if err != nil {
		return false
	}
	l.Close()
	u, err := net.ListenPacket("udp", all)
	if err != nil {
		return false
	}
	u.Close()
	return true
}

func loopback(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
}
