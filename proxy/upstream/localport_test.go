package upstream_test

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/listen/netns"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// TestListenOnPortOfConnection is about a mapping that opens while a connection
// to a backend has its port from the ephemeral range. It runs in a network of
// its own: elsewhere other programs' closed connections may have the port too.
func TestListenOnPortOfConnection(t *testing.T) {
	if !netns.Alone(t, 0) {
		return
	}
	if err := netns.SetLoopback(true); err != nil {
		t.Fatal(err)
	}
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

// TestDialsShareLocalPorts connects to more backends than there are local
// ports: a dial that binds would keep its port from all others.
func TestDialsShareLocalPorts(t *testing.T) {
	if !netns.Alone(t, 0) {
		return
	}
	if err := netns.SetLoopback(true); err != nil {
		t.Fatal(err)
	}
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
