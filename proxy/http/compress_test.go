package http_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

// text is content that gets smaller.
var text = strings.Repeat("All work and no play makes Jack a dull boy. ", 4000)

// decoded returns the content of a response, decoded as its head says.
func decoded(t *testing.T, resp *http.Response) string {
	t.Helper()
	return readAll(t, decoder(t, resp))
}

func decoder(t *testing.T, resp *http.Response) io.Reader {
	t.Helper()
	switch e := resp.Header.Get("Content-Encoding"); e {
	case "gzip":
		r, err := gzip.NewReader(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r
	case "zstd":
		r, err := zstd.NewReader(resp.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		return r
	case "":
		return resp.Body
	default:
		t.Fatalf("Content-Encoding: %s", e)
		return nil
	}
}

// compressible answers with text and the fields that the query names.
func compressible(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("ETag", `"v1"`)
	h.Set("Accept-Ranges", "bytes")
	status := 200
	for name, values := range r.URL.Query() {
		switch name {
		case "status":
			status, _ = strconv.Atoi(values[0])
		case "del":
			h.Del(values[0])
		default:
			h[http.CanonicalHeaderKey(name)] = values
		}
	}
	if h.Get("Content-Length") == "5" {
		w.WriteHeader(status)
		io.WriteString(w, "small")
		return
	}
	w.WriteHeader(status)
	io.WriteString(w, text)
}

func compressing(t *testing.T, addr, more string) func(t *testing.T) *rig {
	return func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `","compress":true` + more + `}`})
	}
}

// TestCompression checks for each response, request and version whether it is
// compressed, and that its fields are true.
func TestCompression(t *testing.T) {
	addr := backend(t, compressible)
	cases := []struct {
		name, target, accept, want string // want: encoding and Vary
		edit                       func(*http.Request)
	}{
		{name: "both", target: "/", accept: "gzip, zstd", want: "zstd Accept-Encoding"},
		{name: "weighted", target: "/", accept: "gzip;q=1.0, zstd;q=0.9", want: "gzip Accept-Encoding"},
		{name: "none", target: "/", accept: "", want: " Accept-Encoding"},
		{name: "unknown length", target: "/?del=Content-Length", accept: "gzip", want: "gzip Accept-Encoding"},
		{name: "error page", target: "/?status=404", accept: "gzip", want: "gzip Accept-Encoding"},
		{name: "varies already", target: "/?vary=Origin,+accept-encoding", accept: "gzip", want: "gzip Origin, accept-encoding"},
		{name: "varies by more", target: "/?vary=Origin", accept: "gzip", want: "gzip Origin|Accept-Encoding"},
		{name: "small", target: "/?content-length=5", accept: "gzip", want: " "},
		{name: "image", target: "/?content-type=image/png", accept: "gzip", want: " "},
		{name: "events", target: "/?content-type=text/event-stream%3Bcharset%3Dutf-8", accept: "gzip", want: " "},
		{name: "gRPC", target: "/?content-type=application/grpc%2Bproto", accept: "gzip", want: " "},
		{name: "encoded", target: "/?content-encoding=br", accept: "gzip", want: "br "},
		{name: "not to be transformed", target: "/?cache-control=public,+No-Transform", accept: "gzip", want: " "},
		{name: "asked not to", target: "/", accept: "gzip", want: " Accept-Encoding",
			edit: func(r *http.Request) { r.Header.Set("Cache-Control", "no-transform") }},
		{name: "part", target: "/?status=206&content-range=bytes+0-9/10", accept: "gzip", want: " "},
		{name: "asked for a part", target: "/", accept: "gzip", want: " Accept-Encoding",
			edit: func(r *http.Request) { r.Header.Set("Range", "bytes=0-") }},
		{name: "HEAD", target: "/", accept: "gzip", want: " Accept-Encoding", edit: func(r *http.Request) { r.Method = "HEAD" }},
	}
	overAll(t, compressing(t, addr, ""), func(t *testing.T, p *peer) {
		for _, tc := range cases {
			req := p.request("GET", "app.x.test", tc.target, nil)
			if tc.accept != "" {
				req.Header.Set("Accept-Encoding", tc.accept)
			}
			if tc.edit != nil {
				tc.edit(req)
			}
			resp := p.send(t, req)
			if got := resp.Header.Get("Content-Encoding") + " " + strings.Join(resp.Header["Vary"], "|"); got != tc.want {
				t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
				continue
			}
			checkCompressed(t, tc.name, resp)
		}
	})
}

// checkCompressed checks what must hold for any response of compressible.
func checkCompressed(t *testing.T, name string, resp *http.Response) {
	t.Helper()
	h := resp.Header
	ours := h.Get("Content-Encoding") == "gzip" || h.Get("Content-Encoding") == "zstd"
	if ours {
		if h.Get("ETag") != `W/"v1"` || h.Get("Accept-Ranges") != "" || resp.ContentLength >= 0 {
			t.Errorf("%s: header %v, length %d", name, h, resp.ContentLength)
		}
	} else if h.Get("ETag") != `"v1"` || h.Get("Accept-Ranges") != "bytes" {
		t.Errorf("%s: header %v", name, h)
	}
	if resp.Request.Method == "HEAD" || h.Get("Content-Encoding") == "br" {
		return
	}
	if got := decoded(t, resp); got != text && got != "small" {
		t.Errorf("%s: %d bytes of content, and not those that were sent", name, len(got))
	} else if got == "small" && resp.ContentLength != 5 {
		t.Errorf("%s: length %d", name, resp.ContentLength)
	}
}

// TestSmallChunked checks that a response of unknown length that turns out to be
// small is sent as it is, and with its length.
func TestSmallChunked(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"v1\"\r\nAccept-Ranges: bytes\r\n"+
				"Transfer-Encoding: chunked\r\n\r\n2\r\nsm\r\n3\r\nall\r\n0\r\n\r\n")
		}
	})
	overAll(t, compressing(t, addr, ""), func(t *testing.T, p *peer) {
		req := p.request("GET", "app.x.test", "/", nil)
		req.Header.Set("Accept-Encoding", "gzip")
		resp := p.send(t, req)
		if resp.Header.Get("Content-Encoding") != "" || resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("header %v", resp.Header)
		}
		checkCompressed(t, "small", resp)
	})
}

// TestCompressedBytesAreCounted compares the log with what went over the wire.
func TestCompressedBytesAreCounted(t *testing.T) {
	overAll(t, compressing(t, backend(t, compressible), ""), func(t *testing.T, p *peer) {
		for _, target := range []string{"/sized", "/chunked?del=Content-Length"} {
			req := p.request("GET", "app.x.test", target, nil)
			req.Header.Set("Accept-Encoding", "gzip")
			resp := p.send(t, req)
			sent := len(readAll(t, resp.Body))
			path, _, _ := strings.Cut(target, "?")
			if record := p.rig.log.wait(t, path); record["bytes_down"] != float64(sent) || sent > len(text)/10 {
				t.Errorf("%s: %v bytes in the log, %d sent of %d", path, record["bytes_down"], sent, len(text))
			}
		}
	})
}

// TestCompressedLinesComeOneByOne has the backend write a line only once the
// client has decoded the one before.
func TestCompressedLinesComeOneByOne(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.(http.Flusher).Flush()
		for i := range 10 {
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
			fmt.Fprintf(w, "{\"token\": %d}\n", i)
			w.(http.Flusher).Flush()
		}
	})
	for _, coding := range []string{"gzip", "zstd"} {
		t.Run(coding, func(t *testing.T) {
			overAll(t, compressing(t, addr, ""), func(t *testing.T, p *peer) {
				req := p.request("GET", "app.x.test", "/", nil)
				req.Header.Set("Accept-Encoding", coding)
				resp := p.send(t, req) // the head alone must come
				if resp.Header.Get("Content-Encoding") != coding {
					t.Fatalf("header %v", resp.Header)
				}
				next <- struct{}{}
				lines := bufio.NewReader(decoder(t, resp))
				for i := range 10 {
					if i > 0 {
						next <- struct{}{}
					}
					want := fmt.Sprintf("{\"token\": %d}\n", i)
					if got, err := lines.ReadString('\n'); got != want {
						t.Fatalf("%q, %v, want %q", got, err, want)
					}
				}
				if rest := readAll(t, lines); rest != "" {
					t.Errorf("then %q", rest)
				}
			})
		})
	}
}

// TestCompressedTrailer checks that a trailer follows the end of the content.
func TestCompressedTrailer(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, r.URL.Query().Get("content"))
		w.Header().Set("X-Sum", "42")
	})
	overAll(t, compressing(t, addr, ""), func(t *testing.T, p *peer) {
		for _, content := range []string{"short", strings.Repeat("long ", 1000)} {
			req := p.request("GET", "app.x.test", "/?content="+strings.ReplaceAll(content, " ", "+"), nil)
			req.Header.Set("Accept-Encoding", "gzip")
			resp := p.send(t, req)
			if got := decoded(t, resp); got != content || resp.Trailer.Get("X-Sum") != "42" {
				t.Errorf("%d bytes, trailer %v", len(got), resp.Trailer)
			}
		}
	})
}

// TestTruncatedCompressed has the backend break off: no client may take what it
// got for complete, and the encoder serves others.
func TestTruncatedCompressed(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s", 2*len(text), text)
		}
	})
	overAll(t, compressing(t, addr, ""), func(t *testing.T, p *peer) {
		for i := range 3 {
			req := p.request("GET", "app.x.test", "/cut", nil)
			req.Header.Set("Accept-Encoding", "gzip")
			resp, err := p.Do(req)
			if err != nil {
				continue // not even a head: as good
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil {
				t.Errorf("%d: %d bytes passed for complete", i, len(body))
			}
		}
		if r := p.rig.log.wait(t, "/cut"); r["end"] != "backend_reset" {
			t.Errorf("log record %v", r)
		}
	})
}

// TestRevalidation checks the entity tag of 304 against the one that was sent.
func TestRevalidation(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.WriteHeader(304)
	})
	r := compressing(t, addr, "")(t)
	for _, p := range r.peers() {
		for asked, want := range map[string]string{`W/"v1"`: `W/"v1"`, `"v1"`: `"v1"`, `W/"v0", W/"v1"`: `W/"v1"`} {
			req := p.request("GET", "app.x.test", "/", nil)
			req.Header.Set("If-None-Match", asked)
			req.Header.Set("Accept-Encoding", "gzip")
			if resp := p.send(t, req); resp.StatusCode != 304 || resp.Header.Get("ETag") != want {
				t.Errorf("%s: asked with %s: %d, %v", p.name, asked, resp.StatusCode, resp.Header)
			}
		}
	}
}

// TestNodeCompresses checks the node's own policy, and routes that say otherwise.
func TestNodeCompresses(t *testing.T) {
	addr := backend(t, compressible)
	r := newRig(t, map[string]string{
		"node":    `{"host":"node.x.test","backend":"` + addr + `"}`,
		"never":   `{"host":"never.x.test","backend":"` + addr + `","compress":false}`,
		"gzip":    `{"host":"gzip.x.test","backend":"` + addr + `","compress":{"codings":["gzip"]}}`,
		"respond": `{"host":"respond.x.test","respond":{"body":"` + text + `"}}`,
		"edited":  `{"host":"edited.x.test","backend":"` + addr + `","request_headers":{"remove":["Accept-Encoding"]}}`,
	}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Policy.Compress = &router.Compress{} })
	for _, p := range r.peers() {
		for host, want := range map[string]string{"node": "zstd", "never": "", "gzip": "gzip", "respond": "zstd", "edited": "zstd"} {
			req := p.request("GET", host+".x.test", "/", nil)
			req.Header.Set("Accept-Encoding", "gzip, deflate, br, zstd")
			resp := p.send(t, req)
			if got := resp.Header.Get("Content-Encoding"); got != want {
				t.Errorf("%s, %s: %q, want %q", p.name, host, got, want)
			}
			if got := decoded(t, resp); got != text {
				t.Errorf("%s, %s: %d bytes of content, and not those that were sent", p.name, host, len(got))
			}
		}
	}
}

// TestEncodersAreBounded holds more compressed responses open than there are
// encoders: those beyond are sent as they are, and later ones compressed again.
func TestEncodersAreBounded(t *testing.T) {
	const bound, more = 64, 3
	release := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, text)
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		io.WriteString(w, " end")
	})
	r := compressing(t, addr, "")(t)
	p := r.h2()
	get := func() *http.Response {
		req := p.request("GET", "app.x.test", "/", nil)
		req.Header.Set("Accept-Encoding", "zstd")
		return p.send(t, req)
	}
	var all []*http.Response
	plain := 0
	for range bound + more {
		resp := get()
		if all = append(all, resp); resp.Header.Get("Content-Encoding") == "" {
			plain++
		}
	}
	if plain != more {
		t.Errorf("%d of %d responses were not compressed, want %d", plain, len(all), more)
	}
	close(release)
	for i, resp := range all {
		if got := decoded(t, resp); got != text+" end" {
			t.Errorf("response %d: %d bytes, and not those that were sent", i, len(got))
		}
	}
	if resp := get(); resp.Header.Get("Content-Encoding") != "zstd" || decoded(t, resp) != text+" end" {
		t.Errorf("afterwards: header %v", resp.Header)
	}
}

// TestCompressionOf10 sends to a client whose content ends with the connection.
func TestCompressionOf10(t *testing.T) {
	r := compressing(t, backend(t, compressible), "")(t)
	c := r.dialClear()
	io.WriteString(c, "GET / HTTP/1.0\r\nHost: app.x.test\r\nAccept-Encoding: gzip\r\n\r\n")
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := decoded(t, resp); got != text {
		t.Errorf("%d bytes of content", len(got))
	}
}
