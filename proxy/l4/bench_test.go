package l4_test

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// BenchmarkPingPong is 64 bytes there and back through one relay; the test's
// own two ends are half of the work.
func BenchmarkPingPong(b *testing.B) {
	n := newNode(b)
	p := n.tcp(`%s`, newBackend(b, echo).addr)
	c := dial(b, p)
	message := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(message); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, message); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnect is connect, 64 bytes there and back, and close.
func BenchmarkConnect(b *testing.B) {
	n := newNode(b)
	p := n.tcp(`%s`, newBackend(b, func(c *net.TCPConn) {
		message := make([]byte, 64)
		io.ReadFull(c, message)
		c.Write(message)
		io.Copy(io.Discard, c)
	}).addr)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-n.flows:
			case <-stop:
				return
			}
		}
	}()
	message := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
		if err != nil {
			b.Fatal(err)
		}
		c.Write(message)
		if _, err := io.ReadFull(c, message); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkBulk is one direction of one relay at full speed.
func BenchmarkBulk(b *testing.B) {
	n := newNode(b)
	var received atomic.Int64
	done := make(chan struct{})
	p := n.tcp(`%s`, newBackend(b, func(c *net.TCPConn) {
		defer close(done)
		got, _ := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 1<<20))
		received.Store(got)
	}).addr)
	c := dial(b, p)
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	sent := int64(0)
	for b.Loop() {
		m, err := c.Write(block)
		sent += int64(m)
		if err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	<-done
	if received.Load() != sent {
		b.Fatalf("%d of %d bytes arrived", received.Load(), sent)
	}
}

// BenchmarkUDPPingPong is a datagram of 64 bytes there and back through one
// session.
func BenchmarkUDPPingPong(b *testing.B) {
	n := newNode(b)
	p := n.udp(`%s`, udpEcho(b, ""))
	c := dialUDP(b, p)
	message := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(message); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(message); err != nil {
			b.Fatal(err)
		}
	}
}
