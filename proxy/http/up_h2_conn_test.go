package http

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h2"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// h2Site returns a site whose target is a listener that the test speaks for.
func h2Site(t *testing.T) (*site, *net.TCPListener) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f := newForwarder(upstream.NewDialer(upstream.Config{Logger: slog.New(slog.DiscardHandler)}), nil)
	t.Cleanup(func() {
		ln.Close()
		f.close()
	})
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	return f.shared.site(siteKey{endpoint: upstream.Endpoint{Host: at.Addr().String(), Port: int(at.Port())}, h2c: true}, nil), ln
}

// h2Exchange returns an exchange that would go to a site.
func h2Exchange() *exchange {
	x := &exchange{conn: &conn{}, client: netip.MustParseAddrPort("192.0.2.1:1")}
	x.hop.connect = 10 * time.Second
	return x
}

// accept takes a connection, with its preface read and SETTINGS sent.
func accept(t *testing.T, ln *net.TCPListener) (*http2.Framer, *net.TCPConn) {
	t.Helper()
	c, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.ReadFull(c, make([]byte, len(h2.Preface))); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f, c
}

// begin opens a stream on a new connection of s.
func begin(t *testing.T, s *site, ln *net.TCPListener) (*h2Stream, *http2.Framer) {
	t.Helper()
	type got struct {
		c      *h2Conn
		failed *failure
	}
	taken := make(chan got, 1)
	go func() {
		c, failed := s.takeH2(h2Exchange())
		taken <- got{c, failed}
	}()
	var f *http2.Framer
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		c := <-taken
		taken <- c
		if c.c != nil {
			c.c.mu.Lock()
			c.c.flush() // the preface, which the first request would bring along
			c.c.mu.Unlock()
		}
	}()
	f, _ = accept(t, ln)
	<-accepted
	c := <-taken
	if c.failed != nil {
		t.Fatal(c.failed.err)
	}
	st := &h2Stream{c: c.c, came: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	if _, err := st.open(appendPseudo(nil, "GET", "http", "x", "/"), nil, true); err != nil {
		t.Fatal(err)
	}
	return st, f
}

// seen reads frames up to one of a kind.
func seen[T http2.Frame](t *testing.T, f *http2.Framer) (frame T) {
	t.Helper()
	for {
		next, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("no %T came: %v", frame, err)
		}
		if is, ok := next.(T); ok {
			if ping, ok := next.(*http2.PingFrame); !ok || !ping.IsAck() {
				return is
			}
		}
	}
}

// settle waits until c has taken everything that f has sent.
func settle(t *testing.T, c *h2Conn, f *http2.Framer) {
	t.Helper()
	if err := f.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for {
		next, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if ping, ok := next.(*http2.PingFrame); ok && ping.IsAck() {
			return
		}
	}
}

// TestH2Silence has a backend fall silent. It is asked for a sign of life, and
// given up if it gives none; one that does is not asked again soon.
func TestH2Silence(t *testing.T) {
	s, ln := h2Site(t)
	st, f := begin(t, s, ln)
	c := st.c
	seen[*http2.HeadersFrame](t, f)
	settle(t, c, f)
	now := time.Now()
	for range 1 + pingAfter { // the first has heard something
		c.sweep(now)
	}
	ping := seen[*http2.PingFrame](t, f)
	if err := f.WritePing(true, ping.Data); err != nil {
		t.Fatal(err)
	}
	settle(t, c, f)
	for range 1 + pingAgain - 1 {
		if c.sweep(now) {
			t.Fatal("a connection was closed whose backend had answered")
		}
	}
	c.mu.Lock()
	asked := c.asked
	c.mu.Unlock()
	if asked {
		t.Error("the backend was asked again soon, and had sent nothing meanwhile")
	}
	c.sweep(now)
	seen[*http2.PingFrame](t, f)
	if !c.sweep(now) {
		t.Error("the connection is kept, and the backend has not answered")
	}
	if _, err := st.awaitHead(); !errors.Is(err, errSilent) {
		t.Errorf("the exchange ended by %v", err)
	}
	st.close()
}

// TestH2IdleCloses has a connection idle for long: it says goodbye.
func TestH2IdleCloses(t *testing.T) {
	s, ln := h2Site(t)
	st, f := begin(t, s, ln)
	seen[*http2.HeadersFrame](t, f)
	if st.c.sweep(time.Now().Add(time.Hour)) {
		t.Fatal("a connection was closed that carries an exchange")
	}
	if err := f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, []byte{0x88}); err != nil {
		t.Fatal(err)
	}
	if hint, err := st.awaitHead(); hint != nil || err != nil {
		t.Fatal(hint, err)
	}
	st.close()
	rest(st.c)
	if !st.c.sweep(time.Now().Add(time.Hour)) {
		t.Error("an idle connection is kept for an hour")
	}
	if away := seen[*http2.GoAwayFrame](t, f); away.ErrCode != http2.ErrCodeNo {
		t.Errorf("%v", away)
	}
}

// TestH2DialForNobody has the one exchange that waits for a connection be given
// up: so is the dial.
func TestH2DialForNobody(t *testing.T) {
	s, _ := h2Site(t)
	x := h2Exchange()
	x.life.abandon(errClientLeft)
	if c, failed := s.takeH2(x); c != nil || failed == nil || failed.class != endClientGone {
		if c == nil {
			t.Errorf("%+v", failed)
		}
		return // connected before anybody looked
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiters) != 0 || s.waiting.Load() != 0 {
		t.Errorf("%d still wait", len(s.waiters))
	}
}

// TestH2Window checks that what a stream keeps is bounded by what it announced.
func TestH2Window(t *testing.T) {
	s := &h2Stream{headed: true, length: -1, window: 10}
	if code, wrong := s.receive(make([]byte, 10), 10, false); wrong != "" {
		t.Error(code, wrong)
	}
	if code, _ := s.receive([]byte{1}, 1, false); code != h2.FlowControlError {
		t.Errorf("%v for more than the window allows", code)
	}
}

// TestH2RequestHead reads back by x/net what is written.
func TestH2RequestHead(t *testing.T) {
	var l field.List
	for _, line := range [][2]string{{"User-Agent", "a"}, {"X-Own-Name", "b\tü"}, {"Authorization", "c"}, {"cookie", "d=e"},
		{"Content-Type", "f"}, {"te", "trailers"}, {"X-Long", string(bytes.Repeat([]byte("g"), 5000))}, {"Proxy-Authorization", "h"}, {"expect", ""}} {
		l.Add(line[0], line[1])
	}
	for _, method := range []string{"GET", "POST", "OPTIONS"} {
		for _, path := range []string{"/", "/a?b", "*"} {
			b := append([]byte{hpackNoTable}, appendPseudo(nil, method, "https", "x.test", path)...)
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(appendLines(b, &l))
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("[{:method %s} {:scheme https} {:path %s} {:authority x.test}]", method, path)
			got := []string{}
			for _, f := range fields[:4] {
				got = append(got, fmt.Sprintf("{%s %s}", f.Name, f.Value))
			}
			if fmt.Sprint(got) != want {
				t.Errorf("%v, want %s", got, want)
			}
			for i, f := range fields[4:] {
				line := l.Lines()[i]
				if !field.EqualFold(f.Name, line.Name) || f.Value != line.Value || f.Name != string(bytes.ToLower([]byte(line.Name))) {
					t.Errorf("%v, want %v", f, line)
				}
				if secret := f.Name == "cookie" || f.Name == "authorization"; f.Sensitive != secret {
					t.Errorf("%s: sensitive %v", f.Name, f.Sensitive)
				}
			}
		}
	}
}

// FuzzH2Frames feeds a connection with what a backend might send: it may end the
// connection, and must not bring anything else down.
func FuzzH2Frames(f *testing.F) {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	fr.WriteSettings()
	f.Add(bytes.Clone(b.Bytes()))
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
	fr.WriteDataPadded(1, false, []byte("content"), make([]byte, 5))
	f.Add(bytes.Clone(b.Bytes()))
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x00, 1, 'a', 1, 'b'}, EndHeaders: true, EndStream: true})
	f.Add(bytes.Clone(b.Bytes()))
	fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	fr.WriteRSTStream(3, http2.ErrCodeRefusedStream)
	fr.WriteWindowUpdate(0, 1)
	fr.WriteContinuation(3, true, nil)
	f.Add(bytes.Clone(b.Bytes()))
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &site{pool: newSites(&forwarder{})}
		c := newH2Conn(s, &upConn{site: s, raw: idleTCP(t)})
		c.greeted = len(input)%2 == 0
		c.slots, c.limit = 2, 2
		var streams [2]*h2Stream
		for i := range streams {
			st := &h2Stream{c: c, came: make(chan struct{}, 1), room: make(chan struct{}, 1)}
			st.open(appendPseudo(nil, "GET", "http", "x", "/"), nil, true)
			streams[i] = st
		}
		c.frames.Reset(bytes.NewReader(input))
		for c.readOn() {
		}
		for _, st := range streams {
			kept := 0
			for _, p := range st.parts {
				kept += p.n
			}
			if kept > maxH2Window {
				t.Errorf("%d bytes are kept", kept)
			}
			if !st.ended && st.err == nil {
				t.Error("a stream outlives its connection")
			}
			st.close()
		}
		if c.slots != 0 {
			t.Errorf("%d slots are left", c.slots)
		}
		c.frames.Release()
	})
}

// TestH2PoolEnds has the pool close while a connection is in use: it ends with
// the exchange.
func TestH2PoolEnds(t *testing.T) {
	s, ln := h2Site(t)
	st, f := begin(t, s, ln)
	s.pool.close()
	seen[*http2.HeadersFrame](t, f)
	settle(t, st.c, f)
	if err := f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, []byte{0x88}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.awaitHead(); err != nil {
		t.Fatal(err)
	}
	rest(st.c)
	st.close()
	seen[*http2.GoAwayFrame](t, f)
}

// rest waits until nobody is sending on c: then a goodbye gets out.
func rest(c *h2Conn) {
	for writing := true; writing; runtime.Gosched() {
		c.mu.Lock()
		writing = c.writing || c.hasOut()
		c.mu.Unlock()
	}
}

// TestH2IdentifiersEnd uses up the identifiers of a connection's streams: the
// next exchange gets another.
func TestH2IdentifiersEnd(t *testing.T) {
	s, ln := h2Site(t)
	st, f := begin(t, s, ln)
	seen[*http2.HeadersFrame](t, f)
	settle(t, st.c, f)
	st.c.mu.Lock()
	st.c.next = h2.MaxStream
	st.c.mu.Unlock()
	if s.reserveH2() != st.c {
		t.Fatal("there is no slot on the connection")
	}
	last := &h2Stream{c: st.c, came: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	if _, err := last.open(appendPseudo(nil, "GET", "http", "x", "/"), nil, true); err != nil || last.id != h2.MaxStream {
		t.Fatalf("stream %d, %v", last.id, err)
	}
	if s.reserveH2() != nil {
		t.Error("a stream is promised for which there is no identifier")
	}
	st.close()
	last.close()
}
