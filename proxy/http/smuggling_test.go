package http_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// recorder is a backend that keeps every byte it is sent, and answers each
// request with its target and body.
type recorder struct {
	mu   sync.Mutex
	sent bytes.Buffer
	seen []string
}

func (r *recorder) serve(c *net.TCPConn) {
	in := bufio.NewReader(io.TeeReader(c, writerFunc(func(p []byte) (int, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.sent.Write(p)
	})))
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.Header.Get("Expect") != "" {
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		what := req.Method + " " + req.RequestURI + " " + string(body)
		r.mu.Lock()
		r.seen = append(r.seen, what)
		r.mu.Unlock()
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(what), what)
	}
}

func (r *recorder) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.seen...)
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestNothingIsSmuggled sends what two readers could frame in two ways, each
// time with a request for /smuggled where one of them would look for the next.
// The client gets one refusal and the end, the backend no more than a request
// that was whole.
func TestNothingIsSmuggled(t *testing.T) {
	const host = "Host: app.x.test\r\n"
	const hidden = "GET /smuggled HTTP/1.1\r\nHost: app.x.test\r\n\r\n"
	for name, tc := range map[string]struct {
		request string
		status  int
	}{
		"CL.TE":                 {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"TE.CL":                 {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2d\r\n" + hidden + "\r\n0\r\n\r\n", 400},
		"two lengths":           {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: 45\r\n\r\n" + hidden, 400},
		"list of lengths":       {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0, 45\r\n\r\n" + hidden, 400},
		"signed length":         {"POST / HTTP/1.1\r\n" + host + "Content-Length: +45\r\n\r\n" + hidden, 400},
		"two codings":           {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, 501},
		"coding after space":    {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"coding behind a tab":   {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"folded coding":         {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden, 501},
		"coding behind LF":      {"POST / HTTP/1.1\r\n" + host + "X: x\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"coding behind CR":      {"POST / HTTP/1.1\r\n" + host + "X: x\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"coding in HTTP/1.0":    {"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"chunk with bare LF":    {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n" + hidden, 400},
		"chunk longer than it":  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n" + hidden, 400},
		"chunk size overflow":   {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n" + hidden, 400},
		"chunk with bare CR":    {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1;\rx\r\nx\r\n0\r\n\r\n" + hidden, 400},
		"two hosts":             {"GET / HTTP/1.1\r\n" + host + "Host: other.x.test\r\n\r\n" + hidden, 400},
		"space in the target":   {"GET / HTTP/1.1\r\nX: HTTP/1.1\r\n" + host + " \r\n" + hidden, 400},
		"no version":            {"GET /\r\n" + host + "\r\n" + hidden, 400},
		"nothing but line ends": {"\r\n\r\n" + hidden, 400},
	} {
		t.Run(name, func(t *testing.T) { refusedAndClosed(t, tc.request, tc.status) })
	}
}

// refusedAndClosed sends a request, and wants a refusal, then the end, and no
// backend to see what is hidden in it.
func refusedAndClosed(t *testing.T, request string, status int) {
	t.Helper()
	var rec recorder
	r := toBackend(t, rawBackend(t, rec.serve))(t)
	c := r.dialClear()
	io.WriteString(c, request)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp.Body)
	if resp.StatusCode != status || !resp.Close {
		t.Errorf("%d, closing %v, want %d", resp.StatusCode, resp.Close, status)
	}
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("then %q, %v, want the end", rest, err)
	}
	for _, seen := range rec.requests() {
		if strings.Contains(seen, "smuggled") {
			t.Errorf("the backend saw %q", seen)
		}
	}
}

// TestPipelinedRequestsStayApart sends requests back to back, in pieces of every
// size, and wants each answered once, in order.
func TestPipelinedRequestsStayApart(t *testing.T) {
	var rec recorder
	r := toBackend(t, rawBackend(t, rec.serve))(t)
	const all = "GET /1 HTTP/1.1\r\nHost: app.x.test\r\n\r\n" +
		"POST /2 HTTP/1.1\r\nHost: app.x.test\r\nContent-Length: 5\r\n\r\nhello" +
		"POST /3 HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n" +
		"HEAD /4 HTTP/1.1\r\nHost: app.x.test\r\n\r\n" +
		"GET /5 HTTP/1.1\r\nHost: app.x.test\r\nConnection: close\r\n\r\n"
	want := []string{"GET /1 ", "POST /2 hello", "POST /3 hello world", "HEAD /4 ", "GET /5 "}
	for _, step := range []int{1, 3, 17, 64, len(all)} {
		for name, c := range map[string]net.Conn{"clear": r.dialClear(), "tls": r.dialTLS("app.x.test")} {
			var sending sync.WaitGroup
			sending.Go(func() {
				for rest := all; rest != ""; rest = rest[min(step, len(rest)):] {
					if _, err := io.WriteString(c, rest[:min(step, len(rest))]); err != nil {
						t.Error(err)
						return
					}
				}
			})
			in := bufio.NewReader(c)
			for _, w := range want {
				method, _, _ := strings.Cut(w, " ")
				resp, err := http.ReadResponse(in, &http.Request{Method: method})
				if err != nil {
					t.Fatalf("%s by %d: %s: %v", name, step, w, err)
				}
				if body := readAll(t, resp.Body); method != "HEAD" && body != w {
					t.Errorf("%s by %d: %q, want %q", name, step, body, w)
				}
			}
			if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
				t.Errorf("%s by %d: then %q, %v", name, step, rest, err)
			}
			sending.Wait()
		}
	}
}

// TestMalformedResponses has backends answer what two readers could frame in two
// ways: clients get 502, and nobody gets what follows.
func TestMalformedResponses(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nX-A: 1\rSet-Cookie: x\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
		"ICY 200 OK\r\n\r\nok",
		strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100),
	} {
		addr := rawBackend(t, func(c *net.TCPConn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, answer)
				io.Copy(io.Discard, c)
			}
		})
		r := toBackend(t, addr)(t)
		for _, p := range []*peer{r.h1Clear(), r.h2()} {
			if resp, _ := p.get(t, "app.x.test", "/"); resp.StatusCode != 502 {
				t.Errorf("%s: %q: %d, want 502", p.name, answer, resp.StatusCode)
			}
		}
	}
}

// TestUnaskedAnswerReachesNobody has a backend say more than it was asked for,
// behind a response and some time after it.
func TestUnaskedAnswerReachesNobody(t *testing.T) {
	const extra = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for _, at := range []string{"at once", "later"} {
		t.Run(at, func(t *testing.T) {
			goOn, spoken := make(chan struct{}, 1), make(chan struct{}, 1)
			addr := rawBackend(t, func(c *net.TCPConn) {
				in := bufio.NewReader(c)
				for {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					text := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
					if at == "at once" {
						io.WriteString(c, text+extra)
					} else {
						io.WriteString(c, text)
						<-goOn
						io.WriteString(c, extra)
					}
					spoken <- struct{}{}
				}
			})
			r := toBackend(t, addr)(t)
			p := r.h1Clear()
			for _, target := range []string{"/1", "/2", "/3"} {
				if _, body := p.get(t, "app.x.test", target); body != target {
					t.Errorf("%s got %q", target, body)
				}
				if at == "later" {
					goOn <- struct{}{}
				}
				soon(t, "the backend to have spoken", spoken)
			}
		})
	}
}

// TestIdempotentRequestsAreRepeated has the backend close each connection upon
// its second request.
func TestIdempotentRequestsAreRepeated(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for i := range 2 {
			req, err := http.ReadRequest(in)
			if err != nil || i == 1 {
				return
			}
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	r := toBackend(t, addr)(t)
	p := r.h1Clear()
	p.get(t, "app.x.test", "/warm")
	for method, want := range map[string]int{"GET": 200, "PUT": 200, "DELETE": 200, "POST": 502, "PATCH": 502} {
		p.get(t, "app.x.test", "/warm")
		resp := p.send(t, p.request(method, "app.x.test", "/", strings.NewReader("x")))
		if body := readAll(t, resp.Body); resp.StatusCode != want || want == 200 && body != "x" {
			t.Errorf("%s: %d %q, want %d", method, resp.StatusCode, body, want)
		}
	}
}

// TestSlowRequestsAreLetGo drips heads and stops in bodies.
func TestSlowRequestsAreLetGo(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`}, func(cfg *proxyhttp.Config, _ *rig) {
		cfg.Limits = proxyhttp.Limits{Head: 200 * time.Millisecond, Idle: 200 * time.Millisecond}
	})
	for name, c := range map[string]net.Conn{"clear": r.dialClear(), "tls": r.dialTLS("app.x.test")} {
		t.Run("head "+name, func(t *testing.T) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				if i > 200 {
					t.Fatal("the connection stays open")
				}
				if _, err := io.WriteString(c, "G"); err != nil {
					return
				}
				<-tick.C
			}
		})
	}
	for name, c := range map[string]net.Conn{"clear": r.dialClear(), "tls": r.dialTLS("app.x.test")} {
		t.Run("body "+name, func(t *testing.T) {
			io.WriteString(c, "POST /slow HTTP/1.1\r\nHost: app.x.test\r\nContent-Length: 5\r\n\r\nab")
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Error("the connection stays open")
			}
		})
	}
	if record := r.log.wait(t, "/slow"); record["end"] != "body_slow" || record["status"] != 408.0 {
		t.Errorf("log record %v", record)
	}
}

// TestUnwantedBodies has the node answer by itself while a body is on its way:
// a short one is passed over, a long one ends the connection, and each time the
// client gets the answer.
func TestUnwantedBodies(t *testing.T) {
	r := newRig(t, map[string]string{"own": `{"host":"app.x.test","respond":{"status":403,"body":"no\n"}}`})
	for _, tc := range []struct {
		framing string
		body    string
		closing bool
	}{
		{"Content-Length: 5", "hello", false},
		{"Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", false},
		{"Content-Length: 1000000", strings.Repeat("x", 1_000_000), true},
		{"Content-Length: 5\r\nExpect: 100-continue", "", true},
	} {
		c := r.dialClear()
		var sending sync.WaitGroup
		sending.Go(func() {
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: app.x.test\r\n"+tc.framing+"\r\n\r\n"+tc.body)
		})
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%s: %v", tc.framing, err)
		}
		if body := readAll(t, resp.Body); resp.StatusCode != 403 || body != "no\n" || resp.Close != tc.closing {
			t.Errorf("%s: %d %q, closing %v", tc.framing, resp.StatusCode, body, resp.Close)
		}
		sending.Wait()
		if tc.closing {
			c.Close()
			continue
		}
		io.WriteString(c, "GET /next HTTP/1.1\r\nHost: app.x.test\r\n\r\n")
		if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 403 {
			t.Errorf("%s: the next request: %v", tc.framing, err)
		}
	}
}

// TestHotClients has clients ask again and again without a pause, and then
// speak, or hang up, before they are answered: no request waits for the next,
// and no end goes unnoticed.
func TestHotClients(t *testing.T) {
	arrived, proceed := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/held") {
			arrived <- struct{}{}
			<-proceed
		}
		io.WriteString(w, r.URL.Path)
	})
	r := toBackend(t, addr)(t)
	ask := func(c net.Conn, path string) { fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: app.x.test\r\n\r\n", path) }
	expect := func(in *bufio.Reader, path string) {
		t.Helper()
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if body := readAll(t, resp.Body); body != path {
			t.Fatalf("%q, want %q", body, path)
		}
	}
	for name, c := range map[string]net.Conn{"clear": r.dialClear(), "tls": r.dialTLS("app.x.test")} {
		t.Run(name, func(t *testing.T) {
			in := bufio.NewReader(c)
			for range 2 {
				for range 50 {
					ask(c, "/hot")
					expect(in, "/hot")
				}
				ask(c, "/held/1")
				soon(t, "the request", arrived)
				ask(c, "/held/2")
				proceed <- struct{}{}
				expect(in, "/held/1")
				soon(t, "the next request", arrived)
				proceed <- struct{}{}
				expect(in, "/held/2")
			}
			for range 50 {
				ask(c, "/hot")
				expect(in, "/hot")
			}
			ask(c, "/held/3")
			soon(t, "the last request", arrived)
			c.(interface{ CloseWrite() error }).CloseWrite()
			proceed <- struct{}{}
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, in); isTimeout(err) {
				t.Error("the connection stays open")
			}
		})
	}
}
