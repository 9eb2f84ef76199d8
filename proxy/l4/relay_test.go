package l4_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4"
)

func TestRelay(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "env": "6hif", "service": "ssh"}`, b.addr)
	c := dial(t, p)
	send(t, c, "hello")
	expect(t, c, "hello")
	c.CloseWrite()
	expectEOF(t, c)
	r := n.wantEnd("client_closed")
	m := p.mapping.Load()
	want := record{
		"msg": "flow", "listener": m.Label(), "proto": "tcp", "port": int64(m.Port), "client": c.LocalAddr().String(),
		"backend": b.addr, "env": "6hif", "service": "ssh", "bytes_up": int64(5), "bytes_down": int64(5),
	}
	for key, want := range want {
		if r[key] != want {
			t.Errorf("record: %s is %v, want %v", key, r[key], want)
		}
	}
	if d, ok := r["duration"].(float64); !ok || d <= 0 || d > patience.Seconds() {
		t.Errorf("record: duration is %v", r["duration"])
	}
}

func TestHalfClose(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	answer := strings.Repeat("answer", 100_000)

	t.Run("client first", func(t *testing.T) {
		c, s := n.open(t, p, b)
		send(t, c, "request")
		c.CloseWrite()
		expect(t, s, "request")
		expectEOF(t, s)
		go func() {
			io.WriteString(s, answer)
			s.Close()
		}()
		expect(t, c, answer)
		expectEOF(t, c)
		n.wantEnd("client_closed")
	})
	t.Run("backend first", func(t *testing.T) {
		c, s := n.open(t, p, b)
		send(t, s, "greeting")
		s.CloseWrite()
		expect(t, c, "greeting")
		expectEOF(t, c)
		go func() {
			io.WriteString(c, answer)
			c.Close()
		}()
		expect(t, s, answer)
		expectEOF(t, s)
		n.wantEnd("backend_closed")
	})
}

func TestResetIsPassedOn(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, client, backend *net.TCPConn)
	}{
		{"at once", func(*testing.T, *net.TCPConn, *net.TCPConn) {}},
		{"after data", func(t *testing.T, client, backend *net.TCPConn) {
			send(t, client, "up")
			expect(t, backend, "up")
			send(t, backend, "down")
			expect(t, client, "down")
		}},
		{"after the client's FIN", func(t *testing.T, client, backend *net.TCPConn) {
			client.CloseWrite()
			expectEOF(t, backend)
		}},
		{"after the backend's FIN", func(t *testing.T, client, backend *net.TCPConn) {
			backend.CloseWrite()
			expectEOF(t, client)
		}},
	} {
		t.Run(tt.name+", by the client", func(t *testing.T) {
			c, s := n.open(t, p, b)
			tt.prepare(t, c, s)
			abort(c)
			wantReset(t, s)
			n.wantEnd("client_reset")
		})
		t.Run(tt.name+", by the backend", func(t *testing.T) {
			c, s := n.open(t, p, b)
			tt.prepare(t, c, s)
			abort(s)
			wantReset(t, c)
			n.wantEnd("backend_reset")
		})
	}
}

// wantReset waits for c to be reset, also where it had its FIN already and
// reading shows nothing but that.
func wantReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the socket's error is a reset", func() bool {
		var errno int
		raw.Control(func(fd uintptr) { errno, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
		return err == nil && (errno == int(unix.ECONNRESET) || errno == int(unix.EPIPE))
	})
}

// A server that refuses an upload answers, and resets because it did not read
// all of it. The client must get the answer.
func TestAnswerBeforeReset(t *testing.T) {
	n := newNode(t)
	answer := strings.Repeat("too large ", 5000)
	b := newBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 10))
		io.WriteString(c, answer) // and close with unread data
	})
	p := n.tcp(`%s`, b.addr)
	c := dial(t, p)
	var sending sync.WaitGroup
	sending.Go(func() { io.Copy(c, io.LimitReader(zeros{}, 64<<20)) }) // until it fails
	expect(t, c, answer)
	sending.Wait()
	n.wantEnd("backend_reset")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// transfer sends size random bytes from one end to the other and compares
// checksums.
func transfer(t *testing.T, from, to *net.TCPConn, seed byte, size int64) {
	source := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
	sent, received := sha256.New(), sha256.New()
	var sending sync.WaitGroup
	sending.Go(func() {
		if _, err := io.Copy(from, io.TeeReader(source, sent)); err != nil {
			t.Errorf("send: %v", err)
		}
	})
	if _, err := io.CopyN(received, struct{ io.Reader }{to}, size); err != nil {
		t.Errorf("receive: %v", err)
	}
	sending.Wait()
	if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Errorf("%d bytes arrived changed", size)
	}
}

func TestBulkBothWays(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	const relays, size = 4, 24 << 20
	before := openFiles(t)
	var clients, servers [relays]*net.TCPConn
	for i := range relays {
		clients[i], servers[i] = n.open(t, p, b)
	}
	wantFiles := before + relays*4 // two of the relay, two of the test
	if got := openFiles(t); got != wantFiles {
		t.Errorf("%d idle relays: %d files open, want %d", relays, got, wantFiles)
	}
	var running sync.WaitGroup
	for i := range relays {
		running.Go(func() { transfer(t, clients[i], servers[i], byte(i), size) })
		running.Go(func() { transfer(t, servers[i], clients[i], byte(i+100), size) })
	}
	running.Wait()
	// Loops keep a few pipes for the next one.
	if got := openFiles(t); got > wantFiles+2*2*relays {
		t.Errorf("after bulk in %d relays: %d files open, want %d and the pipes", relays, got, wantFiles)
	}
	eventually(t, "live flows count every byte", func() bool {
		for f := range n.server.Flows() {
			if f.Up != size || f.Down != size {
				return false
			}
		}
		return true
	})
	// Bulk over, they are ordinary relays again.
	for i := range relays {
		send(t, clients[i], "x")
		expect(t, servers[i], "x")
		clients[i].Close()
		expectEOF(t, servers[i])
		servers[i].Close()
		if r := n.wantEnd("client_closed"); r["bytes_up"] != int64(size+1) || r["bytes_down"] != int64(size) {
			t.Errorf("record %v, want %d up and %d down", r, size+1, size)
		}
	}
}

// A receiver that does not read stops the sender, and nothing is lost.
func TestBackpressure(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	c, s := n.open(t, p, b)
	s.SetReadBuffer(32 << 10)
	const size = 48 << 20
	var sent sync.WaitGroup
	sent.Go(func() {
		io.Copy(c, io.LimitReader(zeros{}, size))
		c.CloseWrite()
	})
	moved := func() (up int64) {
		for f := range n.server.Flows() {
			up = f.Up
		}
		return up
	}
	last := int64(-1)
	stalled := time.NewTicker(300 * time.Millisecond)
	defer stalled.Stop()
	for range stalled.C {
		now := moved()
		if now == last && now > 0 {
			break
		}
		last = now
	}
	if last >= size {
		t.Errorf("all %d bytes went to a backend that reads nothing", last)
	}
	got, err := io.Copy(io.Discard, struct{ io.Reader }{s})
	if got != size || err != nil {
		t.Errorf("received %d bytes and error %v, want %d", got, err, size)
	}
	sent.Wait()
	s.Close()
	n.wantEnd("client_closed")
}

func TestIdleTimeout(t *testing.T) {
	const timeout = 800 * time.Millisecond
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "idle_timeout": "800ms"}`, b.addr)
	c := dial(t, p)
	last := time.Now()
	for starved := true; starved; { // more than a timeout's worth of a byte now and then
		var gap time.Duration
		gap, last = pings(c, 12, timeout/8)
		if starved = gap > timeout/2; starved {
			t.Logf("nothing was sent for %v, too slow to tell anything; again", gap)
			c.Close()
			n.flow()
			c = dial(t, p)
		}
	}
	expectReset(t, c)
	if took := time.Since(last); took < timeout {
		t.Errorf("ended %v after the last byte, want %v at least", took, timeout)
	}
	if r := n.wantEnd("idle"); r["bytes_up"] != int64(12) {
		t.Errorf("record %v, want 12 bytes up", r)
	}
}

// pings sends a byte at every interval until one does not come back, and
// returns the longest time between two and when the last was sent.
func pings(c net.Conn, count int, interval time.Duration) (gap time.Duration, last time.Time) {
	last = time.Now()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for range count {
		<-tick.C
		gap, last = max(gap, time.Since(last)), time.Now()
		io.WriteString(c, ".")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return max(gap, time.Since(last)), last
		}
	}
	return gap, last
}

func TestConnectFailed(t *testing.T) {
	n := newNode(t)
	closed, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	p := n.tcp(`%s`, closed.Addr())
	expectRefusal(t, p)
	r := n.wantEnd("connect_failed")
	if text, _ := r["err"].(string); !strings.Contains(text, "refused") {
		t.Errorf("record %v, want err to say that the connection was refused", r)
	}
}

func TestConnectTimeout(t *testing.T) {
	n := newNode(t)
	p := n.tcp(`{"backend": "%s", "connect_timeout": "100ms"}`, newDeafBackend(t))
	began := time.Now()
	expectReset(t, dial(t, p))
	if took := time.Since(began); took < 100*time.Millisecond || took > 5*time.Second {
		t.Errorf("refused after %v, want 100ms", took)
	}
	r := n.wantEnd("connect_failed")
	if text, _ := r["err"].(string); !strings.Contains(text, "100ms") {
		t.Errorf("record %v, want err to say how long it took", r)
	}
}

func TestSocketsKeepAliveWithoutDelay(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`%s`, b.addr)
	option := func(fd int, level, name int) int {
		v, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			return -1
		}
		return v
	}
	c := dial(t, p)
	for range 2 { // a connection that gets a single small message needs no TCP_NODELAY
		send(t, c, "x")
		expect(t, c, "x")
	}
	sockets := 0
	for fd := range 1000 {
		local, err := unix.Getsockname(fd)
		peer, perr := unix.Getpeername(fd)
		if err != nil || perr != nil || option(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL) != unix.IPPROTO_TCP {
			continue
		}
		l, okl := local.(*unix.SockaddrInet4)
		r, okr := peer.(*unix.SockaddrInet4)
		ofRelay := okl && l.Port == int(p.addr.Port()) || okr && fmt.Sprintf("127.0.0.1:%d", r.Port) == b.addr
		if !ofRelay {
			continue
		}
		sockets++
		if option(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY) != 1 {
			t.Errorf("socket %v to %v: TCP_NODELAY is off", local, peer)
		}
		// That of the backend's follows once the flow is some seconds old.
		if l.Port == int(p.addr.Port()) && option(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 1 {
			t.Errorf("socket %v to %v: SO_KEEPALIVE is off", local, peer)
		}
	}
	if sockets != 2 {
		t.Errorf("found %d sockets of the relay, want 2", sockets)
	}
}

// An idle relay holds no buffer: with them, these relays would hold 32 KB each
// and more.
func TestIdleRelaysHoldLittle(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	const relays = 200
	before := heap()
	clients := make([]*net.TCPConn, relays)
	for i := range clients {
		clients[i] = dial(t, p)
		s := b.next(t)
		send(t, clients[i], "x")
		expect(t, s, "x")
		send(t, s, "y")
		expect(t, clients[i], "y")
	}
	each := (heap() - before) / relays
	t.Logf("%d bytes of heap per idle relay, the test's own ends included", each)
	if each > 8<<10 {
		t.Errorf("%d bytes of heap per idle relay, want less than 8 KB", each)
	}
	runtime.KeepAlive(clients)
}

func heap() int {
	runtime.GC()
	runtime.GC() // the second one empties the pools' victims
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func TestNewRefuses(t *testing.T) {
	if _, err := l4.New(l4.Config{}); err == nil {
		t.Error("New accepts a Config without Dialer and HTTP")
	}
}
