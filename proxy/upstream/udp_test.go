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
)

func TestOpenUDP(t *testing.T) {
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
		fd, err := upstream.OpenUDP(to)
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
	for addr, want := range map[string]string{
		"255.255.255.255:1":    "connect: permission denied", // a broadcast
		"[fe80::1%nowhere0]:1": "zone nowhere0 of the address:",
	} {
		fd, err := upstream.OpenUDP(netip.MustParseAddrPort(addr))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: descriptor %d, error %v, want %s", addr, fd, err, want)
		}
	}
	if _, err := upstream.OpenUDP(netip.MustParseAddrPort("255.255.255.255:1")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the kernel's error is lost: %v", err)
	}
}
