package http_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// silentUpgrade is a backend that changes protocols, holds next to nothing for
// that, and sends back what it gets.
func silentUpgrade(t *testing.T) string {
	return rawBackend(t, func(c *net.TCPConn) {
		one, last := make([]byte, 1), uint32(0)
		for last != 0x0d0a0d0a {
			if _, err := io.ReadFull(c, one); err != nil {
				return
			}
			last = last<<8 | uint32(one[0])
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: bytes\r\n\r\n")
		for {
			if _, err := c.Read(one); err != nil {
				return
			}
			if _, err := c.Write(one); err != nil {
				return
			}
		}
	})
}

// TestIdleTunnelsHoldNoBuffers opens many tunnels and looks at the heap, in which
// clients and backend have their share too.
func TestIdleTunnelsHoldNoBuffers(t *testing.T) {
	const tunnels = 100
	r := toBackend(t, silentUpgrade(t))(t)
	for _, tc := range []struct {
		name string
		dial func() net.Conn
		most uint64 // bytes for each
	}{
		{"clear", r.dialClear, 12 << 10},
		{"tls", func() net.Conn { return r.dialTLS("app.x.test") }, 32 << 10}, // crypto/tls has most of it, on both ends
	} {
		t.Run(tc.name, func(t *testing.T) {
			open := func() {
				c := tc.dial()
				io.WriteString(c, upgradeRequest)
				readHead(t, c)
				for range 2 { // both ways
					io.WriteString(c, "x")
					if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
			}
			open() // what is made but once
			before := heap()
			for range tunnels {
				open()
			}
			if each := (max(heap(), before) - before) / tunnels; each > tc.most {
				t.Errorf("a tunnel takes %d bytes of the heap, want at most %d", each, tc.most)
			} else {
				t.Logf("a tunnel takes %d bytes of the heap", each)
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // pools let go of their content in the second round
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestTunnelsCarryAll sends much both ways at once through tunnels whose ends are
// clear or TLS, in writes of any size.
func TestTunnelsCarryAll(t *testing.T) {
	content := make([]byte, 3<<20)
	rand.Read(content)
	addr := rawBackend(t, func(c *net.TCPConn) {
		readHead(t, c)
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: bytes\r\n\r\n")
		io.Copy(c, c)
		c.CloseWrite()
	})
	r := toBackend(t, addr)(t)
	for name, c := range map[string]interface {
		net.Conn
		CloseWrite() error
	}{"clear": r.dialClear().(*net.TCPConn), "tls": r.dialTLS("app.x.test")} {
		io.WriteString(c, upgradeRequest)
		readHead(t, c)
		go func() {
			for rest, n := content, 1; len(rest) > 0; n = n*3%50000 + 1 {
				part := rest[:min(n, len(rest))]
				if _, err := c.Write(part); err != nil {
					return
				}
				rest = rest[len(part):]
			}
			c.CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v, want the %d that were sent", name, len(got), err, len(content))
		}
	}
}

// metered is a connection of somebody who counts what passes, and lets only a
// little move at once: as package l4 gives those of mapped ports.
type metered struct {
	net.Conn // its Read and Write are not to be used
	tcp      *net.TCPConn
	up, down *atomic.Int64
	paced    *atomic.Int64
}

func (m metered) NetConn() net.Conn          { return m.tcp }
func (m metered) TakeReplay() []byte         { return nil }
func (m metered) Chunk(_ bool, most int) int { return min(most, 777) }
func (m metered) Read([]byte) (int, error)   { panic("read past the meter") }
func (m metered) Write([]byte) (int, error)  { panic("written past the meter") }
func (m metered) Pace(_ bool, n int)         { m.paced.Add(int64(n)) }
func (m metered) Count(up bool, n int) {
	if up {
		m.up.Add(int64(n))
	} else {
		m.down.Add(int64(n))
	}
}

// counting counts what a client reads and writes.
type counting struct {
	net.Conn
	read, written *atomic.Int64
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// TestMeteredConnections compares what the meter was told with what went over the
// wire, for each version over TCP.
func TestMeteredConnections(t *testing.T) {
	addr := backend(t, echo)
	for i := range 3 {
		var up, down, paced, read, written atomic.Int64
		r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`}, func(_ *proxyhttp.Config, r *rig) {
			r.wrap = func(c *net.TCPConn) net.Conn { return metered{Conn: c, tcp: c, up: &up, down: &down, paced: &paced} }
		})
		p := r.peers()[i]
		dial := p.Transport.(*http.Transport).DialContext
		p.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, a string) (net.Conn, error) {
			c, err := dial(ctx, network, a)
			return counting{c, &read, &written}, err
		}
		content := string(bytes.Repeat([]byte("content "), 4000))
		for range 5 { // the later ones come over a connection that is hot
			resp := p.send(t, p.request("POST", "app.x.test", "/", bytes.NewReader([]byte(content))))
			if got := readAll(t, resp.Body); got != "POST / host=app.x.test body="+content {
				t.Errorf("%s: %d bytes", p.name, len(got))
			}
		}
		p.close()
		r.stop()
		const parting = 1 << 10 // what clients say last, and nobody reads
		if up.Load() > written.Load() || up.Load() < written.Load()-parting || down.Load() < read.Load() || down.Load() > read.Load()+parting || paced.Load() != up.Load()+down.Load() || up.Load() < 5*int64(len(content)) {
			t.Errorf("%s: counted %d up and %d down, paced %d; the client sent %d and got %d", p.name, up.Load(), down.Load(), paced.Load(), written.Load(), read.Load())
		}
	}
}

// TestMeteredClientThatTakesNothing has a client of a mapped port ask and not
// read: it is cut off, and does not hold the backend for ever.
func TestMeteredClientThatTakesNothing(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, zeros(largeBody)) })
	var sink atomic.Int64
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`}, func(cfg *proxyhttp.Config, r *rig) {
		cfg.Limits.Idle = 200 * time.Millisecond
		r.wrap = func(c *net.TCPConn) net.Conn { return metered{Conn: c, tcp: c, up: &sink, down: &sink, paced: &sink} }
	})
	said(t, r.dialClear(), "GET /stall HTTP/1.1\r\nHost: app.x.test\r\n\r\n")
	if record := r.log.wait(t, "/stall"); record["end"] != "stalled" {
		t.Errorf("log record %v", record)
	}
}
