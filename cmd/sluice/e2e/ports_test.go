package e2e

import (
	"net"
	"sync"
	"testing"
)

// A test gets a slot of ports below Linux's ephemeral range (32768-60999), so
// that no outgoing connection takes one between the test's look and the node's
// bind. The last port of a slot is its guard: who listens on it has the slot,
// which keeps test processes that run at the same time apart as well.
const (
	mappedPerNode = 40
	portsPerNode  = mappedPerNode + 10
	slotSize      = 64
	firstTestPort = 23000
	lastTestPort  = 32000
)

var (
	portsMu  sync.Mutex
	nextPort = firstTestPort
)

// reservePorts returns the first of n neighbouring ports that nobody listens on
// and that no other test is given before this one ends.
func reservePorts(t testing.TB, n int) int {
	t.Helper()
	if n >= slotSize {
		t.Fatalf("a slot has %d ports and a guard, not %d", slotSize-1, n)
	}
	portsMu.Lock()
	defer portsMu.Unlock()
	for range 2 * (lastTestPort - firstTestPort) / slotSize {
		if nextPort+slotSize > lastTestPort {
			nextPort = firstTestPort
		}
		first := nextPort
		nextPort += slotSize
		guard, err := net.Listen("tcp", loopback(first+slotSize-1))
		if err != nil {
			continue
		}
		if allFree(first, n) {
			t.Cleanup(func() { guard.Close() })
			return first
		}
		guard.Close()
	}
	t.Fatalf("no %d free ports in a row between %d and %d", n, firstTestPort, lastTestPort)
	return 0
}

func allFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		ln, err := net.Listen("tcp", loopback(port))
		if err != nil {
			return false
		}
		ln.Close()
		pc, err := net.ListenPacket("udp", loopback(port))
		if err != nil {
			return false
		}
		pc.Close()
	}
	return true
}
