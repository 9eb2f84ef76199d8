package l4_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/remotegpu/sluice/proxy/l4"
)

func TestAllowAndDeny(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "allow": ["127.0.0.0/29"], "deny": ["127.0.0.2"]}`, b.addr)
	for _, tt := range []struct {
		from    string
		allowed bool
	}{{"127.0.0.1", true}, {"127.0.0.2", false}, {"127.0.0.3", true}, {"127.0.0.8", false}} {
		if !tt.allowed {
			expectRefusal(t, p, tt.from)
			n.wantEnd("denied")
			continue
		}
		c := dial(t, p, tt.from)
		s := b.next(t)
		send(t, c, "x")
		expect(t, s, "x")
		n.hangUp(c, s)
	}
	if len(b.conns) > 0 {
		t.Error("the backend was dialled for a client that was denied")
	}
	n.edit(p, `{"backend": "%s", "deny": ["127.0.0.1"]}`, b.addr)
	expectRefusal(t, p)
	n.wantEnd("denied")
}

func TestExpiredMappingIsRefused(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "expires_at": "2020-01-01T00:00:00Z"}`, b.addr)
	expectRefusal(t, p)
	n.wantEnd("expired")
}

func TestConnectionLimit(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "limits": {"connections": 2}}`, b.addr)
	check := func(c net.Conn) {
		t.Helper()
		send(t, c, "x")
		expect(t, c, "x")
	}
	first, second := dial(t, p), dial(t, p)
	check(first)
	check(second)
	expectRefusal(t, p)
	n.wantEnd("limit")
	// An edit counts those there are.
	n.edit(p, `{"backend": "%s", "limits": {"connections": 3}}`, b.addr)
	third := dial(t, p)
	check(third)
	expectRefusal(t, p)
	n.wantEnd("limit")
	n.edit(p, `{"backend": "%s", "limits": {"connections": 1}}`, b.addr)
	expectRefusal(t, p)
	n.wantEnd("limit")
	for _, c := range []net.Conn{first, second, third} { // none was cut
		check(c)
		c.Close()
		n.wantEnd("client_closed")
	}
	check(dial(t, p))
}

func TestClientLimit(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`%s`, b.addr)
	check := func(c net.Conn) {
		t.Helper()
		send(t, c, "x")
		expect(t, c, "x")
	}
	first := dial(t, p)
	check(first)
	check(dial(t, p, "127.0.0.2"))
	// The limit comes later and counts those who were there before.
	n.edit(p, `{"backend": "%s", "limits": {"per_client": 2}}`, b.addr)
	check(dial(t, p))
	expectRefusal(t, p)
	n.wantEnd("limit")
	check(dial(t, p, "127.0.0.2"))
	expectRefusal(t, p, "127.0.0.2")
	n.wantEnd("limit")
	first.Close()
	n.wantEnd("client_closed")
	check(dial(t, p))
}

func TestNewPerSecond(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "limits": {"new_per_second": 3}}`, b.addr)
	began := time.Now()
	for range 3 {
		c := dial(t, p)
		send(t, c, "x")
		expect(t, c, "x")
	}
	if time.Since(began) > time.Second/4 {
		t.Log("too slow a machine to overrun the limit")
	} else {
		expectRefusal(t, p)
		n.wantEnd("limit")
	}
	eventually(t, "a third of a second later one more gets in", func() bool {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
		if err != nil {
			return false
		}
		defer c.Close()
		io.WriteString(c, "x")
		_, err = io.ReadFull(c, make([]byte, 1))
		return err == nil
	})
}

// Flows of one port share its bandwidth, each way for itself.
func TestBandwidth(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "limits": {"bytes_per_second": {"up": "4MB"}}}`, b.addr)
	const flows, size = 4, 500_000
	var running sync.WaitGroup
	began := time.Now()
	var down time.Duration
	for i := range flows {
		c, s := n.open(t, p, b)
		running.Go(func() { transfer(t, c, s, byte(i), size) })
		if i == 0 {
			running.Go(func() {
				transfer(t, s, c, 99, flows*size)
				down = time.Since(began)
			})
		}
	}
	running.Wait()
	took := time.Since(began)
	// 2 MB at 4 MB/s, less the burst of 50 ms and what each flow need not wait for.
	if want := 400 * time.Millisecond; took < want {
		t.Errorf("2 MB at 4 MB/s took %v, want %v at least", took, want)
	}
	if took > 5*time.Second {
		t.Errorf("2 MB at 4 MB/s took %v", took)
	}
	if down > took {
		t.Errorf("the unlimited direction took %v, the limited one %v", down, took)
	}
}

// A raised limit helps flows that are already waiting for it.
func TestBandwidthIsEditedLive(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "limits": {"bytes_per_second": {"down": "10KB"}}}`, b.addr)
	c, s := n.open(t, p, b)
	began := time.Now()
	var running sync.WaitGroup
	running.Go(func() { transfer(t, s, c, 1, 8<<20) }) // 14 minutes' worth
	eventually(t, "some bytes are through", func() bool {
		for f := range n.server.Flows() {
			return f.Down > 0
		}
		return false
	})
	n.edit(p, `%s`, b.addr)
	running.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the transfer took %v although its limit was lifted", took)
	}
}

func TestProxyHeader(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")} })
	b := newBackend(t, nil)
	client := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4000}
	public := &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 22}
	// received reads a header as a backend does.
	received := func(t *testing.T, s *net.TCPConn) (*proxyproto.Header, *bufio.Reader) {
		t.Helper()
		r := bufio.NewReader(s)
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Fatalf("the backend reads its PROXY header: %v", err)
		}
		return h, r
	}
	wantText := func(t *testing.T, r io.Reader, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Errorf("after the header came %q, error %v; want %q", got, err, want)
		}
	}

	for _, version := range []string{"v1", "v2"} {
		t.Run("sent as "+version, func(t *testing.T) {
			p := n.tcp(`{"backend": "%s", "proxy_protocol": {"send": "%s"}}`, b.addr, version)
			c, s := n.open(t, p, b)
			send(t, c, "hello")
			h, r := received(t, s)
			if got := h.SourceAddr.String(); got != c.LocalAddr().String() {
				t.Errorf("source %s, want %s", got, c.LocalAddr())
			}
			if got := h.DestinationAddr.String(); got != c.RemoteAddr().String() {
				t.Errorf("destination %s, want %s", got, c.RemoteAddr())
			}
			if want := version[1] - '0'; h.Version != want {
				t.Errorf("version %d, want %d", h.Version, want)
			}
			wantText(t, r, "hello")
			if r := n.hangUp(c, s); r["bytes_up"] != int64(5) {
				t.Errorf("record %v, want 5 bytes up, those of the client", r)
			}
		})
	}
	for _, version := range []byte{1, 2} {
		t.Run("accepted and sent on", func(t *testing.T) {
			p := n.tcp(`{"backend": "%s", "proxy_protocol": {"accept": true, "send": "v2"}, "deny": ["127.0.0.0/8"], "limits": {"per_client": 1}}`, b.addr)
			header := proxyproto.HeaderProxyFromAddrs(version, client, public)
			tlvs := []proxyproto.TLV{{Type: 0x05, Value: []byte("unique")}, {Type: 0xe5, Value: []byte{0, 1}}}
			if version == 1 {
				tlvs = nil
			}
			if err := header.SetTLVs(tlvs); err != nil {
				t.Fatal(err)
			}
			text, err := header.Format()
			if err != nil {
				t.Fatal(err)
			}
			c := dial(t, p, "127.0.0.2")
			send(t, c, string(text)+"hello") // in one segment
			s := b.next(t)
			h, r := received(t, s)
			if h.SourceAddr.String() != client.String() || h.DestinationAddr.String() != public.String() {
				t.Errorf("header from %v to %v, want %v to %v", h.SourceAddr, h.DestinationAddr, client, public)
			}
			if got, err := h.TLVs(); err != nil || fmt.Sprint(got) != fmt.Sprint(tlvs) {
				t.Errorf("sent on with %v, %v, want %v", got, err, tlvs)
			}
			wantText(t, r, "hello")
			// It is the true client that is counted.
			second := dial(t, p, "127.0.0.2")
			send(t, second, string(text))
			expectReset(t, second)
			if r := n.wantEnd("limit"); r["client"] != client.String() {
				t.Errorf("record %v, want client %v", r, client)
			}
			n.hangUp(c, s)
		})
	}
	t.Run("missing from a trusted proxy", func(t *testing.T) {
		p := n.tcp(`{"backend": "%s", "proxy_protocol": {"accept": true}}`, b.addr)
		c := dial(t, p, "127.0.0.2")
		send(t, c, "SSH-2.0-OpenSSH_9.2\r\n")
		expectReset(t, c)
		n.wantEnd("error")
	})
	t.Run("from a stranger", func(t *testing.T) {
		p := n.tcp(`{"backend": "%s", "proxy_protocol": {"accept": true, "send": "v1"}}`, b.addr)
		c := dial(t, p)
		forged := "PROXY TCP4 203.0.113.7 198.51.100.1 4000 22\r\n"
		send(t, c, forged)
		s := b.next(t)
		h, r := received(t, s)
		if h.SourceAddr.String() != c.LocalAddr().String() {
			t.Errorf("header from %v, want %v: a stranger's header was believed", h.SourceAddr, c.LocalAddr())
		}
		wantText(t, r, forged)
		n.hangUp(c, s)
	})
	if len(b.conns) > 0 {
		t.Error("the backend was dialled for a connection that was refused")
	}
}

func TestPortsAreForgotten(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`%s`, b.addr)
	was := p.mapping.Load()
	for i := range 5000 {
		n.server.Withdraw(was, parse(t, was.Proto, netip.AddrPortFrom(p.addr.Addr(), uint16(i+1)), b.addr))
	}
	began := time.Now()
	eventually(t, "ports that nobody uses are forgotten", func() bool {
		if time.Since(began) < time.Second { // they are remembered that long
			return false
		}
		n.server.Withdraw(was, was)
		return l4.KnownPorts(n.server) <= 2
	})
	c := dial(t, p)
	send(t, c, strings.Repeat("x", 100))
	expect(t, c, strings.Repeat("x", 100))
}
