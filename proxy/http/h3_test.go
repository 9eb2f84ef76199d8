package http_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// readData reads DATA frames from s until their content is n bytes long.
func readData(t *testing.T, s *quic.Stream, n int) string {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(patience))
	defer s.SetReadDeadline(time.Time{})
	got := ""
	for len(got) < n {
		kind, content := readFrame(t, s)
		if kind != 0x0 {
			t.Fatalf("a frame of type %#x among DATA", kind)
		}
		got += content
	}
	return got
}

// readFrame reads a frame of less than 16 KiB.
func readFrame(t *testing.T, s *quic.Stream) (kind byte, content string) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(s, head); err != nil {
		t.Fatal(err)
	}
	length := int(head[1])
	for range 1<<(head[1]>>6) - 1 {
		more := make([]byte, 1)
		if _, err := io.ReadFull(s, more); err != nil {
			t.Fatal(err)
		}
		length = length<<8 | int(more[0])
	}
	if head[1] >= 0x80 {
		length &= 0x3fffffff
	} else if head[1] >= 0x40 {
		length &= 0x3fff
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(s, b); err != nil {
		t.Fatal(err)
	}
	return head[0], string(b)
}

// h3Connect is an extended CONNECT for a protocol (RFC 9220).
func h3Connect(path, protocol string) []byte {
	return h3Fields(":method: CONNECT", ":protocol: "+protocol, ":scheme: https", ":authority: app.x.test", ":path: "+path,
		"sec-websocket-version: 13", "sec-websocket-protocol: chat")
}

// TestWebSocketOverHTTP3 has a WebSocket echo, and end as each side ends it.
func TestWebSocketOverHTTP3(t *testing.T) {
	r := toBackend(t, backend(t, webSocketEcho))(t)
	c := r.rawH3(t).settled()
	s := c.begin(h3Connect("/ws", "websocket"), h3Data("\x81\x82\x00\x00\x00\x00hi"))
	kind, head := readFrame(t, s)
	if kind != 0x1 || !strings.Contains(head, "chat") || strings.Contains(strings.ToLower(head), "sec-websocket-accept") {
		t.Errorf("a frame %#x with %q", kind, head)
	}
	if got := readData(t, s, 4); got != "\x81\x02hi" {
		t.Errorf("%q came back", got)
	}
	message := strings.Repeat("x", 20000)
	c.write(s, h3Data("\x82\xfe\x4e\x20\x00\x00\x00\x00"+message[:12345]))
	c.write(s, h3Data(message[12345:]))
	if got := readData(t, s, 4+len(message)); got != "\x82\x7e\x4e\x20"+message {
		t.Errorf("%d bytes came back", len(got))
	}
	c.write(s, h3Data("\x88\x82\x00\x00\x00\x00\x03\xe8")) // close, 1000
	if got := readData(t, s, 4); got != "\x88\x02\x03\xe8" {
		t.Errorf("%q answered the close", got)
	}
	s.Close()
	if record := r.log.wait(t, "/ws"); record["end"] != "done" || record["proto"] != "h3" || record["status"] != 101.0 {
		t.Errorf("log record %v", record)
	}
	if a, err := c.answer(c.request(h3Head("GET", "/health-proxy"))); err != nil || a.status() != "200" {
		t.Errorf("the connection after it: %v, %v", a, err)
	}
}

// TestRefusedConnect has CONNECT answered where it becomes no tunnel.
func TestRefusedConnect(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/forbidden":
			w.WriteHeader(403)
			io.WriteString(w, "no")
		case "/false":
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		default:
			io.WriteString(w, "an ordinary page")
		}
	})
	c := toBackend(t, addr)(t).rawH3(t).settled()
	for name, tc := range map[string]struct {
		head         []byte
		status, body string
	}{
		"by the backend":      {h3Connect("/forbidden", "websocket"), "403", "no"},
		"an ordinary answer":  {h3Connect("/ordinary", "websocket"), "502", ""},
		"another protocol":    {h3Connect("/", "connect-udp"), "501", "CONNECT is not served here; this is not a forward proxy\n"},
		"a plain CONNECT":     {h3Fields(":method: CONNECT", ":authority: app.x.test:443"), "501", "CONNECT is not served here; this is not a forward proxy\n"},
		"no key was answered": {h3Connect("/false", "websocket"), "", ""},
	} {
		a, err := c.answer(c.begin(tc.head))
		if (err == nil) != (tc.status != "") || a.status() != tc.status || a.body != tc.body {
			t.Errorf("%s: %v %q, %v", name, a.heads, a.body, err)
		}
	}
}

// TestHintsOverHTTP3 has a 103 come before the answer is there.
func TestHintsOverHTTP3(t *testing.T) {
	proceed := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(103)
		<-proceed
		w.Header().Set("Trailer", "A")
		w.WriteHeader(200)
		io.WriteString(w, "page")
		w.Header().Set("A", "b")
	})
	c := toBackend(t, addr)(t).rawH3(t).settled()
	s := c.request(h3Head("GET", "/"))
	s.SetReadDeadline(time.Now().Add(patience))
	if _, hint := readFrame(t, s); !strings.Contains(hint, "style.css") {
		t.Errorf("a hint of %q", hint)
	}
	close(proceed)
	a, err := c.answer(s)
	if err != nil || len(a.heads) != 2 || a.status() != "200" || a.body != "page" || a.heads[1]["a"] != "b" {
		t.Errorf("%v %q, %v", a.heads, a.body, err)
	}
}

// holdingRelay passes datagrams between a client and addr. While it holds, what
// the server sends waits, so that the handshake cannot complete.
type holdingRelay struct {
	front *net.UDPConn
	back  atomic.Pointer[net.UDPAddr]
	hold  atomic.Bool
	seen  chan []byte // the first datagrams of clients
	said  chan byte   // the first bytes of the server's
	mu    sync.Mutex
	held  [][]byte
	send  func([]byte)
}

func relayTo(t *testing.T, addr string) *holdingRelay {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	h := &holdingRelay{front: front, seen: make(chan []byte, 100), said: make(chan byte, 100)}
	h.turnTo(t, addr)
	var client atomic.Pointer[net.UDPAddr]
	h.send = func(p []byte) { front.WriteToUDP(p, client.Load()) }
	var relaying sync.WaitGroup
	relaying.Go(func() {
		for b := make([]byte, 2048); ; {
			n, from, err := front.ReadFromUDP(b)
			if err != nil {
				return
			}
			client.Store(from)
			select {
			case h.seen <- bytes.Clone(b[:n]):
			default:
			}
			back.WriteToUDP(b[:n], h.back.Load())
		}
	})
	relaying.Go(func() {
		for b := make([]byte, 2048); ; {
			n, _, err := back.ReadFromUDP(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case h.said <- b[0]:
			default:
			}
			h.mu.Lock()
			if h.hold.Load() {
				h.held = append(h.held, bytes.Clone(b[:n]))
			} else {
				h.send(b[:n])
			}
			h.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		front.Close()
		back.Close()
		relaying.Wait()
	})
	return h
}

// turnTo has what comes from now on go to addr.
func (h *holdingRelay) turnTo(t *testing.T, addr string) {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	h.back.Store(to)
}

// release sends what was held, and holds no more.
func (h *holdingRelay) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hold.Store(false)
	for _, p := range h.held {
		h.send(p)
	}
	h.held = nil
}

// early returns a client that says what it says before its handshake is complete,
// which it is once the relay is released. It has made one request before, POST
// /first, over another connection.
func (r *rig) early(t *testing.T) (*holdingRelay, *rawH3) {
	t.Helper()
	relay := relayTo(t, r.quic.LocalAddr().String())
	conf := &tls.Config{RootCAs: r.roots, ServerName: "app.x.test", NextProtos: []string{"h3"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	dial := func() *rawH3 {
		conn, err := quic.DialAddrEarly(t.Context(), relay.front.LocalAddr().String(), conf, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.CloseWithError(h3NoError, "") })
		return &rawH3{t: t, conn: conn}
	}
	first := dial().settled()
	if a, err := first.answer(first.request(h3Head("POST", "/first"))); err != nil || a.status() != "200" {
		t.Fatalf("%v, %v", a, err)
	}
	eventually(t, "a session ticket", func() bool {
		_, ok := conf.ClientSessionCache.Get("app.x.test")
		return ok
	})
	first.conn.CloseWithError(h3NoError, "")
	relay.hold.Store(true)
	return relay, dial().settled()
}

// TestEarlyData sends requests before the handshake is complete (RFC 8470): safe
// ones reach the backend, which is told and may ask for another time; others do
// not.
func TestEarlyData(t *testing.T) {
	arrived := make(chan string, 8)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Early-Data")
		if r.URL.Path == "/later" && r.Header.Get("Early-Data") != "" {
			w.WriteHeader(425)
		}
	})
	r := toBackend(t, addr)(t)
	relay, c := r.early(t)
	if got := soon(t, "the first request", arrived); got != "POST /first " {
		t.Errorf("the backend saw %q", got)
	}
	get, later, post, connect := c.request(h3Head("GET", "/now")), c.request(h3Head("GET", "/later")),
		c.request(h3Head("POST", "/unsafe")), c.request(h3Connect("/ws", "websocket"))
	seen := map[string]bool{soon(t, "a request", arrived): true, soon(t, "another", arrived): true}
	if !seen["GET /now 1"] || !seen["GET /later 1"] {
		t.Errorf("before the handshake was complete, the backend saw %v", seen)
	}
	for _, path := range []string{"/unsafe", "/ws"} {
		if record := r.log.wait(t, path); record["status"] != 425.0 {
			t.Errorf("log record %v", record)
		}
	}
	relay.release()
	for s, want := range map[*quic.Stream]string{get: "200", later: "425", post: "425", connect: "425"} {
		if a, err := c.answer(s); err != nil || a.status() != want {
			t.Errorf("stream %d: %v, %v, want %s", s.StreamID(), a.heads, err, want)
		}
	}
	if !c.conn.ConnectionState().Used0RTT {
		t.Error("the client sent nothing early")
	}
	if a, err := c.answer(c.request(h3Head("POST", "/unsafe"))); err != nil || a.status() != "200" {
		t.Errorf("once more, in time: %v, %v", a, err)
	}
	if got := soon(t, "the request in time", arrived); got != "POST /unsafe " {
		t.Errorf("the backend saw %q", got)
	}
}

// TestEarlyDataComesFromAnywhere has a client ask early for what its address makes
// a difference to. Before the handshake is complete, a packet's address is what its
// sender wrote there: such requests have to come again.
func TestEarlyDataComesFromAnywhere(t *testing.T) {
	arrived := make(chan string, 8)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { arrived <- r.URL.Path })
	to := `"host":"app.x.test","backend":"` + addr + `"`
	r := newRig(t, map[string]string{
		"open":    `{` + to + `,"limits":{"rate":{"requests":100}}}`,
		"allowed": `{` + to + `,"path":"/allowed","allow":["127.0.0.0/8"]}`,
		"denied":  `{` + to + `,"path":"/denied","deny":["192.0.2.0/24"]}`,
		"rate":    `{` + to + `,"path":"/rate","limits":{"rate":{"requests":1,"per":"24h","by":"client"}}}`,
		"going":   `{` + to + `,"path":"/going","limits":{"concurrency":{"requests":1,"by":"header:X-Key"}}}`,
	})
	relay, c := r.early(t)
	soon(t, "the first request", arrived)
	paths := []string{"/allowed", "/denied", "/rate", "/going"}
	for _, path := range paths {
		c.request(h3Head("GET", path))
		if record := r.log.wait(t, path); record["status"] != 425.0 {
			t.Errorf("log record %v", record)
		}
	}
	open := c.request(h3Head("GET", "/open"))
	if got := soon(t, "a request that may be early", arrived); got != "/open" {
		t.Errorf("the backend saw %s", got)
	}
	relay.release()
	if a, err := c.answer(open); err != nil || a.status() != "200" {
		t.Errorf("%v, %v", a, err)
	}
	for _, path := range paths {
		if a, err := c.answer(c.request(h3Head("GET", path))); err != nil || a.status() != "200" {
			t.Errorf("%s in time: %v, %v", path, a, err)
		}
	}
}

// TestH3SlowClientsAreLetGo bounds what a client may leave unfinished, and has the
// connection go on where there is something else on it.
func TestH3SlowClientsAreLetGo(t *testing.T) {
	addr := backend(t, drain)
	limited := func(l proxyhttp.Limits) *rawH3 {
		r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
			func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits = l })
		return r.rawH3(t).settled()
	}
	head := h3Head("GET", "/")
	for name, begin := range map[string][]byte{
		"half a head": head[:len(head)-1], "a frame's type": head[:1], "a head without end": head,
	} {
		c := limited(proxyhttp.Limits{Head: 50 * time.Millisecond})
		if a, err := c.answer(c.begin(begin)); err == nil {
			t.Errorf("%s: %v", name, a)
		}
		if a, err := c.answer(c.request(head)); err != nil || a.status() != "200" {
			t.Errorf("after %s: %v, %v", name, a, err)
		}
	}
	idle := proxyhttp.Limits{Idle: 100 * time.Millisecond}
	c := limited(idle)
	if a, err := c.answer(c.begin(h3Head("POST", "/", "content-length: 10"), h3Data("abc"))); err != nil || a.status() != "408" {
		t.Errorf("an upload that stopped: %v, %v", a, err)
	}
	c = limited(idle)
	if a, err := c.answer(c.request(head)); err != nil || a.status() != "200" {
		t.Errorf("%v, %v", a, err)
	}
	if got := c.closedBy(); got != h3NoError {
		t.Errorf("an idle connection ended by %#x", got)
	}
}

// TestH3StalledReaders has clients take nothing of an answer: the backend is let
// go, in time.
func TestH3StalledReaders(t *testing.T) {
	gone := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, zeros(largeBody))
		gone <- struct{}{}
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 200 * time.Millisecond })
	c := r.rawH3(t).settled()
	c.request(h3Head("GET", "/stalled"))
	soon(t, "the backend to be let go", gone)
	if record := r.log.wait(t, "/stalled"); record["end"] != "stalled" {
		t.Errorf("log record %v", record)
	}
}

// TestH3StalledBeforeTheHead has a client take nothing of what comes before an
// answer: the backend is let go as it is by who takes nothing of the answer.
func TestH3StalledBeforeTheHead(t *testing.T) {
	gone := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", strings.Repeat("<a>", 2000))
		w.WriteHeader(http.StatusEarlyHints)
		<-r.Context().Done()
		gone <- struct{}{}
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 200 * time.Millisecond })
	c := r.narrowH3(t, 64).settled()
	c.request(h3Head("GET", "/stalled"))
	soon(t, "the backend to be let go", gone)
	if record := r.log.wait(t, "/stalled"); record["end"] != "stalled" {
		t.Errorf("log record %v", record)
	}
}

// TestH3StreamsAreBounded has a client ask for more at a time than it may: the rest
// waits, and gets its turn.
func TestH3StreamsAreBounded(t *testing.T) {
	const most, all = 8, 40
	var active, peak atomic.Int32
	proceed := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		n := active.Add(1)
		defer active.Add(-1)
		for was := peak.Load(); n > was && !peak.CompareAndSwap(was, n); was = peak.Load() {
		}
		<-proceed
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Streams = most })
	c := r.rawH3(t).settled()
	failed := make(chan error, all)
	for range all {
		go func() {
			s, err := c.conn.OpenStreamSync(t.Context())
			if err == nil {
				s.Write(h3Head("GET", "/"))
				s.Close()
				_, err = readH3Answer(s)
			}
			failed <- err
		}()
	}
	eventually(t, "as many as may be", func() bool { return active.Load() == most })
	close(proceed)
	for range all {
		if err := soon(t, "an answer", failed); err != nil {
			t.Error(err)
		}
	}
	if got := peak.Load(); got != most {
		t.Errorf("%d at a time, want %d", got, most)
	}
}

// TestConnectionIDs has every connection id that clients are given begin with the
// tag, and clients of a process that is gone be told by the one that comes after.
func TestConnectionIDs(t *testing.T) {
	of := func(cfg *proxyhttp.Config, _ *rig) {
		cfg.QUIC = proxyhttp.QUICConfig{Secret: []byte("a secret of the node's"), Tag: 0xc0ffee42}
	}
	routes := map[string]string{"it": `{"host":"app.x.test","respond":{"body":"hi"}}`}
	first := newRig(t, routes, of)
	relay := relayTo(t, first.quic.LocalAddr().String())
	conn, err := quic.DialAddr(t.Context(), relay.front.LocalAddr().String(),
		&tls.Config{RootCAs: first.roots, ServerName: "app.x.test", NextProtos: []string{"h3"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := (&rawH3{t: t, conn: conn}).settled()
	if a, err := c.answer(c.request(h3Head("GET", "/"))); err != nil || a.body != "hi" {
		t.Fatalf("%v, %v", a, err)
	}
	short := func() []byte { // the next datagram with a short header
		for {
			if p := soon(t, "a datagram", relay.seen); p[0]&0x80 == 0 {
				return p
			}
		}
	}
	if p := short(); !bytes.HasPrefix(p[1:], []byte{0xc0, 0xff, 0xee, 0x42}) {
		t.Errorf("a datagram for the connection %x", p[1:13])
	}
	second := newRig(t, routes, of)
	relay.turnTo(t, second.quic.LocalAddr().String())
	// Whatever comes first of the client: an acknowledgement may as well.
	if s, err := conn.OpenStream(); err == nil {
		s.Write(h3Head("GET", "/"))
	}
	soon(t, "the client to learn of it", conn.Context().Done())
	var reset *quic.StatelessResetError
	if err := context.Cause(conn.Context()); !errors.As(err, &reset) {
		t.Errorf("the connection ended by %v, want a stateless reset", err)
	}
}

// TestHandshakeFlood has many clients begin a handshake and never end it, as if
// their addresses were made up: others have to prove theirs, and are served.
func TestHandshakeFlood(t *testing.T) {
	r := newRig(t, map[string]string{"it": `{"host":"app.x.test","respond":{"body":"hi"}}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Handshake = time.Minute }) // on a busy machine a hundred take long
	conf := &tls.Config{RootCAs: r.roots, ServerName: "app.x.test", NextProtos: []string{"h3"}, CurvePreferences: []tls.CurveID{tls.X25519}}
	// retried reports whether a client had to prove its address; ok whether it was
	// served then. While many come at once some are refused, which is no concern here.
	retried := func() (was, ok bool) {
		const retry = 0xf0 // the bits of the first byte that say so, in version 1
		relay := relayTo(t, r.quic.LocalAddr().String())
		conn, err := quic.DialAddr(t.Context(), relay.front.LocalAddr().String(), conf, nil)
		if err != nil {
			return false, false
		}
		t.Cleanup(func() { conn.CloseWithError(h3NoError, "") })
		c := (&rawH3{t: t, conn: conn}).settled()
		a, err := c.answer(c.request(h3Head("GET", "/")))
		return soon(t, "the server's word", relay.said)&retry == retry, err == nil && a.body == "hi"
	}
	if was, ok := retried(); was || !ok {
		t.Errorf("the first client: %v, %v", was, ok)
	}
	held := relayTo(t, r.quic.LocalAddr().String())
	held.hold.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	var dialing sync.WaitGroup
	begin := func() { // a handshake
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		dialing.Go(func() {
			defer pc.Close()
			quic.Dial(ctx, pc, held.front.LocalAddr(), conf, &quic.Config{HandshakeIdleTimeout: time.Minute})
		})
	}
	defer dialing.Wait()
	defer cancel()
	eventually(t, "clients to have to prove their address, and be served", func() bool {
		for range 16 { // some are refused
			begin()
		}
		was, ok := retried()
		return was && ok
	})
}
