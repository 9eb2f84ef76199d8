package l4_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/router"
)

// udpEcho answers every datagram with name and itself, and returns its address.
func udpEcho(t testing.TB, name string) string {
	t.Helper()
	return udpServer(t, func(p []byte) []byte { return append([]byte(name), p...) })
}

// udpServer answers datagrams with what answer makes of them, and not at all
// where that is nil. It returns its address.
func udpServer(t testing.TB, answer func([]byte) []byte) string {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	pc.SetReadBuffer(4 << 20)
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if p := answer(buf[:n]); p != nil {
				pc.WriteToUDPAddrPort(p, from)
			}
		}
	})
	t.Cleanup(func() {
		pc.Close()
		running.Wait()
	})
	return pc.LocalAddr().String()
}

// dialUDP returns a client of the port, which sends to another address of this
// machine if one is given.
func dialUDP(t testing.TB, p *port, to ...string) *net.UDPConn {
	t.Helper()
	addr := p.addr
	for _, ip := range to {
		addr = netip.AddrPortFrom(netip.MustParseAddr(ip), p.addr.Port())
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// ask sends text and expects want. Both fit a datagram each, and loopback loses
// none that a buffer has room for.
func ask(t testing.TB, c *net.UDPConn, text, want string) {
	t.Helper()
	send(t, c, text)
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("asked %.40q: received %.40q and error %v, want %.40q", text, buf[:n], err, want)
	}
}

// converse has c ask twice, which makes it a client that has heard its answers.
func converse(t testing.TB, c *net.UDPConn) {
	t.Helper()
	for _, text := range []string{"hello", "again"} {
		ask(t, c, text, text)
	}
}

// mustDrop sends text until the counter of dropped datagrams has counted
// it, and expects that no answer came.
func (n *node) mustDrop(c *net.UDPConn, text, reason string) {
	n.t.Helper()
	name := fmt.Sprintf(`sluice_l4_datagrams_dropped_total{reason="%s"}`, reason)
	before := n.metric(name)
	send(n.t, c, text)
	eventually(n.t, "a datagram is dropped for "+reason, func() bool { return n.metric(name) == before+1 })
	c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	if got, err := c.Read(make([]byte, 100)); err == nil {
		n.t.Errorf("an answer of %d bytes came, want none", got)
	}
	c.SetReadDeadline(time.Now().Add(patience))
}

func TestUDP(t *testing.T) {
	n := newNode(t)
	echo := udpEcho(t, "")
	p := n.udp(`{"backend": "%s", "env": "6hif", "service": "rdp"}`, echo)
	clients := make([]*net.UDPConn, 20)
	for i := range clients {
		clients[i] = dialUDP(t, p)
	}
	for round := range 3 {
		for i, c := range clients {
			text := fmt.Sprintf("client %d round %d", i, round)
			ask(t, c, text, text)
		}
	}
	if got := n.live(); got != len(clients) {
		t.Errorf("%d live flows, want %d", got, len(clients))
	}
	eventually(t, "every live flow counts as many bytes down as up", func() bool {
		for f := range n.server.Flows() {
			if f.Up != f.Down || f.Up == 0 {
				return false
			}
		}
		return true
	})
	for f := range n.server.Flows() {
		if f.Proto != router.UDP || f.Backend != echo || f.Env != "6hif" {
			t.Errorf("live flow %+v, want UDP to %s", f, echo)
		}
	}
	big := strings.Repeat("x", 60_000)
	ask(t, clients[0], big, big)
	ask(t, clients[0], "", "")
	p.close()
	for range clients {
		r := n.wantEnd("deleted")
		if r["proto"] != "udp" || r["listener"] != p.mapping.Load().Label() || r["service"] != "rdp" || r["bytes_up"] != r["bytes_down"] {
			t.Errorf("record %v", r)
		}
	}
}

// Answers come from the address that the client wrote to, or a connected client
// would not see them.
func TestUDPAnswersFromTheAddressUsed(t *testing.T) {
	n := newNode(t)
	p := n.udp(`%s`, udpEcho(t, ""))
	for _, ip := range []string{"127.0.0.1", "127.0.0.2", "127.9.9.9", "::1"} {
		ask(t, dialUDP(t, p, ip), "to "+ip, "to "+ip)
	}
	// One socket that writes to two addresses has two sessions.
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for _, ip := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(ip), p.addr.Port())
		if _, err := c.WriteToUDPAddrPort([]byte(ip), to); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		got, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:got]) != ip || from != to {
			t.Errorf("wrote to %v: received %q from %v, error %v", to, buf[:got], from, err)
		}
	}
	locals := map[netip.Addr]int{}
	for f := range n.server.Flows() {
		locals[f.Local.Addr()]++
		if f.Local.Port() != p.addr.Port() {
			t.Errorf("live flow %+v, want local port %d", f, p.addr.Port())
		}
	}
	if len(locals) != 5 || locals[netip.MustParseAddr("127.0.0.2")] != 2 {
		t.Errorf("local addresses of live flows: %v", locals)
	}
}

func TestUDPIdle(t *testing.T) {
	n := newNode(t)
	p := n.udp(`{"backend": "%s", "idle_timeout": "300ms"}`, udpEcho(t, ""))
	c := dialUDP(t, p)
	ask(t, c, "one", "one")
	n.wantEnd("idle")
	ask(t, c, "two", "two") // in a new session
	n.wantEnd("idle")
}

func TestUDPBackendRefuses(t *testing.T) {
	n := newNode(t)
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	p := n.udp(`%s`, pc.LocalAddr())
	send(t, dialUDP(t, p), "anybody there?")
	n.wantEnd("connect_failed")
}

func TestUDPMovesWithTheBackend(t *testing.T) {
	n := newNode(t)
	p := n.udp(`%s`, udpEcho(t, "a:"))
	c, kept := dialUDP(t, p), dialUDP(t, p)
	ask(t, c, "x", "a:x")
	n.edit(p, `{"backend": "%s", "env": "renamed"}`, p.mapping.Load().Backend.Targets[0].Address)
	ask(t, c, "x", "a:x")
	second := udpEcho(t, "b:")
	n.edit(p, `%s`, second)
	n.wantEnd("deleted")
	ask(t, c, "x", "b:x")
	ask(t, kept, "x", "b:x")
	n.edit(p, `{"backend": "%s", "on_delete": "keep"}`, udpEcho(t, "c:"))
	ask(t, kept, "x", "b:x")
	ask(t, dialUDP(t, p), "x", "c:x")
}

func TestUDPPolicyAndLimits(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessions, cfg.UDPSessionsPerClient = 4, 3 })
	echo := udpEcho(t, "")
	t.Run("deny", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "deny": ["127.0.0.0/8"]}`, echo)
		n.mustDrop(dialUDP(t, p), "x", "denied")
		ask(t, dialUDP(t, p, "::1"), "x", "x")
		p.close()
		n.wantEnd("deleted")
	})
	t.Run("expired", func(t *testing.T) {
		p := n.udp(`%s`, echo)
		ask(t, dialUDP(t, p), "x", "x")
		p.mapping.Store(parse(t, router.UDP, p.addr, `{"backend": "`+echo+`", "expires_at": "2020-01-01T00:00:00Z"}`))
		n.mustDrop(dialUDP(t, p), "x", "unmapped")
		p.close()
		n.wantEnd("deleted")
	})
	t.Run("unmapped", func(t *testing.T) {
		p := n.udp(`%s`, echo)
		ask(t, dialUDP(t, p), "x", "x")
		p.mapping.Store(nil)
		n.mustDrop(dialUDP(t, p), "x", "unmapped")
		p.close()
		n.wantEnd("deleted")
	})
	t.Run("connections", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "limits": {"connections": 1}}`, echo)
		c := dialUDP(t, p)
		ask(t, c, "x", "x")
		n.mustDrop(dialUDP(t, p), "x", "limit")
		ask(t, c, "x", "x")
		p.close()
		n.wantEnd("deleted")
	})
	t.Run("sessions of one client", func(t *testing.T) {
		p := n.udp(`%s`, echo)
		for range 3 {
			converse(t, dialUDP(t, p))
		}
		n.mustDrop(dialUDP(t, p), "x", "limit")
		converse(t, dialUDP(t, p, "::1")) // another address
		n.mustDrop(dialUDP(t, p, "::1"), "x", "limit")
		p.close()
		for range 4 {
			n.wantEnd("deleted")
		}
	})
	t.Run("bandwidth", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "limits": {"bytes_per_second": {"up": 100}}}`, echo)
		c := dialUDP(t, p)
		ask(t, c, strings.Repeat("x", 1500), strings.Repeat("x", 1500)) // 15 seconds' worth
		n.mustDrop(c, "x", "rate")
		n.edit(p, `{"backend": "%s", "limits": {"bytes_per_second": {"up": "1MB"}}}`, echo)
		eventually(t, "a raised limit makes up for the past", func() bool {
			send(t, c, "again")
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			buf := make([]byte, 10)
			got, err := c.Read(buf)
			return err == nil && string(buf[:got]) == "again"
		})
	})
}

func TestUDPProxyHeader(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} })
	echo := udpEcho(t, "")

	t.Run("sent", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "proxy_protocol": {"send": "v2"}}`, echo)
		c := dialUDP(t, p, "127.0.0.2")
		for _, text := range []string{"first", "second"} { // each has the header
			send(t, c, text)
			buf := make([]byte, 1000)
			got, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			header, payload, err := proxyproto.ParseUDPDatagram(buf[:got])
			if err != nil || string(payload) != text {
				t.Fatalf("the backend got %q, error %v", buf[:got], err)
			}
			src, dst, ok := header.UDPAddrs()
			if !ok || src.String() != c.LocalAddr().String() || dst.String() != c.RemoteAddr().String() {
				t.Errorf("header from %v to %v, want %v to %v", src, dst, c.LocalAddr(), c.RemoteAddr())
			}
		}
	})
	t.Run("accepted", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "proxy_protocol": {"accept": true, "send": "v2"}}`, echo)
		c := dialUDP(t, p)
		client := &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4000}
		node := &net.UDPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 3389}
		header := proxyproto.HeaderProxyFromAddrs(2, client, node)
		if err := header.SetTLVs([]proxyproto.TLV{{Type: 0x02, Value: []byte("env-7.remotegpu.com")}, {Type: 0xe5, Value: []byte{0, 1}}}); err != nil {
			t.Fatal(err)
		}
		datagram, err := header.FormatUDPDatagram([]byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		ask(t, c, string(datagram), string(datagram)) // sent on as it came
		for f := range n.server.Flows() {
			if f.Port == int(p.addr.Port()) && f.Client.String() != client.String() {
				t.Errorf("live flow of %v, want %v", f.Client, client)
			}
		}
		n.mustDrop(c, "no header", "proxy_header")
	})
	t.Run("from strangers", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "proxy_protocol": {"accept": true}}`, echo)
		c := dialUDP(t, p, "::1")
		ask(t, c, "\r\n\r\n\x00\r\nQUIT\nfake", "\r\n\r\n\x00\r\nQUIT\nfake")
	})
}

// What arrives while the backend is still being looked up waits for it, within
// bounds.
func TestUDPFirstDatagramsWait(t *testing.T) {
	n := newNode(t)
	p := n.udp(`%s`, udpEcho(t, ""))
	c := dialUDP(t, p)
	var want bytes.Buffer
	for i := range 5 {
		fmt.Fprintf(&want, "%d.", i)
		send(t, c, fmt.Sprintf("%d.", i))
	}
	var got bytes.Buffer
	for got.Len() < want.Len() {
		buf := make([]byte, 10)
		m, err := c.Read(buf)
		if err != nil {
			t.Fatalf("received %q so far: %v", got.String(), err)
		}
		got.Write(buf[:m])
	}
	if got.String() != want.String() {
		t.Errorf("received %q, want %q", got.String(), want.String())
	}
}

func TestUDPShutdown(t *testing.T) {
	n := newNode(t)
	p := n.udp(`%s`, udpEcho(t, ""))
	c := dialUDP(t, p)
	ask(t, c, "x", "x")
	ctx, cancel := context.WithCancel(context.Background())
	cut := make(chan int)
	go func() { cut <- n.server.Shutdown(ctx) }()
	eventually(t, "new sessions are refused", func() bool {
		other := dialUDP(t, p)
		defer other.Close()
		send(t, other, "x")
		other.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		other.Read(make([]byte, 1))
		return n.metric(`sluice_l4_datagrams_dropped_total{reason="unmapped"}`) > 0
	})
	ask(t, c, "y", "y") // the session goes on
	cancel()
	if got := <-cut; got < 1 {
		t.Errorf("Shutdown cut %d flows, want 1 at least", got)
	}
	n.wantEnd("drain")
}
