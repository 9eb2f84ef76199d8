package http_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// webSocketEcho sends every message back.
func webSocketEcho(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for {
		kind, message, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

func TestWebSocket(t *testing.T) {
	getCertificate, roots := authority(t, "app.x.test")
	secure := httptest.NewUnstartedServer(http.HandlerFunc(webSocketEcho))
	secure.TLS = &tls.Config{GetCertificate: getCertificate}
	secure.EnableHTTP2 = true // which must not be chosen for a WebSocket
	secure.StartTLS()
	defer secure.Close()
	for name, target := range map[string]string{
		"clear": backend(t, webSocketEcho), "tls": "https://" + secure.Listener.Addr().String(),
	} {
		t.Run("backend "+name, func(t *testing.T) {
			r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + target + `"}`},
				func(cfg *proxyhttp.Config, _ *rig) { cfg.UpstreamRoots = roots })
			for _, p := range []*peer{r.h1Clear(), r.h1TLS()} {
				t.Run(p.name, func(t *testing.T) { testWebSocket(t, p) })
			}
		})
	}
}

func testWebSocket(t *testing.T, p *peer) {
	p.Timeout = 0
	c, resp, err := websocket.Dial(t.Context(), p.url("app.x.test", "/ws"), &websocket.DialOptions{
		HTTPClient: p.Client, Subprotocols: []string{"chat"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	if resp.Header.Get("Sec-Websocket-Protocol") != "chat" {
		t.Errorf("header %v", resp.Header)
	}
	large := make([]byte, 300<<10)
	rand.Read(large)
	for _, message := range [][]byte{[]byte("hello"), large, []byte("again")} {
		if err := c.Write(t.Context(), websocket.MessageBinary, message); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes, %v, want %d", len(got), err, len(message))
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("close: %v", err)
	}
	record := p.rig.log.wait(t, "/ws")
	if record["status"] != 101.0 || record["end"] != "done" || record["bytes_up"].(float64) < 300<<10 || record["bytes_down"].(float64) < 300<<10 {
		t.Errorf("log record %v", record)
	}
}

// switching is a backend that changes to a protocol of bare bytes.
func switching(t *testing.T, serve func(c *net.TCPConn, in *bufio.Reader)) string {
	return rawBackend(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") != "bytes" || req.Header.Get("Connection") != "Upgrade" {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: bytes\r\nX-From: backend\r\n\r\nearly ")
		serve(c, in)
	})
}

const upgradeRequest = "GET /up HTTP/1.1\r\nHost: app.x.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: bytes\r\n\r\n"

// readHead reads a response head, byte by byte so that what follows it stays.
func readHead(t *testing.T, c io.Reader) string {
	t.Helper()
	var head []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("%v after %q", err, head)
		}
		head = append(head, one[0])
	}
	return string(head)
}

// TestHalfClose has the client end its direction while the backend's goes on.
func TestHalfClose(t *testing.T) {
	addr := switching(t, func(c *net.TCPConn, in *bufio.Reader) {
		all, err := io.ReadAll(in)
		fmt.Fprintf(c, "got %q, %v", all, err)
	})
	r := toBackend(t, addr)(t)
	for name, c := range map[string]interface {
		net.Conn
		CloseWrite() error
	}{"clear": r.dialClear().(*net.TCPConn), "tls": r.dialTLS("app.x.test")} {
		io.WriteString(c, upgradeRequest+"at once, ") // behind the head, in the same segment
		head := readHead(t, c)
		for _, want := range []string{"HTTP/1.1 101 ", "Connection: Upgrade\r\n", "Upgrade: bytes\r\n", "X-From: backend\r\n"} {
			if !strings.Contains(head, want) {
				t.Errorf("%s: head %q lacks %q", name, head, want)
			}
		}
		io.WriteString(c, "later")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != `early got "at once, later", <nil>` {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if record := r.log.wait(t, "/up"); record["end"] != "done" || record["bytes_up"] != 14.0 {
		t.Errorf("log record %v", record)
	}
}

func TestSilentUpgradeEnds(t *testing.T) {
	addr := switching(t, func(_ *net.TCPConn, in *bufio.Reader) { io.Copy(io.Discard, in) })
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `","timeouts":{"idle":"100ms"}}`})
	c := r.dialClear()
	io.WriteString(c, upgradeRequest)
	readHead(t, c)
	io.Copy(io.Discard, c)
	if record := r.log.wait(t, "/up"); record["end"] != "idle" {
		t.Errorf("log record %v", record)
	}
}

// TestUpgradesNotOffered checks that requests to change to HTTP/2 or to TLS stay
// plain requests, and so do those over HTTP/1.0.
func TestUpgradesNotOffered(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			got := req.Header.Get("Upgrade") + req.Header.Get("Http2-Settings") + req.Header.Get("Connection")
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(got), got)
		}
	})
	r := toBackend(t, addr)(t)
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: app.x.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.x.test\r\nConnection: Upgrade\r\nUpgrade: TLS/1.3, websocket\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: app.x.test\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.0\r\nHost: app.x.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		if body := readAll(t, exchange1(t, r.dialClear(), request).Body); body != "" {
			t.Errorf("%q: the backend was offered %q", request, body)
		}
	}
}

// TestRefusedUpgrade has a backend answer an offer with a plain response.
func TestRefusedUpgrade(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	c := r.dialClear()
	in := bufio.NewReader(c)
	for range 2 {
		io.WriteString(c, upgradeRequest)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "GET /up host=app.x.test body=" {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
}

func TestShutdownWaitsForUpgraded(t *testing.T) {
	addr := switching(t, func(c *net.TCPConn, in *bufio.Reader) { io.Copy(c, in) })
	for _, tc := range []struct {
		name  string
		limit time.Duration
		cut   int
		end   string
		clear bool
	}{
		{"cut", 50 * time.Millisecond, 1, "shutdown", false}, {"done", patience, 0, "done", false},
		{"cut clear", 50 * time.Millisecond, 1, "shutdown", true}, {"done clear", patience, 0, "done", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := toBackend(t, addr)(t)
			var c interface {
				net.Conn
				CloseWrite() error
			} = r.dialTLS("app.x.test")
			if tc.clear {
				c = r.dialClear().(*net.TCPConn)
			}
			io.WriteString(c, upgradeRequest)
			readHead(t, c)
			var draining sync.WaitGroup
			draining.Go(func() {
				if cut := r.shutdown(tc.limit); cut != tc.cut {
					t.Errorf("%d cut, want %d", cut, tc.cut)
				}
			})
			early := make([]byte, len("early hi"))
			io.WriteString(c, "hi")
			if _, err := io.ReadFull(c, early); err != nil {
				t.Fatal(err)
			}
			if tc.cut == 0 {
				c.CloseWrite()
			}
			io.Copy(io.Discard, c)
			draining.Wait()
			if record := r.log.wait(t, "/up"); record["end"] != tc.end {
				t.Errorf("log record %v, want end %s", record, tc.end)
			}
		})
	}
}
