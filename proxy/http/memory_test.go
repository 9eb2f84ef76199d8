package http_test

import (
	"io"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const largeBody = 128 << 20

// zeros is a body of n bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestLargeBodiesTakeNoMemory sends 128 MiB each way and watches the heap, in
// which client and backend have their share too.
func TestLargeBodiesTakeNoMemory(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			w.Header().Set("Content-Length", strconv.Itoa(largeBody))
			io.Copy(w, zeros(largeBody))
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Errorf("upload: %v", err)
		}
		io.WriteString(w, strconv.FormatInt(n, 10))
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		p.Client.Timeout = 0 // a busy machine takes long for as much
		watch := watchHeap()
		resp := p.send(t, p.request("GET", "app.x.test", "/", nil))
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != largeBody {
			t.Errorf("download: %d bytes, %v", n, err)
		}
		up := p.send(t, p.request("PUT", "app.x.test", "/", zeros(largeBody)))
		if body := readAll(t, up.Body); body != strconv.Itoa(largeBody) {
			t.Errorf("upload: the backend got %s bytes", body)
		}
		if grown := watch(); grown > 48<<20 {
			t.Errorf("the heap grew by %d MiB", grown>>20)
		}
	})
}

// watchHeap samples the heap until the function it returns is called, which
// returns how far it had grown.
func watchHeap() (stop func() (grown uint64)) {
	runtime.GC()
	var before, m runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak uint64
	done := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
			case <-done:
				return
			}
		}
	})
	return func() uint64 {
		close(done)
		sampling.Wait()
		if peak < before.HeapAlloc {
			return 0
		}
		return peak - before.HeapAlloc
	}
}

// TestBackPressure has nobody read: neither way may more be taken than fits
// into buffers.
func TestBackPressure(t *testing.T) {
	var downloaded atomic.Int64
	release := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			io.Copy(w, &countedReader{r: zeros(largeBody), n: &downloaded})
			return
		}
		w.(http.Flusher).Flush()
		<-release
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		downloaded.Store(0)
		resp := p.send(t, p.request("GET", "app.x.test", "/", nil))
		if n := settled(t, &downloaded); n > largeBody/4 {
			t.Errorf("%d MiB were taken off the backend that nobody read", n>>20)
		}
		resp.Body.Close()
		if p.isH1() {
			return // net/http's client reads no response before its request is out
		}
		var uploaded atomic.Int64
		req := p.request("PUT", "app.x.test", "/", &countedReader{r: zeros(largeBody), n: &uploaded})
		resp = p.send(t, req)
		if n := settled(t, &uploaded); n > largeBody/4 {
			t.Errorf("%d MiB were taken off the client that nobody read", n>>20)
		}
		resp.Body.Close()
		release <- struct{}{}
	})
}

// countedReader counts what was read of r.
type countedReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// settled waits until n is above zero and has stood still for a while.
func settled(t *testing.T, n *atomic.Int64) int64 {
	t.Helper()
	var last, since int64
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	eventually(t, "a stream to stall", func() bool {
		<-tick.C
		if now := n.Load(); now == 0 || now != last {
			last, since = now, 0
			return false
		}
		since++
		return since == 30
	})
	return last
}
