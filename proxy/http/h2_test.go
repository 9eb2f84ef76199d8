package http_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// TestH2MalformedRequests sends what RFC 9113 section 8 calls malformed. Each ends
// its stream and reaches no backend, and the connection goes on.
func TestH2MalformedRequests(t *testing.T) {
	rec := &recorder{}
	r := toBackend(t, rawBackend(t, rec.serve))(t)
	c := r.rawH2(t)
	stream := uint32(1)
	for name, lines := range map[string][]string{
		"no path":           {":method: GET", ":scheme: https", ":authority: app.x.test"},
		"capitals":          get("/", "X-Up: 1"),
		"connection":        get("/", "connection: close"),
		"te":                get("/", "te: gzip"),
		"transfer-encoding": get("/", "transfer-encoding: chunked"),
		"another host":      get("/", "host: other.x.test"),
		"line feed":         get("/", "a: b\nc: d"),
		"two lengths":       get("/", "content-length: 0", "content-length: 0"),
		"length":            get("/", "content-length: 5"),
		"pseudo behind":     append([]string{"a: b"}, get("/")...),
		"request line":      {":method: GET", ":scheme: https", ":authority: app.x.test", ":path: /secret HTTP/1.1\r\nA: b"},
	} {
		c.open(stream, true, lines...)
		if status, _ := c.response(stream); status != "reset: PROTOCOL_ERROR" {
			t.Errorf("%s: %s", name, status)
		}
		stream += 2
	}
	for name, body := range map[string][]string{"too long": {"123456"}, "too short": {"12", "34"}, "too long in parts": {"123", "456"}} {
		c.open(stream, false, append([]string{":method: POST"}, get("/body", "content-length: 5")[1:]...)...)
		for i, part := range body {
			c.framer.WriteData(stream, i == len(body)-1, []byte(part))
		}
		if status, _ := c.response(stream); status != "reset: PROTOCOL_ERROR" {
			t.Errorf("a body that is %s: %s", name, status)
		}
		stream += 2
	}
	c.open(stream, false, append([]string{":method: POST"}, get("/body")[1:]...)...)
	c.open(stream, false, "a: trailer")
	if status, _ := c.response(stream); status != "reset: PROTOCOL_ERROR" {
		t.Errorf("a trailer section without end: %s", status)
	}
	stream += 2
	c.open(stream, true, get("/good", "cookie: a=1", "cookie: b=2")...)
	if status, body := c.response(stream); status != "200" || body != "GET /good " {
		t.Errorf("then %s %q", status, body)
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if sent := rec.sent.String(); strings.Contains(sent, "secret") || !strings.Contains(sent, "cookie: a=1; b=2\r\n") {
		t.Errorf("the backend got %q", sent)
	}
}

// TestH2EarlyAnswer answers while the client may still send. One that sends the
// rest is not reset, nor one that ends before it has sent what it announced: some
// lose the answer then.
func TestH2EarlyAnswer(t *testing.T) {
	r := newRig(t, map[string]string{"it": `{"host":"app.x.test","respond":{"status":413,"body":"large"}}`})
	c := r.rawH2(t)
	stream := uint32(1)
	for _, tc := range []struct {
		lines  []string
		status string
	}{{nil, "413"}, {[]string{"content-length: 114688"}, "413"}, {[]string{"content-length: 120000"}, "413"}, {[]string{"large: " + strings.Repeat("x", 70<<10)}, "431"}} {
		for _, end := range []string{"DATA", "DATA", "DATA", "a trailer", "a trailer"} {
			c.openLarge(stream, append(append([]string{":method: POST"}, get("/")[1:]...), tc.lines...)...)
			c.framer.WriteData(stream, false, make([]byte, 16<<10))
			if status, _ := c.response(stream); status != tc.status {
				t.Fatal(status)
			}
			for i := range 6 {
				c.framer.WriteData(stream, i == 5 && end == "DATA", make([]byte, 16<<10))
			}
			if end == "a trailer" {
				c.open(stream, true, "x-sum: 1")
			}
			c.framer.WritePing(false, [8]byte{1})
			c.until("PING", func(f http2.Frame) bool {
				if f.Header().Type == http2.FrameRSTStream || f.Header().Type == http2.FrameGoAway {
					t.Errorf("%.30q, which ends with %s: %v", tc.lines, end, f)
				}
				return f.Header().Type == http2.FramePing
			})
			stream += 2
		}
	}
}

// TestH2EarlyAnswerBounds has clients send on and on behind their answer, or
// nothing at all: they are told to stop, and count as streams until then.
func TestH2EarlyAnswerBounds(t *testing.T) {
	const step = 16 << 10
	r := newRig(t, map[string]string{"it": `{"host":"app.x.test","respond":{"status":413,"body":"large"}}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Streams = 2 })
	c := r.rawH2(t)
	post := append([]string{":method: POST"}, get("/")[1:]...)
	for _, stream := range []uint32{1, 3} {
		c.open(stream, false, post...)
		if status, body := c.response(stream); status != "413" || body != "large" {
			t.Fatalf("%s %q", status, body)
		}
	}
	c.open(5, false, post...)
	if status, _ := c.response(5); status != "reset: REFUSED_STREAM" {
		t.Errorf("a third stream: %s", status)
	}
	sent, stopped := 0, map[uint32]bool{}
	windows := map[uint32]int{0: 1 << 20, 1: 512 << 10}
	for len(stopped) < 2 {
		if !stopped[1] && windows[0] >= step && windows[1] >= step {
			c.framer.WriteData(1, false, make([]byte, step))
			windows[0], windows[1], sent = windows[0]-step, windows[1]-step, sent+step
			continue
		}
		switch f := c.read().(type) {
		case nil:
			t.Fatal("the connection ended")
		case *http2.WindowUpdateFrame:
			windows[f.StreamID] += int(f.Increment)
		case *http2.RSTStreamFrame:
			if stopped[f.StreamID] = true; f.ErrCode != http2.ErrCodeNo {
				t.Errorf("stream %d: %v", f.StreamID, f.ErrCode)
			}
		}
	}
	if sent < 1<<20 {
		t.Errorf("the client was stopped after %d bytes", sent)
	}
	c.open(7, true, get("/")...)
	if status, body := c.response(7); status != "413" || body != "large" {
		t.Errorf("then: %s %q", status, body)
	}
}

// TestH2WebSocket asks for one by extended CONNECT (RFC 8441).
func TestH2WebSocket(t *testing.T) {
	r := toBackend(t, backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/page" {
			io.WriteString(w, "a page")
			return
		}
		webSocketEcho(w, r)
	}))(t)
	c := r.rawH2(t)
	ask := func(stream uint32, path string) {
		c.open(stream, false, ":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: app.x.test", ":path: "+path,
			"sec-websocket-version: 13", "sec-websocket-protocol: chat")
	}
	ask(1, "/")
	c.until("the answer", func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		if ok {
			if h.PseudoValue("status") != "200" || h.StreamEnded() {
				t.Errorf("%v", h.Fields)
			}
			for _, f := range h.RegularFields() {
				if f.Name == "upgrade" || f.Name == "connection" || f.Name == "sec-websocket-accept" {
					t.Errorf("the answer has %s", f.Name)
				}
			}
		}
		return ok
	})
	message := []byte{0x81, 0x85, 1, 2, 3, 4, 'h' ^ 1, 'e' ^ 2, 'l' ^ 3, 'l' ^ 4, 'o' ^ 1}
	for range 3 {
		c.framer.WriteData(1, false, message)
		var got []byte
		c.until("the echo", func(f http2.Frame) bool {
			if d, ok := f.(*http2.DataFrame); ok {
				got = append(got, d.Data()...)
			}
			return len(got) == 7
		})
		if string(got) != "\x81\x05hello" {
			t.Errorf("%q", got)
		}
	}
	c.framer.WriteData(1, true, []byte{0x88, 0x80, 0, 0, 0, 0}) // Close
	if status, _ := c.response(1); status != "" {
		t.Errorf("the tunnel ended with %s", status)
	}
	if record := r.log.wait(t, "/"); record["status"] != 101.0 || record["end"] != "done" || record["proto"] != "h2" {
		t.Errorf("log record %v", record)
	}
	ask(3, "/page") // a page is no WebSocket, whatever its status
	if status, body := c.response(3); status != "502" || body != "" {
		t.Errorf("no WebSocket: %s %q", status, body)
	}
	c.open(5, false, ":method: CONNECT", ":protocol: other", ":scheme: https", ":authority: app.x.test", ":path: /")
	if status, _ := c.response(5); status != "501" {
		t.Errorf("another protocol: %s", status)
	}
	c.open(7, false, ":method: CONNECT", ":authority: app.x.test:443")
	if status, _ := c.response(7); status != "501" {
		t.Errorf("CONNECT: %s", status)
	}
}

// TestH2WebSocketEnds has each side go without a word; the other must notice.
func TestH2WebSocketEnds(t *testing.T) {
	ended := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		if r.URL.Path == "/backend" {
			return
		}
		c.Read(context.Background())
		ended <- struct{}{}
	})
	r := toBackend(t, addr)(t)
	c := r.rawH2(t)
	for i, path := range []string{"/backend", "/client"} {
		stream := uint32(2*i + 1)
		c.open(stream, false, ":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: app.x.test", ":path: "+path,
			"sec-websocket-version: 13")
		if path == "/client" {
			c.until("the answer", func(f http2.Frame) bool { _, ok := f.(*http2.MetaHeadersFrame); return ok })
			c.framer.WriteRSTStream(stream, http2.ErrCodeCancel)
			soon(t, "the backend to notice", ended)
		} else {
			c.response(stream)
			c.framer.WriteData(stream, true, nil)
		}
		r.log.wait(t, path)
	}
}

// TestH2GoesInTwoSteps drains while an exchange is under way: a request that
// crosses the first GOAWAY is served, one behind the second is not.
func TestH2GoesInTwoSteps(t *testing.T) {
	held, arrived := make(chan struct{}), make(chan struct{}, 10)
	r := toBackend(t, rawBackend(t, dumbBackend(held, arrived)))(t)
	c := r.rawH2(t)
	c.open(1, true, get("/1")...)
	soon(t, "the request", arrived)
	var draining sync.WaitGroup
	draining.Go(func() {
		if cut := r.shutdown(patience); cut != 0 {
			t.Errorf("%d exchanges cut", cut)
		}
	})
	var ping [8]byte
	told := 0
	c.until("the first GOAWAY", func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			if told++; f.LastStreamID != 1<<31-1 || f.ErrCode != http2.ErrCodeNo {
				t.Errorf("%v", f)
			}
		case *http2.PingFrame:
			ping = f.Data
			return true
		}
		return false
	})
	c.open(3, true, get("/3")...)
	c.framer.WritePing(true, ping)
	c.until("the second GOAWAY", func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		if ok && g.LastStreamID != 3 {
			t.Errorf("the last stream is %d", g.LastStreamID)
		}
		return ok
	})
	c.open(5, true, get("/5")...)
	soon(t, "the crossing request", arrived)
	close(held)
	var whole []uint32
	for len(whole) < 2 {
		c.until("the responses", func(f http2.Frame) bool {
			d, ok := f.(*http2.DataFrame)
			if ok && d.StreamEnded() {
				whole = append(whole, d.StreamID)
			}
			return ok
		})
	}
	if s := fmt.Sprint(whole); s != "[1 3]" && s != "[3 1]" {
		t.Errorf("streams %v were served", whole)
	}
	draining.Wait()
}

// TestH2SendsWithinWindows has a client leave small windows, and grow them by the
// settings and by either update.
func TestH2SendsWithinWindows(t *testing.T) {
	want := strings.Repeat("0123456789", 20_000)
	r := toBackend(t, backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, want) }))(t)
	c := r.rawH2(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	c.open(1, true, get("/")...)
	var got bytes.Buffer
	window, grown := 10, false
	c.until("the body", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if !ok {
			return false
		}
		got.Write(d.Data())
		if window -= len(d.Data()); window < 0 {
			t.Fatalf("%d bytes beyond the window", -window)
		}
		if window == 0 && !d.StreamEnded() {
			if !grown {
				grown = true
				c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5000})
				window += 4990
			} else {
				c.framer.WriteWindowUpdate(1, 40_000)
				c.framer.WriteWindowUpdate(0, 40_000)
				window += 40_000
			}
		}
		return d.StreamEnded()
	})
	if got.String() != want {
		t.Errorf("%d bytes came", got.Len())
	}
}

// TestH2StalledStreamHoldsUpNobody has a backend take nothing of one upload while
// another goes through.
func TestH2StalledStreamHoldsUpNobody(t *testing.T) {
	release := make(chan struct{})
	addr := rawBackend(t, func(c *net.TCPConn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		if req.URL.Path == "/stalled" {
			<-release
			return
		}
		n, _ := io.Copy(io.Discard, req.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Length: %d\r\n\r\n", n)
	})
	defer close(release)
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`})
	p := r.h2()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stalled sync.WaitGroup
	defer stalled.Wait()
	defer cancel()
	stalled.Go(func() {
		req := p.request("POST", "app.x.test", "/stalled", zeros(64<<20)).WithContext(ctx)
		if resp, err := p.Do(req); err == nil {
			resp.Body.Close()
		}
	})
	const size = 4 << 20
	resp := p.send(t, p.request("POST", "app.x.test", "/flowing", zeros(size)))
	if got := resp.Header.Get("X-Length"); got != fmt.Sprint(size) {
		t.Errorf("%s bytes arrived", got)
	}
}
