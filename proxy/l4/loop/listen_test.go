package loop_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

func TestIncoming(t *testing.T) {
	g := start(t, loop.Config{})
	backend := serve(t, echo)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(address, func(t *testing.T) {
			ln, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			type seen struct{ client, local netip.AddrPort }
			saw := make(chan seen, 1)
			l, err := g.Listen(ln.(*net.TCPListener), func(in loop.Incoming) loop.Verdict {
				saw <- seen{in.Client, in.Local()}
				return loop.Verdict{Action: loop.Connect, Next: loop.Next{To: backend}}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			at := addrOf(ln)
			if at.Addr().IsUnspecified() {
				at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
			}
			c := dial(t, at)
			want := seen{c.LocalAddr().(*net.TCPAddr).AddrPort(), at}
			if got := <-saw; got != want {
				t.Errorf("saw %v, want %v", got, want)
			}
		})
	}
}

func TestIPv6Backend(t *testing.T) {
	g := start(t, loop.Config{})
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, addr := front(t, g, to(addrOf(ln), loop.Terms{}))
	c := dial(t, addr)
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	write(t, c, "hello")
	wantRead(t, b, "hello")
}

func TestHandOver(t *testing.T) {
	g := start(t, loop.Config{})
	_, addr := front(t, g, func(in loop.Incoming) loop.Verdict {
		return loop.Verdict{Action: loop.HandOver, Take: func(c *net.TCPConn, _ error) {
			defer c.Close()
			if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); got != in.Client && !got.IsValid() {
				t.Errorf("the connection is from %v", got)
			}
			c.SetDeadline(time.Now().Add(patience)) // the runtime's poller knows it
			echo(c)
		}}
	})
	var running sync.WaitGroup
	for i := range 20 {
		running.Go(func() {
			c := dial(t, addr)
			defer c.Close()
			message := fmt.Sprintf("hello from %d", i)
			write(t, c, message)
			wantRead(t, c, message)
		})
	}
	running.Wait()
	// Without anybody to take it a connection is reset.
	_, addr = front(t, g, func(loop.Incoming) loop.Verdict { return loop.Verdict{Action: loop.HandOver} })
	wantRefused(t, addr, "")
}

// A connection that was handed over may come back as one of a pair.
func TestHandOverAndTakeOver(t *testing.T) {
	g := start(t, loop.Config{})
	backend := serve(t, echo)
	o := newOwner()
	_, addr := front(t, g, func(in loop.Incoming) loop.Verdict {
		return loop.Verdict{Action: loop.HandOver, Take: func(c *net.TCPConn, _ error) {
			b, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(backend))
			if err != nil {
				c.Close()
				return
			}
			if _, err := g.Relay(c, b, loop.Terms{Owner: o}); err != nil {
				t.Errorf("Relay: %v", err)
			}
		}}
	})
	c := dial(t, addr)
	write(t, c, "hello")
	wantRead(t, c, "hello")
	c.Close()
	wantEnd(t, o.report(t), loop.ClientClosed)
}

func TestListenerClose(t *testing.T) {
	g := start(t, loop.Config{Loops: 3})
	backend := serve(t, echo)
	l, addr := front(t, g, to(backend, loop.Terms{}))
	c := dial(t, addr)
	write(t, c, "x")
	wantRead(t, c, "x")
	for range 100 {
		l.Close()
		l.Close()
		if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr)); err == nil {
			c.Close()
			t.Fatal("a listener that is closed accepts")
		}
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		if err != nil {
			t.Fatalf("the port cannot be had again: %v", err)
		}
		if l, err = g.Listen(ln, to(backend, loop.Terms{})); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		other := dial(t, addr)
		write(t, other, "y")
		wantRead(t, other, "y")
		other.Close()
	}
	write(t, c, "still here")
	wantRead(t, c, "still here")
}

// tally counts what owners are told.
type tally struct {
	ended [16]atomic.Int64 // by loop.End
	total atomic.Int64
}

func (*tally) Dialed(time.Duration, error) loop.Next { return loop.Next{} }

func (o *tally) Ended(r loop.Report) {
	o.ended[r.End].Add(1)
	o.total.Add(1)
}

func TestManyShortConnections(t *testing.T) {
	const clients, each = 16, 250
	for _, cfg := range []loop.Config{{Loops: 1}, {Loops: 2}} {
		t.Run(fmt.Sprint(cfg.Loops), func(t *testing.T) {
			g := start(t, cfg)
			o := &tally{}
			_, addr := front(t, g, to(serve(t, echo), loop.Terms{Owner: o, IdleTimeout: time.Minute}))
			var running sync.WaitGroup
			for i := range clients {
				running.Go(func() {
					for j := range each {
						message := fmt.Sprintf("message %d of client %d", j, i)
						c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
						if err != nil {
							t.Error(err)
							return
						}
						c.SetDeadline(time.Now().Add(patience))
						io.WriteString(c, message)
						got := make([]byte, len(message))
						if _, err := io.ReadFull(c, got); err != nil || string(got) != message {
							t.Errorf("read %q, %v; want %q", got, err, message)
						}
						c.Close()
					}
				})
			}
			running.Wait()
			waitFor(t, "the flows to end", func() bool { return o.total.Load() == clients*each })
			if n := o.ended[loop.ClientClosed].Load(); n != clients*each {
				t.Errorf("%d of %d flows were closed by their clients", n, clients*each)
			}
		})
	}
}

// Flows end in every way at once, so that descriptors and slots change hands
// while events of those who had them are under way. Each connection has a number
// of its own that must come back and no other.
func TestDescriptorsChangeHands(t *testing.T) {
	const clients, each = 12, 150
	for _, cfg := range []loop.Config{{Loops: 2}, {Loops: 1}} {
		t.Run(fmt.Sprint(cfg.Loops), func(t *testing.T) {
			g := start(t, cfg)
			backend := serve(t, func(c *net.TCPConn) {
				defer reset(c) // harmless after an orderly end
				echo(c)
			})
			o := &tally{}
			var asked atomic.Int64
			flows := make(chan loop.Flow, clients*each)
			dead := refusing(t)
			_, addr := front(t, g, func(in loop.Incoming) loop.Verdict {
				v := loop.Verdict{Action: loop.Connect, Next: loop.Next{To: backend}, Terms: loop.Terms{Owner: o, IdleTimeout: time.Minute}}
				if in.Client.Port()%16 == 0 {
					v.To = dead
				}
				asked.Add(1)
				flows <- in.Flow
				return v
			})
			var cutting sync.WaitGroup
			over := make(chan struct{})
			cutting.Go(func() {
				for {
					select {
					case f := <-flows:
						if rand.IntN(8) == 0 {
							f.Cut(nil)
						}
						f.Bytes()
					case <-over:
						return
					}
				}
			})
			var running sync.WaitGroup
			var number atomic.Uint64
			var whole atomic.Int64
			for range clients {
				running.Go(func() {
					for range each {
						if exchange(t, addr, number.Add(1)) {
							whole.Add(1)
						}
					}
				})
			}
			running.Wait()
			close(over)
			cutting.Wait()
			// Connections that were reset in the queue were nobody's flow.
			waitFor(t, "the flows to end", func() bool { return o.total.Load() == asked.Load() })
			if whole.Load() < clients*each/2 {
				t.Errorf("only %d of %d connections had their answers", whole.Load(), clients*each)
			}
		})
	}
}

// exchange sends number some times and reports whether it always came back.
// Nothing else may come back.
func exchange(t *testing.T, addr netip.AddrPort, number uint64) bool {
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	message, got := binary.BigEndian.AppendUint64(nil, number), make([]byte, 8)
	for range rand.IntN(4) {
		if _, err := c.Write(message); err != nil {
			return false
		}
		_, err := io.ReadFull(c, got)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("an answer did not come")
		}
		if err != nil {
			return false
		}
		if string(got) != string(message) {
			t.Errorf("got %x, want %x", got, message)
		}
	}
	switch rand.IntN(3) {
	case 0:
		c.SetLinger(0)
	case 1:
		c.CloseWrite()
		if n, _ := c.Read(got); n > 0 {
			t.Errorf("got %x after the end", got[:n])
		}
	}
	return true
}

// Whoever is asleep gets to accept; flows that last are spread nevertheless.
func TestFlowsAreSpread(t *testing.T) {
	const n = 200
	g := start(t, loop.Config{Loops: 2})
	_, addr := front(t, g, to(serve(t, echo), loop.Terms{}))
	for range n {
		c := dial(t, addr)
		write(t, c, "x")
		wantRead(t, c, "x")
	}
	counts := loop.FlowsPerLoop(g)
	if counts[0]+counts[1] != n || min(counts[0], counts[1]) < n/4 {
		t.Errorf("the loops have %v flows of %d", counts, n)
	}
}

// Without descriptors nobody can be served, but those who are go on, and the
// others wait their turn.
func TestOutOfDescriptors(t *testing.T) {
	g := start(t, loop.Config{Loops: 2})
	backend := serve(t, echo)
	_, addr := front(t, g, to(backend, loop.Terms{}))
	first := dial(t, addr)
	write(t, first, "x")
	wantRead(t, first, "x")
	for range 2 { // one goes to either loop, which needs descriptors to begin with
		r := newTakeover(t, g, loop.Terms{})
		write(t, r.client, "x")
		wantRead(t, r.backend, "x")
	}
	waiting, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := os.NewFile(uintptr(waiting), "")
	defer c.Close()

	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 4 // those that are open stay open
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	restored := false
	restore := func() {
		if !restored {
			restored = true
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
				t.Error(err)
			}
		}
	}
	defer restore()
	sa := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(addr.Port())}
	if err := syscall.Connect(waiting, sa); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Write(waiting, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		write(t, first, "y")
		wantRead(t, first, "y")
	}
	restore()
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}
