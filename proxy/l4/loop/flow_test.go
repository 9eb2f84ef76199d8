package loop_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

func TestCut(t *testing.T) {
	cause := errors.New("the mapping was deleted")
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.client, "x")
		wantRead(t, r.backend, "x")
		r.flow.Cut(cause)
		r.flow.Cut(errors.New("another cause"))
		wantReset(t, r.client, "")
		wantReset(t, r.backend, "")
		got := r.owner.report(t)
		wantEnd(t, got, loop.Cut)
		if got.Err != cause {
			t.Errorf("the cause is %v, want the first", got.Err)
		}
	})
	loop.Flow{}.Cut(cause) // does nothing
}

func TestIdleTimeout(t *testing.T) {
	const timeout = 200 * time.Millisecond
	for _, cfg := range []loop.Config{{Loops: 1}, {Loops: 2}} {
		g := start(t, cfg)
		r := newRelay(t, g, loop.Terms{IdleTimeout: timeout})
		last := time.Now()
		write(t, r.client, "x")
		wantRead(t, r.backend, "x")
		wantReset(t, r.client, "")
		if took := time.Since(last); took < timeout {
			t.Errorf("the flow ended %v after its last byte, want %v", took, timeout)
		}
		wantReset(t, r.backend, "")
		wantEnd(t, r.owner.report(t), loop.Idle)
	}
}

func TestActivityPutsOffTheIdleTimeout(t *testing.T) {
	const timeout = 300 * time.Millisecond
	r := newRelay(t, start(t, loop.Config{}), loop.Terms{IdleTimeout: timeout})
	began := time.Now()
	for tick := time.NewTicker(20 * time.Millisecond); time.Since(began) < 3*timeout; <-tick.C {
		write(t, r.backend, "x")
		wantRead(t, r.client, "x")
	}
	wantReset(t, r.client, "")
	if got := r.owner.report(t); got.End != loop.Idle || got.Duration < 3*timeout {
		t.Errorf("the report is %+v", got)
	}
}

// refusing returns an address that nothing listens on, and nothing will.
func refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	_, addr := bound(t)
	return addr
}

// bound returns a socket with an address.
func bound(t testing.TB) (fd int, addr netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	local := [4]byte{127, 0, 0, 1}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: local}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(netip.AddrFrom4(local), uint16(sa.(*unix.SockaddrInet4).Port))
}

func TestConnectRefused(t *testing.T) {
	g := start(t, loop.Config{})
	o := newOwner()
	_, addr := front(t, g, to(refusing(t), loop.Terms{Owner: o}))
	wantRefused(t, addr, "")
	got := o.report(t)
	wantEnd(t, got, loop.ConnectFailed)
	if !errors.Is(got.Err, syscall.ECONNREFUSED) {
		t.Errorf("the error is %v", got.Err)
	}
	if dials := o.dials(); len(dials) != 1 || !errors.Is(dials[0], syscall.ECONNREFUSED) {
		t.Errorf("dialed with %v", dials)
	}
	// An owner is not needed.
	_, addr = front(t, g, to(refusing(t), loop.Terms{}))
	wantRefused(t, addr, "")
}

func TestNextTarget(t *testing.T) {
	g := start(t, loop.Config{})
	backend := serve(t, echo)
	o := newOwner(refusing(t), netip.MustParseAddrPort("[fe80::1%nowhere]:1"), backend)
	_, addr := front(t, g, to(refusing(t), loop.Terms{Owner: o, First: []byte("first ")}))
	c := dial(t, addr)
	write(t, c, "hello")
	wantRead(t, c, "first hello")
	if dials := o.dials(); len(dials) != 4 || dials[0] == nil || dials[1] == nil || dials[2] == nil || dials[3] != nil {
		t.Errorf("dialed with %v, want three failures and a success", dials)
	}
	c.Close()
	wantEnd(t, o.report(t), loop.ClientClosed)
}

// An owner that never gives up is stopped.
func TestTargetsAreBounded(t *testing.T) {
	g := start(t, loop.Config{})
	dead := refusing(t)
	o := newOwner(slices.Repeat([]netip.AddrPort{dead}, 1000)...)
	_, addr := front(t, g, to(dead, loop.Terms{Owner: o}))
	wantRefused(t, addr, "")
	wantEnd(t, o.report(t), loop.ConnectFailed)
	if n := len(o.dials()); n != 255 {
		t.Errorf("tried %d targets, want 255", n)
	}
}

// silent returns an address that does not answer: a listener whose queue is
// full.
func silent(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, addr := bound(t)
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	dial(t, addr) // fills it
	return addr
}

func TestConnectTimeout(t *testing.T) {
	const timeout = 100 * time.Millisecond
	g := start(t, loop.Config{})
	backend := serve(t, echo)
	o := newOwner(backend)
	unanswered := silent(t)
	_, addr := front(t, g, func(loop.Incoming) loop.Verdict {
		return loop.Verdict{Action: loop.Connect, Next: loop.Next{To: unanswered, Timeout: timeout}, Terms: loop.Terms{Owner: o}}
	})
	began := time.Now()
	c := dial(t, addr)
	write(t, c, "hello")
	wantRead(t, c, "hello") // from the next target
	if took := time.Since(began); took < timeout {
		t.Errorf("gave up after %v, want %v", took, timeout)
	}
	if dials := o.dials(); len(dials) != 2 || !errors.Is(dials[0], os.ErrDeadlineExceeded) || dials[1] != nil {
		t.Errorf("dialed with %v", dials)
	}
}

func TestClientGoneWhileConnecting(t *testing.T) {
	g := start(t, loop.Config{})
	o := newOwner()
	_, addr := front(t, g, to(silent(t), loop.Terms{Owner: o}))
	c := dial(t, addr)
	write(t, c, "hello")
	reset(c)
	wantEnd(t, o.report(t), loop.ClientReset)
}

func TestCutWhileConnecting(t *testing.T) {
	g := start(t, loop.Config{})
	o, unanswered := newOwner(), silent(t)
	flow := make(chan loop.Flow, 1)
	_, addr := front(t, g, func(in loop.Incoming) loop.Verdict {
		flow <- in.Flow
		return loop.Verdict{Action: loop.Connect, Next: loop.Next{To: unanswered}, Terms: loop.Terms{Owner: o}}
	})
	c := dial(t, addr)
	(<-flow).Cut(nil)
	wantReset(t, c, "")
	wantEnd(t, o.report(t), loop.Cut)
}

// A backend that is full says so and resets.
func TestBackendResetsAtOnce(t *testing.T) {
	g := start(t, loop.Config{})
	backend := serve(t, func(c *net.TCPConn) {
		io.WriteString(c, "come back later")
		c.SetLinger(0)
	})
	for range 50 {
		o := newOwner()
		l, addr := front(t, g, to(backend, loop.Terms{Owner: o}))
		wantRefused(t, addr, "come back later")
		wantEnd(t, o.report(t), loop.BackendReset)
		l.Close()
	}
}

func TestControl(t *testing.T) {
	backend := serve(t, echo)
	fail := errors.New("no")
	var failing atomic.Bool
	g := start(t, loop.Config{Control: func(fd int) error {
		if failing.Load() {
			return fail
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 77}})
	}})
	local := make(chan netip.AddrPort, 1)
	seen := serve(t, func(c *net.TCPConn) { local <- c.RemoteAddr().(*net.TCPAddr).AddrPort() })
	_, addr := front(t, g, to(seen, loop.Terms{}))
	dial(t, addr)
	if got := <-local; got.Addr() != netip.MustParseAddr("127.0.0.77") {
		t.Errorf("the backend was connected to from %v", got)
	}
	failing.Store(true)
	o := newOwner()
	_, addr = front(t, g, to(backend, loop.Terms{Owner: o}))
	wantRefused(t, addr, "")
	if got := o.report(t); got.End != loop.ConnectFailed || !errors.Is(got.Err, fail) {
		t.Errorf("the report is %+v", got)
	}
}

// pace allows a number of bytes per second.
type pace struct {
	rate  atomic.Int64
	mu    sync.Mutex
	until time.Time // when all that was spent is paid
}

func (p *pace) Chunk(_ bool, max int) int {
	if rate := int(p.rate.Load()); rate > 0 {
		return min(max, rate/16+1)
	}
	return max
}

func (p *pace) Spend(_ bool, n int) time.Duration {
	rate := p.rate.Load()
	if rate <= 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.until.Before(now) {
		p.until = now
	}
	// What was moved before a limit came is not held against the flow for long.
	p.until = p.until.Add(min(time.Duration(float64(n)/float64(rate)*float64(time.Second)), time.Second))
	return min(p.until.Sub(now), 500*time.Millisecond)
}

func TestPace(t *testing.T) {
	const rate, n = 4 << 20, 2 << 20
	p := &pace{}
	p.rate.Store(rate)
	r := newRelay(t, start(t, loop.Config{}), loop.Terms{Pace: p})
	began := time.Now()
	go sendAll(r.client, 1, n)
	if err := wantAll(r.backend, 1, n); err != nil {
		t.Fatal(err)
	}
	if took, want := time.Since(began), n*time.Second/rate; took < want*8/10 {
		t.Errorf("%d bytes took %v at %d bytes per second, want %v", n, took, rate, want)
	}
	// A limit may be lifted while the flow waits because of it.
	p.rate.Store(1)
	go sendAll(r.client, 2, 20*n)
	waitFor(t, "the flow to be throttled", func() bool { up, _, _ := r.flow.Bytes(); return up > n })
	p.rate.Store(0)
	if err := wantAll(r.backend, 2, 20*n); err != nil {
		t.Fatal(err)
	}
	r.client.Close()
	wantEOF(t, r.backend)
	r.backend.Close()
	wantEnd(t, r.owner.report(t), loop.ClientClosed)
}

func TestRunEndsEverything(t *testing.T) {
	before := openFiles(t)
	t.Cleanup(func() {
		waitFor(t, "descriptors to be closed", func() bool { return openFiles(t) <= before })
	})
	g, err := loop.New(loop.Config{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	stuck, accepted := newRelay(t, g, loop.Terms{}), newRelay(t, g, loop.Terms{})
	taken := newTakeover(t, g, loop.Terms{})
	stuck.client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	stuck.client.Write(make([]byte, 64<<20)) // holds a buffer or a pipe
	o := newOwner()
	_, addr := front(t, g, to(silent(t), loop.Terms{Owner: o}))
	connecting := dial(t, addr)
	write(t, connecting, "hello")
	waitFor(t, "the connection to be accepted", func() bool { return outstanding(t, connecting) == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, r := range []*relay{stuck, accepted, taken} {
		wantEnd(t, r.owner.report(t), loop.Stopped)
	}
	select {
	case r := <-o.ended:
		wantEnd(t, r, loop.Stopped)
	default: // it was in the listener's queue: acknowledged, but nobody's yet
	}
	wantReset(t, accepted.client, "")
	wantReset(t, taken.backend, "")

	// Whatever comes now is refused, and closed.
	_, inner := pair(t)
	outer, _ := pair(t)
	if _, err := g.Relay(inner, outer, loop.Terms{Owner: o}); err == nil {
		t.Error("a group that has stopped takes connections over")
	}
	if _, err := g.Listen(listenTCP(t), to(addr, loop.Terms{})); err == nil {
		t.Error("a group that has stopped listens")
	}
}

// outstanding returns how many bytes c's peer has not acknowledged.
func outstanding(t testing.TB, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What is posted before Run is done when it runs.
func TestBeforeRun(t *testing.T) {
	g, err := loop.New(loop.Config{Loops: 3})
	if err != nil {
		t.Fatal(err)
	}
	r := newTakeover(t, g, loop.Terms{})
	l, addr := front(t, g, to(serve(t, echo), loop.Terms{}))
	closed, _ := front(t, g, to(addr, loop.Terms{}))
	closed.Close()
	c := dial(t, addr)
	write(t, c, "hello")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	wantRead(t, c, "hello")
	write(t, r.client, "hello")
	wantRead(t, r.backend, "hello")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.Close() // after the end: harmless
}

func TestNewRefuses(t *testing.T) {
	if _, err := loop.New(loop.Config{Loops: -1}); err == nil {
		t.Error("New takes a negative number of loops")
	}
}

func TestRelayRefusesClosedConnections(t *testing.T) {
	g := start(t, loop.Config{})
	for _, first := range []bool{true, false} {
		a, inner := pair(t)
		outer, b := pair(t)
		if first {
			inner.Close()
		} else {
			outer.Close()
		}
		o := newOwner()
		if _, err := g.Relay(inner, outer, loop.Terms{Owner: o}); err == nil {
			t.Error("a closed connection was taken over")
		}
		_, errA := a.Read(make([]byte, 1))
		_, errB := b.Read(make([]byte, 1))
		if errA == nil || errB == nil || errors.Is(errA, os.ErrDeadlineExceeded) || errors.Is(errB, os.ErrDeadlineExceeded) {
			t.Errorf("reading gave %v and %v, want the connections to be closed", errA, errB)
		}
	}
}

// Idle flows hold two descriptors, and no buffer.
func TestIdleFlowsAreSmall(t *testing.T) {
	g := start(t, loop.Config{Loops: 2})
	backend := serve(t, echo)
	_, addr := front(t, g, to(backend, loop.Terms{IdleTimeout: time.Hour}))
	const n = 500
	conns := make([]*net.TCPConn, n)
	begin := func(i int) {
		conns[i] = dial(t, addr)
		write(t, conns[i], "hello")
		wantRead(t, conns[i], "hello")
	}
	begin(0)
	files, before := openFiles(t), heap()
	for i := range conns[1:] {
		begin(i + 1)
	}
	// Two of the relay, one of the client, one of the backend; and two of the
	// other loop, if that has begun only now.
	if more := openFiles(t) - files; more > 4*(n-1)+2 {
		t.Errorf("%d relays have %d descriptors, want %d", n-1, more, 4*(n-1))
	}
	// The flows' own slots were allocated with the first. This is mostly the
	// test's client and the backend.
	if each := (int64(heap()) - int64(before)) / (n - 1); each > 48<<10 {
		t.Errorf("%d bytes of heap per idle relay", each)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestMovingBytesAllocatesNothing(t *testing.T) {
	r := newRelay(t, start(t, loop.Config{Loops: 1}), loop.Terms{IdleTimeout: time.Hour})
	buf := make([]byte, 4)
	ping := func() {
		for _, c := range [][2]*net.TCPConn{{r.client, r.backend}, {r.backend, r.client}} {
			if _, err := c[0].Write(buf); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c[1], buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(500, ping); n >= 1 {
		t.Errorf("%v allocations per message", n)
	}
}

func ExampleGroup() {
	g, err := loop.New(loop.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	defer running.Wait()
	defer stop()

	backend, _ := net.Listen("tcp", "127.0.0.1:0")
	defer backend.Close()
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	_, err = g.Listen(ln.(*net.TCPListener), func(in loop.Incoming) loop.Verdict {
		if !in.Client.Addr().IsLoopback() {
			return loop.Verdict{} // reset
		}
		return loop.Verdict{
			Action: loop.Connect,
			Next:   loop.Next{To: addrOf(backend)},
			Terms:  loop.Terms{IdleTimeout: 10 * time.Minute},
		}
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, _ := net.Dial("tcp", ln.Addr().String())
	defer client.Close()
	server, _ := backend.Accept()
	defer server.Close()
	io.WriteString(client, "hello")
	buf := make([]byte, 5)
	io.ReadFull(server, buf)
	fmt.Println(string(buf))
	// Output: hello
}
