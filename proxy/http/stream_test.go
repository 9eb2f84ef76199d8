package http_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

func toBackend(t *testing.T, addr string) func(t *testing.T) *rig {
	return func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`})
	}
}

// TestEventsComeOneByOne has the backend send an event only once the client has
// read the one before, a byte at a time.
func TestEventsComeOneByOne(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for i := range 20 {
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
			io.WriteString(w, string(rune('a'+i)))
			w.(http.Flusher).Flush()
		}
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		resp := p.send(t, p.request("GET", "app.x.test", "/events", nil)) // the head alone must come
		one := make([]byte, 1)
		for i := range 20 {
			next <- struct{}{}
			if _, err := io.ReadFull(resp.Body, one); err != nil || one[0] != byte('a'+i) {
				t.Fatalf("event %d: %q, %v", i, one, err)
			}
		}
		if rest := readAll(t, resp.Body); rest != "" {
			t.Errorf("then %q", rest)
		}
	})
}

// TestLastPartComesAtOnce has an HTTP/2 backend send the last byte of a response
// of known length and stay, until the client has that byte.
func TestLastPartComesAtOnce(t *testing.T) {
	read := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1")
		io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		select {
		case <-read:
		case <-r.Context().Done():
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	newH2C := func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app": `{"host":"app.x.test","backend":{"targets":["` + s.Listener.Addr().String() + `"],"h2c":true}}`})
	}
	overAll(t, newH2C, func(t *testing.T, p *peer) {
		resp := p.send(t, p.request("GET", "app.x.test", "/", nil))
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		read <- struct{}{}
		if rest := readAll(t, resp.Body); rest != "" {
			t.Errorf("then %q", rest)
		}
	})
}

// TestClientAbortReachesBackend closes the client's side in each phase of an
// exchange and waits for the backend to notice.
func TestClientAbortReachesBackend(t *testing.T) {
	for _, phase := range []string{"/before-head", "/in-body", "/in-upload"} {
		t.Run(phase[1:], func(t *testing.T) {
			arrived, gone := make(chan struct{}, 1), make(chan struct{}, 1)
			addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/in-body" {
					io.WriteString(w, "start")
					w.(http.Flusher).Flush()
				}
				arrived <- struct{}{}
				if r.URL.Path == "/in-upload" {
					io.Copy(io.Discard, r.Body)
				}
				<-r.Context().Done()
				gone <- struct{}{}
			})
			overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				method, body, stopUpload := "GET", io.Reader(nil), func() {}
				if phase == "/in-upload" {
					in, out := io.Pipe()
					defer out.Close()
					go io.WriteString(out, "some")
					method, body, stopUpload = "POST", in, func() { out.CloseWithError(context.Canceled) }
				}
				req := p.request(method, "app.x.test", phase, body).WithContext(ctx)
				done := make(chan error, 1)
				go func() {
					resp, err := p.Do(req)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					done <- err
				}()
				soon(t, "the request", arrived)
				cancel()
				soon(t, "the backend to notice", gone)
				stopUpload()
				if err := soon(t, "the client", done); err == nil {
					t.Error("the client got a whole response")
				}
				if r := p.rig.log.wait(t, phase); r["end"] != "client_gone" {
					t.Errorf("log record %v", r)
				}
			})
		})
	}
}

// TestTruncatedResponse has backends end a response too early. No client may
// take it for complete.
func TestTruncatedResponse(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		switch req.URL.Path {
		case "/sized":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		case "/chunked":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		case "/mangled":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n")
		}
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		for _, target := range []string{"/sized", "/chunked", "/mangled"} {
			resp, err := p.Do(p.request("GET", "app.x.test", target, nil))
			if err != nil {
				continue // not even a head: as good
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil {
				t.Errorf("%s: %q passed for complete", target, body)
			}
			want := "backend_reset"
			if target == "/mangled" {
				want = "backend_malformed"
			}
			if r := p.rig.log.wait(t, target); r["end"] != want || r["status"] != 200.0 {
				t.Errorf("%s: log record %v, want end %s", target, r, want)
			}
		}
	})
}

// TestTruncatedResponseToHTTP10 checks the one framing in which an end looks
// like an end, whatever its cause.
func TestTruncatedResponseToHTTP10(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		}
	})
	r := toBackend(t, addr)(t)
	for name, c := range map[string]net.Conn{"clear": r.dialClear(), "tls": r.dialTLS("app.x.test")} {
		io.WriteString(c, "GET / HTTP/1.0\r\nHost: app.x.test\r\n\r\n")
		if got, err := io.ReadAll(c); err == nil {
			t.Errorf("%s: %q passed for complete", name, got)
		}
	}
}

// TestExpectContinue has the backend say nothing until it has the body: the
// node asks the client for it, and does not have the backend do so. What can be
// answered by the head alone is, without asking.
func TestExpectContinue(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %q", body, r.Header.Get("Expect"))
	})
	start := func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app":   `{"host":"app.x.test","backend":"` + addr + `"}`,
			"small": `{"host":"small.x.test","backend":"` + addr + `","limits":{"body":"6B"}}`,
			"gone":  `{"host":"gone.x.test","backend":"127.0.0.1:1"}`,
		})
	}
	overAll(t, start, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			host, want string
			read       bool
		}{{"app.x.test", `200 content ""`, true}, {"small.x.test", "413 the request's body is too large\n", false}, {"gone.x.test", "502 the backend cannot be reached\n", false}} {
			body := &watchedReader{r: strings.NewReader("content")}
			req := p.request("POST", tc.host, "/", body)
			req.ContentLength = 7
			req.Header.Set("Expect", "100-continue")
			resp := p.send(t, req)
			if got := fmt.Sprint(resp.StatusCode, " ", readAll(t, resp.Body)); got != tc.want {
				t.Errorf("%s: %q, want %q", tc.host, got, tc.want)
			}
			// quic-go's client does not wait for 100.
			if p.proto != "h3" && body.wasRead() != tc.read {
				t.Errorf("%s: body read: %v, want %v", tc.host, body.wasRead(), tc.read)
			}
		}
	})
}

// TestExpectContinueUnasked checks that a client that does not wait is not asked,
// and that its request goes on whole.
func TestExpectContinueUnasked(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	resp := exchange1(t, r.dialClear(), "POST /a HTTP/1.1\r\nHost: app.x.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
	if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "POST /a host=app.x.test body=abc" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

// watchedReader knows whether it was read.
type watchedReader struct {
	r    io.Reader
	mu   sync.Mutex
	read bool
}

func (w *watchedReader) Read(p []byte) (int, error) {
	w.mu.Lock()
	w.read = true
	w.mu.Unlock()
	return w.r.Read(p)
}

func (w *watchedReader) wasRead() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.read
}

// TestBothWaysAtOnce talks in turns over one exchange.
func TestBothWaysAtOnce(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(w, "re: "+line)
			w.(http.Flusher).Flush()
		}
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		in, out := io.Pipe()
		defer out.Close()
		resp := p.send(t, p.request("POST", "app.x.test", "/", in))
		back := bufio.NewReader(resp.Body)
		for i := range 5 {
			fmt.Fprintf(out, "line %d\n", i)
			want := fmt.Sprintf("re: line %d\n", i)
			if got, err := back.ReadString('\n'); got != want {
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
		out.Close()
		if rest := readAll(t, back); rest != "" {
			t.Errorf("then %q", rest)
		}
	})
}

// TestAnswerBeforeUploadEnds has the backend answer and hang up while the
// client is still sending: the client must get the answer, and soon.
func TestAnswerBeforeUploadEnds(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
			c.CloseWrite()
			io.Copy(io.Discard, c)
		}
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		for _, target := range []string{"/stalled", "/flowing"} {
			in, out := io.Pipe()
			go func() {
				for i := 0; ; i++ {
					if _, err := out.Write(make([]byte, 32<<10)); err != nil {
						return
					}
					if target == "/stalled" && i == 3 {
						<-t.Context().Done()
						out.Close()
						return
					}
				}
			}()
			resp := p.send(t, p.request("POST", "app.x.test", target, in))
			if body := readAll(t, resp.Body); resp.StatusCode != 413 || body != "large" {
				t.Errorf("%s: %d %q", target, resp.StatusCode, body)
			}
			in.Close()
		}
		if resp, body := p.get(t, "app.x.test", "/next"); resp.StatusCode != 413 || body != "large" {
			t.Errorf("the next request: %d %q", resp.StatusCode, body)
		}
	})
}

// TestMalformedUpload sends a body whose chunks are broken.
func TestMalformedUpload(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	r := toBackend(t, addr)(t)
	resp := exchange1(t, r.dialClear(), "POST /up HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	if resp.StatusCode != 400 || !resp.Close {
		t.Errorf("%d, closing %v", resp.StatusCode, resp.Close)
	}
	if record := r.log.wait(t, "/up"); record["end"] != "client_malformed" {
		t.Errorf("log record %v", record)
	}
}

// TestKeepAliveAfterBodies checks that connections go on after exchanges with
// bodies both ways.
func TestKeepAliveAfterBodies(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	c := r.dialClear()
	in := bufio.NewReader(c)
	for range 3 {
		io.WriteString(c, "POST /a HTTP/1.1\r\nHost: app.x.test\r\nContent-Length: 3\r\n\r\nabc")
		io.WriteString(c, "POST /b HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
		for _, want := range []string{"POST /a host=app.x.test body=abc", "POST /b host=app.x.test body=abc"} {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body := readAll(t, resp.Body); body != want || resp.Close {
				t.Errorf("%q, closing %v, want %q", body, resp.Close, want)
			}
		}
	}
}

func TestUploadWithoutEnd(t *testing.T) {
	started := make(chan struct{}, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			t.Error("a cut upload passed for complete")
		}
	})
	r := toBackend(t, addr)(t)
	c := r.dialClear()
	io.WriteString(c, "POST /cut HTTP/1.1\r\nHost: app.x.test\r\nContent-Length: 100\r\n\r\nabc")
	soon(t, "the backend", started)
	c.Close()
	if record := r.log.wait(t, "/cut"); record["end"] != "client_gone" {
		t.Errorf("log record %v", record)
	}
}
