package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// in returns n for use by the subtest t. Starting and stopping are for n itself.
func (n *node) in(t *testing.T) *node {
	sub := *n
	sub.t = t
	return &sub
}

// within returns a context that ends with the test, or when patience does.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// startBackend serves handler by HTTP/1.1 and by HTTP/2 without TLS on
// loopback until the test ends, and returns its address.
func startBackend(t *testing.T, handler http.Handler) string {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: handler, Protocols: protocols, ErrorLog: log.New(io.Discard, "", 0)}
	ln := listenLoopback(t)
	serve(t, srv, ln)
	return ln.Addr().String()
}

// serve has srv serve ln until the test ends.
func serve(t *testing.T, srv *http.Server, ln net.Listener) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
}

// startRaw gives each connection to a new loopback address to handle, on a
// goroutine of its own, and closes it afterwards.
func startRaw(t *testing.T, handle func(c net.Conn)) string {
	t.Helper()
	return serveRaw(t, listenLoopback(t), handle)
}

// serveRaw is startRaw on a listener, which it closes.
func serveRaw(t *testing.T, ln net.Listener, handle func(c net.Conn)) string {
	t.Helper()
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			running.Go(func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return ln.Addr().String()
}

func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// await returns the next value from ch, or fails the test when patience ends.
func await[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	var v T
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case v = <-ch:
	case <-ctx.Done():
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// give sends to ch, or fails the test when patience ends.
func give(t *testing.T, ch chan<- struct{}, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case ch <- struct{}{}:
	case <-ctx.Done():
		t.Fatalf("nobody waited for %s", what)
	}
}

// client speaks one version of HTTP to a node. Whatever host a URL names, it
// connects to that port of this machine.
type client struct {
	t     *testing.T
	n     *node
	proto string // h1, h2 or h3
	http  *http.Client
	tls   *tls.Config
	dials atomic.Int64
}

// eachProto runs f as a subtest for each version of HTTP.
func eachProto(t *testing.T, n *node, f func(t *testing.T, c *client)) {
	t.Helper()
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) { f(t, newClient(t, n, proto)) })
	}
}

// newClient returns a client that trusts the node's development CA.
func newClient(t *testing.T, n *node, proto string) *client {
	t.Helper()
	return newClientWith(t, n, proto, n.roots())
}

// newClientWith returns a client that trusts roots.
func newClientWith(t *testing.T, n *node, proto string, roots *x509.CertPool) *client {
	t.Helper()
	c := &client{t: t, n: n.in(t), proto: proto, tls: &tls.Config{RootCAs: roots}}
	c.http = &http.Client{
		Transport:     c.transport(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

func (c *client) transport() http.RoundTripper {
	if c.proto == "h3" {
		tr := &http3.Transport{
			TLSClientConfig: c.tls, DisableCompression: true,
			Dial: func(ctx context.Context, addr string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
				c.dials.Add(1)
				return quic.DialAddrEarly(ctx, toLoopback(addr), t, q)
			},
		}
		c.t.Cleanup(func() { tr.Close() })
		return tr
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(c.proto == "h1")
	protocols.SetHTTP2(c.proto == "h2")
	tr := &http.Transport{
		Protocols: protocols, TLSClientConfig: c.tls, DisableCompression: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c.dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, toLoopback(addr))
		},
	}
	c.t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func toLoopback(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// request makes a request to the node's HTTPS port.
func (c *client) request(ctx context.Context, method, host, path string, body io.Reader) *http.Request {
	c.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, c.n.url(host, path), body)
	if err != nil {
		c.t.Fatal(err)
	}
	return req
}

// open sends req and returns the response, whose body is still to be read.
func (c *client) open(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if got := fmt.Sprintf("h%d", resp.ProtoMajor); got != c.proto {
		resp.Body.Close()
		return nil, fmt.Errorf("the response came by %s", got)
	}
	return resp, nil
}

// do sends req and returns the response and its whole body.
func (c *client) do(req *http.Request) (*http.Response, string, error) {
	resp, err := c.open(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// mustDo is do, and there must be a whole response.
func (c *client) mustDo(req *http.Request) (*http.Response, string) {
	c.t.Helper()
	resp, body, err := c.do(req)
	if err != nil {
		c.t.Fatalf("%s %s by %s: %v", req.Method, req.URL, c.proto, err)
	}
	return resp, body
}

func (c *client) get(host, path string) (*http.Response, string) {
	c.t.Helper()
	return c.mustDo(c.request(within(c.t), http.MethodGet, host, path, nil))
}
