package loop_test

import (
	"io"
	"net"
	"testing"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

// The load and the backend run in the same process and are measured with it:
// these compare one version with another, `make bench` compares with others.

func BenchmarkPingPong(b *testing.B) {
	g := start(b, loop.Config{})
	_, addr := front(b, g, to(serve(b, echo), loop.Terms{}))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, 64)
		for pb.Next() {
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkConnectEchoClose(b *testing.B) {
	g := start(b, loop.Config{})
	_, addr := front(b, g, to(serve(b, echo), loop.Terms{}))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 64)
		for pb.Next() {
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
			if err != nil {
				b.Error(err)
				return
			}
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Error(err)
			}
			c.Close()
		}
	})
}

func BenchmarkBulk(b *testing.B) {
	g := start(b, loop.Config{})
	source := serve(b, func(c *net.TCPConn) {
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	_, addr := front(b, g, to(source, loop.Terms{}))
	c := dial(b, addr)
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}
