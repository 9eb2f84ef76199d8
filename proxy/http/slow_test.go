package http_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// slowClients is how many of them are there at once.
const slowClients = 300

// crowd opens many clear connections and has each say text.
func (r *rig) crowd(t *testing.T, n int, text string) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = said(t, r.dialClear(), text)
	}
	return conns
}

// dripAll has each of conns say another byte of text, again and again, until stop
// is called.
func dripAll(conns []net.Conn, text string) (stop func()) {
	done := make(chan struct{})
	var dripping sync.WaitGroup
	dripping.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			for _, c := range conns {
				c.SetWriteDeadline(time.Now().Add(patience))
				io.WriteString(c, text[i%len(text):i%len(text)+1]) // which fails once it is let go
			}
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		dripping.Wait()
	}
}

// othersAreServed asks over each version, more than once.
func (r *rig) othersAreServed(t *testing.T) {
	t.Helper()
	for _, p := range r.peers() {
		for range 5 {
			resp := p.send(t, p.request("POST", "app.x.test", "/other", strings.NewReader("content")))
			if body := readAll(t, resp.Body); resp.StatusCode != 200 || !strings.HasSuffix(body, "content") {
				t.Errorf("%s: %d %q", p.name, resp.StatusCode, body)
			}
		}
	}
}

// liveHeap returns how much of the heap is in use. It may be less than it was.
func liveHeap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// ended waits until the server has ended each of conns.
func ended(t *testing.T, conns []net.Conn) {
	t.Helper()
	for i, c := range conns {
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Fatalf("connection %d is still open", i)
		}
	}
}

// TestSlowlorisInTheHead has hundreds of clients drip heads that never end.
// Others are served meanwhile, little memory is taken, and all are let go by the
// time that heads have, however lively they are.
func TestSlowlorisInTheHead(t *testing.T) {
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + backend(t, echo) + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Head = 2 * time.Second })
	r.othersAreServed(t)
	before := liveHeap()
	conns := r.crowd(t, slowClients, "GET / HTTP/1.1\r\nHost: app.x.test\r\n")
	stop := dripAll(conns, "X-A: b\r\n")
	r.othersAreServed(t)
	if grown := liveHeap() - before; grown > slowClients*(32<<10) {
		t.Errorf("%d clients take %d KiB", slowClients, grown>>10)
	}
	ended(t, conns)
	stop()
	r.othersAreServed(t)
}

// TestSlowlorisInTheBody has hundreds of clients begin bodies and then stop, of
// either framing. Each holds a connection of the backend; others are served, and
// all are let go.
func TestSlowlorisInTheBody(t *testing.T) {
	addr := backend(t, echo)
	for _, framing := range []string{"Content-Length: 1000\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n3e8\r\nx", "Transfer-Encoding: chunked\r\n\r\n3"} {
		t.Run(fmt.Sprintf("%.12q", framing), func(t *testing.T) {
			r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
				func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Idle = 2 * time.Second })
			r.othersAreServed(t)
			before := liveHeap()
			conns := r.crowd(t, slowClients, "POST / HTTP/1.1\r\nHost: app.x.test\r\n"+framing)
			r.othersAreServed(t)
			// The backend, with buffers of 4 KiB each way, is in this heap too.
			if grown := liveHeap() - before; grown > slowClients*(96<<10) {
				t.Errorf("%d clients take %d KiB", slowClients, grown>>10)
			}
			ended(t, conns)
			r.othersAreServed(t)
		})
	}
}

// TestBytesOneByOne writes a request and reads its response a byte at a time, in
// many connections at once, with the smallest receive buffers there are.
func TestBytesOneByOne(t *testing.T) {
	const size, clients = 20_000, 20
	var asked atomic.Int64
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Body", string(body))
		io.WriteString(w, strings.Repeat("y", size))
	})
	r := toBackend(t, addr)(t)
	var all sync.WaitGroup
	for range clients {
		c := r.dialClear().(*net.TCPConn)
		c.SetReadBuffer(1)
		c.SetNoDelay(true)
		all.Go(func() {
			for _, b := range []byte("POST / HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n") {
				if _, err := c.Write([]byte{b}); err != nil {
					t.Error(err)
					return
				}
			}
			resp, err := http.ReadResponse(bufio.NewReaderSize(oneByOne{c}, 16), nil)
			if err != nil {
				t.Error(err)
				return
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || len(body) != size || resp.Header.Get("X-Body") != "hello world" {
				t.Errorf("%d bytes for %q, %v", len(body), resp.Header.Get("X-Body"), err)
			}
		})
	}
	all.Wait()
	if n := asked.Load(); n != clients {
		t.Errorf("the backend was asked %d times by %d clients", n, clients)
	}
}

// oneByOne reads a byte at a time.
type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

// TestHeadBombs sends heads without an end: as one line, as one field, as many
// fields, as few large ones. The server takes no more than the limit and what
// fits into sockets, says so, and serves others.
func TestHeadBombs(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	const begin = "GET / HTTP/1.1\r\nHost: app.x.test\r\n"
	for name, tc := range map[string]struct {
		begin, more string
		status      int
	}{
		"a target":     {"GET /", "x", 414},
		"a method":     {"", "G", 400},
		"a field name": {begin, "x", 431},
		"a value":      {begin + "X: ", "x", 431},
		"small fields": {begin, "X: y\r\n", 431},
		"large fields": {begin, "X: " + strings.Repeat("y", 4000) + "\r\n", 431},
		"cookies":      {begin, "Cookie: a=b\r\n", 431},
		"white space":  {begin + "X:", " ", 431},
	} {
		t.Run(name, func(t *testing.T) {
			watch := watchHeap()
			var bombs sync.WaitGroup
			for range 20 {
				c := r.dialClear()
				bombs.Go(func() {
					text := strings.Repeat(tc.more, 1+(32<<10)/len(tc.more))
					io.WriteString(c, tc.begin)
					sent := 0
					for sent < 32<<20 {
						c.SetWriteDeadline(time.Now().Add(patience))
						n, err := io.WriteString(c, text)
						if sent += n; err != nil {
							break
						}
					}
					if sent >= 32<<20 { // sockets hold some MiB
						t.Errorf("%d MiB of a head were taken", sent>>20)
					}
				})
			}
			r.othersAreServed(t)
			bombs.Wait()
			if grown := watch(); grown > 96<<20 { // with garbage; what was sent is six times as much
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
			// One that sends no more than it must gets to read why.
			c := said(t, r.dialClear(), tc.begin+strings.Repeat(tc.more, 1+(70<<10)/len(tc.more)))
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Body.Close(); resp.StatusCode != tc.status && !(name == "a method" && resp.StatusCode == 414) {
				t.Errorf("%d, want %d", resp.StatusCode, tc.status)
			}
		})
	}
}

// TestHeadsBelowTheLimit has many clients hold back the end of a head of nearly
// the largest size: the memory that takes is theirs times the limit at most.
func TestHeadsBelowTheLimit(t *testing.T) {
	const clients, limit = 100, 16 << 10
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + backend(t, echo) + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.HeadBytes = limit })
	r.othersAreServed(t)
	before := liveHeap()
	conns := r.crowd(t, clients, "GET / HTTP/1.1\r\nHost: app.x.test\r\nX: "+strings.Repeat("x", limit-500))
	r.othersAreServed(t)
	// A buffer that grows by doubling has room for twice as much.
	if grown := liveHeap() - before; grown > clients*4*limit {
		t.Errorf("%d clients take %d KiB", clients, grown>>10)
	}
	for _, c := range conns {
		resp := exchange1(t, c, "\r\n\r\n")
		if readAll(t, resp.Body); resp.StatusCode != 200 {
			t.Fatalf("%d", resp.StatusCode)
		}
	}
}

// TestChunkBombs sends bodies of which hardly anything is content.
func TestChunkBombs(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	for name, chunk := range map[string]string{
		"extensions": "1;" + strings.Repeat("x", 200) + "\r\nx\r\n", "a size of zeros": "0000000000000001\r\nx\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := said(t, r.dialClear(), "POST / HTTP/1.1\r\nHost: app.x.test\r\nTransfer-Encoding: chunked\r\n\r\n")
			text, sent := strings.Repeat(chunk, 200), 0
			for sent < 128<<20 {
				c.SetWriteDeadline(time.Now().Add(patience))
				n, err := io.WriteString(c, text)
				if sent += n; err != nil {
					break
				}
			}
			if sent >= 128<<20 { // lingering takes as much as an upload may be
				t.Errorf("%d MiB were taken", sent>>20)
			}
			r.othersAreServed(t)
		})
	}
}
