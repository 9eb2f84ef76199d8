package l4_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/router"
)

// On a port with both a backend and http the first bytes decide.
func TestOneePortSeveralProtocols(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "http": "127.0.0.1:1"}`, b.addr)

	for _, tt := range []struct {
		name  string
		sends []string // each in a segment of its own
		tls   bool
		http  bool
	}{
		{name: "TLS", sends: []string{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"}, tls: true, http: true},
		{name: "HTTP/1.1", sends: []string{"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n"}, http: true},
		{name: "HTTP/1.1 in pieces", sends: []string{"G", "E", "T ", "/ HTTP/1.1\r\n"}, http: true},
		{name: "HTTP/2", sends: []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}, http: true},
		{name: "ssh", sends: []string{"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"}},
		{name: "RDP", sends: []string{"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"}},
		{name: "nearly HTTP", sends: []string{"GETAWAY"}},
		{name: "a zero", sends: []string{"\x00"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, p)
			var all string
			for _, s := range tt.sends {
				send(t, c, s)
				all += s
			}
			if !tt.http {
				s := b.next(t)
				expect(t, s, all)
				send(t, s, "answer")
				expect(t, c, "answer")
				n.hangUp(c, s)
				return
			}
			h := n.handedOn()
			if h.tls != tt.tls || h.mapping != p.mapping.Load() {
				t.Errorf("handed on with tls %v and mapping %v", h.tls, h.mapping)
			}
			expect(t, h.conn, all)
			send(t, h.conn, "answer")
			expect(t, c, "answer")
			if got, want := h.conn.RemoteAddr().String(), c.LocalAddr().String(); got != want {
				t.Errorf("remote address %s, want %s", got, want)
			}
			h.conn.(interface{ CloseWrite() error }).CloseWrite()
			expectEOF(t, c)
			c.Close()
			expectEOF(t, h.conn)
			h.conn.Close()
			h.conn.Close()
		})
	}
	if len(n.flows) > 0 {
		t.Errorf("a connection that HTTP took over was logged as a flow: %v", <-n.flows)
	}
}

// A client that waits for the server to speak gets the backend's greeting.
func TestServerSpeaksFirst(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "http": "127.0.0.1:1"}`, b.addr)
	began := time.Now()
	c, s := n.open(t, p, b)
	if took := time.Since(began); took < 250*time.Millisecond || took > patience/2 {
		t.Errorf("the backend was dialled after %v of silence, want about 300ms", took)
	}
	send(t, s, "220 mail.x.test\r\n")
	expect(t, c, "220 mail.x.test\r\n")
	send(t, c, "GET is what I say now\r\n") // too late to be taken for HTTP
	expect(t, s, "GET is what I say now\r\n")
	n.hangUp(c, s)

	t.Run("FIN at once", func(t *testing.T) {
		c := dial(t, p)
		c.CloseWrite()
		s := b.next(t)
		expectEOF(t, s)
		send(t, s, "time of day")
		s.Close()
		expect(t, c, "time of day")
		n.wantEnd("client_closed")
	})
	t.Run("reset at once", func(t *testing.T) {
		c := dial(t, p)
		abort(c)
		n.wantEnd("client_reset")
	})
}

func TestHTTPOnly(t *testing.T) {
	n := newNode(t)
	p := n.tcp(`{"http": "127.0.0.1:1"}`)
	for _, tt := range []struct {
		sends string
		tls   bool
	}{{"\x16", true}, {"G", false}, {"\x00garbage", false}} {
		c := dial(t, p)
		send(t, c, tt.sends)
		h := n.handedOn()
		if h.tls != tt.tls {
			t.Errorf("%q: handed on with tls %v", tt.sends, h.tls)
		}
		expect(t, h.conn, tt.sends)
		h.conn.Close()
	}
	c := dial(t, p)
	c.Close()
	n.wantEnd("client_closed")
	// One that is silent is closed when the node stops, and is not a loss.
	silent := dial(t, p)
	eventually(t, "the silent connection is listed", func() bool { return n.live() == 1 })
	done := make(chan int)
	go func() { done <- n.server.Shutdown(context.Background()) }()
	expectReset(t, silent)
	if cut := <-done; cut != 0 {
		t.Errorf("Shutdown cut %d flows, want 0", cut)
	}
	n.wantEnd("drain")
}

// A connection that gets round to waiting for its first byte when the node has
// begun to stop is closed as well.
func TestWaitingForTheFirstByteOfANodeThatStops(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	p := n.tcp(`{"http": "127.0.0.1:1", "proxy_protocol": {"accept": true}}`)
	c := dial(t, p)
	eventually(t, "the connection is listed", func() bool { return n.live() == 1 })
	done := make(chan int, 1)
	go func() { done <- n.server.Shutdown(context.Background()) }()
	eventually(t, "the node stops", func() bool { return l4.IsDraining(n.server) })
	send(t, c, "PROXY TCP4 203.0.113.7 198.51.100.1 4000 443\r\n")
	expectReset(t, c)
	if cut := <-done; cut != 0 {
		t.Errorf("Shutdown cut %d flows, want 0", cut)
	}
}

// A connection that is still silent when its mapping is edited is decided by
// the mapping in force when it speaks.
func TestEditBeforeTheFirstByte(t *testing.T) {
	n := newNode(t)
	p := n.tcp(`{"http": "127.0.0.1:1"}`)
	c := dial(t, p)
	eventually(t, "the connection is listed", func() bool { return n.live() == 1 })
	n.edit(p, `{"http": "127.0.0.1:2"}`)
	n.edit(p, `{"http": "127.0.0.1:3"}`)
	send(t, c, "GET / HTTP/1.1\r\n")
	h := n.handedOn()
	if h.mapping != p.mapping.Load() {
		t.Errorf("handed on under the mapping of %v", h.mapping.HTTP.Targets[0].Address)
	}
	h.conn.Close()
}

// A handed-on connection counts against the limits of its mapping, keeps to its
// bandwidth, and ends when it is withdrawn.
func TestHandedOnConnectionsBelongToTheMapping(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	const value = `{"backend": "%s", "http": "127.0.0.1:1", "limits": {"connections": 1, "bytes_per_second": {"up": "1MB", "down": "1MB"}}}`
	p := n.tcp(value, b.addr)
	c := dial(t, p)
	send(t, c, "GET / ")
	h := n.handedOn()
	expectRefusal(t, p)
	n.wantEnd("limit")
	for f := range n.server.Flows() {
		if !f.HTTP || f.Port != int(p.addr.Port()) {
			t.Errorf("live flow %+v, want one of HTTP", f)
		}
	}
	expect(t, h.conn, "GET / ")
	began := time.Now()
	go io.CopyN(h.conn, zeros{}, 300_000)
	if _, err := io.CopyN(io.Discard, struct{ io.Reader }{c}, 300_000); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("300 KB at 1 MB/s took %v", took)
	}
	n.edit(p, value, newBackend(t, echo).addr) // another backend for bytes, the same for HTTP
	send(t, c, "still there")
	expect(t, h.conn, "still there")
	n.edit(p, `{"http": "127.0.0.1:2"}`)
	expectReset(t, c)
	h.conn.Close()
	if got := n.live(); got != 0 {
		t.Errorf("%d live flows, want 0", got)
	}
	c = dial(t, p)
	send(t, c, "G")
	h = n.handedOn()
	if cut := n.server.Shutdown(ended()); cut != 0 {
		t.Errorf("Shutdown cut %d flows; what was handed on is its owner's to end", cut)
	}
	expect(t, h.conn, "G")
	h.conn.Close()
}

func TestProxyHeaderBeforeHTTP(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "http": "127.0.0.1:1", "proxy_protocol": {"accept": true}}`, b.addr)
	client := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4000}
	public := &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 443}
	header, err := proxyproto.HeaderProxyFromAddrs(2, client, public).Format()
	if err != nil {
		t.Fatal(err)
	}
	for _, sends := range [][]string{
		{string(header) + "GET / HTTP/1.1\r\n\r\n"},
		{string(header) + "GE", "T / HTTP/1.1\r\n\r\n"},
		{string(header), "GET / HTTP/1.1\r\n\r\n"},
	} {
		c := dial(t, p)
		for _, s := range sends {
			send(t, c, s)
		}
		h := n.handedOn()
		if h.conn.RemoteAddr().String() != client.String() || h.conn.LocalAddr().String() != public.String() {
			t.Errorf("handed on as %v to %v, want %v to %v", h.conn.RemoteAddr(), h.conn.LocalAddr(), client, public)
		}
		expect(t, h.conn, "GET / HTTP/1.1\r\n\r\n")
		h.conn.Close()
	}
	c := dial(t, p)
	send(t, c, string(header)+"SSH-2.0-x\r\n")
	s := b.next(t)
	expect(t, s, "SSH-2.0-x\r\n")
	n.hangUp(c, s)
}

// relay serves TLS connections as a route with "protocol": "tcp" does, and
// others as one with "tls": "passthrough".
func (n *node) relay(t *testing.T, terminate *tls.Config, peek int, spec l4.RelaySpec) (addr string) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	n.stop = append(n.stop, func() { ln.Close() })
	n.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.running.Go(func() {
				if terminate != nil {
					n.server.Relay(tls.Server(c, terminate), nil, spec)
					return
				}
				peeked := make([]byte, peek)
				io.ReadFull(c, peeked)
				n.server.Relay(c, peeked, spec)
			})
		}
	})
	return ln.Addr().String()
}

func spec(t *testing.T, backend, header string) l4.RelaySpec {
	t.Helper()
	r, err := router.ParseRoute("ssh", []byte(`{"host": "~^(?<id>[a-z]+)\\.x\\.test$", "tls": "passthrough", "backend": {"targets": ["`+backend+`"], "proxy_protocol": "`+header+`"}}`))
	if err != nil {
		t.Fatal(err)
	}
	return l4.RelaySpec{Listener: "https/443", Port: 443, Route: r.Name, Backend: r.Backend, Env: "abc", Service: "ssh"}
}

func TestRelayPassthrough(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	addr := n.relay(t, nil, 5, spec(t, b.addr, "v2"))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	send(t, c, "hello, world")
	s := b.next(t)
	header := make([]byte, 28) // of IPv4
	if _, err := io.ReadFull(s, header); err != nil {
		t.Fatal(err)
	}
	expect(t, s, "hello, world")
	send(t, s, "answer")
	expect(t, c, "answer")
	c.Close()
	expectEOF(t, s)
	s.Close()
	r := n.wantEnd("client_closed")
	want := record{"listener": "https/443", "port": int64(443), "route": "ssh", "env": "abc", "service": "ssh", "backend": b.addr,
		"bytes_up": int64(12), "bytes_down": int64(6), "client": c.LocalAddr().String()}
	for key, want := range want {
		if r[key] != want {
			t.Errorf("record: %s is %v, want %v", key, r[key], want)
		}
	}
}

func TestRelayTLS(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	server, client := tlsConfigs(t)
	addr := n.relay(t, server, 0, spec(t, b.addr, ""))
	connect := func(t *testing.T) (*tls.Conn, *net.TCPConn) {
		t.Helper()
		c, err := tls.Dial("tcp", addr, client)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.NetConn().Close() })
		c.SetDeadline(time.Now().Add(patience))
		s := b.next(t)
		send(t, c, "x")
		expect(t, s, "x")
		return c, s
	}
	t.Run("bytes and half-close", func(t *testing.T) {
		c, s := connect(t)
		const size = 3 << 20
		up := make(chan error, 1)
		go func() {
			_, err := io.CopyN(c, zeros{}, size)
			c.CloseWrite()
			up <- err
		}()
		if got, err := io.Copy(io.Discard, struct{ io.Reader }{s}); got != size || err != nil {
			t.Errorf("the backend received %d bytes, error %v; want %d", got, err, size)
		}
		if err := <-up; err != nil {
			t.Error(err)
		}
		go func() {
			io.CopyN(s, zeros{}, size)
			s.Close()
		}()
		if got, err := io.Copy(io.Discard, c); got != size || err != nil {
			t.Errorf("the client received %d bytes, error %v; want %d", got, err, size)
		}
		n.wantEnd("client_closed")
	})
	t.Run("client resets", func(t *testing.T) {
		c, s := connect(t)
		abort(c.NetConn().(*net.TCPConn))
		expectReset(t, s)
		n.wantEnd("client_reset")
	})
	t.Run("backend resets", func(t *testing.T) {
		c, s := connect(t)
		abort(s)
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the client reads %v, want an error that is not an orderly end", err)
		}
		n.wantEnd("backend_reset")
	})
	t.Run("no TLS", func(t *testing.T) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		send(t, c, "SSH-2.0-x\r\n")
		n.wantEnd("error")
	})
}

// tlsConfigs returns the two ends of a TLS connection that trusts itself.
func tlsConfigs(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"abc.x.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: roots, ServerName: "abc.x.test"}
}
