package upstream_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/remotegpu/sluice/proxy/upstream"
)

var (
	v4src = netip.MustParseAddrPort("192.0.2.7:51000")
	v4dst = netip.MustParseAddrPort("198.51.100.1:443")
	v6src = netip.MustParseAddrPort("[2001:db8::7]:51000")
	v6dst = netip.MustParseAddrPort("[2001:db8::1]:443")
)

const sigV2 = "\r\n\r\n\x00\r\nQUIT\n"

func TestWriteProxyHeader(t *testing.T) {
	v6 := "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	mapped := "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	for _, tc := range []struct {
		version  string
		src, dst netip.AddrPort
		want     string
	}{
		{"v1", v4src, v4dst, "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n"},
		{"v1", v6src, v6dst, "PROXY TCP6 2001:db8::7 2001:db8::1 51000 443\r\n"},
		{"v1", v4src, v6dst, "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 51000 443\r\n"},
		{"v1", netip.MustParseAddrPort("[::ffff:192.0.2.7]:51000"), v4dst, "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n"},
		{"v1", netip.MustParseAddrPort("[fe80::1%eth0]:1"), v6dst, "PROXY TCP6 fe80::1 2001:db8::1 1 443\r\n"},
		{"v2", v4src, v4dst, sigV2 + "\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb"},
		{"v2", v6src, v6dst, sigV2 + "\x21\x21\x00\x24" + v6 + "\x07" + v6 + "\x01" + "\xc7\x38\x01\xbb"},
		{"v2", v6src, v4dst, sigV2 + "\x21\x21\x00\x24" + v6 + "\x07" + mapped + "\xc6\x33\x64\x01" + "\xc7\x38\x01\xbb"},
	} {
		var w bytes.Buffer
		if err := upstream.WriteProxyHeader(&w, tc.version, upstream.ProxyHeader{Src: tc.src, Dst: tc.dst}); err != nil || w.String() != tc.want {
			t.Errorf("%s from %v to %v: %q, %v, want %q", tc.version, tc.src, tc.dst, w.String(), err, tc.want)
		}
	}
	for _, tc := range []struct {
		version  string
		src, dst netip.AddrPort
		want     string
	}{
		{"", v4src, v4dst, `the version is "", and must be v1 or v2`},
		{"v3", v4src, v4dst, `the version is "v3", and must be v1 or v2`},
		{"v1", netip.AddrPort{}, v4dst, "not a connection"},
		{"v2", v4src, netip.AddrPort{}, "not a connection"},
	} {
		var w bytes.Buffer
		err := upstream.WriteProxyHeader(&w, tc.version, upstream.ProxyHeader{Src: tc.src, Dst: tc.dst})
		if err == nil || !strings.HasPrefix(err.Error(), "write PROXY header: ") || !strings.Contains(err.Error(), tc.want) || w.Len() > 0 {
			t.Errorf("%q from %v to %v: %q, %v, want %q", tc.version, tc.src, tc.dst, w.String(), err, tc.want)
		}
	}
}

func TestAppendUDPProxyHeader(t *testing.T) {
	got, err := upstream.ProxyHeader{Src: v4src, Dst: v4dst}.AppendUDP([]byte("<"))
	want := "<" + sigV2 + "\x21\x12\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	h, payload, err := proxyproto.ParseUDPDatagram(append(got[1:], "payload"...))
	if err != nil || string(payload) != "payload" || h.SourceAddr.String() != v4src.String() || h.DestinationAddr.String() != v4dst.String() {
		t.Errorf("read back %+v, %q, %v", h, payload, err)
	}
	if _, err := (upstream.ProxyHeader{Dst: v4dst}).AppendUDP(nil); err == nil {
		t.Error("no source: no error")
	}
}

// pair returns both ends of a TCP connection.
func pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if server, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return c.(*net.TCPConn), server
}

var goodHeaders = []struct {
	name, header string
	src, dst     netip.AddrPort // invalid: those of the connection
}{
	{"v1", "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n", v4src, v4dst},
	{"v1 ipv6", "PROXY TCP6 2001:db8::7 2001:db8::1 51000 443\r\n", v6src, v6dst},
	{"v1 mapped", "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 51000 443\r\n", v4src, v6dst},
	{"v1 as nginx writes it", "PROXY TCP6 192.0.2.7 2001:db8::1 51000 443\r\n", v4src, v6dst},
	{"v1 unknown", "PROXY UNKNOWN\r\n", netip.AddrPort{}, netip.AddrPort{}},
	{"v1 unknown, longest", "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", netip.AddrPort{}, netip.AddrPort{}},
	{"v2", sigV2 + "\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb", v4src, v4dst},
	{"v2 with tlv", sigV2 + "\x21\x11\x00\x13\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb\x02\x00\x04name", v4src, v4dst},
	{"v2 with long tlv", sigV2 + "\x21\x11\x10\x00\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb\x02\x0f\xf1" + strings.Repeat("n", 0xff1), v4src, v4dst},
	{"v2 local", sigV2 + "\x20\x00\x00\x00", netip.AddrPort{}, netip.AddrPort{}},
	{"v2 local with addresses", sigV2 + "\x20\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb", netip.AddrPort{}, netip.AddrPort{}},
}

func TestReadProxyHeader(t *testing.T) {
	for _, tc := range goodHeaders {
		t.Run(tc.name, func(t *testing.T) {
			client, server := pair(t)
			if !tc.src.IsValid() {
				tc.src = netip.MustParseAddrPort(client.LocalAddr().String())
				tc.dst = netip.MustParseAddrPort(client.RemoteAddr().String())
			}
			if _, err := io.WriteString(client, tc.header+"first bytes"); err != nil {
				t.Fatal(err)
			}
			client.CloseWrite()
			conn, h, err := upstream.ReadProxyHeader(server, 5*time.Second)
			if err != nil || h.Src != tc.src || h.Dst != tc.dst {
				t.Fatalf("from %v to %v, %v, want from %v to %v", h.Src, h.Dst, err, tc.src, tc.dst)
			}
			if _, replays := conn.(*upstream.ReplayConn); !replays && conn != net.Conn(server) {
				t.Errorf("the connection is a %T", conn)
			} else if replays && strings.HasPrefix(tc.name, "v2") {
				t.Error("version 2 was read too far")
			}
			if got, err := io.ReadAll(conn); err != nil || string(got) != "first bytes" {
				t.Errorf("what follows: %q, %v", got, err)
			}
		})
	}
}

// TestReadProxyHeaderInPieces sends every header cut in two at every place,
// with nothing behind it: the client waits for the server to speak.
func TestReadProxyHeaderInPieces(t *testing.T) {
	for _, tc := range goodHeaders {
		for cut := range min(len(tc.header), 200) {
			c := &pieces{parts: []string{tc.header[:cut], tc.header[cut:]}}
			conn, h, err := upstream.ReadProxyHeader(c, time.Second)
			if err != nil || h.Src != tc.src || h.Dst != tc.dst || conn != net.Conn(c) {
				t.Errorf("%s cut after %d: %T, from %v to %v, %v", tc.name, cut, conn, h.Src, h.Dst, err)
			}
			if !c.deadline.IsZero() {
				t.Errorf("%s cut after %d: a read deadline stays", tc.name, cut)
			}
		}
	}
}

// TestReadProxyHeaderByteByByte sends every header one byte at a time.
func TestReadProxyHeaderByteByByte(t *testing.T) {
	for _, tc := range goodHeaders {
		c := &pieces{parts: strings.Split(tc.header, "")}
		conn, h, err := upstream.ReadProxyHeader(c, time.Second)
		if err != nil || h.Src != tc.src || h.Dst != tc.dst || conn != net.Conn(c) {
			t.Errorf("%s: %T, %+v, %v", tc.name, conn, h, err)
		}
		for n := range len(tc.header) {
			if _, size, err := upstream.ParseProxyHeader([]byte(tc.header[:n])); err != nil || size <= n {
				t.Fatalf("%s: the first %d bytes: size %d, %v", tc.name, n, size, err)
			} else if strings.HasPrefix(tc.name, "v2") && size > len(tc.header) {
				t.Fatalf("%s: the first %d bytes: would read up to %d", tc.name, n, size)
			}
		}
		h, size, err := upstream.ParseProxyHeader([]byte(tc.header + "first bytes"))
		if err != nil || size != len(tc.header) || h.Src != tc.src || h.Dst != tc.dst {
			t.Errorf("%s: %+v, size %d of %d, %v", tc.name, h, size, len(tc.header), err)
		}
	}
}

// pieces is a connection that gives its parts one after the other, then ends.
// Any use beyond that crashes on the nil Conn.
type pieces struct {
	net.Conn
	parts    []string
	deadline time.Time
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.parts) > 0 && p.parts[0] == "" {
		p.parts = p.parts[1:]
	}
	if len(p.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.parts[0])
	p.parts[0] = p.parts[0][n:]
	return n, nil
}

func (p *pieces) SetReadDeadline(t time.Time) error { p.deadline = t; return nil }
func (p *pieces) RemoteAddr() net.Addr              { return nil }
func (p *pieces) LocalAddr() net.Addr               { return nil }

func TestReadProxyHeaderRefuses(t *testing.T) {
	for _, tc := range []struct{ name, sent, want string }{
		{"nothing", "", "after 0 bytes: unexpected EOF"},
		{"http", "GET / HTTP/1.1\r\nHost: x.test\r\n\r\n", "does not open with one"},
		{"tls", "\x16\x03\x01\x02\x00\x01\x00", "does not open with one"},
		{"ssh", "SSH-2.0-x\r\n", "does not open with one"},
		{"one wrong byte", "\r\n\r\n\x00\r\nQUIX", "does not open with one"},
		{"no space", "PROXYTCP4 192.0.2.7 198.51.100.1 51000 443\r\n", "does not open with one"},
		{"v1 cut short", "PROXY TCP4 192.0.2.7", "after 20 bytes: unexpected EOF"},
		{"v1 endless", "PROXY TCP4 " + strings.Repeat("1", 200), "within 107 bytes"},
		{"v1 without cr", "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\n", "must end with"},
		{"v1 other protocol", "PROXY UDP4 192.0.2.7 198.51.100.1 51000 443\r\n", "address family"},
		{"v1 mixed families", "PROXY TCP4 2001:db8::7 198.51.100.1 51000 443\r\n", "invalid address"},
		{"v1 port", "PROXY TCP4 192.0.2.7 198.51.100.1 70000 443\r\n", "invalid port"},
		{"v1 leading zero", "PROXY TCP4 192.0.2.7 198.51.100.1 051000 443\r\n", "invalid port"},
		{"v1 two spaces", "PROXY TCP4  192.0.2.7 198.51.100.1 51000 443\r\n", "address family"},
		{"v2 cut short", sigV2 + "\x21\x11\x00\x0c\xc0\x00", "after 18 bytes: unexpected EOF"},
		{"v2 version 3", sigV2 + "\x31\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb", "version and command"},
		{"v2 too long", sigV2 + "\x21\x11\x10\x01", "4097 bytes is more than 4096"},
		{"v2 too short", sigV2 + "\x21\x11\x00\x04\xc0\x00\x02\x07", "invalid length"},
		{"v2 udp", sigV2 + "\x21\x12\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb", "no TCP connection (family and protocol 0x12)"},
		{"v2 unix", sigV2 + "\x21\x31\x00\xd8" + strings.Repeat("u", 216), "no TCP connection (family and protocol 0x31)"},
		{"v2 unspecified", sigV2 + "\x21\x00\x00\x00", "address family"},
	} {
		c := &pieces{parts: []string{tc.sent}}
		conn, h, err := upstream.ReadProxyHeader(c, time.Second)
		if err == nil || !strings.HasPrefix(err.Error(), "read PROXY header: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", tc.name, err, tc.want)
		}
		if conn != nil || h != (upstream.ProxyHeader{}) {
			t.Errorf("%s: %v and %v besides the error", tc.name, conn, h)
		}
	}
}

func TestReadProxyHeaderTimeout(t *testing.T) {
	client, server := pair(t)
	if _, err := io.WriteString(client, "PROXY TCP4 "); err != nil {
		t.Fatal(err)
	}
	_, _, err := upstream.ReadProxyHeader(server, 50*time.Millisecond)
	if want := "read PROXY header: after 11 bytes: i/o timeout"; !errors.Is(err, os.ErrDeadlineExceeded) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestReplayConn(t *testing.T) {
	client, server := pair(t)
	if _, err := io.WriteString(client, "PROXY UNKNOWN\r\n0123456789"); err != nil {
		t.Fatal(err)
	}
	// Read too far by force of a client that sends all at once; how far is up
	// to the reader, so the test only wants the bytes in their order.
	conn, _, err := upstream.ReadProxyHeader(server, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	replay, ok := conn.(*upstream.ReplayConn)
	if !ok {
		t.Fatalf("the connection is a %T, want a *ReplayConn", conn)
	}
	if replay.NetConn() != net.Conn(server) {
		t.Error("NetConn is not the connection beneath")
	}
	rest := string(replay.TakeReplay())
	if rest == "" || !strings.HasPrefix("0123456789", rest) || replay.TakeReplay() != nil {
		t.Errorf("read ahead %q, want a beginning of the digits, once", rest)
	}
	p := make([]byte, 10-len(rest))
	if _, err := io.ReadFull(replay, p); err != nil || rest+string(p) != "0123456789" {
		t.Errorf("%q and %q, %v", rest, p, err)
	}
}

// FuzzReadProxyHeader compares with go-proxyproto, which has all bytes at hand,
// however the bytes are cut.
func FuzzReadProxyHeader(f *testing.F) {
	for _, h := range goodHeaders {
		f.Add([]byte(h.header+"rest"), 5)
		f.Add([]byte(h.header), 14)
	}
	f.Add([]byte("GET / HTTP/1.1\r\n"), 3)
	f.Add([]byte(withChecksum(v2Header(tlvsOfHAProxy))), 20)
	f.Fuzz(func(t *testing.T, p []byte, cut int) {
		cut = min(max(cut, 0), len(p))
		c := &pieces{parts: []string{string(p[:cut]), string(p[cut:])}}
		conn, h, err := upstream.ReadProxyHeader(c, time.Second)

		reader := bufio.NewReaderSize(bytes.NewReader(p), len(p)+16)
		theirs, theirErr := proxyproto.Read(reader)
		usable := theirErr == nil && (theirs.Command.IsLocal() || theirs.TransportProtocol.IsStream() && !theirs.TransportProtocol.IsUnix())
		if usable {
			var summed bool
			if usable, summed = sound(theirs); summed && err != nil {
				return // the checksum is likely wrong
			}
		}
		if usable != (err == nil) {
			t.Fatalf("%q: %v, but go-proxyproto says %+v, %v", p, err, theirs, theirErr)
		}
		parsed, size, parseErr := upstream.ParseProxyHeader(p)
		if (parseErr == nil && size <= len(p)) != (err == nil) {
			t.Fatalf("%q: %v, but from memory %d bytes of it, %v", p, err, size, parseErr)
		}
		if err != nil {
			return
		}
		if !theirs.Command.IsLocal() && parsed != h || parsed.TLVs != h.TLVs {
			t.Fatalf("%q: %+v, but from memory %+v", p, h, parsed)
		}
		if !theirs.Command.IsLocal() {
			from, to, _ := theirs.TCPAddrs()
			if !same(h.Src, from) || !same(h.Dst, to) {
				t.Fatalf("%q: from %v to %v, but go-proxyproto says from %v to %v", p, h.Src, h.Dst, from, to)
			}
		}
		got, err := io.ReadAll(conn)
		want, _ := io.ReadAll(reader)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q: %q follows, %v, want %q", p, got, err, want)
		}
	})
}

func same(a netip.AddrPort, b *net.TCPAddr) bool {
	return a.Addr() == b.AddrPort().Addr().Unmap() && a.Port() == uint16(b.Port)
}
