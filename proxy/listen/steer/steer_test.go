package steer_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// attached returns how many sk_lookup programs the namespace has.
func attached(t *testing.T) int {
	t.Helper()
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	programs, err := link.QueryPrograms(link.QueryOptions{Target: int(ns.Fd()), Attach: ebpf.AttachSkLookup})
	if err != nil {
		t.Fatal(err)
	}
	return len(programs.Programs)
}

func TestSteeredPortsAreAccepted(t *testing.T) {
	s := open(t, steer.Config{})
	ports := []int{1, 31, 32, 20000, 20007, 65535}
	add(t, s, steer.TCP, ports...)
	for _, host := range hosts {
		for _, port := range ports {
			c := dial(t, host, port)
			talk(t, c, accept(t, s.TCP()[0], c))
		}
		for _, port := range []int{2, 30, 33, 19999, 20001, 20006, 20008, 65534} {
			checkRefused(t, host, port)
		}
	}
}

func TestRemovedPortRefusesAndConnectionsGoOn(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.TCP, 20000, 20001)
	c := dial(t, "127.0.0.1", 20000)
	peer := accept(t, s.TCP()[0], c)
	s.Remove(steer.TCP, 20000, 20002)
	checkRefused(t, "127.0.0.1", 20000)
	checkRefused(t, "::1", 20000)
	talk(t, c, peer)
	other := dial(t, "::1", 20001)
	talk(t, other, accept(t, s.TCP()[0], other))
	add(t, s, steer.TCP, 20000) // the live connection is not in its way
	c = dial(t, "127.0.0.1", 20000)
	talk(t, c, accept(t, s.TCP()[0], c))
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	s := open(t, steer.Config{Listeners: 2})
	add(t, s, steer.TCP, 20000)
	add(t, s, steer.UDP, 20000)
	c := dial(t, "127.0.0.1", 20000)
	s.Close()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection that nobody accepted: %v, want a reset", err)
	}
	checkRefused(t, "127.0.0.1", 20000)
	if n := attached(t); n != 0 {
		t.Errorf("%d programs are left in the kernel", n)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
	if _, err := s.Add(t.Context(), steer.TCP, 20000); !errors.Is(err, steer.ErrClosed) {
		t.Errorf("add after close: %v", err)
	}
	s.Remove(steer.TCP, 20000)
	s.Unbind(20000)
	if s.Steered(steer.TCP, 20000) {
		t.Error("a closed steerer steers")
	}
}

func TestNothingIsLeftOfAKilledProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe)
	child.Env = append(os.Environ(), as+"=steer until killed")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "steering: <nil>\n" {
		t.Errorf("the child says %q, %v", line, err)
	}
	dial(t, "127.0.0.1", 20000).Close()
	child.Process.Kill()
	child.Wait()
	if n := attached(t); n != 0 {
		t.Errorf("%d programs are left in the kernel", n)
	}
	checkRefused(t, "127.0.0.1", 20000)
}

func TestListenersShareConnections(t *testing.T) {
	s := open(t, steer.Config{Listeners: 3})
	add(t, s, steer.TCP, 20000)
	if len(s.TCP()) != 3 {
		t.Fatalf("%d listeners", len(s.TCP()))
	}
	const dials = 300
	for range dials {
		dial(t, "127.0.0.1", 20000)
	}
	sum := 0
	for i, ln := range s.TCP() {
		n := 0
		ln.SetDeadline(time.Now().Add(patience))
		for sum < dials {
			// A dial is over before the connection can be accepted.
			ln.SetDeadline(time.Now().Add(100 * time.Millisecond))
			c, err := ln.AcceptTCP()
			if errors.Is(err, os.ErrDeadlineExceeded) && n > 0 {
				break
			} else if err != nil {
				t.Fatalf("listener %d: %v after %d connections", i, err, n)
			}
			c.Close()
			n++
			sum++
		}
	}
	if sum != dials {
		t.Errorf("%d of %d connections arrived", sum, dials)
	}
}

func TestForeignListenerIsLeftAlone(t *testing.T) {
	for name, neighbours := range map[string]int{"probed": 2, "listed": 100} {
		for _, host := range []string{"", "127.0.0.1", "127.0.0.2", "::1"} {
			t.Run(name+" "+host, func(t *testing.T) {
				s := open(t, steer.Config{})
				ln, err := listen.TCP(t.Context(), address(host, 20001))
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				pc, err := listen.UDP(t.Context(), address(host, 20000))
				if err != nil {
					t.Fatal(err)
				}
				defer pc.Close()
				ports := make([]int, neighbours)
				for i := range ports {
					ports[i] = 20000 + i
				}
				checkBusy(t, s, steer.TCP, ports, 20001)
				checkBusy(t, s, steer.UDP, ports, 20000)

				c := dial(t, cmpHost(host), 20001)
				talk(t, c, accept(t, ln, c))
				ln.Close()
				pc.Close()
				add(t, s, steer.TCP, 20001)
				add(t, s, steer.UDP, 20000)
				c = dial(t, cmpHost(host), 20001)
				talk(t, c, accept(t, s.TCP()[0], c))
			})
		}
	}
}

func cmpHost(host string) string {
	if host == "" {
		return "127.0.0.1"
	}
	return host
}

// checkBusy adds ports, of which one must be busy and the others then steered.
func checkBusy(t *testing.T, s *steer.Steerer, proto steer.Proto, ports []int, want int) {
	t.Helper()
	busy, err := s.Add(t.Context(), proto, ports...)
	if err != nil || len(busy) != 1 {
		t.Fatalf("%v: busy %v, %v, want port %d alone", proto, busy, err, want)
	}
	var b *listen.BusyError
	if err := listen.WithOwner(t.Context(), busy[want]); !errors.As(err, &b) ||
		*b != (listen.BusyError{Network: proto.String(), Addr: fmt.Sprintf(":%d", want), Owner: listen.ThisProcess()}) {
		t.Errorf("%v port %d: %v", proto, want, err)
	}
	for _, port := range ports {
		if s.Steered(proto, port) != (port != want) {
			t.Errorf("%v port %d is steered: %v", proto, port, s.Steered(proto, port))
		}
	}
}

// TestConnectionsFromAPortLeaveItFree has the port used as that of a client, as
// the kernel gives it out by itself.
func TestConnectionsFromAPortLeaveItFree(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.TCP, 20000)
	c := dial(t, "127.0.0.1", 20000)
	peer := accept(t, s.TCP()[0], c)
	used := int(addrOf(c.LocalAddr()).Port())
	add(t, s, steer.TCP, used)
	again := dial(t, "127.0.0.1", used)
	talk(t, again, accept(t, s.TCP()[0], again))
	talk(t, c, peer)

	pc, err := net.ListenPacket("udp", "127.0.0.1:0") // takes no datagram from others once it is connected
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	client := dialUDP(t, "127.0.0.1", int(addrOf(pc.LocalAddr()).Port()))
	used = int(addrOf(client.LocalAddr()).Port())
	add(t, s, steer.UDP, used)
	if _, err := pc.WriteTo([]byte("to the client"), client.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "to the client" {
		t.Errorf("the connected socket got %q, %v", buf[:n], err)
	}
}

func TestForeignIsReported(t *testing.T) {
	s := open(t, steer.Config{})
	add(t, s, steer.TCP, 20000)
	add(t, s, steer.UDP, 20000)
	mine, err := listen.TCP(t.Context(), ":20005")
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	var want []steer.Foreign
	for _, addr := range []string{"127.0.0.1:20000", "127.0.0.1:20010", "[::1]:20011", "127.0.0.1:30000"} {
		ln, err := listen.TCP(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		at := addrOf(ln.Addr())
		owner, _ := holdInChild(t, ln)
		if at.Port() < 30000 {
			want = append(want, steer.Foreign{Proto: steer.TCP, Local: at, Owner: owner, Steered: at.Port() == 20000})
		}
	}
	pc, err := listen.UDP(t.Context(), "127.0.0.1:20001")
	if err != nil {
		t.Fatal(err)
	}
	owner, _ := holdInChild(t, pc)
	want = append(want, steer.Foreign{Proto: steer.UDP, Local: addrOf(pc.LocalAddr()), Owner: owner})
	got, err := s.Foreign(t.Context(), steer.Range{First: 20000, Last: 20009}, steer.Range{First: 20010, Last: 20999})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b steer.Foreign) int {
		return 10*(int(a.Proto)-int(b.Proto)) + a.Local.Compare(b.Local)
	})
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestNextProcessTakesOver(t *testing.T) {
	s := open(t, steer.Config{Listeners: 2})
	add(t, s, steer.TCP, 20000)
	add(t, s, steer.UDP, 20000)
	c := dial(t, "127.0.0.1", 20000) // waits to be accepted
	client := dialUDP(t, "::1", 20000)
	client.Write([]byte("before"))
	for _, ln := range s.TCP() {
		ln.Close() // as who serves it by other means does
	}
	files, err := s.Files()
	if err != nil {
		t.Fatal(err)
	}
	next := open(t, steer.Config{Inherited: files})
	for _, f := range files {
		f.Close()
	}
	add(t, next, steer.TCP, 20000)
	add(t, next, steer.UDP, 20000)
	s.Close()
	late := dial(t, "::1", 20000)
	client.Write([]byte("after"))
	var arrived []string
	for range 2 {
		arrived = append(arrived, acceptAny(t, next))
	}
	want := []string{c.LocalAddr().String(), late.LocalAddr().String()}
	slices.Sort(arrived)
	slices.Sort(want)
	if !slices.Equal(arrived, want) {
		t.Errorf("connections of %q arrived, want %q", arrived, want)
	}
	for _, text := range []string{"before", "after"} {
		if got := read(t, next); got.text != text || got.to != addrOf(client.RemoteAddr()) {
			t.Errorf("got %+v, want %s", got, text)
		}
	}
}

// acceptAny accepts one connection from whichever listener has one.
func acceptAny(t *testing.T, s *steer.Steerer) (from string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, ln := range s.TCP() {
			ln.SetDeadline(time.Now().Add(10 * time.Millisecond))
			if c, err := ln.AcceptTCP(); err == nil {
				defer c.Close()
				return c.RemoteAddr().String()
			}
		}
	}
	t.Fatal("no connection to accept")
	return ""
}

func TestManyPorts(t *testing.T) {
	s := open(t, steer.Config{})
	before := openFiles(t)
	var ports []int
	for port := 20000; port < 60000; port++ {
		ports = append(ports, port)
	}
	add(t, s, steer.TCP, ports...)
	add(t, s, steer.UDP, ports...)
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open before the ports, %d are", before, after)
	}
	for _, proto := range []steer.Proto{steer.TCP, steer.UDP} {
		for port := 1; port <= 65535; port++ {
			if want := port >= 20000 && port < 60000; s.Steered(proto, port) != want {
				t.Fatalf("%v port %d is steered: %v", proto, port, !want)
			}
		}
	}
	for port := 20000; port < 60000; port += 397 {
		c := dial(t, hosts[port%len(hosts)], port)
		accept(t, s.TCP()[0], c).Close()
		c.Close()
	}
	s.Remove(steer.TCP, ports...)
	s.Remove(steer.UDP, ports...)
	for port := 20000; port < 60000; port += 397 {
		checkRefused(t, hosts[port%len(hosts)], port)
	}
}

// TestIPv4Alone has sockets such as a machine without IPv6 has.
func TestIPv4Alone(t *testing.T) {
	var files []*os.File
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "inherited")
		defer f.Close()
		files = append(files, f)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 9}}); err != nil {
			t.Fatal(err)
		}
		if kind == unix.SOCK_STREAM {
			// Else its connections, once closed, keep others from their port.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
				t.Fatal(err)
			}
			if err := unix.Listen(fd, 16); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := open(t, steer.Config{Inherited: files})
	add(t, s, steer.TCP, 20000)
	c := dial(t, "127.0.0.1", 20000)
	talk(t, c, accept(t, s.TCP()[0], c))
	checkRefusedTCP(t, "::1", 20000)
}

func checkRefusedTCP(t *testing.T, host string, port int) {
	t.Helper()
	if c, err := net.Dial("tcp", address(host, port)); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("dial %s: %v, want a refusal", address(host, port), err)
	}
}

func TestIPv6SwitchedOff(t *testing.T) {
	const file = "/proc/sys/net/ipv6/conf/all/disable_ipv6" // of this namespace
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(file, []byte("0"), 0)
	s := open(t, steer.Config{})
	add(t, s, steer.TCP, 20000)
	c := dial(t, "127.0.0.1", 20000)
	talk(t, c, accept(t, s.TCP()[0], c))
}

func TestSupportedSaysWhatIsMissing(t *testing.T) {
	if err := steer.Supported(); err != nil {
		t.Errorf("as root: %v", err)
	}
	for _, tc := range []struct {
		name string
		user *syscall.SysProcAttr
		want string
	}{
		{"without capabilities", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
			"steer ports: this process lacks CAP_BPF and CAP_NET_ADMIN; run it as root or grant them"},
		{"in a user namespace", &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}, "steer ports: the kernel refuses although the capabilities are there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// Not from where only root may look.
			child := exec.Command("/proc/self/fd/3")
			exe, err := os.Open("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			defer exe.Close()
			child.ExtraFiles = []*os.File{exe}
			child.Env = append(os.Environ(), as+"=supported")
			child.SysProcAttr = tc.user
			out, err := child.CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), tc.want) {
				t.Errorf("%v, %s, want %s", err, bytes.TrimSpace(out), tc.want)
			}
		})
	}
}

func BenchmarkAddRemoveOne(b *testing.B) {
	s, err := steer.Open(steer.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if busy, err := s.Add(b.Context(), steer.TCP, 20000); err != nil || len(busy) > 0 {
			b.Fatal(err, busy)
		}
		s.Remove(steer.TCP, 20000)
	}
}

func BenchmarkAddRemove40000(b *testing.B) {
	s, err := steer.Open(steer.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var ports []int
	for port := 20000; port < 60000; port++ {
		ports = append(ports, port)
	}
	for b.Loop() {
		for proto := steer.TCP; proto <= steer.UDP; proto++ {
			if busy, err := s.Add(b.Context(), proto, ports...); err != nil || len(busy) > 0 {
				b.Fatal(err, busy)
			}
			s.Remove(proto, ports...)
		}
	}
}
