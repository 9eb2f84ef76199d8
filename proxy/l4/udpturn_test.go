package l4_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// turn is a call of ServeUDP that is expected to return before its context
// ends.
type turn struct {
	addr netip.AddrPort
	done chan struct{}
	left []l4.Datagram
	err  error
}

// serveTurn opens a UDP port, a free one if number is 0, for a mapping to
// backend with an idle timeout of 100 ms.
func (n *node) serveTurn(number uint16, backend string, o l4.UDPOptions) *turn {
	n.t.Helper()
	pc, err := listen.UDP(context.Background(), netip.AddrPortFrom(netip.IPv6Unspecified(), number).String())
	if err != nil {
		n.t.Fatal(err)
	}
	u := &turn{done: make(chan struct{})}
	u.addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), pc.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	m := parse(n.t, router.UDP, u.addr, `{"backend": "`+backend+`", "idle_timeout": "100ms"}`)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = append(n.stop, cancel)
	n.running.Go(func() {
		defer close(u.done)
		u.left, u.err = n.server.ServeUDP(ctx, pc, func() *router.Mapping { return m }, o)
	})
	return u
}

func (u *turn) wait(t *testing.T) []l4.Datagram {
	t.Helper()
	select {
	case <-u.done:
	case <-time.After(patience):
		t.Fatal("ServeUDP goes on")
	}
	if u.err != nil {
		t.Fatalf("ServeUDP: %v", u.err)
	}
	return u.left
}

// openUDP opens a socket that is not connected, to write from and be answered.
func openUDP(t *testing.T, network, addr string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	c := pc.(*net.UDPConn)
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// expectFrom reads a datagram and where it came from.
func expectFrom(t *testing.T, c *net.UDPConn, want string, from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 100)
	n, addr, err := c.ReadFromUDPAddrPort(buf)
	if addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()); err != nil || string(buf[:n]) != want || addr != from {
		t.Fatalf("received %q from %v, error %v; want %q from %v", buf[:n], addr, err, want, from)
	}
}

// What came to another socket before is served first, in order, and answered
// from the port's own, to whom and from where each datagram says.
func TestUDPServesFirst(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct{ network, client, local string }{
		{"udp4", "127.0.0.1", "127.0.0.7"},
		{"udp4", "127.0.0.1", "127.0.0.1"},
		{"udp6", "::1", "::1"},
	} {
		c := openUDP(t, test.network, net.JoinHostPort(test.client, "0"))
		local := netip.MustParseAddr(test.local)
		var first []l4.Datagram
		for _, text := range []string{"one", "", "three"} {
			first = append(first, l4.Datagram{Payload: []byte(text), From: c.LocalAddr().(*net.UDPAddr).AddrPort(), Local: local})
		}
		// One that cannot be answered harms no other.
		first = append([]l4.Datagram{{Payload: []byte("x")}}, first...)
		u := n.serveTurn(0, udpEcho(t, ""), l4.UDPOptions{First: first})
		to := netip.AddrPortFrom(local, u.addr.Port())
		for _, want := range []string{"one", "", "three"} {
			expectFrom(t, c, want, to)
		}
		// The session goes on where it began.
		if _, err := c.WriteToUDPAddrPort([]byte("four"), to); err != nil {
			t.Fatal(err)
		}
		expectFrom(t, c, "four", to)
		if r := n.wantEnd("idle"); r["bytes_up"] != int64(12) || r["bytes_down"] != int64(12) {
			t.Errorf("record %v", r)
		}
	}
}

// A port that rests returns what came to its socket until the last moment, and
// the next turn begins with it.
func TestUDPRests(t *testing.T) {
	n := newNode(t)
	echo := udpEcho(t, "")
	c := openUDP(t, "udp", "[::1]:0")
	c4 := openUDP(t, "udp4", "127.0.0.1:0")
	to := make(chan netip.AddrPort, 1)
	u := n.serveTurn(0, echo, l4.UDPOptions{
		Rest: 50 * time.Millisecond,
		First: []l4.Datagram{
			{Payload: []byte("hello"), From: c4.LocalAddr().(*net.UDPAddr).AddrPort(), Local: netip.MustParseAddr("127.0.0.1")},
		},
		Resting: func() {
			port := (<-to).Port()
			for _, text := range []string{"late", "later"} {
				c.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(netip.IPv6Loopback(), port))
				c4.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), port))
			}
		},
	})
	expectFrom(t, c4, "hello", u.addr)
	n.wantEnd("idle")
	to <- u.addr
	left := u.wait(t)
	if len(left) != 4 {
		t.Fatalf("%d datagrams are left, want 4: %v", len(left), left)
	}
	if n.live() != 0 {
		t.Errorf("%d sessions live on", n.live())
	}

	next := n.serveTurn(u.addr.Port(), echo, l4.UDPOptions{First: left, Rest: 50 * time.Millisecond})
	for _, want := range []string{"late", "later"} {
		expectFrom(t, c, want, netip.AddrPortFrom(netip.IPv6Loopback(), u.addr.Port()))
		expectFrom(t, c4, want, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), u.addr.Port()))
	}
	if left := next.wait(t); len(left) != 0 { // without Resting as well
		t.Errorf("%d datagrams are left", len(left))
	}
	for range 2 {
		n.wantEnd("idle")
	}
}

// While there are sessions a port does not rest, however short its rest is.
func TestUDPRestsOnlyWithoutSessions(t *testing.T) {
	n := newNode(t)
	u := n.serveTurn(0, udpEcho(t, ""), l4.UDPOptions{Rest: time.Microsecond, First: []l4.Datagram{
		{Payload: []byte("x"), From: netip.MustParseAddrPort("127.0.0.1:9"), Local: netip.MustParseAddr("127.0.0.1")},
	}})
	n.wantEnd("idle") // which takes 100 ms
	u.wait(t)
}
