package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"sync"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// A client that believes the announcement finds HTTP/3 where it was told to.
func TestAltSvcLeadsToHTTP3(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/site", respondRoute("site.r.test", "site"))
	resp, _ := newClient(t, n, "h1").get("site.r.test", "/")
	m := regexp.MustCompile(`^h3=":(\d+)"`).FindStringSubmatch(resp.Header.Get("Alt-Svc"))
	if m == nil {
		t.Fatalf("Alt-Svc: %q", resp.Header.Get("Alt-Svc"))
	}
	c := newClient(t, n, "h3")
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, "https://site.r.test:"+m[1]+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, body := c.mustDo(req); body != "site" {
		t.Errorf("body %q", body)
	}
}

// Many exchanges share one QUIC connection, each with its own bytes.
func TestHTTP3Concurrency(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const exchanges, size = 100, 100_000
	n.mustPut("routes/echo", backendRoute("echo.r.test", startBackend(t, http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			w.Write(body)
		}))))
	c := newClient(t, n, "h3")
	c.get("nobody.test", "/") // a connection is made for a host; this one is another's
	var running sync.WaitGroup
	for i := range exchanges {
		want, _ := io.ReadAll(pseudoRandom(byte(i), size))
		req := c.request(within(t), http.MethodPost, "echo.r.test", "/", bytes.NewReader(want))
		running.Go(func() {
			if _, got, err := c.do(req); err != nil || got != string(want) {
				t.Errorf("exchange %d: %d bytes, %v, not those that were sent", i, len(got), err)
			}
		})
	}
	running.Wait()
	if got := c.dials.Load(); got != 2 {
		t.Errorf("%d connections, want one for each host", got)
	}
}

// Answers come from the address that was asked: clients take them from nobody
// else.
func TestHTTP3OnEveryAddress(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/site", respondRoute("site.r.test", "site"))
	addresses := []string{"127.0.0.1", "127.0.0.2"}
	if ln, err := net.Listen("tcp", "[::1]:0"); err == nil { // not every machine has IPv6
		ln.Close()
		addresses = append(addresses, "::1")
	}
	for _, ip := range addresses {
		t.Run(ip, func(t *testing.T) {
			conn, err := net.Dial("udp", net.JoinHostPort(ip, fmt.Sprint(n.HTTPS))) // connected: takes no other sender's datagrams
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			udp := connectedUDP{conn.(*net.UDPConn)}
			tr := &http3.Transport{
				TLSClientConfig: &tls.Config{RootCAs: n.roots()},
				Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
					return quic.DialEarly(ctx, udp, conn.RemoteAddr(), t, q)
				},
			}
			defer tr.Close()
			req, err := http.NewRequestWithContext(within(t), http.MethodGet, n.url("site.r.test", "/"), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "site" {
				t.Errorf("body %q, %v", body, err)
			}
		})
	}
}

// connectedUDP makes a connected socket a net.PacketConn that can be written
// to.
type connectedUDP struct{ *net.UDPConn }

func (c connectedUDP) WriteTo(p []byte, _ net.Addr) (int, error) { return c.Write(p) }

// WriteMsgUDP is what quic-go writes by where it can.
func (c connectedUDP) WriteMsgUDP(p, oob []byte, _ *net.UDPAddr) (int, int, error) {
	return c.UDPConn.WriteMsgUDP(p, oob, nil)
}
