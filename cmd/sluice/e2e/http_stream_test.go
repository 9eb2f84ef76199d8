package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// putBothBackends puts two routes to the same handler and returns their hosts:
// one by HTTP/1.1, and one by HTTP/2 as gRPC servers have it.
func putBothBackends(t *testing.T, n *node, name string, handler http.Handler) (hosts []string) {
	t.Helper()
	addr := startBackend(t, handler)
	one, two := name+"-h1.r.test", name+"-h2c.r.test"
	n.mustPut("routes/"+name+"-h1", backendRoute(one, addr))
	n.mustPut("routes/"+name+"-h2c", routeJSON(map[string]any{"host": two, "backend": map[string]any{"targets": []string{addr}, "h2c": true}}))
	return []string{one, two}
}

// A client gets each part of a response before the backend goes on to the next,
// also where the whole length is known.
func TestResponsesAreNotBuffered(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const events = 5
	event := func(i int) string { return fmt.Sprintf("data: event %d\n\n", i) }
	read := make(chan struct{})
	hosts := putBothBackends(t, n, "events", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
		} else {
			w.Header().Set("Content-Length", strconv.Itoa(events*len(event(0))))
		}
		for i := range events {
			io.WriteString(w, event(i))
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-read: // the client has it
			case <-r.Context().Done():
				return
			}
		}
	}))
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range hosts {
			for _, path := range []string{"/events", "/known-length"} {
				resp, err := c.open(c.request(within(t), http.MethodGet, host, path, nil))
				if err != nil {
					t.Fatal(err)
				}
				body := bufio.NewReader(resp.Body)
				for i := range events {
					got := make([]byte, len(event(i)))
					if _, err := io.ReadFull(body, got); err != nil || string(got) != event(i) {
						t.Fatalf("%s%s: event %d: %q, %v", host, path, i, got, err)
					}
					give(t, read, "the news that the event arrived")
				}
				if _, err := body.ReadByte(); err != io.EOF {
					t.Errorf("%s%s: after the last event: %v, want the end", host, path, err)
				}
				resp.Body.Close()
			}
		}
	})
}

// A backend gets each part of a request before the client goes on to the next.
func TestRequestsAreNotBuffered(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	parts := make(chan string)
	hosts := putBothBackends(t, n, "upload", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 100)
		for {
			k, err := r.Body.Read(buf)
			if k > 0 {
				select {
				case parts <- string(buf[:k]):
				case <-r.Context().Done():
					return
				}
			}
			if err != nil {
				fmt.Fprint(w, err)
				return
			}
		}
	}))
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range hosts {
			body, feed := io.Pipe()
			response := make(chan string, 1)
			req := c.request(within(t), http.MethodPost, host, "/", body)
			go func() {
				_, body, err := c.do(req)
				response <- fmt.Sprint(body, err)
			}()
			for i := range 5 {
				part := fmt.Sprintf("part %d", i)
				if _, err := io.WriteString(feed, part); err != nil {
					t.Fatal(err)
				}
				var got string
				for len(got) < len(part) {
					got += await(t, parts, part)
				}
				if got != part {
					t.Fatalf("%s: the backend got %q, want %q", host, got, part)
				}
			}
			feed.Close()
			if got := await(t, response, "the response"); got != "EOF<nil>" {
				t.Errorf("%s: response %q", host, got)
			}
		}
	})
}

// Both directions of one exchange run at once.
func TestFullDuplex(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	hosts := putBothBackends(t, n, "duplex", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ProtoMajor == 1 {
			if err := control.EnableFullDuplex(); err != nil {
				t.Error(err)
			}
		}
		control.Flush()
		buf := make([]byte, 100)
		for {
			k, err := r.Body.Read(buf)
			if _, err := w.Write(buf[:k]); err != nil || control.Flush() != nil {
				return
			}
			if err != nil {
				return
			}
		}
	}))
	for _, proto := range []string{"h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			c := newClient(t, n, proto)
			for _, host := range hosts {
				body, feed := io.Pipe()
				resp, err := c.open(c.request(within(t), http.MethodPost, host, "/", body))
				if err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					part := fmt.Sprintf("part %d", i)
					if _, err := io.WriteString(feed, part); err != nil {
						t.Fatal(err)
					}
					echo := make([]byte, len(part))
					if _, err := io.ReadFull(resp.Body, echo); err != nil || string(echo) != part {
						t.Fatalf("%s: echo %q, %v, want %q", host, echo, err, part)
					}
				}
				feed.Close()
				if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
					t.Errorf("%s: after the last part: %q, %v", host, rest, err)
				}
				resp.Body.Close()
			}
		})
	}
}

// Bodies of any size pass in bounded memory.
func TestBigBodies(t *testing.T) {
	n := startNode(t) // not in parallel: it keeps every core busy
	const size, bound = 256 << 20, 128 << 20
	backend := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			fmt.Fprint(w, receive(r.Body))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(size))
		io.Copy(w, pseudoRandom('d', size)) // what is missing shows at the client
	}))
	n.mustPut("routes/big", backendRoute("big.r.test", backend))
	eachProto(t, n, func(t *testing.T, c *client) {
		before := c.n.peakMemory()
		ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
		defer cancel()
		_, got := c.mustDo(c.request(ctx, http.MethodPost, "big.r.test", "/", pseudoRandom('u', size)))
		if want := transferOf('u', size).String(); got != want {
			t.Errorf("upload: the backend got %s, want %s", got, want)
		}
		resp, err := c.open(c.request(ctx, http.MethodGet, "big.r.test", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, want := receive(resp.Body).String(), transferOf('d', size).String(); got != want {
			t.Errorf("download: got %s, want %s", got, want)
		}
		grown := c.n.peakMemory() - before
		t.Logf("the node's memory peaked %d MB above what it was", grown>>20)
		if grown > bound {
			t.Errorf("the node took %d MB for bodies of %d MB, want at most %d MB", grown>>20, size>>20, bound>>20)
		}
	})
}

// peakMemory returns the most memory that the program has had resident, in
// bytes.
func (n *node) peakMemory() int {
	n.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			if err != nil {
				n.t.Fatalf("VmHWM: %v", err)
			}
			return kb << 10
		}
	}
	n.t.Fatal("no VmHWM in /proc/.../status")
	return 0
}

// When a client gives up, the backend is told.
func TestClientAborts(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	told := make(chan struct{}, 1)
	hosts := putBothBackends(t, n, "abort", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done() // ends with the backend at the latest
		told <- struct{}{}
	}))
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range hosts {
			ctx, giveUp := context.WithCancel(within(t))
			defer giveUp()
			resp, err := c.open(c.request(ctx, http.MethodGet, host, "/", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
				t.Fatalf("%q, %v", line, err)
			}
			giveUp()
			await(t, told, "the end of the request at the backend")
		}
	})
}

// A request body that breaks off does not look whole to the backend.
func TestUploadBreaksOff(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	begun, ends := make(chan struct{}, 1), make(chan error, 1)
	hosts := putBothBackends(t, n, "broken", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadFull(r.Body, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		begun <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		ends <- err
	}))
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range hosts {
			body, feed := io.Pipe()
			sent := make(chan error, 1)
			req := c.request(within(t), http.MethodPost, host, "/", body)
			go func() {
				_, _, err := c.do(req)
				sent <- err
			}()
			io.WriteString(feed, "begun")
			await(t, begun, "the request at the backend")
			feed.CloseWithError(errors.New("the client's disk broke"))
			if err := await(t, ends, "the end of the request at the backend"); err == nil {
				t.Errorf("%s: the backend took half a body for a whole one", host)
			}
			if err := await(t, sent, "the client's own error"); err == nil {
				t.Errorf("%s: the client got a response", host)
			}
		}
	})
}

// A response body that breaks off does not look whole to the client.
func TestDownloadBreaksOff(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	hosts := putBothBackends(t, n, "cut", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	raw := func(name, response string) {
		n.mustPut("routes/"+name, backendRoute(name+".r.test", startRaw(t, func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, response)
			}
		})))
	}
	raw("short", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
	raw("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n")
	raw("in-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nbegun")
	raw("to-the-end", "HTTP/1.1 200 OK\r\n\r\nbegun")
	raw("nothing", "")
	raw("half-a-head", "HTTP/1.1 200 OK\r\nContent-Le")
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range append(hosts, "short.r.test", "chunked.r.test", "in-chunk.r.test") {
			resp, body, err := c.do(c.request(within(t), http.MethodGet, host, "/", nil))
			if err == nil {
				t.Errorf("%s: %d %q looks whole to the client", host, resp.StatusCode, body)
			}
		}
		// This one is framed by the end of the connection and cannot be told
		// from a whole one.
		if _, body := c.get("to-the-end.r.test", "/"); body != "begun" {
			t.Errorf("framed by the end: %q", body)
		}
		for _, host := range []string{"nothing.r.test", "half-a-head.r.test"} {
			if resp, body := c.get(host, "/"); resp.StatusCode != http.StatusBadGateway {
				t.Errorf("%s: %d %q, want 502", host, resp.StatusCode, body)
			}
		}
	})
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	hosts := putBothBackends(t, n, "expect", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			http.Error(w, "too big", http.StatusRequestEntityTooLarge)
			return
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v", body, err)
	}))
	for _, host := range hosts {
		t.Run("by hand", func(t *testing.T) {
			c := n.in(t).dialTLS(host)
			fmt.Fprintf(c, "PUT / HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", host)
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 100 {
				t.Fatalf("first answer: %v, %v, want 100", resp, err)
			}
			io.WriteString(c, "hello")
			resp, err = http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "hello <nil>" {
				t.Errorf("%d %q, %v", resp.StatusCode, body, err)
			}
		})
		t.Run("refused", func(t *testing.T) {
			c := n.in(t).dialTLS(host)
			fmt.Fprintf(c, "PUT /refused HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n", host)
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			for err == nil && resp.StatusCode == 100 {
				resp, err = http.ReadResponse(r, nil)
			}
			if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("%v, %v, want 413 without a byte of the body", resp, err)
			}
		})
		t.Run("by clients", func(t *testing.T) {
			eachProto(t, n, func(t *testing.T, c *client) {
				req := c.request(within(t), http.MethodPut, host, "/", strings.NewReader("hello"))
				req.Header.Set("Expect", "100-continue")
				if _, body := c.mustDo(req); body != "hello <nil>" {
					t.Errorf("body %q", body)
				}
			})
		})
	}
	t.Run("curl", func(t *testing.T) {
		n := n.in(t)
		file := filepath.Join(t.TempDir(), "body")
		if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
		n.mustPut("routes/curl", backendRoute("expect.localhost", startBackend(t, http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, receive(r.Body).bytes) }))))
		for _, flag := range []string{"--http1.1", "--http2"} {
			// Without a 100 it would wait for longer than it may take.
			got := n.curl(flag, "--expect100-timeout", "60", "-H", "Expect: 100-continue", "-T", file, n.url("expect.localhost", "/"))
			if got != "100000" {
				t.Errorf("curl %s: %q", flag, got)
			}
		}
	})
}

// Answers that come before the upload has ended reach curl, also as old as Debian
// 12 has it: its HTTP/2 loses those behind which the stream is reset.
func TestEarlyAnswersByCurl(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	early := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }))
	routes := map[string]map[string]any{
		"413": {"backend": early, "limits": map[string]any{"body": "1KB"}},
		"401": {"respond": map[string]any{"status": 401, "body": "who"}},
		"403": {"backend": early},
	}
	for status, route := range routes {
		route["host"] = "early" + status + ".localhost"
		n.mustPut("routes/early"+status, routeJSON(route))
	}
	for _, size := range []int{3 << 10, 50 << 10, 2 << 20} {
		file := filepath.Join(t.TempDir(), "body")
		if err := os.WriteFile(file, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, status := range []string{"413", "401", "403", "404"} {
			for range 20 {
				got := n.curl("--http2", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@"+file, "-H", "Expect:",
					n.url("early"+status+".localhost", "/"))
				if got != status {
					t.Errorf("%d bytes: %s, want %s", size, got, status)
				}
			}
		}
	}
}

// Trailers pass both ways, announced or not.
func TestTrailers(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	hosts := putBothBackends(t, n, "trailers", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		if http.NewResponseController(w).EnableFullDuplex() == nil || r.ProtoMajor > 1 {
			http.NewResponseController(w).Flush() // a length, in HTTP/1.1, would leave no place for trailers
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v", body, err)
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Unannounced", "late")
	}))
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range hosts {
			body, feed := io.Pipe()
			req := c.request(within(t), http.MethodPost, host, "/", body)
			req.Trailer = http.Header{"X-Sum": nil}
			go func() {
				io.WriteString(feed, "hello")
				req.Trailer.Set("X-Sum", "5")
				feed.Close()
			}()
			resp, text := c.mustDo(req)
			if text != "hello <nil>" {
				t.Errorf("%s: body %q", host, text)
			}
			for name, want := range map[string]string{"X-Announced": "5", "X-Unannounced": "late"} {
				if got := resp.Trailer.Get(name); got != want {
					t.Errorf("%s: trailer %s: %q, want %q; all: %v", host, name, got, want, resp.Trailer)
				}
			}
		}
	})
}

// Responses that have no body say what they have to say, and do not disturb the
// exchange after them.
func TestResponsesWithoutBody(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	hosts := putBothBackends(t, n, "bodiless", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"1"`)
		switch r.URL.Path {
		case "/head":
			w.Header().Set("Content-Length", "1234")
		case "/empty":
			w.Header().Set("Content-Length", "0")
		default:
			status, _ := strconv.Atoi(r.URL.Path[1:])
			w.WriteHeader(status)
		}
	}))
	n.mustPut("routes/own", respondRoute("own.r.test", "hello"))
	eachProto(t, n, func(t *testing.T, c *client) {
		for _, host := range hosts {
			for _, tt := range []struct {
				method, path string
				status       int
				length       string // Content-Length
			}{
				{"HEAD", "/head", 200, "1234"},
				{"GET", "/204", 204, ""},
				{"GET", "/304", 304, ""},
				{"HEAD", "/304", 304, ""},
				{"POST", "/empty", 200, "0"},
				{"GET", "/empty", 200, "0"},
			} {
				resp, body := c.mustDo(c.request(within(t), tt.method, host, tt.path, nil))
				if resp.StatusCode != tt.status || body != "" || resp.Header.Get("Etag") != `"1"` || resp.Header.Get("Content-Length") != tt.length {
					t.Errorf("%s %s%s: %d %v %q", tt.method, host, tt.path, resp.StatusCode, resp.Header, body)
				}
			}
		}
		resp, body := c.mustDo(c.request(within(t), "HEAD", "own.r.test", "/", nil))
		if resp.StatusCode != 200 || body != "" || resp.Header.Get("Content-Length") != "5" {
			t.Errorf("HEAD of the node's own answer: %d %v %q", resp.StatusCode, resp.Header, body)
		}
	})
}

// A backend that keeps a client waiting for longer than its route allows is
// given up.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	told := make(chan struct{}, 1)
	slow := startBackend(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		told <- struct{}{}
	}))
	n.mustPut("routes/slow", routeJSON(map[string]any{
		"host": "slow.r.test", "backend": slow, "timeouts": map[string]string{"first_byte": "100ms"}}))
	eachProto(t, n, func(t *testing.T, c *client) {
		if resp, body := c.get("slow.r.test", "/"); resp.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("%d %q, want 504", resp.StatusCode, body)
		}
		await(t, told, "the end of the request at the backend")
	})
	echo, ended := startEcho(t, "")
	n.mustPut("routes/silent", routeJSON(map[string]any{
		"host": "silent.r.test", "backend": echo, "timeouts": map[string]string{"idle": "100ms"}}))
	c := webSocket(t, n, "silent.r.test", "/")
	if _, _, err := c.Read(within(t)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent WebSocket: %v, want it closed", err)
	}
	await(t, ended, "the end of the connection at the backend")
}
