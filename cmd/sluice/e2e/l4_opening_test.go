package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"

	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/pires/go-proxyproto"
)

// fragmented writes the first TLS record, the ClientHello's, as several of at
// most size bytes each.
type fragmented struct {
	net.Conn
	size int
	done bool
}

func (f *fragmented) Write(p []byte) (int, error) {
	if f.done {
		return f.Conn.Write(p)
	}
	f.done = true
	length := 5 + (int(p[3])<<8 | int(p[4]))
	var out bytes.Buffer
	for payload := p[5:length]; len(payload) > 0; {
		n := min(f.size, len(payload))
		out.Write(p[:3])
		out.Write([]byte{byte(n >> 8), byte(n)})
		out.Write(payload[:n])
		payload = payload[n:]
	}
	out.Write(p[length:])
	_, err := f.Conn.Write(out.Bytes())
	return len(p), err
}

// preceded writes a PROXY header with its first bytes.
type preceded struct {
	net.Conn
	header []byte
}

func (p *preceded) Write(b []byte) (int, error) {
	n := len(p.header)
	k, err := p.Conn.Write(append(p.header, b...))
	p.header = nil
	return max(0, k-n), err
}

// proxyHeaderFrom makes a PROXY header that names a client.
func proxyHeaderFrom(t *testing.T, version byte, client string) []byte {
	t.Helper()
	src, dst := net.TCPAddrFromAddrPort(addrPort(t, client)), &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 443}
	header, err := proxyproto.HeaderProxyFromAddrs(version, src, dst).Format()
	if err != nil {
		t.Fatal(err)
	}
	return header
}

// helloOf returns a configuration of a client whose ClientHello has the key
// shares of post-quantum cryptography and is of about the given size.
func helloOf(name string, roots *x509.CertPool, size int) *tls.Config {
	c := &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"http/1.1"}}
	for i := 0; size > 2000 && i < (size-1700)/250; i++ {
		c.NextProtos = append(c.NextProtos, fmt.Sprintf("x-%03d-%s", i, strings.Repeat("p", 244)))
	}
	return c
}

// TestHellosOfEveryShape opens TLS in all the ways that clients and networks do
// it, at every place where a node reads a hello, behind PROXY headers too.
func TestHellosOfEveryShape(t *testing.T) {
	t.Parallel()
	n := startNode(t, withYAML(`trusted_proxies: ["127.0.0.8/32"]`))
	cert, passRoots := selfSigned(t, "pass.r.test")
	n.mustPut("routes/pass", passthroughRoute("pass.r.test", startTLSBackend(t, cert, named("pass.r.test"))))
	n.mustPut("routes/site", respondRoute("site.r.test", "site.r.test"))
	mapped := startBackend(t, named("mapped.localhost"))
	raw := startLines(t, "raw")
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf(`{"backend": %q, "http": %q, "proxy_protocol": {"accept": true}}`, raw, mapped))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf(`{"http": %q, "proxy_protocol": {"accept": true}}`, mapped))
	places := []struct {
		name  string // the server's
		port  int
		roots *x509.CertPool
	}{
		{"pass.r.test", n.HTTPS, passRoots}, {"site.r.test", n.HTTPS, n.roots()},
		{"mapped.localhost", n.port(0), n.roots()}, {"mapped.localhost", n.port(1), n.roots()},
	}
	clients := 0
	for _, size := range []int{1700, 17000} {
		for _, shape := range []struct {
			name string
			wrap func(net.Conn) net.Conn
		}{
			{"as it is", func(c net.Conn) net.Conn { return c }},
			{"byte by byte", func(c net.Conn) net.Conn { return dribble{c} }},
			{"in many records", func(c net.Conn) net.Conn { return &fragmented{Conn: c, size: size / 50} }},
			{"in many records byte by byte", func(c net.Conn) net.Conn { return &fragmented{Conn: dribble{c}, size: size / 50} }},
		} {
			for _, version := range []byte{0, 1, 2} {
				t.Run(fmt.Sprintf("%d bytes %s, PROXY v%d", size, shape.name, version), func(t *testing.T) {
					n := n.in(t)
					for _, place := range places {
						from, client := "127.0.0.1", ""
						if version > 0 {
							from, client = "127.0.0.8", fmt.Sprintf("203.0.113.%d:%d", 1+clients%250, 20000+clients)
						}
						tcp := dialFrom(t, from, place.port)
						var c net.Conn = tcp
						if version > 0 {
							c = &preceded{c, proxyHeaderFrom(t, version, client)}
						} else {
							client = tcp.LocalAddr().String()
						}
						secure := tls.Client(shape.wrap(c), helloOf(place.name, place.roots, size))
						if err := secure.HandshakeContext(within(t)); err != nil {
							t.Fatalf("%s at port %d: %v", place.name, place.port, err)
						}
						if curve := secure.ConnectionState().CurveID; curve != tls.X25519MLKEM768 {
							t.Errorf("%s: the key exchange was %v", place.name, curve)
						}
						if _, body := roundTrip(t, secure, "GET / HTTP/1.1\r\nHost: "+place.name+"\r\nConnection: close\r\n\r\n"); !strings.Contains(body, place.name) {
							t.Errorf("%s at port %d: body %q", place.name, place.port, body)
						}
						tcp.Close()
						n.accessRecord(map[string]any{"client": client})
						clients++
					}
				})
			}
		}
	}
}

// TestRealClientsOnOnePort has the programs that people have at hand share one
// port: OpenSSH, curl for three protocols, OpenSSL.
func TestRealClientsOnOnePort(t *testing.T) {
	t.Parallel()
	server := startSSHD(t)
	n := startNode(t)
	port := n.port(0)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "http": %q}`, server.addr, n.Demo))

	t.Run("ssh", func(t *testing.T) {
		cmd := server.ssh(port, "tr a-z A-Z")
		cmd.Stdin = strings.NewReader("one port\n")
		if p := startProcess(t, cmd); p.wait() != 0 || p.stdout.String() != "ONE PORT\n" {
			t.Errorf("exit code %d, %q, %q", p.code, p.stdout, p.stderr)
		}
	})
	for _, args := range [][]string{{"--http1.1"}, {"--http2"}, {"--tls-max", "1.2"}} {
		t.Run("curl "+args[0], func(t *testing.T) {
			if out := n.in(t).curl(append(args, fmt.Sprintf("https://x.localhost:%d/echo", port))...); !strings.Contains(out, `"uri": "/echo"`) {
				t.Errorf("the answer was %s", out)
			}
		})
	}
	t.Run("curl in the clear", func(t *testing.T) {
		if out := n.in(t).curl(fmt.Sprintf("http://127.0.0.1:%d/echo", port)); !strings.Contains(out, `"uri": "/echo"`) {
			t.Errorf("the answer was %s", out)
		}
	})
	t.Run("openssl", func(t *testing.T) {
		cmd := exec.Command("openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", n.caFile(),
			"-servername", "x.localhost", "-connect", loopback(port))
		cmd.Stdin = strings.NewReader("GET /echo HTTP/1.1\r\nHost: x.localhost\r\nConnection: close\r\n\r\n")
		if p := startProcess(t, cmd); p.wait() != 0 || !strings.Contains(p.stdout.String(), `"uri": "/echo"`) {
			t.Errorf("exit code %d, %q, %q", p.code, p.stdout, p.stderr)
		}
	})
}

// TestServersThatSpeakFirst has clients wait for a greeting on ports that might
// be HTTP's as well, and one that is never greeted nor says anything.
func TestServersThatSpeakFirst(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	said := make(chan string, 1)
	smtp := startRaw(t, func(c net.Conn) {
		io.WriteString(c, "220 mail.x.test ESMTP\r\n")
		line := make([]byte, 512)
		k, _ := c.Read(line)
		said <- string(line[:k])
		io.WriteString(c, "250 mail.x.test\r\n")
		c.Read(line)
		io.WriteString(c, "502 no help\r\n")
		c.Read(line) // QUIT
		io.WriteString(c, "221 bye\r\n")
	})
	for i, options := range []string{"", `, "proxy_protocol": {"accept": true}`} {
		port := n.port(i)
		n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "http": %q%s}`, smtp, n.Demo, options))
		p := startProcess(t, exec.Command("curl", "-sv", "--max-time", "30", "-X", "NOOP", fmt.Sprintf("smtp://127.0.0.1:%d/me.x.test", port)))
		if got := await(t, said, "the client's first word"); got != "EHLO me.x.test\r\n" {
			t.Errorf("the client said %q", got)
		}
		p.wait()
		if !strings.Contains(p.stderr.String(), "220 mail.x.test ESMTP") {
			t.Errorf("the client saw %q", p.stderr)
		}
	}
}

// TestWhatIsNeitherGoesToTheBackend takes bytes that only look like TLS or HTTP
// for a while to the backend, every one of them, in any pieces.
func TestWhatIsNeitherGoesToTheBackend(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	port := n.port(0)
	echo := startRaw(t, func(c net.Conn) {
		io.Copy(c, c)
		c.(*net.TCPConn).CloseWrite()
	})
	n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "http": %q}`, echo, n.Demo))
	for _, opening := range []string{
		"\x00", "\x16", "\x16\x03", "\x16\x03\x01\x00", "\x16\x03\x01\x00\x05\x02hello", "\x15\x03\x01\x00\x02\x01\x00",
		"G", "GE", "GET", "GET x", "HELO x.test\r\n", "OPTIONS *", "PRI * HTTQ", "SSH-2.0-x /\r\n",
		"\x03\x00\x00\x13\x0e\xe0\x00\x00", "*1\r\n$4\r\nPING\r\n", strings.Repeat("A", 100), strings.Repeat("\xff", 70000),
		"PROXY TCP4 203.0.113.9 198.51.100.1 1 2\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c",
	} {
		for _, wrap := range []func(net.Conn) io.Writer{
			func(c net.Conn) io.Writer { return c },
			func(c net.Conn) io.Writer { return dribble{c} },
		} {
			c := dial(t, port)
			w := wrap(c)
			if _, dribbles := w.(dribble); dribbles && len(opening) > 1000 {
				continue
			}
			go func() {
				io.WriteString(w, opening)
				c.CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || string(got) != opening {
				t.Errorf("after %.40q came back %.40q (%d bytes of %d), %v", opening, got, len(got), len(opening), err)
			}
			c.Close()
		}
	}
}

// TestSilenceIsBounded leaves connections without a word at every place that
// waits for one, and wants each to come to an end by itself.
func TestSilenceIsBounded(t *testing.T) {
	t.Parallel()
	n := startNode(t, withYAML(`trusted_proxies: ["127.0.0.8/32"]`))
	cert, _ := selfSigned(t, "pass.r.test")
	n.mustPut("routes/pass", passthroughRoute("pass.r.test", startTLSBackend(t, cert, http.NotFoundHandler())))
	n.mustPut("routes/raw", rawRoute("raw.r.test", startLines(t, "raw")))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), fmt.Sprintf(`{"backend": %q, "proxy_protocol": {"accept": true}}`, startLines(t, "raw")))
	n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf(`{"http": %q}`, n.Demo))
	hello := helloBytes(t, "raw.r.test")
	for _, tc := range []struct {
		name, from string
		port       int
		says       string
	}{
		{"a PROXY header on a mapping", "127.0.0.8", n.port(0), ""},
		{"the rest of a PROXY header on a mapping", "127.0.0.8", n.port(0), "PROXY TCP4 203.0"},
		{"a PROXY header on a listener", "127.0.0.8", n.HTTPS, "\r\n\r\n\x00\r\nQU"},
		{"a hello", "127.0.0.1", n.HTTPS, ""},
		{"the rest of a hello", "127.0.0.1", n.HTTPS, string(hello[:len(hello)/2])},
		{"the rest of a handshake", "127.0.0.1", n.HTTPS, string(hello)},
		{"a first byte on a port for HTTP", "127.0.0.1", n.port(1), ""},
		{"the rest of a hello on a port for HTTP", "127.0.0.1", n.port(1), string(hello[:1])},
		{"the rest of a request on a port for HTTP", "127.0.0.1", n.port(1), "GET / HT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := dialFrom(t, tc.from, tc.port)
			io.WriteString(c, tc.says)
			if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("it ended by %v", err)
			}
		})
	}
}

// helloBytes is what a client sends first.
func helloBytes(t *testing.T, name string) []byte {
	t.Helper()
	here, there := net.Pipe()
	hello := make(chan []byte, 1)
	go func() {
		p := make([]byte, 16<<10)
		n, _ := there.Read(p)
		there.Close()
		hello <- p[:n]
	}()
	tls.Client(here, &tls.Config{ServerName: name}).HandshakeContext(within(t))
	here.Close()
	return <-hello
}
