package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// beginDrain tells the node to stop and returns when it takes up nothing new.
func (n *node) beginDrain() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	eventually(n.t, "readiness says draining", func() error {
		status, body, err := httpGet("http://" + n.Admin + "/readyz")
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, "draining")) {
			err = fmt.Errorf("it is %d %s", status, body)
		}
		return err
	})
	for _, port := range []int{n.HTTPS, n.HTTP} {
		eventually(n.t, "new connections are refused", func() error { return dialRefused(port) })
	}
}

// putHeld puts a route to a backend that answers when release is closed.
func (n *node) putHeld(host string) (arrived, release chan struct{}) {
	n.t.Helper()
	arrived, release = make(chan struct{}, 10), make(chan struct{})
	n.mustPut("routes/held", backendRoute(host, startBackend(n.t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
			io.WriteString(w, "released")
		case <-r.Context().Done():
		}
	}))))
	return arrived, release
}

func TestDrainLetsExchangesFinish(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("1h")) // wait gives up long before
	n.mustPut("routes/idle", respondRoute("idle.r.test", "ok"))
	arrived, release := n.putHeld("held.r.test")
	type result struct {
		proto string
		resp  *http.Response
		body  string
		err   error
	}
	results := make(chan result, 3)
	protos := []string{"h1", "h2", "h3"}
	for _, proto := range protos {
		idle := newClient(t, n, proto)
		idle.get("idle.r.test", "/") // its connection must not keep the node
		c := newClient(t, n, proto)
		req := c.request(within(t), http.MethodGet, "held.r.test", "/", nil)
		go func() {
			resp, body, err := c.do(req)
			results <- result{proto, resp, body, err}
		}()
		await(t, arrived, "the request at the backend")
	}
	n.beginDrain()
	config := &tls.Config{RootCAs: n.roots(), ServerName: "held.r.test", NextProtos: []string{"h3"}}
	if conn, err := quic.DialAddr(within(t), loopback(n.HTTPS), config, &quic.Config{HandshakeIdleTimeout: time.Second}); err == nil {
		conn.CloseWithError(0, "")
		t.Error("a new QUIC connection was taken up")
	}
	close(release)
	for range protos {
		r := await(t, results, "a response")
		if r.err != nil || r.body != "released" {
			t.Errorf("%s: %q, %v", r.proto, r.body, r.err)
		} else if r.proto == "h1" && !r.resp.Close {
			t.Errorf("%s: the answer does not say Connection: close", r.proto)
		}
	}
	if code := n.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// HTTP/2 clients are told by GOAWAY, after which what they had asked for is
// still answered, and the connection closes.
func TestDrainSendsGoAway(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("1h"))
	arrived, release := n.putHeld("held.r.test")
	c := n.dialTLS("held.r.test", "h2")
	if got := c.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Fatalf("ALPN chose %q", got)
	}
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, bufio.NewReader(c))
	framer.WriteSettings()
	var block bytes.Buffer
	fields := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "held.r.test"}, {":path", "/"}} {
		fields.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	await(t, arrived, "the request at the backend")

	goAway, ended := make(chan struct{}), make(chan error, 1)
	var body []byte
	go func() { // owns the framer's reading side
		told := false
		for {
			frame, err := framer.ReadFrame()
			if err != nil {
				ended <- fmt.Errorf("%q came before %w", body, err)
				return
			}
			switch f := frame.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					framer.WriteSettingsAck()
				}
			case *http2.GoAwayFrame:
				if f.ErrCode != http2.ErrCodeNo {
					ended <- fmt.Errorf("GOAWAY with %v", f.ErrCode)
					return
				}
				if !told {
					told = true
					close(goAway)
				}
			case *http2.DataFrame:
				body = append(body, f.Data()...)
				if f.StreamEnded() {
					ended <- nil
					return
				}
			case *http2.RSTStreamFrame:
				ended <- fmt.Errorf("the stream was reset with %v", f.ErrCode)
				return
			}
		}
	}()
	n.beginDrain()
	await(t, goAway, "GOAWAY")
	close(release)
	if err := await(t, ended, "the end of the response"); err != nil {
		t.Fatal(err)
	}
	if string(body) != "released" {
		t.Errorf("body %q", body)
	}
	if _, err := io.Copy(io.Discard, c); isTimeout(err) {
		t.Error("the connection stays open")
	}
	if code := n.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestDrainWaitsForAWebSocket(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("1h"))
	echo, _ := startEcho(t, "")
	n.mustPut("routes/ws", backendRoute("ws.r.test", echo))
	c := webSocket(t, n, "ws.r.test", "/")
	n.beginDrain()
	if got := say(t, c, websocket.MessageText, []byte("still here")); string(got) != "still here" {
		t.Errorf("while draining: %q", got)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("closing handshake: %v", err)
	}
	if code := n.wait(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// What is open at the limit is cut, so that nobody takes it for complete, and
// the exit code says so.
func TestDrainCutsExchangesAtItsLimit(t *testing.T) {
	t.Parallel()
	n := startNode(t, withDrainTimeout("2s"))
	echo, _ := startEcho(t, "")
	n.mustPut("routes/ws", backendRoute("ws.r.test", echo))
	n.mustPut("routes/endless", backendRoute("endless.r.test", startBackend(t, http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "begun\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))))
	socket := webSocket(t, n, "ws.r.test", "/")
	if got := say(t, socket, websocket.MessageText, []byte("hello")); string(got) != "hello" {
		t.Errorf("%q", got)
	}
	bodies := map[string]*bufio.Reader{}
	for _, proto := range []string{"h1", "h2", "h3"} {
		c := newClient(t, n, proto)
		resp, err := c.open(c.request(within(t), http.MethodGet, "endless.r.test", "/", nil))
		if err != nil {
			t.Fatalf("%s: %v", proto, err)
		}
		defer resp.Body.Close()
		bodies[proto] = bufio.NewReader(resp.Body)
		if line, err := bodies[proto].ReadString('\n'); err != nil {
			t.Fatalf("%s: %q, %v", proto, line, err)
		}
	}
	n.signal(syscall.SIGTERM)
	if code := n.wait(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	for proto, body := range bodies {
		if rest, err := io.ReadAll(body); err == nil {
			t.Errorf("%s: a response that was cut looks whole to the client, with %q", proto, rest)
		}
	}
	if _, _, err := socket.Read(within(t)); err == nil || websocket.CloseStatus(err) == websocket.StatusNormalClosure {
		t.Errorf("the WebSocket ended with %v, want it cut", err)
	}
}
