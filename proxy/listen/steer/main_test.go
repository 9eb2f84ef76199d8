package steer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/proxy/listen/netns"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// as names what a child of the tests is to do.
const as = "SLUICE_TEST_AS"

// patience bounds every wait of a test for something that should happen.
const patience = 20 * time.Second

// TestMain runs the tests in a child with a network of its own: the ports there
// are nobody else's. It takes root, as steering does.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 && os.Getenv(as) == "" {
		fmt.Fprintln(os.Stderr, "these tests need root, for steering")
		os.Exit(1)
	}
	if !netns.Inside() {
		os.Exit(netns.Main())
	}
	switch os.Getenv(as) {
	case "supported":
		fmt.Println(steer.Supported())
	case "steer until killed":
		steerUntilKilled()
	default:
		if err := netns.SetLoopback(true); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		goleak.VerifyTestMain(m)
	}
}

// open opens a Steerer. At the end of the test it is closed, and no file may be
// left open.
func open(t *testing.T, cfg steer.Config) *steer.Steerer {
	t.Helper()
	before := openFiles(t)
	s, err := steer.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		// A dialled connection that was closed lingers in the poller for a moment.
		eventually(t, "as many files are open as before", func() error {
			if after := openFiles(t); after > before {
				return fmt.Errorf("%d files are open, %d were", after, before)
			}
			return nil
		})
	})
	return s
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
		<-tick.C
	}
}

// add adds ports that must be free.
func add(t *testing.T, s *steer.Steerer, proto steer.Proto, ports ...int) {
	t.Helper()
	busy, err := s.Add(t.Context(), proto, ports...)
	if err != nil || len(busy) > 0 {
		t.Fatalf("add %v %v: %v, busy %v", proto, ports, err, busy)
	}
}

// hosts are addresses of this namespace.
var hosts = []string{"127.0.0.1", "127.0.0.2", "::1"}

func address(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func dial(t *testing.T, host string, port int) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address(host, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// accept returns the connection that waits at ln, which must be from c and to
// where c went.
func accept(t *testing.T, ln *net.TCPListener, c net.Conn) *net.TCPConn {
	t.Helper()
	ln.SetDeadline(time.Now().Add(patience))
	got, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { got.Close() })
	if got.LocalAddr().String() != c.RemoteAddr().String() || got.RemoteAddr().String() != c.LocalAddr().String() {
		t.Fatalf("accepted %v to %v, want %v to %v", got.RemoteAddr(), got.LocalAddr(), c.LocalAddr(), c.RemoteAddr())
	}
	return got
}

func checkRefused(t *testing.T, host string, port int) {
	t.Helper()
	c, err := net.Dial("tcp", address(host, port))
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial %s: %v, want a refusal", address(host, port), err)
	}
	pc := dialUDP(t, host, port)
	pc.Write([]byte("anybody there?"))
	if _, err := pc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram to %s: %v, want a refusal", address(host, port), err)
	}
}

func dialUDP(t *testing.T, host string, port int) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", address(host, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.UDPConn)
}

// talk has bytes cross both ways.
func talk(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		way[0].SetDeadline(time.Now().Add(patience))
		way[1].SetDeadline(time.Now().Add(patience))
		if _, err := way[0].Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(way[1], buf); err != nil || string(buf) != "hello" {
			t.Fatalf("read %q, %v", buf, err)
		}
	}
}

// holdInChild gives the socket to a child process, and closes it here. The
// child holds it until release.
func holdInChild(t *testing.T, c interface {
	File() (*os.File, error)
	Close() error
}) (name string, release func()) {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{f}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	c.Close()
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

// steerUntilKilled steers port 20000, says so, and waits.
func steerUntilKilled() {
	s, err := steer.Open(steer.Config{})
	if err == nil {
		_, err = s.Add(context.Background(), steer.TCP, 20000)
	}
	fmt.Println("steering:", err)
	select {}
}

func addrOf(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
