package loop_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

func TestMain(m *testing.M) {
	// The runtime's poller has descriptors of its own from its first use on,
	// which is not to be taken for a leak.
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
	goleak.VerifyTestMain(m)
}

// patience is how long anything may take on a busy machine.
const patience = 30 * time.Second

// start runs a group until the test ends. All descriptors that it or the test
// opened must be closed then.
func start(t testing.TB, cfg loop.Config) *loop.Group {
	t.Helper()
	before := openFiles(t)
	// Registered first, so that it looks when all else is cleaned up.
	t.Cleanup(func() {
		waitFor(t, "descriptors to be closed", func() bool { return openFiles(t) <= before })
	})
	g, err := loop.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	return g
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// waitFor polls cond, for what no channel tells.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// owner keeps what it was told.
type owner struct {
	mu     sync.Mutex
	next   []netip.AddrPort // where to try after a failure
	dialed []error
	ended  chan loop.Report
}

func newOwner(next ...netip.AddrPort) *owner {
	return &owner{next: next, ended: make(chan loop.Report, 2)} // 2: a second call is to be seen, not to block
}

func (o *owner) Dialed(_ time.Duration, err error) loop.Next {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialed = append(o.dialed, err)
	if err == nil || len(o.next) == 0 {
		return loop.Next{}
	}
	to := o.next[0]
	o.next = o.next[1:]
	return loop.Next{To: to, Wait: !to.IsValid()}
}

func (o *owner) dials() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.dialed)
}

func (o *owner) Ended(r loop.Report) { o.ended <- r }

// report waits for the flow's end.
func (o *owner) report(t testing.TB) loop.Report {
	t.Helper()
	select {
	case r := <-o.ended:
		return r
	case <-time.After(patience):
		t.Fatal("the flow did not end")
		panic("unreachable")
	}
}

func wantEnd(t testing.TB, r loop.Report, end loop.End) {
	t.Helper()
	if r.End != end {
		t.Fatalf("the flow ended with %v (%v), want %v", r.End, r.Err, end)
	}
}

func listenTCP(t testing.TB) *net.TCPListener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func addrOf(ln net.Listener) netip.AddrPort { return ln.Addr().(*net.TCPAddr).AddrPort() }

// serve runs handle for each connection to a listener of its own until the test
// ends.
func serve(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	ln := listenTCP(t)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return addrOf(ln)
}

// echo sends back what it gets. io.Copy would hold a pipe.
func echo(c *net.TCPConn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// front has g listen and decide by h. It returns the address.
func front(t testing.TB, g *loop.Group, h loop.Handler) (*loop.Listener, netip.AddrPort) {
	t.Helper()
	ln := listenTCP(t)
	addr := addrOf(ln)
	l, err := g.Listen(ln, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, addr
}

// to returns a handler that connects to backend under terms.
func to(backend netip.AddrPort, terms loop.Terms) loop.Handler {
	return func(loop.Incoming) loop.Verdict {
		return loop.Verdict{Action: loop.Connect, Next: loop.Next{To: backend}, Terms: terms}
	}
}

func dial(t testing.TB, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c
}

// wantRefused checks that a connection to addr is reset after the given bytes,
// at the latest: where it is reset at once, connecting may fail already.
func wantRefused(t testing.TB, addr netip.AddrPort, before string) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if isReset(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	wantReset(t, c, before)
}

// relay is a relay whose two ends are in the test's hands.
type relay struct {
	owner           *owner
	flow            loop.Flow
	client, backend *net.TCPConn
}

// newRelay makes a relay that g has accepted and connected itself.
func newRelay(t testing.TB, g *loop.Group, terms loop.Terms) *relay {
	t.Helper()
	r := &relay{owner: newOwner()}
	terms.Owner = r.owner
	ln := listenTCP(t)
	flow := make(chan loop.Flow, 1)
	_, addr := front(t, g, func(in loop.Incoming) loop.Verdict {
		flow <- in.Flow
		return loop.Verdict{Action: loop.Connect, Next: loop.Next{To: addrOf(ln)}, Terms: terms}
	})
	r.client = dial(t, addr)
	ln.SetDeadline(time.Now().Add(patience))
	c, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	r.backend, r.flow = c, <-flow
	return r
}

// pair is two ends of a TCP connection.
func pair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln := listenTCP(t)
	a = dial(t, addrOf(ln))
	b, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	b.SetDeadline(time.Now().Add(patience))
	return a, b
}

// newTakeover makes a relay of two connections that g is given.
func newTakeover(t testing.TB, g *loop.Group, terms loop.Terms) *relay {
	t.Helper()
	r := &relay{owner: newOwner()}
	terms.Owner = r.owner
	client, inner := pair(t)
	outer, backend := pair(t)
	flow, err := g.Relay(inner, outer, terms)
	if err != nil {
		t.Fatal(err)
	}
	r.client, r.backend, r.flow = client, backend, flow
	return r
}

// bothKinds runs a test with a relay made either way.
func bothKinds(t *testing.T, test func(t *testing.T, r *relay)) {
	t.Helper()
	t.Run("accepted", func(t *testing.T) { test(t, newRelay(t, start(t, loop.Config{Loops: 2}), loop.Terms{})) })
	t.Run("taken over", func(t *testing.T) { test(t, newTakeover(t, start(t, loop.Config{Loops: 2}), loop.Terms{})) })
	t.Run("by one loop", func(t *testing.T) { test(t, newRelay(t, start(t, loop.Config{Loops: 1}), loop.Terms{})) })
}

func write(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func wantRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read %q: %v", want, err)
	}
	if string(got) != want {
		t.Fatalf("read %q, want %q", got, want)
	}
}

func wantEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d bytes, %v; want EOF", n, err)
	}
}

// wantReset reads what comes before the reset.
func wantReset(t testing.TB, c net.Conn, before string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if !isReset(err) {
		t.Fatalf("read %q, %v; want a reset", got, err)
	}
	if string(got) != before {
		t.Fatalf("read %q before the reset, want %q", got, before)
	}
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func isReset(err error) bool { return errors.Is(err, errReset) || errors.Is(err, errPipe) }
