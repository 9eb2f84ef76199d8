package http_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestMethodIsAToken asks over HTTP/2 with methods that would be more than a
// method in the request line of HTTP/1.1: /secret belongs to no route.
func TestMethodIsAToken(t *testing.T) {
	rec := &recorder{}
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","path":"/ok","backend":"` + rawBackend(t, rec.serve) + `"}`})
	for _, method := range []string{"GET /secret HTTP/1.1", "GET /secret", "GET\t/secret", "G\xffT", "GET:"} {
		if status := r.askH2(t, method); status != "400" {
			t.Errorf("%q: %s, want 400", method, status)
		}
	}
	if status := r.askH2(t, "PROPFIND"); status != "200" {
		t.Errorf("PROPFIND: %s", status)
	}
	if got := fmt.Sprint(rec.requests()); got != "[PROPFIND /ok ]" || strings.Contains(rec.sent.String(), "secret") {
		t.Errorf("the backend got %q", rec.sent.String())
	}
}

// askH2 asks for /ok by a method as it is and returns the status.
func (r *rig) askH2(t *testing.T, method string) string {
	t.Helper()
	c := r.dialTLS("app.x.test", "h2")
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	framer.WriteSettings()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "app.x.test"}, {":path", "/ok"}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true})
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("%q: %v", method, err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			return h.PseudoValue("status")
		}
	}
}

// TestUnaskedAnswerInsideTLS has a backend say more than it was asked for, in a
// TLS record of its own that comes together with the response.
func TestUnaskedAnswerInsideTLS(t *testing.T) {
	certificate, _ := authority(t, "app.x.test")
	addr := rawBackend(t, func(c *net.TCPConn) {
		out := &corked{Conn: c}
		secured := tls.Server(out, &tls.Config{GetCertificate: certificate})
		in := bufio.NewReader(secured)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			out.closed = true
			fmt.Fprintf(secured, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
			io.WriteString(secured, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
			out.closed = false
			out.Write(nil)
		}
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + addr + `"],"tls":{"insecure_skip_verify":true}}}`})
	p := r.h1Clear()
	for _, target := range []string{"/1", "/2", "/3"} {
		if _, body := p.get(t, "app.x.test", target); body != target {
			t.Errorf("%s got %q", target, body)
		}
	}
}

// corked keeps what is written while it is closed.
type corked struct {
	net.Conn
	closed bool
	kept   bytes.Buffer
}

func (c *corked) Write(p []byte) (int, error) {
	c.kept.Write(p)
	if !c.closed {
		if _, err := c.kept.WriteTo(c.Conn); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestTLSBackendsAreReused makes sure that looking for more keeps no connection
// from being used again.
func TestTLSBackendsAreReused(t *testing.T) {
	certificate, _ := authority(t, "app.x.test")
	conns := make(chan struct{}, 10)
	addr := rawBackend(t, func(c *net.TCPConn) {
		conns <- struct{}{}
		secured := tls.Server(c, &tls.Config{GetCertificate: certificate})
		in := bufio.NewReader(secured)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(secured, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + addr + `"],"tls":{"insecure_skip_verify":true}}}`})
	p := r.h1Clear()
	for i := range 5 {
		want := strings.Repeat("x", i*10_000)
		resp := p.send(t, p.request("POST", "app.x.test", "/", strings.NewReader(want)))
		if body := readAll(t, resp.Body); body != want {
			t.Errorf("request %d got %d bytes back, want %d", i, len(body), len(want))
		}
	}
	if n := len(conns); n != 1 {
		t.Errorf("%d connections for requests one after the other", n)
	}
}

// TestSmallChunksGoTogether sends a byte in each chunk, all at once: a backend
// that got each by itself would cost a system call and a packet for six bytes.
func TestSmallChunksGoTogether(t *testing.T) {
	const chunks = 300
	rec := &recorder{}
	r := toBackend(t, rawBackend(t, rec.serve))(t)
	c := r.dialClear()
	io.WriteString(c, "POST /up HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\n"+
		strings.Repeat("1\r\nx\r\n", chunks)+"0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, want := readAll(t, resp.Body), "POST /up "+strings.Repeat("x", chunks); got != want {
		t.Errorf("the backend read %q", got)
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if n := strings.Count(rec.sent.String(), "\r\n1\r\nx"); n > chunks/10 {
		t.Errorf("the backend got %d chunks of a byte", n)
	}
}
