package upstream_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

func TestOpenUDP(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	defer d.Close()
	for _, host := range []string{"127.0.0.1", "::1"} {
		pc, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		to := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		if host == "127.0.0.1" { // as the resolver may have it
			to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
		}
		fd, err := d.OpenUDP(to)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, []byte("ping")); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 16)
		pc.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _, err := pc.ReadFrom(p)
		if err != nil || string(p[:n]) != "ping" {
			t.Errorf("%s: got %q, %v", host, p[:n], err)
		}
		if _, err := unix.Read(fd, p); err != syscall.EAGAIN { // it does not block
			t.Errorf("%s: reading an empty socket: %v", host, err)
		}
	}
}

func TestOpenUDPFails(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{})
	defer d.Close()
	for addr, want := range map[string]string{
		"255.255.255.255:1":    "connect: permission denied", // a broadcast
		"[fe80::1%nowhere0]:1": "zone nowhere0 of the address:",
	} {
		fd, err := d.OpenUDP(netip.MustParseAddrPort(addr))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: descriptor %d, error %v, want %s", addr, fd, err, want)
		}
	}
	if _, err := d.OpenUDP(netip.MustParseAddrPort("255.255.255.255:1")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the kernel's error is lost: %v", err)
	}
}

// Sockets towards backends leave the ports of mappings alone: those would be
// busy when they are put.
func TestOpenUDPAvoidsMappedPorts(t *testing.T) {
	for _, mapped := range []string{"33000-40000", "20000-29999,50000-60999", "10000-60999", "20000-60999", "40000-41000,49000-49999"} {
		ports, err := router.ParsePorts(mapped)
		if err != nil {
			t.Fatal(err)
		}
		d := upstream.NewDialer(upstream.Config{Ports: ports})
		fds := make([]int, 0, 500) // of which chance alone would put 5 and more in any of the ranges
		for i := range cap(fds) {
			fd, err := d.OpenUDP(netip.MustParseAddrPort([]string{"127.0.0.1:9", "[::1]:9"}[i%2]))
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, fd)
			if port := localPort(t, fd); ports.Contains(port) {
				t.Errorf("mapped are %s, and port %d is taken", mapped, port)
			}
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		d.Close()
	}
}

func localPort(t *testing.T, fd int) int {
	t.Helper()
	local, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if v4, ok := local.(*unix.SockaddrInet4); ok {
		return v4.Port
	}
	return local.(*unix.SockaddrInet6).Port
}
