package listen_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

func sockopt(t *testing.T, c syscall.Conn, level, option int) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	var operr error
	if err := raw.Control(func(fd uintptr) { value, operr = unix.GetsockoptInt(int(fd), level, option) }); err != nil || operr != nil {
		t.Fatal(err, operr)
	}
	return value
}

func addrOf(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func port(a net.Addr) int { return int(addrOf(a).Port()) }

func dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// loopbacks are the addresses of this machine to test with: ::1 is missing where
// IPv6 is off, as it often is in containers.
func loopbacks(t *testing.T) []string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	hosts := []string{"127.0.0.1", "127.0.0.2"}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(net.IPv6loopback) {
			hosts = append(hosts, "::1")
		}
	}
	return hosts
}

func TestTCP(t *testing.T) {
	ln, err := listen.TCP(t.Context(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got := sockopt(t, ln, unix.SOL_SOCKET, unix.SO_PROTOCOL); got != unix.IPPROTO_TCP {
		t.Errorf("protocol %d, want plain TCP (%d), not MPTCP", got, unix.IPPROTO_TCP)
	}
	for _, host := range loopbacks(t) {
		c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port(ln.Addr()))))
		if err != nil {
			t.Errorf("dial by %s: %v", host, err)
			continue
		}
		c.Close()
	}
}

func TestTCPOnOneAddress(t *testing.T) {
	ln, err := listen.TCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, host := range loopbacks(t)[1:] {
		if c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port(ln.Addr())))); err == nil {
			c.Close()
			t.Errorf("a listener on 127.0.0.1 answers on %s", host)
		}
	}
	// Another address, the same port: no conflict.
	other, err := listen.TCP(t.Context(), fmt.Sprintf("127.0.0.2:%d", port(ln.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
}

func TestBusyNamesThisProcess(t *testing.T) {
	ln, err := listen.TCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := listen.UDP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	for _, tc := range []struct {
		network string
		addr    string
	}{
		{"tcp", ln.Addr().String()}, {"tcp", fmt.Sprintf(":%d", port(ln.Addr()))},
		{"udp", pc.LocalAddr().String()}, {"udp", fmt.Sprintf(":%d", port(pc.LocalAddr()))},
	} {
		if tc.network == "tcp" {
			_, err = listen.TCP(t.Context(), tc.addr)
		} else {
			_, err = listen.UDP(t.Context(), tc.addr)
		}
		var busy *listen.BusyError
		if !errors.As(err, &busy) || !errors.Is(err, syscall.EADDRINUSE) || busy.Owner != "" {
			t.Errorf("%s %s: %v, want a *BusyError", tc.network, tc.addr, err)
			continue
		}
		err = listen.WithOwner(t.Context(), err)
		errors.As(err, &busy)
		want := listen.BusyError{Network: tc.network, Addr: tc.addr, Owner: fmt.Sprintf("this process (pid %d)", os.Getpid())}
		if *busy != want {
			t.Errorf("got %+v, want %+v", *busy, want)
		}
		wantText := fmt.Sprintf("listen on %s %s: already in use by this process (pid %d)", tc.network, tc.addr, os.Getpid())
		if got := err.Error(); got != wantText {
			t.Errorf("got %q, want %q", got, wantText)
		}
	}
}

func TestBusyNamesAnotherProcess(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	addr := ln.Addr().String()

	// The child inherits the socket and keeps it until its stdin closes.
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{f}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	}()
	ln.Close()
	f.Close()

	_, err = listen.TCP(t.Context(), addr)
	err = listen.WithOwner(t.Context(), err)
	var busy *listen.BusyError
	if want := fmt.Sprintf("cat (pid %d)", child.Process.Pid); !errors.As(err, &busy) || busy.Owner != want {
		t.Errorf("got %v, want a *BusyError with the owner %q", err, want)
	}
}

func TestBusyErrorWithoutOwner(t *testing.T) {
	err := &listen.BusyError{Network: "tcp", Addr: ":22"}
	if got, want := err.Error(), "listen on tcp :22: already in use"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err.Addr = fmt.Sprintf("127.0.0.1:%d", unusedPort(t))
	want := err.Error() + " by a process that cannot be seen from here (`ss -lntup` names it to root)"
	if got := listen.WithOwner(t.Context(), err).Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	other := errors.New("another")
	if got := listen.WithOwner(t.Context(), other); got != other {
		t.Errorf("got %v, want the error as it was", got)
	}
}

// unusedPort returns a port on which nothing listens.
func unusedPort(t *testing.T) int {
	t.Helper()
	ln, err := listen.TCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return port(ln.Addr())
}

// TestOwnersOfMany asks for the owners of many ports at once, among them one
// that only a connection holds.
func TestOwnersOfMany(t *testing.T) {
	var busy []*listen.BusyError
	add := func(network string, a net.Addr) {
		busy = append(busy, &listen.BusyError{Network: network, Addr: fmt.Sprintf(":%d", port(a))})
	}
	for range 20 {
		ln, err := listen.TCP(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		add("tcp", ln.Addr())
		pc, err := listen.UDP(t.Context(), ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		add("udp", pc.LocalAddr())
	}
	c, err := net.Dial("tcp", "127.0.0.1"+busy[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	add("tcp", c.LocalAddr())
	want := fmt.Sprintf("this process (pid %d)", os.Getpid())
	for i, owner := range listen.Owners(t.Context(), busy...) {
		if owner != want {
			t.Errorf("%s %s belongs to %q, want %q", busy[i].Network, busy[i].Addr, owner, want)
		}
	}
	if got := listen.Owners(t.Context()); len(got) != 0 {
		t.Errorf("of no ports the owners are %q", got)
	}
}

func TestErrorsInWords(t *testing.T) {
	for _, tc := range []struct{ addr, want string }{
		{"192.0.2.1:0", "no interface of this machine has that address"},
		{"127.0.0.1", "missing port in address"},
		{"127.0.0.1:70000", "invalid port"},
	} {
		for network, err := range map[string]error{
			"tcp": second(listen.TCP(t.Context(), tc.addr)),
			"udp": second(listen.UDP(t.Context(), tc.addr)),
		} {
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "listen on "+network+" "+tc.addr+": ") {
				t.Errorf("%s %s: got %v, want %q in it", network, tc.addr, err, tc.want)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestUDPTellsLocalAddressAndAnswersFromIt(t *testing.T) {
	pc, err := listen.UDP(t.Context(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if got := sockopt(t, pc, unix.SOL_SOCKET, unix.SO_RCVBUF); got < 212992 {
		t.Errorf("a receive buffer of %d bytes, less than the usual default", got)
	}
	// 127.0.0.2 is an address of lo that no answer would come from by itself.
	for _, host := range loopbacks(t) {
		checkAnswer(t, pc, netip.MustParseAddr(host))
	}
}

func TestUDPOnOneAddress(t *testing.T) {
	for _, host := range loopbacks(t) {
		pc, err := listen.UDP(t.Context(), net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		checkAnswer(t, pc, netip.MustParseAddr(host))
		pc.Close()
	}
}

// checkAnswer sends a datagram to host and checks that pc learns that address,
// and that its answer comes from there: the client's socket is connected and
// takes it from nowhere else.
func checkAnswer(t *testing.T, pc *net.UDPConn, host netip.Addr) {
	t.Helper()
	to := netip.AddrPortFrom(host, uint16(port(pc.LocalAddr())))
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(5 * time.Second)
	_ = client.SetDeadline(deadline)
	_ = pc.SetDeadline(deadline)
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	p, oob := make([]byte, 64), make([]byte, listen.ControlSize)
	n, oobn, flags, from, err := pc.ReadMsgUDPAddrPort(p, oob)
	if err != nil || string(p[:n]) != "ping" || flags&unix.MSG_CTRUNC != 0 {
		t.Fatalf("%v: read %q, flags %x, err %v", to, p[:n], flags, err)
	}
	local := listen.LocalAddr(oob[:oobn])
	if local != host {
		t.Errorf("%v: the datagram was sent to %v", to, local)
	}
	if got := testing.AllocsPerRun(10, func() { listen.LocalAddr(oob[:oobn]) }); got != 0 {
		t.Errorf("LocalAddr makes %v allocations, want none", got)
	}
	if _, _, err := pc.WriteMsgUDPAddrPort([]byte("pong"), listen.AppendSource(nil, local), from); err != nil {
		t.Fatalf("%v: answer: %v", to, err)
	}
	if n, err := client.Read(p); err != nil || string(p[:n]) != "pong" {
		t.Errorf("%v: the client got %q, %v", to, p[:n], err)
	}
}

func TestControlMessages(t *testing.T) {
	for _, s := range []string{"192.0.2.7", "2001:db8::7"} {
		addr := netip.MustParseAddr(s)
		control := listen.AppendSource([]byte{}, addr)
		if got := listen.LocalAddr(control); got != addr {
			t.Errorf("%v: read back as %v", addr, got)
		}
		for n := range control { // cut short
			listen.LocalAddr(control[:n])
		}
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.7")
	if got, want := listen.LocalAddr(listen.AppendSource(nil, mapped)), mapped.Unmap(); got != want {
		t.Errorf("%v: read back as %v, want %v", mapped, got, want)
	}
	if got := listen.AppendSource(nil, netip.Addr{}); got != nil {
		t.Errorf("no address: got %d bytes, want none", len(got))
	}
	if got := listen.LocalAddr(make([]byte, listen.ControlSize)); got.IsValid() {
		t.Errorf("zeros: got %v", got)
	}
	buf := make([]byte, 0, listen.ControlSize)
	addr := netip.MustParseAddr("2001:db8::7")
	if got := testing.AllocsPerRun(10, func() { listen.AppendSource(buf, addr) }); got != 0 {
		t.Errorf("AppendSource makes %v allocations, want none", got)
	}
}
