package proxy_test

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/router"
)

// TestUDPPortBesideOtherPrograms has other programs take addresses of a steered
// port, to listen there and to speak from there: clients are served all the
// same, each time that the port opens its socket.
func TestUDPPortBesideOtherPrograms(t *testing.T) {
	registry := prometheus.NewRegistry()
	e := newEdge(t, in(proxy.PortsSteer), func(cfg *proxy.Config) { cfg.Registerer = registry })
	server, err := net.ListenPacket("udp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	backend, port := echoUDP(t), freePort(t)
	e.putProto(t, router.UDP, port, backend)
	for _, host := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback} {
		other, err := net.ListenUDP("udp", &net.UDPAddr{IP: host, Port: port})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
	}
	resolver, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: port}, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()
	for round := range 3 {
		for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"} {
			c := dialUDP(t, host, port)
			for i := range 3 {
				echo(t, c, fmt.Sprintf("%s %d %d", host, round, i))
			}
			echo(t, c, strings.Repeat("x", 60000))
		}
		e.Cut(func(l4.FlowInfo) bool { return true })
		eventually(t, "the port has no socket", func() error {
			if got := gathered(t, registry, "sluice_proxy_udp_sockets", ""); got != 0 {
				return fmt.Errorf("%v have", got)
			}
			return nil
		})
	}
	if err, _ := e.state(router.MappingKey(router.UDP, port)); err != nil {
		t.Errorf("the port's state: %v", err)
	}
}

// TestUDPPortLostToAnotherProgram has another program take all addresses of a
// steered port. The port cannot be served: the mapping says so and names it, and
// is served once it has gone.
func TestUDPPortLostToAnotherProgram(t *testing.T) {
	registry, log := prometheus.NewRegistry(), &syncBuffer{}
	e := newEdge(t, in(proxy.PortsSteer), func(cfg *proxy.Config) {
		cfg.Registerer = registry
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	})
	backend, port := echoUDP(t), freePort(t)
	key := router.MappingKey(router.UDP, port)
	e.putProto(t, router.UDP, port, backend)
	name, release := holdUDP(t, port)
	c := dialUDP(t, "127.0.0.1", port)
	for range 20 {
		if _, err := c.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
	}
	e.waitState(t, key, func(err error) bool {
		return err != nil && strings.HasPrefix(err.Error(), "port_busy: ") && strings.Contains(err.Error(), name)
	})
	if got := gathered(t, registry, "sluice_proxy_closed_ports", ""); got != 1 {
		t.Errorf("%v ports are closed, want 1", got)
	}
	if got := gathered(t, registry, "sluice_proxy_first_datagrams_dropped_total", "sockets"); got == 0 {
		t.Error("the datagrams are not counted")
	}
	eventually(t, "the log names the other program, once", func() error {
		if text := log.String(); strings.Count(text, "cannot open a mapped port") != 1 || !strings.Contains(text, name) {
			return fmt.Errorf("it is\n%s", text)
		}
		return nil
	})
	release()
	e.waitState(t, key, func(err error) bool { return err == nil })
	if got := gathered(t, registry, "sluice_proxy_closed_ports", ""); got != 0 {
		t.Errorf("%v ports are closed, want none", got)
	}
	echo(t, dialUDP(t, "127.0.0.1", port), "anew")
}

// TestUDPPortLostIsDeleted deletes a mapping whose port is lost: it is the other
// program's alone.
func TestUDPPortLostIsDeleted(t *testing.T) {
	e := newEdge(t, in(proxy.PortsSteer))
	backend := echoUDP(t)
	for range 3 {
		port := freePort(t)
		e.putProto(t, router.UDP, port, backend)
		other, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		c := dialUDP(t, "127.0.0.1", port)
		if _, err := c.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		e.waitState(t, router.MappingKey(router.UDP, port), func(err error) bool { return err != nil })
		e.builder.DeleteMapping(router.UDP, port)
		e.apply()
		if _, err := c.Write([]byte("yours")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		other.SetReadDeadline(time.Now().Add(patience))
		if n, _, err := other.ReadFrom(buf); err != nil || string(buf[:n]) != "yours" {
			t.Errorf("the other program got %q, %v", buf[:n], err)
		}
		other.Close()
	}
}

// holdUDP has a child process have a UDP port at all addresses, until the test
// ends or release is called, and returns how messages name it.
func holdUDP(t *testing.T, port int) (name string, release func()) {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	f, err := pc.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{f}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	released := false
	release = func() {
		if released {
			return
		}
		released = true
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return fmt.Sprintf("cat (pid %d)", child.Process.Pid), release
}

// TestLowUDPPortNeedsACapability puts a mapping of a port that this process may
// not bind to: the mapping says so at once, not its first client.
func TestLowUDPPortNeedsACapability(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		backend, key := echoUDP(t), router.MappingKey(router.UDP, 80)
		restore := dropBindService(t)
		e.putProto(t, router.UDP, 80, backend)
		if err, _ := e.state(key); err == nil || !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
			t.Errorf("the port's state: %v, want a hint", err)
		}
		restore()
		e.waitState(t, key, func(err error) bool { return err == nil }) // tried again by another thread, which may
		echo(t, dialUDP(t, "127.0.0.1", 80), "hello")
	})
}

// dropBindService takes CAP_NET_BIND_SERVICE from the calling goroutine, until
// restore is called.
func dropBindService(t *testing.T) (restore func()) {
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
	return func() {
		if err := unix.Capset(&header, &had[0]); err != nil {
			t.Fatal(err) // and the thread ends with the goroutine
		}
		runtime.UnlockOSThread()
	}
}

// TestLeftDatagramsAreServed has the socket of a port end with datagrams in it,
// in the moment in which the port is opened again.
func TestLeftDatagramsAreServed(t *testing.T) {
	e := newEdge(t, in(proxy.PortsBind))
	backend, port := echoUDP(t), freePort(t)
	old, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	e.putProto(t, router.UDP, port, backend)
	c := dialUDP(t, "127.0.0.1", port)
	from := c.LocalAddr().(*net.UDPAddr).AddrPort()
	e.EndUDP(port, func() { old.Close() }, []l4.Datagram{{Payload: []byte("left"), From: from, Local: netip.MustParseAddr("127.0.0.1")}})
	buf := make([]byte, 64)
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "left" {
		t.Errorf("the client got %q, %v", buf[:n], err)
	}
	echo(t, c, "more")
}
