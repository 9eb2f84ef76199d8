package http_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// The ports that the listeners of a rig are said to have.
const (
	clearPort = 8080
	tlsPort   = 8443
)

// patience bounds every wait for something that should happen soon.
const patience = 10 * time.Second

// rig is a Server behind real listeners: clear TCP, TLS over TCP, and QUIC.
type rig struct {
	t        *testing.T
	server   *proxyhttp.Server
	registry *prometheus.Registry
	log      *logBook
	roots    *x509.CertPool

	table   atomic.Pointer[router.Table]
	builder router.Builder

	clear, secure *net.TCPListener
	quic          *net.UDPConn
	loops         *l4.Server // copies between upgraded pairs
	endQUIC       context.CancelFunc
	serving       sync.WaitGroup
	info          func(*proxyhttp.ConnInfo)   // edits what ServeConn is told
	wrap          func(*net.TCPConn) net.Conn // nil: connections are served as they are
	stopOnce      sync.Once
}

type rigOption func(*proxyhttp.Config, *rig)

// newRig starts a rig with routes, which answer on every listener unless they
// say otherwise. It stops with the test.
func newRig(t *testing.T, routes map[string]string, options ...rigOption) *rig {
	t.Helper()
	r := &rig{t: t, registry: prometheus.NewRegistry(), log: &logBook{}}
	r.setRoutes(routes)
	getCertificate, roots := authority(t, "x.test", "*.x.test", "*.remotegpu.com", "127.0.0.1")
	r.roots = roots
	cfg := proxyhttp.Config{
		Table:      r.table.Load,
		Dialer:     upstream.NewDialer(upstream.Config{Logger: slog.New(slog.DiscardHandler)}),
		TLS:        &tls.Config{GetCertificate: getCertificate},
		HTTPSPort:  tlsPort,
		AccessLog:  slog.New(slog.NewJSONHandler(r.log, nil)),
		Logger:     slog.New(slog.DiscardHandler),
		Registerer: r.registry,
	}
	r.joinLoops(&cfg)
	for _, option := range options {
		option(&cfg, r)
	}
	var err error
	if r.server, err = proxyhttp.New(cfg); err != nil {
		t.Fatal(err)
	}
	r.listen()
	t.Cleanup(r.stop)
	return r
}

// setRoutes makes routes the table in force.
func (r *rig) setRoutes(routes map[string]string) {
	r.t.Helper()
	for name, value := range routes {
		if !strings.Contains(value, `"ports"`) {
			value = fmt.Sprintf(`{"ports":"%d,%d",`, clearPort, tlsPort) + strings.TrimPrefix(strings.TrimSpace(value), "{")
		}
		route, err := router.ParseRoute(name, []byte(value))
		if err != nil {
			r.t.Fatalf("route %s: %v", name, err)
		}
		r.builder.SetRoute(route)
	}
	r.table.Store(r.builder.Table(1))
}

func (r *rig) listen() {
	loopback := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	var err error
	if r.clear, err = net.ListenTCP("tcp", &loopback); err != nil {
		r.t.Fatal(err)
	}
	if r.secure, err = net.ListenTCP("tcp", &loopback); err != nil {
		r.t.Fatal(err)
	}
	if r.quic, err = net.ListenUDP("udp", &net.UDPAddr{IP: loopback.IP}); err != nil {
		r.t.Fatal(err)
	}
	r.serving.Go(func() { r.accept(r.clear, proxyhttp.ConnInfo{Port: clearPort}) })
	r.serving.Go(func() { r.accept(r.secure, proxyhttp.ConnInfo{Port: tlsPort, TLS: true, AltSvcPort: tlsPort}) })
	ctx, cancel := context.WithCancel(context.Background())
	r.endQUIC = cancel
	r.serving.Go(func() {
		if err := r.server.ServeQUIC(ctx, r.quic, tlsPort); err != nil {
			r.t.Errorf("ServeQUIC: %v", err)
		}
	})
}

func (r *rig) accept(ln *net.TCPListener, info proxyhttp.ConnInfo) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		info := info
		info.Client = c.RemoteAddr().(*net.TCPAddr).AddrPort()
		if r.info != nil {
			r.info(&info)
		}
		served := net.Conn(c)
		if r.wrap != nil {
			served = r.wrap(c)
		}
		r.serving.Go(func() { r.server.ServeConn(served, info) })
	}
}

// shutdown drains the server for at most limit.
func (r *rig) shutdown(limit time.Duration) (cut int) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return r.server.Shutdown(ctx)
}

func (r *rig) stop() {
	r.stopOnce.Do(func() {
		r.clear.Close()
		r.secure.Close()
		r.shutdown(0)
		r.endQUIC()
		r.serving.Wait()
		r.quic.Close()
		r.loops.Shutdown(context.Background())
	})
}

// peer is a client of a rig that speaks one version of HTTP.
type peer struct {
	*http.Client
	rig    *rig
	name   string // "h1 clear", "h1 tls", "h2" or "h3"
	proto  string // as the access log has it
	scheme string
	close  func()
}

// peers returns a client for each version, made to check certificates.
func (r *rig) peers() []*peer {
	return []*peer{r.h1Clear(), r.h1TLS(), r.h2(), r.h3()}
}

// overAll runs test with a fresh rig's peer for each version.
func overAll(t *testing.T, start func(t *testing.T) *rig, test func(t *testing.T, p *peer)) {
	t.Helper()
	for i, name := range []string{"h1 clear", "h1 tls", "h2", "h3"} {
		t.Run(name, func(t *testing.T) {
			p := start(t).peers()[i]
			test(t, p)
		})
	}
}

func (r *rig) tcpPeer(name, proto string, protocols func(*http.Protocols), secure bool) *peer {
	var set http.Protocols
	protocols(&set)
	p := &peer{rig: r, name: name, proto: proto, scheme: "http"}
	addr := r.clear.Addr().String()
	if secure {
		p.scheme, addr = "https", r.secure.Addr().String()
	}
	transport := &http.Transport{
		Protocols: &set, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: r.roots},
		ExpectContinueTimeout: patience,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}
	return p.with(transport, transport.CloseIdleConnections)
}

// with completes p, which follows no redirect.
func (p *peer) with(transport http.RoundTripper, close func()) *peer {
	p.Client = &http.Client{Transport: transport, Timeout: 6 * patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	p.close = close
	p.rig.t.Cleanup(close)
	return p
}

func (r *rig) h1Clear() *peer {
	return r.tcpPeer("h1 clear", "h1", func(p *http.Protocols) { p.SetHTTP1(true) }, false)
}

func (r *rig) h1TLS() *peer {
	return r.tcpPeer("h1 tls", "h1", func(p *http.Protocols) { p.SetHTTP1(true) }, true)
}

func (r *rig) h2() *peer {
	return r.tcpPeer("h2", "h2", func(p *http.Protocols) { p.SetHTTP2(true) }, true)
}

func (r *rig) h3() *peer {
	addr := r.quic.LocalAddr().String()
	transport := &http3.Transport{
		DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: r.roots},
		Dial: func(ctx context.Context, _ string, tlsCfg *tls.Config, cfg *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, addr, tlsCfg, cfg)
		},
	}
	p := &peer{rig: r, name: "h3", proto: "h3", scheme: "https"}
	return p.with(transport, func() { transport.Close() })
}

func (p *peer) url(host, target string) string { return p.scheme + "://" + host + target }

func (p *peer) isH1() bool { return p.proto == "h1" }

// request makes a request that ends with the test.
func (p *peer) request(method, host, target string, body io.Reader) *http.Request {
	p.rig.t.Helper()
	req, err := http.NewRequestWithContext(p.rig.t.Context(), method, p.url(host, target), body)
	if err != nil {
		p.rig.t.Fatal(err)
	}
	return req
}

// send sends req and fails the test where there is no response.
func (p *peer) send(t *testing.T, req *http.Request) *http.Response {
	t.Helper()
	resp, err := p.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// get sends a GET and returns the response with its body read.
func (p *peer) get(t *testing.T, host, target string) (*http.Response, string) {
	t.Helper()
	resp := p.send(t, p.request("GET", host, target, nil))
	return resp, readAll(t, resp.Body)
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read a body: %v (after %q)", err, b)
	}
	return string(b)
}

// authority makes a CA and a certificate of it for names, and returns how to
// get the certificate and whom to trust.
func authority(t *testing.T, names ...string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), *x509.CertPool) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip, err := netip.ParseAddr(name); err == nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip.AsSlice())
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	cert := &tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: caKey}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }, roots
}

// backend starts an HTTP/1.1 server and returns its address.
func backend(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.Listener.Addr().String()
}

// rawBackend starts a server that hands each connection to serve.
func rawBackend(t *testing.T, serve func(c *net.TCPConn)) string {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	conns := map[*net.TCPConn]bool{}
	serving.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			serving.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return ln.Addr().String()
}

// logBook keeps access log records.
type logBook struct {
	mu      sync.Mutex
	records []map[string]any
}

func (b *logBook) Write(p []byte) (int, error) {
	record := map[string]any{}
	if err := json.Unmarshal(p, &record); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = append(b.records, record)
	return len(p), nil
}

// wait returns the first record whose path is path, once it is there.
func (b *logBook) wait(t *testing.T, path string) map[string]any {
	t.Helper()
	var found map[string]any
	eventually(t, "a log record for "+path, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range b.records {
			if r["path"] == path {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// soon receives from c, which should have something soon.
func soon[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
