package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestWebSocketRow runs for a moment against the origin itself.
func TestWebSocketRow(t *testing.T) {
	e := runOrigin(t)
	s, err := webSockets{service: serviceHTTP, connections: 8}.measure(t.Context(), e, phases{warm: 50 * time.Millisecond, main: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if s.Cost <= 0 || s.Rate <= 0 || s.Units <= 0 || s.P50 <= 0 || s.P99 < s.P50 {
		t.Errorf("sample = %+v, want figures", s)
	}
}

// TestWebSocketsAreReal refuses a server that does not change protocols.
func TestWebSocketsAreReal(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: of+another+key=\r\n\r\n",
	} {
		ours, theirs := net.Pipe()
		go func() {
			io.ReadAtLeast(theirs, make([]byte, 4096), 1)
			io.WriteString(theirs, answer)
		}()
		if err := changeToWebSocket(ours); err == nil || !strings.Contains(err.Error(), "to change protocols is") {
			t.Errorf("%q passed for a change of protocols: %v", answer, err)
		}
		ours.Close()
		theirs.Close()
	}
	e := runOrigin(t)
	e.addrs[serviceHTTP] = e.addrs[serviceEcho]
	short := phases{warm: time.Millisecond, main: 20 * time.Millisecond}
	if s, err := (webSockets{service: serviceHTTP, connections: 1}).measure(t.Context(), e, short); err == nil {
		t.Errorf("against an echo: %+v", s)
	}
}
