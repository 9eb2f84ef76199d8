package loop_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

// waiting makes g accept a connection that waits for Flow.Dial.
func waiting(t testing.TB, g *loop.Group, o *owner) (addr netip.AddrPort, flow chan loop.Flow) {
	t.Helper()
	flow = make(chan loop.Flow, 1)
	_, addr = front(t, g, func(in loop.Incoming) loop.Verdict {
		flow <- in.Flow
		return loop.Verdict{Action: loop.Connect, Next: loop.Next{Wait: true}, Terms: loop.Terms{Owner: o}}
	})
	return addr, flow
}

func TestWaitBeforeTheFirstTarget(t *testing.T) {
	g := start(t, loop.Config{Loops: 2})
	backend := serve(t, echo)
	o := newOwner()
	addr, flows := waiting(t, g, o)
	c := dial(t, addr)
	write(t, c, "hello")
	flow := <-flows
	if _, _, live := flow.Bytes(); !live {
		t.Error("a flow that waits is not live")
	}
	flow.Dial(loop.Next{To: backend}, nil)
	wantRead(t, c, "hello")
	flow.Dial(loop.Next{To: refusing(t)}, nil) // does nothing any more
	flow.Dial(loop.Next{}, errors.New("no"))
	write(t, c, "again")
	wantRead(t, c, "again")
	c.Close()
	wantEnd(t, o.report(t), loop.ClientClosed)
	flow.Dial(loop.Next{To: refusing(t)}, nil)
}

func TestWaitAfterAFailure(t *testing.T) {
	g := start(t, loop.Config{Loops: 1})
	backend := serve(t, echo)
	o := newOwner(netip.AddrPort{})
	addr, flows := waiting(t, g, o)
	c := dial(t, addr)
	write(t, c, "hello")
	flow := <-flows
	flow.Dial(loop.Next{To: refusing(t)}, nil)
	waitFor(t, "the failure to be told", func() bool { return len(o.dials()) == 1 })
	flow.Dial(loop.Next{To: backend}, nil)
	wantRead(t, c, "hello")
	if dials := o.dials(); len(dials) != 2 || dials[1] != nil {
		t.Errorf("dialed with %v", dials)
	}
}

func TestWaitInVain(t *testing.T) {
	g := start(t, loop.Config{Loops: 1})
	cause := errors.New("the name does not resolve")
	o := newOwner()
	addr, flows := waiting(t, g, o)
	c := dial(t, addr)
	(<-flows).Dial(loop.Next{}, cause)
	wantReset(t, c, "")
	if got := o.report(t); got.End != loop.ConnectFailed || got.Err != cause {
		t.Errorf("the report is %+v", got)
	}
}

func TestGoneWhileWaiting(t *testing.T) {
	g := start(t, loop.Config{Loops: 1})
	o := newOwner()
	addr, flows := waiting(t, g, o)
	reset(dial(t, addr))
	wantEnd(t, o.report(t), loop.ClientReset)
	(<-flows).Dial(loop.Next{To: serve(t, echo)}, nil) // does nothing

	o = newOwner()
	addr, flows = waiting(t, g, o)
	c := dial(t, addr)
	(<-flows).Cut(nil)
	wantReset(t, c, "")
	wantEnd(t, o.report(t), loop.Cut)
}

func TestHeaderIsNotCounted(t *testing.T) {
	g := start(t, loop.Config{})
	header := strings.Repeat("PROXY TCP4 ", 1<<20) // more than a socket takes at once
	r := newRelay(t, g, loop.Terms{First: []byte(header + "peeked"), Header: len(header)})
	wantRead(t, r.backend, header[:1])
	if up, _, _ := r.flow.Bytes(); up != 0 {
		t.Errorf("%d bytes went up, want none of the header's", up)
	}
	write(t, r.client, "hello")
	wantRead(t, r.backend, header[1:]+"peekedhello")
	r.client.Close()
	r.backend.Close()
	if got := r.owner.report(t); got.Up != 11 {
		t.Errorf("%d bytes went up, want 11", got.Up)
	}
}

// A flow is cut when one side does not take what waits for it, however busy the
// other direction is.
func TestStallTimeout(t *testing.T) {
	const timeout = 200 * time.Millisecond
	for range 2 {
		r := newRelay(t, start(t, loop.Config{Loops: 1}), loop.Terms{StallTimeout: timeout})
		began := time.Now()
		go r.backend.Write(make([]byte, 64<<20)) // until it fails
		go func() {
			for {
				if _, err := r.client.Write([]byte("busy")); err != nil {
					return
				}
				<-time.After(10 * time.Millisecond)
			}
		}()
		wantEnd(t, r.owner.report(t), loop.Stalled)
		if took := time.Since(began); took < timeout {
			t.Errorf("the flow ended after %v, want %v", took, timeout)
		}
	}
}

// One that takes its time is no stalled one.
func TestSlowIsNotStalled(t *testing.T) {
	const timeout, n = 100 * time.Millisecond, 24 << 20
	r := newRelay(t, start(t, loop.Config{}), loop.Terms{StallTimeout: timeout})
	go sendAll(r.backend, 1, n)
	got := 0
	for buf, tick := make([]byte, 1<<20), time.NewTicker(timeout/5); got < n; <-tick.C {
		m, err := r.client.Read(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		got += m
	}
	// And one that has nothing to take is not either.
	<-time.After(3 * timeout)
	write(t, r.backend, "x")
	wantRead(t, r.client, "x")
}

// Whoever adds up the bytes of live flows and of those that have ended never
// sees fewer than before.
func TestBytesAreThereUntilTheReport(t *testing.T) {
	g := start(t, loop.Config{Loops: 1})
	o := &lastLook{seen: make(chan int64, 1), backend: serve(t, echo)}
	_, addr := front(t, g, func(in loop.Incoming) loop.Verdict {
		o.flow = in.Flow
		if up, down, live := in.Flow.Bytes(); up+down != 0 || !live {
			t.Errorf("a new flow has moved %d and %d bytes", up, down)
		}
		return loop.Verdict{Action: loop.Connect, Next: loop.Next{To: o.backend}, Terms: loop.Terms{Owner: o}}
	})
	for range 3 { // in the same slot
		c := dial(t, addr)
		write(t, c, "hello")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		if got := <-o.seen; got != 10 {
			t.Errorf("at the end %d bytes are to be seen, want 10", got)
		}
	}
}

type lastLook struct {
	backend netip.AddrPort
	flow    loop.Flow
	seen    chan int64
}

func (*lastLook) Dialed(time.Duration, error) loop.Next { return loop.Next{} }

func (o *lastLook) Ended(loop.Report) {
	up, down, _ := o.flow.Bytes()
	o.seen <- up + down
}

// Both sides of a flow that lasts find out that their peer has vanished.
func TestKeepalive(t *testing.T) {
	t.Cleanup(loop.KeepaliveAfter(2))
	r := newRelay(t, start(t, loop.Config{Loops: 1}), loop.Terms{})
	for name, peer := range map[string]*net.TCPConn{"client": r.client, "backend": r.backend} {
		fd := socketTo(t, peer.LocalAddr().(*net.TCPAddr).AddrPort())
		waitFor(t, "the socket of the "+name+" to be told to probe", func() bool {
			on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			idle, err2 := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			return err == nil && err2 == nil && on == 1 && idle == 60
		})
	}
}

// socketTo returns the descriptor of the process that is connected to peer.
func socketTo(t testing.TB, peer netip.AddrPort) int {
	t.Helper()
	for fd := range 1000 {
		if sa, err := unix.Getpeername(fd); err == nil {
			if v4, ok := sa.(*unix.SockaddrInet4); ok && netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port)) == peer {
				return fd
			}
		}
	}
	t.Fatalf("no socket is connected to %v", peer)
	return -1
}
