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

// Where chance hardly finds the one place there is, it is found all the same.
func TestPickRangeFindsTheOnlyPlace(t *testing.T) {
	p := newPortPicker()
	low, err := p.pickRange(400)
	if err != nil {
		t.Fatal(err)
	}
	narrow := &portPicker{lowest: low, end: low + 400, given: map[int]bool{low + 7: true}}
	if got, err := narrow.pickRange(392); err != nil || got != low+8 {
		t.Errorf("pickRange = %d, %v; want %d", got, err, low+8)
	}
	if got, err := narrow.pickRange(8); err == nil {
		t.Errorf("pickRange = %d, want that there are none left", got)
	}
	if _, err := narrow.pickRange(401); err == nil {
		t.Error("more ports than there are: no error")
	}
}
