package main

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// runOrigin serves the origin within the test and returns it as an edge whose
// CPU time is the test's own.
func runOrigin(t *testing.T) *edge {
	t.Helper()
	o, err := newOrigin(0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("origin: %v", err)
		}
	})
	return &edge{name: "origin", root: os.Getpid(), addrs: o.addrs()}
}

// Each row of raw TCP or UDP runs for a moment against the origin itself: long
// enough for every worker to have its turn on a busy machine.
func TestSocketRows(t *testing.T) {
	e := runOrigin(t)
	for _, r := range socketRows() {
		t.Run(r.name, func(t *testing.T) {
			s, err := r.measure(t.Context(), e, phases{warm: 50 * time.Millisecond, main: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if s.Cost <= 0 || s.Rate <= 0 || s.Units <= 0 || s.CPU <= 0 || s.Seconds < 1 {
				t.Errorf("sample = %+v, want figures", s)
			}
			if hasLatency := r.service != serviceBlast; hasLatency != (s.P50 > 0 && s.P99 >= s.P50) {
				t.Errorf("p50 %v, p99 %v; want latency: %v", s.P50, s.P99, hasLatency)
			}
		})
	}
}

func TestSocketRowsFailLoudly(t *testing.T) {
	short := phases{warm: time.Millisecond, main: 20 * time.Millisecond}
	closed := &edge{root: os.Getpid(), addrs: addressBook{serviceEcho: closedPort(t)}}
	if s, err := pingPong(2).measure(t.Context(), closed, short); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("against a closed port: %+v, %v; want that it is refused", s, err)
	}
	// What blasts does not echo.
	e := runOrigin(t)
	e.addrs[serviceEcho] = e.addrs[serviceBlast]
	if s, err := connectEchoClose(2).measure(t.Context(), e, short); err == nil || !strings.Contains(err.Error(), "differs") {
		t.Errorf("against a server that does not echo: %+v, %v; want that it differs", s, err)
	}
	// Nobody answers datagrams here, but a closed port says that it is closed.
	e.addrs[serviceUDP] = closedPort(t)
	if s, err := udpPingPong(2).measure(t.Context(), e, short); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("datagrams to a closed port: %+v, %v; want that it is refused", s, err)
	}
	// A load that ends is told so at once.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bulk(1).measure(ctx, e, phases{warm: time.Hour, main: time.Hour}); err == nil {
		t.Error("with its context ended: no error")
	}
}

// A datagram that is swallowed ends the sample, it does not shorten it.
func TestLostDatagramFailsTheSample(t *testing.T) {
	swallow, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(loopback(0)))
	if err != nil {
		t.Fatal(err)
	}
	defer swallow.Close()
	e := &edge{root: os.Getpid(), addrs: addressBook{serviceUDP: swallow.LocalAddr().(*net.UDPAddr).AddrPort()}}
	_, err = udpPingPong(1).measure(t.Context(), e, phases{warm: time.Millisecond, main: 2 * datagramLimit})
	if err == nil || !strings.Contains(err.Error(), "was lost") {
		t.Errorf("against a server that swallows: %v, want that a datagram was lost", err)
	}
}

func TestHangingWorkerFailsTheSample(t *testing.T) {
	l := pingPong(2)
	w := window{from: time.UnixMicro(0), to: time.UnixMicro(1000), cpu: time.Millisecond}
	_, err := l.sample(w, []int64{5, 5}, []int64{9, 5}, make([]loadWorker, 2))
	if err == nil || !strings.Contains(err.Error(), "1 of 2 workers") {
		t.Errorf("sample = %v, want that a worker hangs", err)
	}
}

func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	addr, err := newPortPicker().pick()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestDialUntilOpen(t *testing.T) {
	e := runOrigin(t)
	c, attempts, err := dialUntilOpen(t.Context(), e.addrs[serviceEcho])
	if err != nil || attempts != 1 {
		t.Fatalf("dialUntilOpen of an open port: %d attempts, %v; want 1", attempts, err)
	}
	c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, attempts, err := dialUntilOpen(ctx, closedPort(t)); err == nil || attempts < 2 {
		t.Errorf("dialUntilOpen of a closed port: %d attempts, %v; want several and an error", attempts, err)
	}
}
