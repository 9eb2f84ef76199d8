package main

import (
	"net"
	"strconv"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestPickGivesNoPortTwice(t *testing.T) {
	p := newPortPicker()
	seen := make(map[int]bool)
	low, err := p.pickRange(50)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		seen[low+i] = true
	}
	for range 50 {
		addr, err := p.pick()
		if err != nil {
			t.Fatal(err)
		}
		port := int(addr.Port())
		if seen[port] || port < lowestPort || port >= p.end {
			t.Errorf("picked %d, want a new port from %d to %d", port, lowestPort, p.end-1)
		}
		seen[port] = true
	}
}

func TestPickPassesOverTakenPorts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	p := &portPicker{lowest: port, end: port + 1, given: make(map[int]bool)}
	if got, err := p.pick(); err == nil {
		t.Errorf("picked %v, which is in use", got)
	}
}
