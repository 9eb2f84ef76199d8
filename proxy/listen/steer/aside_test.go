package steer_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// ofNobody is for sockets that do not tell where a datagram was sent to.
func ofNobody([]byte) netip.AddrPort { return netip.AddrPort{} }

// TestSocketOfItsOwnBesideOthers has sockets of other programs at addresses of
// the port, come after the port was steered: it gets its own socket all the same,
// and all that is steered, whatever address it is sent to.
func TestSocketOfItsOwnBesideOthers(t *testing.T) {
	s := open(t, steer.Config{})
	common := int(addrOf(s.UDP().LocalAddr()).Port())
	for _, port := range []int{20000, common} {
		add(t, s, steer.UDP, port, 20001)
		for _, host := range hosts {
			listenUDP(t, host, port)
		}
		for range 2 {
			pc, err := s.Bind(t.Context(), port)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			for _, host := range hosts {
				c := dialUDP(t, host, port)
				send(t, c, "hello")
				got := readFrom(t, pc, ofNobody)
				if got.text != "hello" || got.from != addrOf(c.LocalAddr()) || got.local != addrOf(c.RemoteAddr()).Addr() {
					t.Errorf("at the port's own socket: %+v", got)
				}
				if _, _, err := pc.WriteMsgUDPAddrPort([]byte("answer"), listen.AppendSource(nil, got.local), got.from); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 64)
				if n, err := c.Read(buf); err != nil || string(buf[:n]) != "answer" {
					t.Errorf("the client got %q, %v", buf[:n], err)
				}
				send(t, dialUDP(t, host, 20001), "neighbour")
				if got := read(t, s); got.text != "neighbour" || got.to.Port() != 20001 {
					t.Errorf("at the common socket: %+v", got)
				}
			}
			s.Unbind(port)
			send(t, dialUDP(t, hosts[0], port), "rested")
			if got := read(t, s); got.text != "rested" {
				t.Errorf("at the common socket: %+v", got)
			}
			pc.Close()
		}
		s.Remove(steer.UDP, port)
	}
}

func listenUDP(t *testing.T, host string, port int) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket("udp", address(host, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*net.UDPConn)
}

// TestConnectedSocketsKeepTheirAnswers has another program speak from the port
// to a server of its choice, as a resolver does, beside the port's own socket.
func TestConnectedSocketsKeepTheirAnswers(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.UDP, 20000)
	server := listenUDP(t, "127.0.0.1", 0)
	resolver, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 20000}, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()
	pc, err := s.Bind(t.Context(), 20000)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := server.WriteTo([]byte("resolved"), resolver.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if got := readFrom(t, resolver, ofNobody); got.text != "resolved" {
		t.Errorf("the resolver got %+v", got)
	}
	send(t, dialUDP(t, "127.0.0.1", 20000), "hello")
	if got := readFrom(t, pc, ofNobody); got.text != "hello" {
		t.Errorf("at the port's own socket: %+v", got)
	}
}

// TestReleasedPortIsOthers closes a port that has its socket aside: another
// program's socket hears again, and until then is listed as one that does not.
func TestReleasedPortIsOthers(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.UDP, 20000)
	name, _ := holdInChild(t, listenUDP(t, "127.0.0.2", 20000))
	mine := listenUDP(t, "127.0.0.1", 20000)
	pc, err := s.Bind(t.Context(), 20000)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	s.Remove(steer.UDP, 20000) // closed to new sessions; those there are need the socket
	c := dialUDP(t, "127.0.0.1", 20000)
	send(t, c, "still")
	if got := readFrom(t, pc, ofNobody); got.text != "still" {
		t.Errorf("at the port's own socket: %+v", got)
	}
	listed := func(deaf bool) {
		t.Helper()
		found, err := s.Foreign(t.Context(), steer.Range{First: 20000, Last: 20000})
		if err != nil || len(found) != 1 || found[0].Owner != name || found[0].Steered != deaf {
			t.Errorf("other programs' sockets: %+v, %v; want that of %s, deaf: %v", found, err, name, deaf)
		}
	}
	listed(true)
	pc.Close()
	s.Release(20000)
	listed(false)
	send(t, c, "yours")
	if got := readFrom(t, mine, ofNobody); got.text != "yours" {
		t.Errorf("at the other socket: %+v", got)
	}
}

func TestPortTakenAtAllAddressesCannotBeBound(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.UDP, 20000)
	other := listenUDP(t, "", 20000)
	_, err := s.Bind(t.Context(), 20000)
	var busy *listen.BusyError
	if !errors.As(err, &busy) || busy.Network != "udp" || busy.Addr != ":20000" {
		t.Errorf("bind: %v, want that the port is busy", err)
	}
	send(t, dialUDP(t, "127.0.0.1", 20000), "hello")
	if got := read(t, s); got.text != "hello" {
		t.Errorf("at the common socket: %+v", got)
	}
	other.Close()
	pc, err := s.Bind(t.Context(), 20000)
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
}

// TestLowPortsNeedACapability steers ports as one who may steer, but not bind to
// low ports: TCP needs no bind.
func TestLowPortsNeedACapability(t *testing.T) {
	s := open(t, steer.Config{})
	many := []int{1024, 1023, 80}
	for port := 20000; port < 20100; port++ {
		many = append(many, port)
	}
	dropBindService(t)
	for _, ports := range [][]int{{1024, 80, 1023}, many} {
		busy, err := s.Add(context.Background(), steer.UDP, ports...)
		if err != nil || len(busy) != 2 {
			t.Fatalf("add: %v, busy %v; want 80 and 1023", err, busy)
		}
		for _, port := range []int{80, 1023} {
			if err := busy[port]; !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
				t.Errorf("add udp/%d: %v, want a hint", port, err)
			}
			if s.Steered(steer.UDP, port) {
				t.Errorf("udp/%d is steered", port)
			}
		}
		if !s.Steered(steer.UDP, 1024) {
			t.Error("udp/1024 is not steered")
		}
		s.Remove(steer.UDP, ports...)
	}
	add(t, s, steer.TCP, 80)
}

// dropBindService takes CAP_NET_BIND_SERVICE from the calling goroutine, until
// the test ends.
func dropBindService(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
	lacks := had
	lacks[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
	if err := unix.Capset(&header, &lacks[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&header, &had[0]); err != nil {
			t.Fatal(err) // and the thread ends with the goroutine
		}
		runtime.UnlockOSThread()
	})
}
