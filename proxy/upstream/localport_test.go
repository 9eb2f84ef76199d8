package upstream_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// inNamespace is set in a child of the test that has a network of its own.
const inNamespace = "SLUICE_TEST_IN_NAMESPACE"

// TestListenOnPortOfConnection is about a mapping that opens while a connection
// to a backend has its port from the ephemeral range. It runs in a network of
// its own: elsewhere other programs' closed connections may have the port too.
func TestListenOnPortOfConnection(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		runInNamespace(t)
		return
	}
	loopbackUp(t)
	d := upstream.NewDialer(upstream.Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, host := range []string{"", "127.0.0.1"} {
		c, err := d.DialEndpoint(t.Context(), endpointOf(ln.Addr()), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		taken := endpointOf(c.LocalAddr())
		mapped, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(taken.Port)))
		if err != nil {
			t.Errorf("host %q: %v", host, err)
		} else {
			mapped.Close()
		}
		c.Close()
	}
}

// runInNamespace runs the calling test alone in a child with a network of its
// own, which root can make, and so can an ordinary user wherever user
// namespaces are on, as they are in Debian.
func runInNamespace(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe, "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), inNamespace+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}

// TestDialsShareLocalPorts connects to more backends than there are local
// ports: a dial that binds would keep its port from all others.
func TestDialsShareLocalPorts(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		runInNamespace(t)
		return
	}
	loopbackUp(t)
	// Two local ports in all: more than two connections have to share.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0); err != nil {
		t.Fatal(err)
	}
	d := upstream.NewDialer(upstream.Config{})
	for port := range 4 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+port))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		c, err := d.DialEndpoint(t.Context(), endpointOf(ln.Addr()), time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", port+1, err)
		}
		defer c.Close()
	}
}
