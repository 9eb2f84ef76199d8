package l4_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test for something that should happen.
const patience = 20 * time.Second

// eventually waits for cond.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// node is a server under test with the sockets that an engine would have.
type node struct {
	t       testing.TB
	server  *l4.Server
	metrics *prometheus.Registry
	flows   chan record // access log
	http    chan handed // what was handed on
	running sync.WaitGroup
	stop    []func()
}

// handed is a call of Config.HTTP.
type handed struct {
	conn    net.Conn
	mapping *router.Mapping
	tls     bool
}

// newNode starts a server. At the end of the test it is shut down, and neither
// a goroutine nor a file descriptor may be left.
func newNode(t testing.TB, edit ...func(*l4.Config)) *node {
	t.Helper()
	before, goroutines := openFiles(t), goleak.IgnoreCurrent()
	n := &node{t: t, metrics: prometheus.NewRegistry(), flows: make(chan record, 4096), http: make(chan handed, 64)}
	cfg := l4.Config{
		Dialer:     upstream.NewDialer(upstream.Config{}),
		HTTP:       func(c net.Conn, m *router.Mapping, tls bool) { n.http <- handed{c, m, tls} },
		AccessLog:  slog.New(recorder(n.flows)),
		Logger:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		Registerer: n.metrics,
	}
	for _, e := range edit {
		e(&cfg)
	}
	var err error
	if n.server, err = l4.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, stop := range n.stop {
			stop()
		}
		n.server.Shutdown(ended())
		n.running.Wait()
		eventually(t, fmt.Sprintf("%d files open as before", before), func() bool { return openFiles(t) <= before })
		goleak.VerifyNone(t, goroutines)
	})
	return n
}

// ended is a context whose time is up.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// port is a mapped port of a node.
type port struct {
	proto   router.Proto
	addr    netip.AddrPort
	mapping atomic.Pointer[router.Mapping]
	close   func()
	served  chan struct{} // of UDP: closed when ServeUDP has returned
}

// tcp opens a TCP port for the mapping that value, with %s for the backend,
// describes.
func (n *node) tcp(value string, backend ...any) *port {
	n.t.Helper()
	ln, err := listen.TCP(context.Background(), "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	p := &port{proto: router.TCP, addr: ln.Addr().(*net.TCPAddr).AddrPort()}
	p.mapping.Store(parse(n.t, router.TCP, p.addr, fmt.Sprintf(value, backend...)))
	l, err := n.server.ListenTCP(ln, func(number int) *router.Mapping {
		if number != int(p.addr.Port()) {
			n.t.Errorf("asked for port %d, want %v", number, p.addr)
		}
		return p.mapping.Load()
	})
	if err != nil {
		n.t.Fatal(err)
	}
	p.close = func() { l.Close() }
	n.stop = append(n.stop, p.close)
	return p
}

// udp opens a UDP port on every loopback address.
func (n *node) udp(value string, backend ...any) *port {
	n.t.Helper()
	pc, err := listen.UDP(context.Background(), ":0")
	if err != nil {
		n.t.Fatal(err)
	}
	number := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	p := &port{proto: router.UDP, addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), number)}
	p.mapping.Store(parse(n.t, router.UDP, p.addr, fmt.Sprintf(value, backend...)))
	ctx, cancel := context.WithCancel(context.Background())
	p.served = make(chan struct{})
	p.close = func() { cancel(); <-p.served }
	n.stop = append(n.stop, p.close)
	n.running.Go(func() {
		defer close(p.served)
		if left, err := n.server.ServeUDP(ctx, pc, p.mapping.Load, l4.UDPOptions{}); err != nil || len(left) > 0 {
			n.t.Errorf("ServeUDP left %d datagrams, error %v", len(left), err)
		}
	})
	return p
}

// edit replaces the port's mapping as an engine would.
func (n *node) edit(p *port, value string, backend ...any) {
	n.t.Helper()
	was := p.mapping.Load()
	is := parse(n.t, was.Proto, p.addr, fmt.Sprintf(value, backend...))
	p.mapping.Store(is)
	n.server.Withdraw(was, is)
}

func parse(t testing.TB, proto router.Proto, addr netip.AddrPort, value string) *router.Mapping {
	t.Helper()
	m, err := router.ParseMapping(proto, int(addr.Port()), []byte(value))
	if err != nil {
		t.Fatalf("mapping %s: %v", value, err)
	}
	return m
}

// record is an access log record.
type record map[string]any

// recorder is an slog.Handler that collects records.
type recorder chan record

func (recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r recorder) WithAttrs([]slog.Attr) slog.Handler     { return r }
func (r recorder) WithGroup(string) slog.Handler          { return r }

func (r recorder) Handle(_ context.Context, rec slog.Record) error {
	got := record{"msg": rec.Message}
	rec.Attrs(func(a slog.Attr) bool {
		got[a.Key] = a.Value.Any()
		return true
	})
	r <- got
	return nil
}

// flow waits for the record of the next flow that ends.
func (n *node) flow() record {
	n.t.Helper()
	select {
	case r := <-n.flows:
		return r
	case <-time.After(patience):
		n.t.Fatal("no flow ended")
		return nil
	}
}

// wantEnd waits for the next flow that ends and checks why it did.
func (n *node) wantEnd(want string) record {
	n.t.Helper()
	r := n.flow()
	if r["end"] != want {
		n.t.Errorf("the flow ended by %v, want %s; its record: %v", r["end"], want, r)
	}
	return r
}

// handedOn waits for the next connection handed to HTTP.
func (n *node) handedOn() handed {
	n.t.Helper()
	select {
	case h := <-n.http:
		return h
	case <-time.After(patience):
		n.t.Fatal("nothing was handed to HTTP")
		return handed{}
	}
}

// live returns how many flows the server lists.
func (n *node) live() int {
	count := 0
	for range n.server.Flows() {
		count++
	}
	return count
}

// backend is a TCP server that a mapping points to.
type backend struct {
	addr  string
	conns chan *net.TCPConn // accepted ones, where no handler takes them
}

// newBackend serves every connection with handle, on a goroutine of its own,
// and closes it afterwards. A nil handle leaves the connections in conns.
func newBackend(t testing.TB, handle func(*net.TCPConn)) *backend {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{addr: ln.Addr().String(), conns: make(chan *net.TCPConn, 256)}
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []*net.TCPConn
	running.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			if handle == nil {
				b.conns <- c
				continue
			}
			running.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return b
}

// next returns the next connection that the backend accepted.
func (b *backend) next(t testing.TB) *net.TCPConn {
	t.Helper()
	select {
	case c := <-b.conns:
		c.SetDeadline(time.Now().Add(patience))
		return c
	case <-time.After(patience):
		t.Fatal("no connection reached the backend")
		return nil
	}
}

// echo sends back what it gets. It keeps io.Copy from splicing, whose pipes
// would pass for leaked files.
func echo(c *net.TCPConn) { io.Copy(c, struct{ io.Reader }{c}) }

// dial connects to a port of the node, from the local address if one is given.
func dial(t testing.TB, p *port, from ...string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: patience}
	for _, ip := range from {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(ip)}
	}
	c, err := d.Dial("tcp", p.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("send %.20q: %v", text, err)
	}
}

// expect reads exactly want.
func expect(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q and error %v, want %q", got[:n], err, want)
	}
}

func expectEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes and error %v, want EOF", n, err)
	}
}

func expectReset(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes and error %v, want a reset", n, err)
	}
}

// open connects to p and returns both ends of the relay once it stands: b may
// have accepted a connection whose dialler does not know that yet.
func (n *node) open(t testing.TB, p *port, b *backend) (client, server *net.TCPConn) {
	t.Helper()
	client, server = dial(t, p), b.next(t)
	eventually(t, "the relay stands", func() bool {
		for f := range n.server.Flows() {
			if f.Client.String() == client.LocalAddr().String() {
				return f.Backend != ""
			}
		}
		return false
	})
	return client, server
}

// hangUp closes a relay in order, the client c first, and checks its end.
func (n *node) hangUp(c, backend *net.TCPConn) record {
	n.t.Helper()
	c.CloseWrite()
	expectEOF(n.t, backend)
	backend.Close()
	expectEOF(n.t, c)
	c.Close()
	return n.wantEnd("client_closed")
}

// expectRefusal connects to p and expects a reset instead of service, which may
// come as early as while still connecting.
func expectRefusal(t testing.TB, p *port, from ...string) {
	t.Helper()
	d := net.Dialer{Timeout: patience}
	for _, ip := range from {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(ip)}
	}
	c, err := d.Dial("tcp", p.addr.String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("connecting and reading ended by %v, want a reset", err)
	}
}

// abort closes c with a reset.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// openFiles counts the file descriptors of the process.
func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// newDeafBackend returns the address of a listener that answers no SYN, as a
// machine that is gone would.
func newDeafBackend(t testing.TB) (addr string) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// With its queue full the kernel drops what else comes.
	raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) })
	for err == nil {
		var c net.Conn
		d := net.Dialer{Timeout: 100 * time.Millisecond}
		if c, err = d.Dial("tcp", ln.Addr().String()); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return ln.Addr().String()
}
