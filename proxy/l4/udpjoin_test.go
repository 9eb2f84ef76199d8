package l4_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen/netns"
)

func setUDP(t testing.TB, c *net.UDPConn, option, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, option, value) })
	if err != nil {
		t.Fatal(err)
	}
}

// numbered returns n datagrams of a size, each of which begins with its number,
// and a last one that is shorter.
func numbered(n, size int) (all []byte) {
	for i := range n {
		text := fmt.Sprintf("%05d", i)
		all = append(all, text+strings.Repeat("x", size-len(text))...)
	}
	return append(all, "end"...)
}

// expectNumbered reads what numbered made, datagrams joined or not, and reports
// whether any were.
func expectNumbered(t testing.TB, c *net.UDPConn, n, size int) (joined bool) {
	t.Helper()
	buf, control := make([]byte, 64<<10), make([]byte, 128)
	for i := 0; i <= n; {
		m, controls, _, _, err := c.ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			t.Fatalf("after %d datagrams of %d: %v", i, n+1, err)
		}
		segment := m
		if messages, err := unix.ParseSocketControlMessage(control[:controls]); err == nil && len(messages) > 0 {
			segment = int(messages[0].Data[0]) | int(messages[0].Data[1])<<8
		}
		joined = joined || segment < m
		for p := buf[:m]; len(p) > 0; i++ {
			one := p[:min(segment, len(p))]
			p = p[len(one):]
			switch {
			case i == n && string(one) == "end":
			case i < n && len(one) == size && string(one[:5]) == fmt.Sprintf("%05d", i):
			default:
				t.Fatalf("datagram %d has %d bytes and begins with %.5q", i, len(one), one)
			}
		}
	}
	return joined
}

// udpPair opens a socket that is a mapping's backend, and returns a client of the
// port and what answers its session, once that stands.
func (n *node) udpPair(value string) (p *port, client, backend *net.UDPConn) {
	n.t.Helper()
	backend, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { backend.Close() })
	p = n.udp(value, backend.LocalAddr())
	client = dialUDP(n.t, p)
	client.SetReadBuffer(4 << 20)
	backend.SetReadBuffer(4 << 20)
	return p, client, backend
}

// answerBack connects backend to whom it got a datagram from.
func answerBack(t testing.TB, backend *net.UDPConn) (to netip.AddrPort) {
	t.Helper()
	_, to, err := backend.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// Datagrams that come in bulk are moved together both ways, and arrive as what
// they were: each of its size, in order.
func TestUDPJoined(t *testing.T) {
	n := newNode(t)
	p, c, backend := n.udpPair(`%s`)
	joins(t, n, c, backend)
	total := int64(len("hello") + 30*(40*1200+3))
	for f := range n.server.Flows() {
		if f.Up != total {
			t.Errorf("%d bytes went up, want %d", f.Up, total)
		}
	}
	p.close()
	if r := n.wantEnd("deleted"); r["bytes_down"] != int64(30*(40*1200+3)) {
		t.Errorf("record %v", r)
	}
}

// joins sends bulk both ways and reports in which it came joined.
func joins(t *testing.T, n *node, c, backend *net.UDPConn) (up, down bool) {
	t.Helper()
	const rounds, datagrams, size = 30, 40, 1200
	send(t, c, "hello")
	to := answerBack(t, backend)
	for _, s := range []*net.UDPConn{c, backend} {
		setUDP(t, s, unix.UDP_SEGMENT, size)
		setUDP(t, s, unix.UDP_GRO, 1)
	}
	for range rounds {
		if _, err := c.Write(numbered(datagrams, size)); err != nil {
			t.Fatal(err)
		}
		up = expectNumbered(t, backend, datagrams, size) || up
	}
	for range rounds {
		if _, err := backend.WriteToUDPAddrPort(numbered(datagrams, size), to); err != nil {
			t.Fatal(err)
		}
		down = expectNumbered(t, c, datagrams, size) || down
	}
	return up, down
}

func TestUDPJoinedStaysJoined(t *testing.T) {
	n := newNode(t)
	_, c, backend := n.udpPair(`%s`)
	if up, down := joins(t, n, c, backend); !up || !down {
		t.Errorf("datagrams came joined to the backend: %v, to the client: %v", up, down)
	}
}

// What has to be looked at datagram by datagram comes apart again.
func TestUDPJoinedComesApart(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} })
	const datagrams, size = 10, 100
	all := numbered(datagrams, size)
	t.Run("to send PROXY headers", func(t *testing.T) {
		_, c, backend := n.udpPair(`{"backend": "%s", "proxy_protocol": {"send": "v2"}}`)
		setUDP(t, c, unix.UDP_SEGMENT, size)
		send(t, c, string(all))
		buf := make([]byte, 1000)
		for i := range datagrams {
			m, err := backend.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			_, payload, err := proxyproto.ParseUDPDatagram(buf[:m])
			if err != nil || len(payload) != size || string(payload[:5]) != fmt.Sprintf("%05d", i) {
				t.Fatalf("datagram %d: %.5q, error %v", i, payload, err)
			}
		}
	})
	t.Run("to limit bandwidth", func(t *testing.T) {
		_, c, backend := n.udpPair(`{"backend": "%s", "limits": {"bytes_per_second": {"up": "10KB"}}}`)
		setUDP(t, c, unix.UDP_SEGMENT, size)
		before := n.metric(`sluice_l4_datagrams_dropped_total{reason="rate"}`)
		send(t, c, string(all))
		m, err := backend.Read(make([]byte, 1000)) // 500 bytes are let through at once
		if err != nil || m != size {
			t.Errorf("received %d bytes, error %v", m, err)
		}
		eventually(t, "the rest is dropped", func() bool {
			return n.metric(`sluice_l4_datagrams_dropped_total{reason="rate"}`)-before >= datagrams/2-1
		})
	})
	t.Run("without a session", func(t *testing.T) {
		p, c, _ := n.udpPair(`{"backend": "%s", "deny": ["127.0.0.0/8"]}`)
		setUDP(t, c, unix.UDP_SEGMENT, size)
		before := n.metric(`sluice_l4_datagrams_dropped_total{reason="denied"}`)
		send(t, c, string(all))
		eventually(t, "each datagram is counted", func() bool {
			return n.metric(`sluice_l4_datagrams_dropped_total{reason="denied"}`)-before == datagrams+1
		})
		p.close()
	})
}

// Where datagrams are longer than the path takes in one piece the kernel joins
// none; they are sent one by one and fragmented, as without us.
func TestUDPJoinedTooLongForThePath(t *testing.T) {
	if !netns.Alone(t, 0) {
		return
	}
	if err := errors.Join(netns.SetLoopbackMTU(1280), netns.SetLoopback(true)); err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	_, c, backend := n.udpPair(`%s`)
	const datagrams, size = 20, 2000
	send(t, c, "hello")
	to := answerBack(t, backend)
	for range 20 {
		expectEach(t, c, datagrams, size, func(one []byte) error { _, err := backend.WriteToUDPAddrPort(one, to); return err })
		expectEach(t, backend, datagrams, size, func(one []byte) error { _, err := c.Write(one); return err })
	}
	if got := n.metric(`sluice_l4_datagrams_dropped_total{reason="send"}`); got != 0 {
		t.Errorf("%v datagrams were dropped", got)
	}
}

// expectEach sends what numbered made, one datagram at a time, until c has
// received each of them whole. Fragments of several sockets between the same two
// addresses can bear one identification (RFC 6864, section 3) or overtake one
// another; what the kernel then loses is sent again.
func expectEach(t *testing.T, c *net.UDPConn, n, size int, send func([]byte) error) {
	t.Helper()
	var came [100]bool
	buf := make([]byte, 64<<10)
	for left, tries := n, 0; left > 0; tries++ {
		if tries == 50 {
			t.Fatalf("%d datagrams of %d never came", left, n)
		}
		all := numbered(n, size)
		for i := range n {
			if one := all[i*size : (i+1)*size]; !came[i] {
				if err := send(one); err != nil {
					t.Fatal(err)
				}
			}
		}
		for left > 0 {
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			m, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			i, err := strconv.Atoi(string(buf[:min(5, m)]))
			if err != nil || i >= n || !bytes.Equal(buf[:m], all[i*size:(i+1)*size]) {
				t.Fatalf("received %d bytes that begin with %.5q", m, buf[:m])
			}
			if !came[i] {
				came[i] = true
				left--
			}
		}
	}
	c.SetReadDeadline(time.Time{})
}
