package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/listen/steer"
	"github.com/remotegpu/sluice/router"
)

// handedOver returns an engine that has taken over from e, which lingers then: an
// upgrade, but for the two processes.
func (e *edge) handedOver(t *testing.T) *edge {
	t.Helper()
	inherited := &listen.Inherited{}
	release, err := e.Hold()
	if err != nil {
		t.Fatal(err)
	}
	err = e.EachSocket(func(s proxy.Socket, f *os.File) error {
		inherited.Give(s.Network, s.Address, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	next := newEdge(t, in(e.PortsMode()), func(cfg *proxy.Config) { cfg.Inherited, cfg.Held = inherited, true })
	if err := next.Bind(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.builder = e.builder
	next.apply()
	if err := next.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := e.Retire()
	release()
	next.Begin(left)
	if closed := inherited.CloseRest(); closed != nil {
		t.Errorf("the new engine does not want %q", closed)
	}
	return next
}

// TestHandOver has an engine take over from another one, and a third from that:
// connections stay, sessions of UDP go on by the same sockets, and nothing is
// refused.
func TestHandOver(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		tcp, udp := freePort(t), freePort(t)
		e.put(t, tcp, fmt.Sprintf("%q", greeter(t, "hello")))
		e.putProto(t, router.UDP, udp, fmt.Sprintf("%q", tellSource(t)))
		c := greeted(t, tcp)
		session := dialUDP(t, "127.0.0.1", udp)
		source := askSource(t, session)

		done := make(chan int, 2)
		for range 2 {
			was := e
			e = was.handedOver(t)
			go func() { done <- was.Linger(t.Context()) }()
			if got := askSource(t, session); got != source {
				t.Errorf("the backend sees the session come from %v, and before from %v", got, source)
			}
			if got, err := greeting(tcp); got != "hello" {
				t.Errorf("a new connection: %q, %v", got, err)
			}
			askSource(t, dialUDP(t, "127.0.0.1", udp)) // a new session
			added := freePort(t)
			e.put(t, added, fmt.Sprintf("%q", greeter(t, "added")))
			if got, err := greeting(added); got != "added" {
				t.Errorf("a new port: %q, %v", got, err)
			}
		}
		flows := 0
		for f := range e.Flows() {
			if f.Proto == router.UDP && f.Client == netip.MustParseAddrPort(session.LocalAddr().String()) {
				flows++
				if f.Up == 0 || f.Down == 0 {
					t.Errorf("the session has forgotten what it moved: %+v", f)
				}
			}
		}
		if flows != 1 {
			t.Errorf("the last engine has the session %d times", flows)
		}
		// The first one has the connection to the end.
		c.Close()
		for range 2 {
			select {
			case cut := <-done:
				if cut != 0 {
					t.Errorf("%d flows were cut", cut)
				}
			case <-time.After(patience):
				t.Fatal("an engine lingers without flows")
			}
		}
	})
}

// TestSuccessorFails has an engine end that was to take over and has not begun:
// the one before serves on. While that gave its sockets away its ports could be
// changed, and it answered that all is well.
func TestSuccessorFails(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		port := freePort(t)
		e.put(t, port, fmt.Sprintf("%q", greeter(t, "hello")))
		udp := freePort(t)
		e.putProto(t, router.UDP, udp, fmt.Sprintf("%q", tellSource(t)))
		askSource(t, dialUDP(t, "127.0.0.1", udp)) // then all is open that it takes
		inherited := &listen.Inherited{}
		err := e.EachSocket(func(s proxy.Socket, f *os.File) error {
			inherited.Give(s.Network, s.Address, f)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			return e.Pulse(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Run("successor", func(t *testing.T) { // which ends with it
			next := newEdge(t, in(e.PortsMode()), func(cfg *proxy.Config) { cfg.Inherited, cfg.Held = inherited, true })
			next.builder = e.builder
			next.apply()
			if err := next.Listen(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		inherited.CloseRest()
		for range 3 {
			if got, err := greeting(port); got != "hello" {
				t.Errorf("a new connection: %q, %v", got, err)
			}
		}
	})
}

// TestElderOfNoListener has an engine begin that lacks a listener which a process
// before it has connections on: the way to that one is closed.
func TestElderOfNoListener(t *testing.T) {
	e := newEdge(t, in(proxy.PortsBind), func(cfg *proxy.Config) { cfg.Held = true })
	if err := e.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e.Begin(proxy.Left{QUIC: []proxyhttp.QUICElder{{Local: "192.0.2.1:443", Socket: w}}})
	r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the socket to the process before: %v, want it closed", err)
	}
}

// TestRetiredEngineFollowsItsMappings deletes a mapping whose flow another engine
// has left behind.
func TestRetiredEngineFollowsItsMappings(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		port := freePort(t)
		e.put(t, port, fmt.Sprintf(`{"backend": %q, "on_delete": "cut"}`, greeter(t, "hello")))
		c := greeted(t, port)
		next := e.handedOver(t)
		e.builder.DeleteMapping(router.TCP, port)
		e.apply()
		if _, err := io.ReadAll(c); err == nil {
			t.Error("the flow of a deleted mapping ended in order, want a cut")
		}
		if got, err := greeting(port); got != "hello" { // the next one has not been told
			t.Errorf("the old engine closed the port of the new one: %q, %v", got, err)
		}
		next.apply()
		if cut := e.Linger(t.Context()); cut != 0 {
			t.Errorf("%d flows were cut at the end", cut)
		}
	})
}

// tellSource answers datagrams with the address that they came from.
func tellSource(t *testing.T) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		for b := make([]byte, 64); ; {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo([]byte(from.String()), from)
		}
	}()
	return pc.LocalAddr().String()
}

// askSource returns which address a backend of tellSource sees.
func askSource(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("who am I?")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestSocketsAreGivenOneByOne has a node with more sockets than it could have twice
// give them away.
func TestSocketsAreGivenOneByOne(t *testing.T) {
	e := newEdge(t, in(proxy.PortsBind))
	const each = 20
	for range each {
		e.put(t, freePort(t), `"127.0.0.1:9"`)
		port := freePort(t)
		e.putProto(t, router.UDP, port, fmt.Sprintf("%q", tellSource(t)))
		askSource(t, dialUDP(t, "127.0.0.1", port)) // then it is open
	}
	before, given := openFiles(t), 0
	err := e.EachSocket(func(_ proxy.Socket, f *os.File) error {
		given++
		if more := openFiles(t) - before; more > 1 {
			t.Errorf("with %d sockets given, %d files more than before are open", given, more)
		}
		return f.Close()
	})
	if err != nil || given != 2*each {
		t.Errorf("%d sockets of %d were given, %v", given, 2*each, err)
	}
}

// TestLeftPortsAreNotWatched has an engine that has left its ports say nothing of
// who opens sockets there: that is its successor, in another process.
func TestLeftPortsAreNotWatched(t *testing.T) {
	if steer.Supported() != nil {
		return // TestHandOver says so
	}
	proxy.SetPace(testRest, time.Millisecond)
	t.Cleanup(func() { proxy.SetPace(testRest, testForeign) }) // after the engines' end
	port := freePort(t)
	watching := func(registry *prometheus.Registry) *edge {
		return newEdge(t, in(proxy.PortsSteer), func(cfg *proxy.Config) {
			cfg.Registerer, cfg.Ports = registry, router.Ports{{First: port, Last: port}}
		})
	}
	was, other := prometheus.NewRegistry(), prometheus.NewRegistry()
	watching(was).handedOver(t)
	listenInChild(t, port)
	watching(other)
	eventually(t, "an engine that has its ports sees the socket", func() error {
		if got := gathered(t, other, "sluice_proxy_foreign_sockets", "hearing"); got != 1 {
			return fmt.Errorf("it sees %v", got)
		}
		return nil
	})
	if got := gathered(t, was, "sluice_proxy_foreign_sockets", "hearing"); got != 0 {
		t.Errorf("the engine before sees %v sockets of other programs", got)
	}
}
