package steer_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// datagram is one read from the common socket.
type datagram struct {
	text     string
	from, to netip.AddrPort
	local    netip.Addr
}

func read(t *testing.T, s *steer.Steerer) (d datagram) {
	t.Helper()
	return readFrom(t, s.UDP(), steer.Destination)
}

// readFrom reads a datagram from pc, which tells by destination where to.
func readFrom(t *testing.T, pc *net.UDPConn, destination func([]byte) netip.AddrPort) (d datagram) {
	t.Helper()
	buf, control := make([]byte, 64), make([]byte, listen.ControlSize)
	pc.SetReadDeadline(time.Now().Add(patience))
	n, cn, flags, from, err := pc.ReadMsgUDPAddrPort(buf, control)
	if err != nil || flags != 0 {
		t.Fatalf("read: %v, flags %x", err, flags)
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return datagram{string(buf[:n]), from, destination(control[:cn]), listen.LocalAddr(control[:cn])}
}

func send(t *testing.T, c *net.UDPConn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestDatagramsTellWhereTheyWereSent(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.UDP, 1, 20000, 65535)
	for _, host := range hosts {
		for _, port := range []int{1, 20000, 65535} {
			c := dialUDP(t, host, port)
			send(t, c, "hello")
			to := addrOf(c.RemoteAddr())
			if got, want := read(t, s), (datagram{"hello", addrOf(c.LocalAddr()), to, to.Addr()}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		checkRefused(t, host, 20001)
	}
}

// TestSocketOfItsOwn follows a port from the common socket to its own and back.
// The client is connected: it takes answers from the very address alone that
// it wrote to.
func TestSocketOfItsOwn(t *testing.T) {
	s := open(t, steer.Config{})
	common := int(addrOf(s.UDP().LocalAddr()).Port())
	for _, port := range []int{20000, common} {
		for _, host := range hosts {
			add(t, s, steer.UDP, port, 20001)
			c := dialUDP(t, host, port)
			send(t, c, "first")
			if got := read(t, s); got.text != "first" || got.to != addrOf(c.RemoteAddr()) {
				t.Errorf("at the common socket: %+v", got)
			}
			pc, err := s.Bind(t.Context(), port)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			send(t, c, "second")
			got := readFrom(t, pc, func([]byte) netip.AddrPort { return netip.AddrPort{} })
			if got.text != "second" || got.from != addrOf(c.LocalAddr()) || got.local != addrOf(c.RemoteAddr()).Addr() {
				t.Errorf("at the port's own socket: %+v", got)
			}
			if _, _, err := pc.WriteMsgUDPAddrPort([]byte("answer"), listen.AppendSource(nil, got.local), got.from); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "answer" {
				t.Errorf("the client got %q, %v", buf[:n], err)
			}
			other := dialUDP(t, host, 20001)
			send(t, other, "neighbour")
			if got := read(t, s); got.text != "neighbour" || got.to.Port() != 20001 {
				t.Errorf("at the common socket: %+v", got)
			}

			s.Unbind(port)
			send(t, c, "third")
			if got := read(t, s); got.text != "third" {
				t.Errorf("at the common socket: %+v", got)
			}
			pc.Close()
			send(t, c, "fourth")
			if got := read(t, s); got.text != "fourth" {
				t.Errorf("at the common socket: %+v", got)
			}
			s.Remove(steer.UDP, port)
			checkRefused(t, host, port)
		}
	}
}

func TestDestinationOfAnything(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.UDP, 20000)
	for _, host := range hosts {
		send(t, dialUDP(t, host, 20000), "hello")
		buf, control := make([]byte, 64), make([]byte, listen.ControlSize)
		s.UDP().SetReadDeadline(time.Now().Add(patience))
		_, n, _, _, err := s.UDP().ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			t.Fatal(err)
		}
		if got := testing.AllocsPerRun(10, func() { steer.Destination(control[:n]) }); got != 0 {
			t.Errorf("Destination makes %v allocations, want none", got)
		}
		for cut := range n {
			steer.Destination(control[:cut])
		}
		clear(control)
		if got := steer.Destination(control); got.IsValid() {
			t.Errorf("of zeros: %v", got)
		}
	}
}
