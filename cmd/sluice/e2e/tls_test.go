package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// selfSigned returns a certificate of its own for the names, and a pool that
// trusts it alone.
func selfSigned(t *testing.T, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "of the backend"}, DNSNames: names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

// startTLSBackend serves handler over TLS with cert, by HTTP/1.1 and HTTP/2.
func startTLSBackend(t *testing.T, cert tls.Certificate, handler http.Handler) string {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	srv := &http.Server{Handler: handler, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	ln := listenLoopback(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.ServeTLS(ln, "", "")
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return ln.Addr().String()
}

func passthroughRoute(host, backend string) string {
	return routeJSON(map[string]any{"host": host, "tls": "passthrough", "backend": backend})
}

func rawRoute(host, backend string) string {
	return routeJSON(map[string]any{"host": host, "protocol": "tcp", "backend": backend})
}

// One port number serves HTTPS by TCP, HTTP/3 by UDP, TLS that passes untouched
// and TLS that ends here with raw bytes inside, all at once.
func TestOnePortForEverything(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	cert, roots := selfSigned(t, "own.pass.test", "deep.own.pass.test")
	var got atomic.Pointer[string] // server name that the backend saw
	n.mustPut("routes/pass", passthroughRoute("*.pass.test", startTLSBackend(t, cert, http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			got.Store(&r.TLS.ServerName)
			named("passed")(w, r)
		}))))
	n.mustPut("routes/web", respondRoute("web.pass.test", "exact beside the wildcard"))
	n.mustPut("routes/site", respondRoute("site.r.test", "site"))
	n.mustPut("routes/echo", rawRoute("echo.r.test", startRaw(t, func(c net.Conn) { io.Copy(c, c) })))
	n.mustPut("routes/banner", rawRoute("banner.r.test", startRaw(t, func(c net.Conn) {
		io.WriteString(c, "SSH-2.0-test\r\n")
		io.Copy(io.Discard, c)
	})))

	// These stay open while the rest happens.
	held := n.dialTLS("echo.r.test")
	through := tls.Client(n.dialTCP(), &tls.Config{RootCAs: roots, ServerName: "own.pass.test"})
	if err := through.HandshakeContext(within(t)); err != nil {
		t.Fatalf("handshake with the backend: %v", err)
	}

	t.Run("HTTP", func(t *testing.T) {
		eachProto(t, n, func(t *testing.T, c *client) {
			if _, body := c.get("site.r.test", "/"); body != "site" {
				t.Errorf("body %q", body)
			}
			if _, body := c.get("web.pass.test", "/"); body != "exact beside the wildcard" {
				t.Errorf("body %q", body)
			}
		})
	})
	t.Run("passthrough", func(t *testing.T) {
		for _, proto := range []string{"h1", "h2"} {
			c := newClientWith(t, n, proto, roots)
			resp, body := c.get("own.pass.test", "/x")
			if want := fmt.Sprintf("passed: GET /x for own.pass.test:%d", n.HTTPS); body != want {
				t.Errorf("%s: body %q, want %q", proto, body, want)
			}
			if leaf := resp.TLS.PeerCertificates[0]; !leaf.Equal(cert.Leaf) {
				t.Errorf("%s: the client saw the certificate of %v, want the backend's own", proto, leaf.Subject)
			}
			if name := got.Load(); name == nil || *name != "own.pass.test" {
				t.Errorf("%s: the backend saw another server name: %v", proto, name)
			}
		}
	})
	t.Run("raw bytes in TLS", func(t *testing.T) {
		c := n.in(t).dialTLS("echo.r.test")
		want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		go func() {
			c.Write(want)
			c.CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes and %v came back, want the %d that were sent", len(got), err, len(want))
		}
		record := n.in(t).accessRecord(map[string]any{"route": "echo", "bytes_up": float64(len(want)), "bytes_down": float64(len(want))})
		if record["listener"] == nil || record["client"] == nil || record["backend"] == nil {
			t.Errorf("access record %v", record)
		}
	})
	t.Run("server speaks first", func(t *testing.T) {
		line, err := bufio.NewReader(n.in(t).dialTLS("banner.r.test")).ReadString('\n')
		if line != "SSH-2.0-test\r\n" {
			t.Errorf("%q, %v", line, err)
		}
	})
	t.Run("those opened before", func(t *testing.T) {
		io.WriteString(held, "still here")
		echo := make([]byte, 10)
		if _, err := io.ReadFull(held, echo); err != nil || string(echo) != "still here" {
			t.Errorf("%q, %v", echo, err)
		}
		if _, body := roundTrip(t, through, "GET / HTTP/1.1\r\nHost: own.pass.test\r\n\r\n"); !strings.HasPrefix(body, "passed: ") {
			t.Errorf("body %q", body)
		}
	})
	t.Run("edited", func(t *testing.T) {
		n := n.in(t)
		n.delete("routes/pass")
		n.mustPut("routes/here", respondRoute("*.pass.test", "ends here now"))
		eachProto(t, n, func(t *testing.T, c *client) {
			if _, body := c.get("own.pass.test", "/"); body != "ends here now" {
				t.Errorf("body %q", body)
			}
		})
		if _, body := roundTrip(t, through, "GET / HTTP/1.1\r\nHost: own.pass.test\r\n\r\n"); !strings.HasPrefix(body, "passed: ") {
			t.Errorf("the connection from before the edit: body %q", body)
		}
	})
}

// TestRoutesThatTakeConnectionsDeny refuses clients on both kinds of routes that
// take whole connections, with a record of each.
func TestRoutesThatTakeConnectionsDeny(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := startRaw(t, func(c net.Conn) { io.Copy(c, c) })
	for _, tc := range []struct{ name, option string }{{"passthrough", `"tls": "passthrough"`}, {"raw", `"protocol": "tcp"`}} {
		t.Run(tc.name, func(t *testing.T) {
			n := n.in(t)
			host := tc.name + ".deny.test"
			n.mustPut("routes/"+tc.name, fmt.Sprintf(`{"host": %q, "backend": %q, %s, "deny": ["127.0.0.0/8"], "env": "abc"}`, host, backend, tc.option))
			tcp := n.dialTCP()
			if err := tls.Client(tcp, &tls.Config{ServerName: host, InsecureSkipVerify: true}).HandshakeContext(within(t)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the handshake ended by %v, want a reset", err)
			}
			n.accessRecord(map[string]any{"msg": "flow", "route": tc.name, "env": "abc", "port": n.HTTPS, "client": tcp.LocalAddr(), "end": "denied", "bytes_up": 0, "bytes_down": 0})
		})
	}
	if got, _ := n.metric(`sluice_l4_flows_total{end="denied",proto="tcp"} `); got != "2" {
		t.Errorf("the metrics count %s denied flows, want 2", got)
	}
}

// dialTCP opens a TCP connection to the node's HTTPS port.
func (n *node) dialTCP() *net.TCPConn {
	n.t.Helper()
	c, err := new(net.Dialer).DialContext(within(n.t), "tcp", loopback(n.HTTPS))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.TCPConn)
}

// recorder keeps what is written to the connection.
type recorder struct {
	net.Conn
	written bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.written.Write(p)
	return r.Conn.Write(p)
}

// Passthrough changes no byte, in either direction.
func TestPassthroughBytes(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const answer = "these are not the bytes of a TLS server"
	arrived := make(chan []byte, 1)
	n.mustPut("routes/pass", passthroughRoute("pass.r.test", startRaw(t, func(c net.Conn) {
		io.WriteString(c, answer)
		c.(*net.TCPConn).CloseWrite()
		bytes, _ := io.ReadAll(c)
		arrived <- bytes
	})))
	c := n.dialTCP()
	hello := &recorder{Conn: c}
	if err := tls.Client(hello, &tls.Config{ServerName: "pass.r.test"}).HandshakeContext(within(t)); err == nil {
		t.Error("a handshake with a server that speaks no TLS came to an end")
	}
	c.CloseWrite()
	if got := await(t, arrived, "the ClientHello at the backend"); !bytes.Equal(got, hello.written.Bytes()) {
		t.Errorf("the backend got other bytes than the client sent (-sent +got):\n%s", cmp.Diff(hello.written.Bytes(), got))
	}
	// What asks in clear text goes nowhere, and is told why.
	if got := n.curl("-w", " %{http_code}", fmt.Sprintf("http://pass.r.test:%d/", n.HTTPS), "--connect-to", "::127.0.0.1:"); !strings.HasSuffix(got, " 400") || !strings.Contains(got, "https://") {
		t.Errorf("HTTP in clear text: %q", got)
	}
}

// dribble writes one byte at a time, as the worst networks deliver them.
type dribble struct{ net.Conn }

func (d dribble) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := d.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// A ClientHello may come in any number of pieces.
func TestClientHelloInPieces(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	cert, roots := selfSigned(t, "pass.r.test")
	n.mustPut("routes/site", respondRoute("site.r.test", "site"))
	handshake := func(name string, roots *x509.CertPool) {
		t.Helper()
		c := tls.Client(dribble{n.dialTCP()}, &tls.Config{ServerName: name, RootCAs: roots})
		if err := c.HandshakeContext(within(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, body := roundTrip(t, c, "GET / HTTP/1.1\r\nHost: "+name+"\r\n\r\n"); body == "" {
			t.Errorf("%s: an empty answer", name)
		}
	}
	handshake("site.r.test", n.roots()) // no route depends on the name yet
	n.mustPut("routes/pass", passthroughRoute("pass.r.test", startTLSBackend(t, cert, named("passed"))))
	handshake("site.r.test", n.roots())
	handshake("pass.r.test", roots)
}

// What is not TLS costs nobody but its sender anything.
func TestGarbage(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/site", respondRoute("site.r.test", "site"))
	clients := []*client{newClient(t, n, "h1"), newClient(t, n, "h2"), newClient(t, n, "h3")}
	serves := func(when string) {
		t.Helper()
		for _, c := range clients {
			if _, body := c.get("site.r.test", "/"); body != "site" {
				t.Errorf("%s, %s: body %q", when, c.proto, body)
			}
		}
	}
	throw := func(when string) {
		t.Helper()
		for _, garbage := range []string{
			"GET / HTTP/1.1\r\nHost: site.r.test\r\n\r\n",
			"SSH-2.0-OpenSSH_9.2\r\n",
			strings.Repeat("\x00", 5000),
			strings.Repeat("\xff", 5000),
			"\x16\x03\x01\x40\x00" + strings.Repeat("A", 16<<10),                      // a handshake record that is no handshake
			"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("B", 600), // a hello of nonsense
			"\x16\x03\x01\x00\x00",                                                    // an empty record
		} {
			c := n.dialTCP()
			go io.WriteString(c, garbage) // may be cut short
			// Whatever the answer, there is an end to it.
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Errorf("%s: the connection stays open after %.20q", when, garbage)
			}
		}
		udp, err := net.Dial("udp", loopback(n.HTTPS))
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		for _, first := range []byte{0x00, 0x40, 0xc0, 0xff} { // short and long headers among them
			for _, size := range []int{1, 20, 1200} {
				udp.Write(append([]byte{first}, bytes.Repeat([]byte{0x5a}, size-1)...))
			}
		}
	}
	serves("before")
	throw("without passthrough routes")
	serves("without passthrough routes")
	cert, _ := selfSigned(t, "pass.r.test")
	n.mustPut("routes/pass", passthroughRoute("pass.r.test", startTLSBackend(t, cert, named("passed"))))
	throw("with a passthrough route")
	serves("with a passthrough route")
	for _, c := range clients {
		if got := c.dials.Load(); got != 1 {
			t.Errorf("%s: %d connections, want the first one to last", c.proto, got)
		}
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

// Backends with TLS are verified, unless the route says otherwise.
func TestTLSBackends(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	cert, _ := selfSigned(t, "inner.test")
	backend := startTLSBackend(t, cert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %q", r.URL.Path, r.TLS.ServerName)
	}))
	n.mustPut("routes/verified", backendRoute("verified.r.test", "https://"+backend))
	insecure := func(tls map[string]any) string {
		tls["insecure_skip_verify"] = true
		return routeJSON(map[string]any{"host": "trusted.r.test", "backend": map[string]any{"targets": []string{backend}, "tls": tls}})
	}
	n.mustPut("routes/trusted", insecure(map[string]any{}))
	eachProto(t, n, func(t *testing.T, c *client) {
		if resp, body := c.get("verified.r.test", "/"); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("a certificate of nobody's: %d %q, want 502", resp.StatusCode, body)
		}
		if resp, body := c.get("trusted.r.test", "/x"); resp.StatusCode != 200 || !strings.HasPrefix(body, "/x for ") {
			t.Errorf("any certificate: %d %q", resp.StatusCode, body)
		}
	})
	n.mustPut("routes/trusted", insecure(map[string]any{"server_name": "inner.test"}))
	if _, body := newClient(t, n, "h2").get("trusted.r.test", "/"); body != `/ for "inner.test"` {
		t.Errorf("with server_name: %q", body)
	}
	record := n.accessRecord(map[string]any{"route": "verified", "status": 502})
	if end := fmt.Sprint(record["end"]); end == "" || end == "done" {
		t.Errorf("access record: end is %q, want what went wrong", end)
	}
}

// Without a certificate for a name there is no handshake, and nothing worse.
func TestNoCertificate(t *testing.T) {
	t.Parallel()
	n := startNode(t, withoutLocalCA())
	cert, roots := selfSigned(t, "pass.r.test")
	n.mustPut("routes/site", respondRoute("*", "site"))
	for _, name := range []string{"unknown.r.test", ""} {
		c := tls.Client(n.dialTCP(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		err := c.HandshakeContext(within(t))
		if err == nil || isTimeout(err) {
			t.Errorf("server name %q: %v, want a refusal", name, err)
		}
	}
	h3 := newClientWith(t, n, "h3", roots)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if resp, _, err := h3.do(h3.request(ctx, http.MethodGet, "unknown.r.test", "/", nil)); err == nil || ctx.Err() != nil {
		t.Errorf("by HTTP/3: %v, %v, want a refusal", resp, err)
	}
	// The name needs no certificate of the node's where TLS passes through.
	n.mustPut("routes/pass", passthroughRoute("pass.r.test", startTLSBackend(t, cert, named("passed"))))
	c := newClientWith(t, n, "h2", roots)
	if _, body := c.get("pass.r.test", "/"); !strings.HasPrefix(body, "passed: ") {
		t.Errorf("passthrough: body %q", body)
	}
	if status, _, err := httpGet("http://" + n.Admin + "/healthz"); err != nil || status != 200 {
		t.Errorf("the node's health: %d, %v", status, err)
	}
}
