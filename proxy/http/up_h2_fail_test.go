package http_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestH2Failures has backends break the rules of HTTP/2 in front of the final
// head, each in its own way.
func TestH2Failures(t *testing.T) {
	// What the backend does with the first request on a connection.
	cases := map[string]struct {
		want string
		do   func(f *framer, r framerRequest)
	}{
		"cancel":     {"502 backend_reset", func(f *framer, r framerRequest) { f.WriteRSTStream(r.stream, http2.ErrCodeCancel) }},
		"internal":   {"502 backend_reset", func(f *framer, r framerRequest) { f.WriteRSTStream(r.stream, http2.ErrCodeInternal) }},
		"hangup":     {"502 backend_reset", func(f *framer, r framerRequest) { f.c.Close() }},
		"goaway":     {"502 backend_reset", func(f *framer, r framerRequest) { f.WriteGoAway(r.stream, http2.ErrCodeNo, nil); f.c.Close() }},
		"nostatus":   {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, "x-a", "b") }},
		"twostatus":  {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", ":status", "200") }},
		"badstatus":  {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "20x") }},
		"switching":  {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, false, ":status", "101") }},
		"pseudo":     {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", ":path", "/") }},
		"late":       {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, "x-a", "b", ":status", "200") }},
		"upper":      {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "X-A", "b") }},
		"badname":    {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "x a", "b") }},
		"crlf":       {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "x-a", "b\r\nx-b: c") }},
		"nul":        {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "x-a", "b\x00") }},
		"connection": {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "connection", "x-a") }},
		"chunked": {"502 backend_malformed", func(f *framer, r framerRequest) {
			f.head(r.stream, true, ":status", "200", "transfer-encoding", "chunked")
		}},
		"length": {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "content-length", "-1") }},
		"lengths": {"502 backend_malformed", func(f *framer, r framerRequest) {
			f.head(r.stream, true, ":status", "200", "content-length", "0", "content-length", "0")
		}},
		"short":     {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "200", "content-length", "7") }},
		"bighead":   {"502 backend_malformed", func(f *framer, r framerRequest) { f.bigHead(r.stream, 300<<10) }},
		"endless":   {"502 backend_malformed", func(f *framer, r framerRequest) { f.bigHead(r.stream, 16<<20) }},
		"headless":  {"502 backend_malformed", func(f *framer, r framerRequest) { f.data(r.stream, true, "x") }},
		"hints":     {"502 backend_malformed", func(f *framer, r framerRequest) { f.hints(r.stream, 100) }},
		"lasthint":  {"502 backend_malformed", func(f *framer, r framerRequest) { f.head(r.stream, true, ":status", "103") }},
		"push":      {"502 backend_malformed", func(f *framer, r framerRequest) { f.push(r.stream) }},
		"unbegun":   {"502 backend_malformed", func(f *framer, r framerRequest) { f.ok(r.stream+2, "x") }},
		"even":      {"502 backend_malformed", func(f *framer, r framerRequest) { f.ok(2, "x") }},
		"hpack":     {"502 backend_malformed", func(f *framer, r framerRequest) { f.rawBlock(r.stream, "\xff\xff\xff\xff") }},
		"streamwin": {"502 backend_malformed", func(f *framer, r framerRequest) { f.WriteWindowUpdate(r.stream, 1<<31-1) }},
		"connwin":   {"502 backend_malformed", func(f *framer, r framerRequest) { f.WriteWindowUpdate(0, 1<<31-1) }},
		"nowin":     {"502 backend_malformed", func(f *framer, r framerRequest) { f.WriteWindowUpdate(r.stream, 0) }},
		"setting": {"502 backend_malformed", func(f *framer, r framerRequest) {
			f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})
		}},
		"largeframe": {"502 backend_malformed", func(f *framer, r framerRequest) { f.WriteData(r.stream, true, make([]byte, 1<<14+1)) }},
		"pings":      {"502 backend_malformed", func(f *framer, r framerRequest) { f.flood(func() error { return f.WritePing(false, [8]byte{}) }) }},
		"settings":   {"502 backend_malformed", func(f *framer, r framerRequest) { f.flood(func() error { return f.WriteSettings() }) }},
		"windows":    {"502 backend_malformed", func(f *framer, r framerRequest) { f.flood(func() error { return f.WriteWindowUpdate(0, 1) }) }},
		"resets":     {"502 backend_malformed", func(f *framer, r framerRequest) { f.flood(func() error { return f.WriteRawFrame(0x42, 0, 0, nil) }) }},
	}
	addr := framerBackend(t, func(f *framer) {
		for {
			r, err := f.request()
			if err != nil {
				return
			}
			cases[r.path[1:]].do(f, r)
		}
	})
	r := toH2C(t, addr)
	for i, p := range []*peer{r.h1Clear(), r.h2()} {
		for name, tc := range cases {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				resp := p.send(t, p.request("POST", "app.x.test", "/"+name, pieces("content")))
				body := readAll(t, resp.Body)
				// One connection may serve several: nobody is to be left waiting.
				record := r.log.nth(t, "/"+name, i)
				if got := fmt.Sprint(resp.StatusCode, " ", record["end"]); got != tc.want {
					t.Errorf("%s (%v), want %s", got, record["err"], tc.want)
				}
				if !strings.HasSuffix(body, "\n") || len(body) > 100 {
					t.Errorf("the client was told %q", body)
				}
			})
		}
	}
}

// flood writes until the connection is gone.
func (f *framer) flood(write func() error) {
	for write() == nil {
	}
}

// bigHead sends a head of about size bytes in CONTINUATION frames.
func (f *framer) bigHead(stream uint32, size int) {
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.block(":status", "200")})
	line := f.block("x-a", strings.Repeat("~", 1000))
	for ; size > 0; size -= len(line) {
		if f.WriteContinuation(stream, size <= len(line), line) != nil {
			return
		}
	}
}

func (f *framer) hints(stream uint32, n int) {
	for range n {
		f.head(stream, false, ":status", "103")
	}
}

func (f *framer) push(stream uint32) {
	f.WritePushPromise(http2.PushPromiseParam{StreamID: stream, PromiseID: 2, EndHeaders: true,
		BlockFragment: f.block(":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/")})
}

func (f *framer) rawBlock(stream uint32, block string) {
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block), EndHeaders: true, EndStream: true})
}

// TestH2NotHTTP2 has a backend answer by HTTP/1.1, or not at all.
func TestH2NotHTTP2(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	r := toH2C(t, addr)
	resp, _ := r.h2().get(t, "app.x.test", "/")
	if record := r.log.wait(t, "/"); resp.StatusCode != 502 || record["end"] != "backend_malformed" {
		t.Errorf("%d, log record %v", resp.StatusCode, record)
	}
}

// TestH2Truncated has backends break off behind the final head. No client may
// take what it got for a whole response.
func TestH2Truncated(t *testing.T) {
	cases := map[string]struct {
		end string
		do  func(f *framer, stream uint32)
	}{
		"reset":   {"backend_reset", func(f *framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeInternal) }},
		"noerror": {"backend_reset", func(f *framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeNo) }},
		"hangup":  {"backend_reset", func(f *framer, stream uint32) { f.c.Close() }},
		"short":   {"backend_malformed", func(f *framer, stream uint32) { f.data(stream, true, "") }},
		"long":    {"backend_malformed", func(f *framer, stream uint32) { f.data(stream, true, "more than was said") }},
		"again":   {"backend_malformed", func(f *framer, stream uint32) { f.head(stream, false, "x-late", "1") }},
		"pseudo":  {"backend_malformed", func(f *framer, stream uint32) { f.head(stream, true, ":status", "200") }},
	}
	addr := framerBackend(t, func(f *framer) {
		for {
			r, err := f.request()
			if err != nil {
				return
			}
			f.head(r.stream, false, ":status", "200", "content-length", "7")
			f.data(r.stream, false, "begun")
			cases[r.path[1:]].do(f, r.stream)
		}
	})
	r := toH2C(t, addr)
	for i, p := range r.peers() {
		for name, tc := range cases {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				resp, err := p.Do(p.request("GET", "app.x.test", "/"+name, nil))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if err == nil {
					t.Error("the client got a whole response")
				}
				if record := r.log.nth(t, "/"+name, i); record["end"] != tc.end {
					t.Errorf("log record %v, want %s", record, tc.end)
				}
			})
		}
	}
}

// nth returns the n-th record, from 0, whose path is path, once it is there.
func (b *logBook) nth(t *testing.T, path string, n int) map[string]any {
	t.Helper()
	var found map[string]any
	eventually(t, "a log record for "+path, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		left := n
		for _, r := range b.records {
			if r["path"] == path {
				if left--; left < 0 {
					found = r
					return true
				}
			}
		}
		return false
	})
	return found
}
