package http_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// TestH2UnsentIsSentAgain has a backend not take up the first request, in each
// way that says so. It gets the request again, whole.
func TestH2UnsentIsSentAgain(t *testing.T) {
	for name, refuse := range map[string]func(f *framer, stream uint32){
		"refused": func(f *framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) },
		"goaway":  func(f *framer, stream uint32) { f.WriteGoAway(stream-2, http2.ErrCodeNo, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int32
			addr := framerBackend(t, func(f *framer) {
				for {
					r, err := f.request()
					if err != nil {
						return
					}
					if r.path == "/warm" {
						f.ok(r.stream, "")
						continue
					}
					content, err := f.body(r)
					switch {
					case err != nil:
						t.Errorf("the body: %v", err)
						return
					case tries.Add(1)%2 == 1:
						f.locked(func() { refuse(f, r.stream) })
					default:
						f.ok(r.stream, content)
					}
				}
			})
			overAll(t, func(t *testing.T) *rig { return toH2C(t, addr) }, func(t *testing.T, p *peer) {
				for i := range 3 {
					p.get(t, "app.x.test", "/warm")
					want := strings.Repeat("content ", i)
					resp := p.send(t, p.request("POST", "app.x.test", "/", pieces(want)))
					if got := readAll(t, resp.Body); resp.StatusCode != 200 || got != want {
						t.Errorf("%d %q, want %q", resp.StatusCode, got, want)
					}
				}
			})
		})
	}
}

// TestH2GoAwayLetsOthersFinish has a backend go away while it answers a request.
func TestH2GoAwayLetsOthersFinish(t *testing.T) {
	second := make(chan struct{})
	var conns atomic.Int32
	addr := framerBackend(t, func(f *framer) {
		r, err := f.request()
		if err != nil {
			return
		}
		if conns.Add(1) > 1 {
			f.ok(r.stream, "other")
			f.drain()
			return
		}
		f.head(r.stream, false, ":status", "200")
		f.data(r.stream, false, "first, ")
		f.locked(func() { f.WriteGoAway(r.stream, http2.ErrCodeNo, nil) })
		<-second
		f.data(r.stream, true, "and the rest")
		f.drain()
	})
	p := toH2C(t, addr).h2()
	resp := p.send(t, p.request("GET", "app.x.test", "/", nil))
	begun := make([]byte, len("first, "))
	if _, err := io.ReadFull(resp.Body, begun); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the GOAWAY to be heeded", func() bool {
		_, body := p.get(t, "app.x.test", "/")
		return body == "other"
	})
	close(second)
	if rest := readAll(t, resp.Body); rest != "and the rest" {
		t.Errorf("%q", rest)
	}
}

// TestH2StreamsLimit has a backend take two exchanges on a connection: more get
// more connections, and none is refused.
func TestH2StreamsLimit(t *testing.T) {
	const all = 9
	var conns, under, most atomic.Int32
	together := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if under.Add(1) == all {
			close(together)
		}
		<-together
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 2}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			most.Store(max(most.Load(), conns.Add(1)))
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	p := toH2C(t, s.Listener.Addr().String()).h2()
	var clients sync.WaitGroup
	for range all {
		clients.Go(func() {
			resp, err := p.Do(p.request("GET", "app.x.test", "/", nil))
			if err != nil {
				t.Error(err)
				return
			}
			if resp.Body.Close(); resp.StatusCode != 200 {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
	clients.Wait()
	if n := most.Load(); n < (all+1)/2 || n > all {
		t.Errorf("%d connections for %d exchanges, 2 on each", n, all)
	}
}

// TestH2AbortHoldsItsPlace has a client leave. The backend is told at once, and
// is thought to be busy with the request until it has answered a PING.
func TestH2AbortHoldsItsPlace(t *testing.T) {
	arrived, reset, pong := make(chan struct{}), make(chan http2.ErrCode, 1), make(chan struct{})
	var conns atomic.Int32
	addr := framerBackend(t, func(f *framer) {
		n := conns.Add(1)
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch fr := frame.(type) {
			case *http2.MetaHeadersFrame:
				if fr.PseudoValue("path") == "/stay" {
					close(arrived)
					continue
				}
				f.ok(fr.StreamID, fmt.Sprint(n))
			case *http2.RSTStreamFrame:
				reset <- fr.ErrCode
			case *http2.PingFrame:
				if !fr.IsAck() {
					<-pong
					f.WritePing(true, fr.Data)
				}
			}
		}
	}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	r := toH2C(t, addr)
	p := r.h2()
	if _, body := p.get(t, "app.x.test", "/"); body != "1" {
		t.Fatalf("%q", body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(p.request("GET", "app.x.test", "/stay", nil).WithContext(ctx))
		done <- err
	}()
	soon(t, "the request", arrived)
	cancel()
	if code := soon(t, "the reset", reset); code != http2.ErrCodeCancel {
		t.Errorf("reset with %v", code)
	}
	soon(t, "the client", done)
	if _, body := p.get(t, "app.x.test", "/"); body != "2" {
		t.Errorf("the next request came by connection %s, before the first had answered the PING", body)
	}
	close(pong)
	eventually(t, "the first connection to be used again", func() bool {
		_, body := p.get(t, "app.x.test", "/")
		return body == "1"
	})
	if record := r.log.wait(t, "/stay"); record["end"] != "client_gone" {
		t.Errorf("log record %v", record)
	}
}

// TestH2SlowClient has a client take nothing of a large response. The backend
// must wait, and other exchanges on the connection must not.
func TestH2SlowClient(t *testing.T) {
	const large = 32 << 20
	var sent atomic.Int64
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/large" {
			return
		}
		part := make([]byte, 64<<10)
		for sent.Load() < large {
			n, err := w.Write(part)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	overAll(t, func(t *testing.T) *rig { return toH2C(t, s.Listener.Addr().String()) }, func(t *testing.T, p *peer) {
		sent.Store(0)
		conns.Store(0)
		resp := p.send(t, p.request("GET", "app.x.test", "/large", nil))
		other := p.rig.h1Clear()
		stalled, last := 0, int64(-1)
		eventually(t, "the backend to wait", func() bool {
			other.get(t, "app.x.test", "/")
			if now := sent.Load(); now != last {
				last, stalled = now, 0
			}
			stalled++
			return stalled > 50
		})
		if last >= large {
			t.Errorf("the backend could send all of %d bytes, and nobody took them", last)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n < large {
			t.Errorf("%d bytes, %v", n, err)
		}
		if n := conns.Load(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
}

// TestH2NarrowWindows has a backend take a body a few bytes at a time.
func TestH2NarrowWindows(t *testing.T) {
	want := strings.Repeat("0123456789", 100)
	addr := framerBackend(t, func(f *framer) {
		for {
			r, err := f.request()
			if err != nil {
				return
			}
			content := ""
			for ended := r.ended; !ended; {
				frame, err := f.next()
				if err != nil {
					return
				}
				data, ok := frame.(*http2.DataFrame)
				if !ok {
					t.Errorf("%v in the body", frame)
					return
				}
				if len(data.Data()) > 7 {
					t.Errorf("%d bytes, the window has 7", len(data.Data()))
				}
				content += string(data.Data())
				if ended = data.StreamEnded(); !ended && len(data.Data()) > 0 {
					f.locked(func() { f.WriteWindowUpdate(r.stream, uint32(len(data.Data()))) })
				}
			}
			f.ok(r.stream, content)
		}
	}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7})
	overAll(t, func(t *testing.T) *rig { return toH2C(t, addr) }, func(t *testing.T, p *peer) {
		p.get(t, "app.x.test", "/") // the settings are known then
		for _, body := range []io.Reader{strings.NewReader(want), pieces(want)} {
			resp := p.send(t, p.request("POST", "app.x.test", "/", body))
			if got := readAll(t, resp.Body); resp.StatusCode != 200 || got != want {
				t.Errorf("%d, %d bytes, want %d", resp.StatusCode, len(got), len(want))
			}
		}
	})
}

// TestH2Messages sends what HTTP/2 has beside heads and bodies through it:
// informational heads, expectations, trailers, and responses without content.
func TestH2Messages(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/early":
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
		case "/unwanted":
			w.WriteHeader(http.StatusExpectationFailed)
			return
		case "/204":
			w.WriteHeader(http.StatusNoContent)
			return
		case "/304":
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusNotModified)
			return
		}
		content, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-End")
		fmt.Fprintf(w, "%s %s %s%s %s", r.Method, r.Host, content, r.Trailer.Get("X-Sum"), r.Header.Get("Content-Length"))
		w.(http.Flusher).Flush() // else it says a length, and HTTP/1.1 has no trailer then
		w.Header().Set("X-End", "yes")
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	overAll(t, func(t *testing.T) *rig { return toH2C(t, s.Listener.Addr().String()) }, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			method, path, expect string
			body                 io.Reader
			trailer              bool
			want                 string
		}{
			{"GET", "/", "", nil, false, "200 GET app.x.test  "},
			{"HEAD", "/", "", nil, false, "200 "},
			{"POST", "/", "", strings.NewReader("known"), false, "200 POST app.x.test known 5"},
			{"POST", "/", "", pieces("unknown"), true, "200 POST app.x.test unknownsum "},
			{"POST", "/", "100-continue", strings.NewReader("wanted"), false, "200 POST app.x.test wanted 6"},
			{"POST", "/unwanted", "100-continue", strings.NewReader("not wanted"), false, "417 "},
			{"GET", "/early", "", nil, false, "200 GET app.x.test  "},
			{"GET", "/204", "", nil, false, "204 "},
			{"GET", "/304", "", nil, false, "304 "},
		} {
			req := p.request(tc.method, "app.x.test", tc.path, tc.body)
			if tc.expect != "" {
				req.Header.Set("Expect", tc.expect)
			}
			if tc.trailer {
				req.Trailer = http.Header{"X-Sum": {"sum"}}
				if p.proto == "h3" {
					req.Header.Set("Trailer", "X-Sum") // its client does not say so, and net/http's server wants it
				}
			}
			resp := p.send(t, req)
			if got := fmt.Sprint(resp.StatusCode, " ", readAll(t, resp.Body)); got != tc.want {
				t.Errorf("%s %s: %q, want %q", tc.method, tc.path, got, tc.want)
			}
			if end := resp.Trailer.Get("X-End"); end != "yes" && tc.method != "HEAD" && resp.StatusCode == 200 {
				t.Errorf("%s %s: trailer %v", tc.method, tc.path, resp.Trailer)
			}
		}
	})
}

// TestH2ShrunkWindow has a backend take back, in the middle of a body, more of a
// stream's window than is left of it. A body that ends there, without anything
// more to send, needs no window.
func TestH2ShrunkWindow(t *testing.T) {
	shrunk := make(chan struct{}, 1)
	addr := framerBackend(t, func(f *framer) {
		for acks := 0; ; {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch fr := frame.(type) {
			case *http2.DataFrame:
				if fr.StreamEnded() {
					f.ok(fr.StreamID, "taken")
				} else {
					f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				}
			case *http2.SettingsFrame:
				if !fr.IsAck() {
					f.WriteSettingsAck()
				} else if acks++; acks == 2 { // the first is of those that the connection began with
					shrunk <- struct{}{}
				}
			}
		}
	})
	overAll(t, func(t *testing.T) *rig { return toH2C(t, addr) }, func(t *testing.T, p *peer) {
		body, client := io.Pipe()
		go func() {
			client.Write([]byte("content"))
			<-shrunk
			client.Close()
		}()
		resp := p.send(t, p.request("POST", "app.x.test", "/", body))
		if got := readAll(t, resp.Body); resp.StatusCode != 200 || got != "taken" {
			t.Errorf("%d %q", resp.StatusCode, got)
		}
	})
}
