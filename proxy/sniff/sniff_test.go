package sniff_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/sniff"
)

// script is a connection that hands out what it is given and keeps what is
// written to it. Any use beyond that crashes on the nil Conn.
type script struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)      { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)     { return s.out.Write(p) }
func (s *script) Close() error                    { return nil }
func (s *script) SetDeadline(time.Time) error     { return nil }
func (s *script) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline has crypto/tls send its alerts.
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// clientHello returns what a crypto/tls client sends first.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	c := &script{in: bytes.NewReader(nil)}
	if err := tls.Client(c, cfg).Handshake(); !errors.Is(err, io.EOF) {
		t.Fatalf("client handshake: %v, want an EOF after the ClientHello", err)
	}
	return c.out.Bytes()
}

// reference returns what a crypto/tls server reads from p, or false where it
// does not understand the hello.
func reference(p []byte) (hello sniff.Hello, ok bool) {
	cfg := &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = sniff.Hello{ServerName: strings.ToLower(info.ServerName), ALPN: info.SupportedProtos}
		ok = true
		return nil, errors.New("seen enough")
	}}
	_ = tls.Server(&script{in: bytes.NewReader(p)}, cfg).HandshakeContext(context.Background())
	return hello, ok
}

func sameHello(a, b sniff.Hello) bool {
	if a.ServerName != b.ServerName || len(a.ALPN) != len(b.ALPN) {
		return false
	}
	for i := range a.ALPN {
		if a.ALPN[i] != b.ALPN[i] {
			return false
		}
	}
	return true
}

// loopback returns both ends of a TCP connection. A net.Pipe would not do: with
// TLS 1.3 both sides write at once, and a pipe holds nothing.
func loopback(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// bigSession is a cache with a session whose ticket is of the given size, made
// by a handshake with a server that wraps sessions that way.
func bigSession(t *testing.T, maxVersion uint16, ticketSize int) tls.ClientSessionCache {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"big.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	cache := tls.NewLRUClientSessionCache(1)
	c1, c2 := loopback(t)
	server := tls.Server(c2, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MaxVersion:   maxVersion,
		WrapSession: func(tls.ConnectionState, *tls.SessionState) ([]byte, error) {
			return bytes.Repeat([]byte{'t'}, ticketSize), nil
		},
	})
	served := make(chan error, 1)
	go func() {
		_, err := io.WriteString(server, "x")
		served <- err
	}()
	client := tls.Client(c1, &tls.Config{RootCAs: roots, ServerName: "big.example.com", ClientSessionCache: cache})
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatalf("first handshake: %v", err)
	}
	if err := <-served; err != nil {
		t.Fatalf("first handshake, server: %v", err)
	}
	return cache
}

// echConfigs is an ECHConfigList with one config for publicName
// (draft-ietf-tls-esni section 4).
func echConfigs(t *testing.T, publicName string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	vector16 := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	contents := []byte{7, 0x00, 0x20} // config id, DHKEM(X25519, HKDF-SHA256)
	contents = append(contents, vector16(key.PublicKey().Bytes())...)
	contents = append(contents, vector16([]byte{0, 1, 0, 1})...) // HKDF-SHA256, AES-128-GCM
	contents = append(contents, 64, byte(len(publicName)))
	contents = append(contents, publicName...)
	contents = append(contents, 0, 0) // no extensions
	return vector16(append([]byte{0xfe, 0x0d}, vector16(contents)...))
}

func manyProtocols(n int) []string {
	protocols := make([]string, n)
	for i := range protocols {
		protocols[i] = strings.Repeat(string(rune('a'+i%26)), 200)
	}
	return protocols
}

type helloCase struct {
	name    string
	cfg     *tls.Config
	sni     string
	records int
}

func helloCases(t *testing.T) []helloCase {
	insecure := func(c *tls.Config) *tls.Config { c.InsecureSkipVerify = true; return c }
	return []helloCase{
		{"no server name", insecure(&tls.Config{}), "", 1},
		{"plain", insecure(&tls.Config{ServerName: "demo.example.com"}), "demo.example.com", 1},
		{"upper case", insecure(&tls.Config{ServerName: "DEMO.Example.COM"}), "demo.example.com", 1},
		{"tls 1.0 to 1.2", insecure(&tls.Config{ServerName: "old.example.com", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12}), "old.example.com", 1},
		{"post-quantum only", insecure(&tls.Config{ServerName: "pq.example.com", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}), "pq.example.com", 1},
		{"classical only", insecure(&tls.Config{ServerName: "x.test", CurvePreferences: []tls.CurveID{tls.X25519}}), "x.test", 1},
		{"alpn", insecure(&tls.Config{ServerName: "x.test", NextProtos: []string{"h2", "http/1.1", "acme-tls/1"}}), "x.test", 1},
		{"17 KB of alpn", insecure(&tls.Config{ServerName: "x.test", NextProtos: manyProtocols(85)}), "x.test", 2},
		{"60 KB of alpn", insecure(&tls.Config{ServerName: "x.test", NextProtos: manyProtocols(300)}), "x.test", 4},
		{"17 KB ticket, tls 1.3", insecure(&tls.Config{ServerName: "big.example.com", ClientSessionCache: bigSession(t, tls.VersionTLS13, 17<<10)}), "big.example.com", 2},
		{"17 KB ticket, tls 1.2", insecure(&tls.Config{ServerName: "big.example.com", ClientSessionCache: bigSession(t, tls.VersionTLS12, 17<<10)}), "big.example.com", 2},
		{"encrypted client hello", &tls.Config{ServerName: "secret.example.com", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigs(t, "public.example.com")}, "public.example.com", 1},
	}
}

func countRecords(p []byte) (n int) {
	for ; len(p) > 0; n++ {
		p = p[5+int(binary.BigEndian.Uint16(p[3:])):]
	}
	return n
}

func TestClientHelloAsCryptoTLS(t *testing.T) {
	for _, tc := range helloCases(t) {
		t.Run(tc.name, func(t *testing.T) {
			p := clientHello(t, tc.cfg)
			if got := countRecords(p); got != tc.records {
				t.Errorf("the hello has %d records in %d bytes, want %d", got, len(p), tc.records)
			}
			want, ok := reference(p)
			if !ok {
				t.Fatal("crypto/tls does not understand its own hello")
			}
			got, need, err := sniff.ClientHello(p)
			if err != nil || need != 0 {
				t.Fatalf("ClientHello: need %d, err %v", need, err)
			}
			if !sameHello(got, want) || got.ServerName != tc.sni {
				t.Errorf("got %+v, crypto/tls says %+v, want the name %q", got, want, tc.sni)
			}
			checkPrefixes(t, p, want)
		})
	}
}

// checkPrefixes feeds every prefix of p: all must ask for more, and ask for
// what makes sense, until the hello is complete.
func checkPrefixes(t *testing.T, p []byte, want sniff.Hello) {
	t.Helper()
	last := 0
	for n := range len(p) {
		hello, need, err := sniff.ClientHello(p[:n:n])
		switch {
		case err != nil:
			t.Fatalf("%d of %d bytes: %v", n, len(p), err)
		case need <= n || need > len(p) || need < last:
			t.Fatalf("%d of %d bytes: asks for %d, after %d", n, len(p), need, last)
		case !sameHello(hello, sniff.Hello{}):
			t.Fatalf("%d of %d bytes: already says %+v", n, len(p), hello)
		}
		last = need
	}
	// A caller that reads just what is asked for gets there in a few calls.
	calls := 0
	for need := 1; need != 0; calls++ {
		hello, more, err := sniff.ClientHello(p[:need])
		if err != nil {
			t.Fatalf("reading what is asked for: %d bytes: %v", need, err)
		}
		if more == 0 && !sameHello(hello, want) {
			t.Fatalf("reading what is asked for: got %+v, want %+v", hello, want)
		}
		need = more
	}
	if limit := 3 + 2*countRecords(p); calls > limit {
		t.Errorf("reading what is asked for took %d calls, want at most %d", calls, limit)
	}
}

// split spreads the handshake message in the records of p over records of the
// given payload sizes, the last of them over and over.
func split(p []byte, sizes ...int) []byte {
	var message []byte
	for len(p) > 0 {
		n := int(binary.BigEndian.Uint16(p[3:]))
		message = append(message, p[5:5+n]...)
		p = p[5+n:]
	}
	var out []byte
	for i := 0; len(message) > 0; i++ {
		n := min(sizes[min(i, len(sizes)-1)], len(message))
		out = append(out, 22, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}

func TestClientHelloSplitOverRecords(t *testing.T) {
	p := clientHello(t, &tls.Config{InsecureSkipVerify: true, ServerName: "Split.Example.com", NextProtos: []string{"h2"}})
	want, _ := reference(p)
	for first := 1; first < len(p)-5; first++ {
		s := split(p, first, 1<<14)
		got, need, err := sniff.ClientHello(s)
		if err != nil || need != 0 || !sameHello(got, want) {
			t.Fatalf("split after %d bytes: %+v, need %d, err %v", first, got, need, err)
		}
	}
	for _, sizes := range [][]int{{1, 1, 1, 1, 100}, {1, 2, 3, 4, 5, 1000}, {3, 1, 60}, {40}} {
		s := split(p, sizes...)
		if theirs, ok := reference(s); !ok || !sameHello(theirs, want) {
			t.Fatalf("split %v: crypto/tls reads %+v, %v", sizes, theirs, ok)
		}
		checkPrefixes(t, s, want)
	}
}

func TestClientHelloBounds(t *testing.T) {
	p := clientHello(t, &tls.Config{ServerName: "x.test"})
	if _, need, err := sniff.ClientHello(split(p, 1)); !errors.Is(err, sniff.ErrMalformed) || need != 0 {
		t.Errorf("a byte per record: need %d, err %v, want ErrMalformed", need, err)
	}
	// One byte per record up to the bound asks for more and never for too much.
	s := split(p, 1)
	for n := range 64 * 6 {
		_, need, err := sniff.ClientHello(s[:n])
		if n < 63*6+5 && (err != nil || need <= n || need > sniff.MaxPeek) {
			t.Fatalf("a byte per record, %d bytes: need %d, err %v", n, need, err)
		}
	}
	tooLong := []byte{22, 3, 1, 0x40, 0, 1, 1, 0, 1}
	if _, _, err := sniff.ClientHello(tooLong); !errors.Is(err, sniff.ErrMalformed) {
		t.Errorf("a hello of 65537 bytes: %v, want ErrMalformed", err)
	}
	longest := []byte{22, 3, 1, 0x40, 0, 1, 1, 0, 0}
	if _, need, err := sniff.ClientHello(longest); err != nil || need > sniff.MaxPeek {
		t.Errorf("a hello of 65536 bytes: need %d, err %v", need, err)
	}
}

func TestClientHelloRefuses(t *testing.T) {
	for _, tc := range []struct{ name, p string }{
		{"http", "G"}, {"http line", "GET / HTTP/1.1\r\n"}, {"ssh", "SSH-2.0-OpenSSH_9.2\r\n"}, {"rdp", "\x03\x00\x00\x13"},
		{"zero", "\x00"}, {"alert", "\x15\x03\x01\x00\x02"}, {"application data", "\x17\x03\x03"}, {"sslv2", "\x80\x2e\x01\x00\x02"},
		{"major version 2", "\x16\x02"}, {"major version 4", "\x16\x04"},
		{"empty record", "\x16\x03\x01\x00\x00"}, {"long record", "\x16\x03\x01\x40\x01"}, {"server hello", "\x16\x03\x03\x00\x31\x02"},
	} {
		if _, need, err := sniff.ClientHello([]byte(tc.p)); !errors.Is(err, sniff.ErrNotTLS) || need != 0 {
			t.Errorf("%s: need %d, err %v, want ErrNotTLS", tc.name, need, err)
		}
	}
	for _, p := range []string{
		"\x16\x03\x01\x00\x01\x01\x17",                     // the second record is of another type
		"\x16\x03\x01\x00\x01\x01\x16\x02",                 // and of another version
		"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x00",     // and empty
		"\x16\x03\x01\x00\x01\x01\x16\x03\x01\xff\xff",     // and too long
		"\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x01", // an alert
	} {
		if _, need, err := sniff.ClientHello([]byte(p)); !errors.Is(err, sniff.ErrMalformed) || need != 0 {
			t.Errorf("%q: need %d, err %v, want ErrMalformed", p, need, err)
		}
	}
}

// hello builds a ClientHello by hand.
type hello struct {
	session, suites, compression, extensions string
	noExtensions                             bool
	trailing                                 string
}

func (h hello) bytes() []byte {
	body := "\x03\x03" + strings.Repeat("r", 32) + vec8(h.session) + vec16(h.suites) + vec8(h.compression)
	if !h.noExtensions {
		body += vec16(h.extensions)
	}
	body += h.trailing
	message := "\x01\x00" + vec16(body)
	return []byte("\x16\x03\x01" + vec16(message))
}

func vec8(s string) string { return string([]byte{byte(len(s))}) + s }
func vec16(s string) string {
	return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s
}
func ext(typ uint16, data string) string {
	return string(binary.BigEndian.AppendUint16(nil, typ)) + vec16(data)
}
func sni(name string) string { return ext(0, vec16("\x00"+vec16(name))) }

func TestClientHelloByHand(t *testing.T) {
	valid := hello{suites: "\x13\x01", compression: "\x00", extensions: sni("x.test")}
	for _, tc := range []struct {
		name   string
		change func(*hello)
		want   sniff.Hello
		bad    string // part of the error
	}{
		{name: "valid", change: func(*hello) {}, want: sniff.Hello{ServerName: "x.test"}},
		{name: "no extensions", change: func(h *hello) { h.noExtensions = true }},
		{name: "grease", change: func(h *hello) { h.extensions = ext(0x0a0a, "") + sni("x.test") + ext(0xfafa, "\x00") },
			want: sniff.Hello{ServerName: "x.test"}},
		{name: "grease in alpn", change: func(h *hello) { h.extensions = ext(16, vec16("\x02\x0a\x0a\x02h2")) },
			want: sniff.Hello{ALPN: []string{"\x0a\x0a", "h2"}}},
		{name: "other name types", change: func(h *hello) { h.extensions = ext(0, vec16("\x07"+vec16("q")+"\x00"+vec16("A.b"))) },
			want: sniff.Hello{ServerName: "a.b"}},
		{name: "address for a name", change: func(h *hello) { h.extensions = sni("192.0.2.7") }, want: sniff.Hello{ServerName: "192.0.2.7"}},
		{name: "names alike", change: func(h *hello) { h.extensions = ext(0, vec16("\x00"+vec16("a")+"\x00"+vec16("a"))) }, bad: "two server names"},
		{name: "empty list", change: func(h *hello) { h.extensions = ext(0, vec16("")) }, bad: "list of server names"},
		{name: "empty extension", change: func(h *hello) { h.extensions = ext(0, "") }, bad: "list of server names"},
		{name: "empty name", change: func(h *hello) { h.extensions = sni("") }, bad: "server name has a wrong length"},
		{name: "after the list", change: func(h *hello) { h.extensions = ext(0, vec16("\x00"+vec16("a"))+"x") }, bad: "list of server names"},
		{name: "name too long for its list", change: func(h *hello) { h.extensions = ext(0, "\x00\x04\x00\x00\x02a") }, bad: "wrong length"},
		{name: "trailing dot", change: func(h *hello) { h.extensions = sni("x.test.") }, bad: "dot"},
		{name: "nul", change: func(h *hello) { h.extensions = sni("x\x00.test") }, bad: "0x00"},
		{name: "newline", change: func(h *hello) { h.extensions = sni("x\n.test") }, bad: "0x0a"},
		{name: "not ascii", change: func(h *hello) { h.extensions = sni("é.test") }, bad: "0xc3"},
		{name: "longest name", change: func(h *hello) { h.extensions = sni(strings.Repeat("a", 255)) },
			want: sniff.Hello{ServerName: strings.Repeat("a", 255)}},
		{name: "longer name", change: func(h *hello) { h.extensions = sni(strings.Repeat("a", 256)) }, bad: "256 bytes"},
		{name: "sni twice", change: func(h *hello) { h.extensions += sni("y.test") }, bad: "extension 0 comes twice"},
		{name: "unknown twice", change: func(h *hello) { h.extensions += ext(99, "") + ext(98, "") + ext(99, "") }, bad: "extension 99 comes twice"},
		{name: "extension cut short", change: func(h *hello) { h.extensions += "\x00\x10\x00\x05ab" }, bad: "cut short"},
		{name: "three bytes of extension", change: func(h *hello) { h.extensions += "\x00\x10\x00" }, bad: "cut short"},
		{name: "after the extensions", change: func(h *hello) { h.trailing = "x" }, bad: "do not end where"},
		{name: "session id", change: func(h *hello) { h.session = strings.Repeat("s", 33) }, bad: "session id of 33"},
		{name: "odd suites", change: func(h *hello) { h.suites = "\x13\x01\x13" }, bad: "3 bytes of cipher suites"},
		{name: "no suites", change: func(h *hello) { h.suites = "" }, bad: "0 bytes of cipher suites"},
		{name: "no compression", change: func(h *hello) { h.compression = "" }, bad: "no compression"},
		{name: "alpn empty list", change: func(h *hello) { h.extensions = ext(16, vec16("")) }, bad: "list of application protocols"},
		{name: "alpn empty", change: func(h *hello) { h.extensions = ext(16, vec16(vec8("h2")+vec8(""))) }, bad: "an application protocol"},
		{name: "alpn too long", change: func(h *hello) { h.extensions = ext(16, vec16("\x09h2")) }, bad: "an application protocol"},
		{name: "after the alpn list", change: func(h *hello) { h.extensions = ext(16, vec16(vec8("h2"))+"x") }, bad: "list of application protocols"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := valid
			tc.change(&h)
			got, need, err := sniff.ClientHello(h.bytes())
			switch {
			case tc.bad == "" && (err != nil || need != 0 || !sameHello(got, tc.want)):
				t.Errorf("got %+v, need %d, err %v, want %+v", got, need, err, tc.want)
			case tc.bad != "" && (!errors.Is(err, sniff.ErrMalformed) || !strings.Contains(err.Error(), tc.bad) || need != 0):
				t.Errorf("got %+v, need %d, err %v, want ErrMalformed with %q", got, need, err, tc.bad)
			}
		})
	}
}

func TestClientHelloManyExtensions(t *testing.T) {
	extensions := func(n int) (s string) {
		for i := range n {
			s += ext(uint16(1000+i), "")
		}
		return s
	}
	h := hello{suites: "\x13\x01", compression: "\x00", extensions: extensions(127) + sni("x.test")}
	if got, _, err := sniff.ClientHello(h.bytes()); err != nil || got.ServerName != "x.test" {
		t.Errorf("128 extensions: %+v, %v", got, err)
	}
	h.extensions = extensions(129)
	if _, _, err := sniff.ClientHello(h.bytes()); !errors.Is(err, sniff.ErrMalformed) {
		t.Errorf("129 extensions: %v, want ErrMalformed", err)
	}
}

// TestClientHelloCutShort shortens the message itself, lengths around it
// adjusted: no cut may pass for a hello that says less, except the one that
// leaves the extensions out.
func TestClientHelloCutShort(t *testing.T) {
	whole := hello{suites: "\x13\x01", compression: "\x00", extensions: sni("x.test")}.bytes()
	body := whole[5+4:]
	without := len(body) - len(vec16(sni("x.test")))
	for n := range len(body) {
		p := []byte("\x16\x03\x01" + vec16("\x01\x00"+vec16(string(body[:n]))))
		_, _, err := sniff.ClientHello(p)
		if n == without && err != nil || n != without && !errors.Is(err, sniff.ErrMalformed) {
			t.Errorf("cut after %d of %d bytes: %v", n, len(body), err)
		}
	}
}

func TestClientHelloAllocations(t *testing.T) {
	p := clientHello(t, &tls.Config{ServerName: "a-rather-long-environment-name.remotegpu.com", NextProtos: []string{"h2", "http/1.1"}})
	got := testing.AllocsPerRun(100, func() {
		if _, _, err := sniff.ClientHello(p); err != nil {
			t.Fatal(err)
		}
	})
	if got > 2 { // the name and the list of protocols
		t.Errorf("%v allocations per hello, want at most 2", got)
	}
}

func BenchmarkClientHello(b *testing.B) {
	p := clientHello(b, &tls.Config{ServerName: "demo.example.com", NextProtos: []string{"h2", "http/1.1"}})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := sniff.ClientHello(p); err != nil {
			b.Fatal(err)
		}
	}
}
