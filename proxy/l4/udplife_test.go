package l4_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// withdraw deletes the port's mapping as an engine would.
func (n *node) withdraw(p *port) {
	n.t.Helper()
	was := p.mapping.Load()
	p.mapping.Store(nil)
	n.server.Withdraw(was, nil)
}

// mustEnd waits until ServeUDP has returned of itself.
func (p *port) mustEnd(t *testing.T) {
	t.Helper()
	select {
	case <-p.served:
	case <-time.After(patience):
		t.Fatal("ServeUDP goes on")
	}
	// Its socket is closed: the port can be opened again.
	pc, err := listen.UDP(context.Background(), fmt.Sprintf(":%d", p.addr.Port()))
	if err != nil {
		t.Error(err)
	} else {
		pc.Close()
	}
}

func (p *port) mustGoOn(t *testing.T) {
	t.Helper()
	select {
	case <-p.served:
		t.Fatal("ServeUDP has returned")
	default:
	}
}

// What on_delete says of a deleted mapping holds for its UDP sessions, which the
// port's socket outlives it for.
func TestUDPDelete(t *testing.T) {
	n := newNode(t)
	echo := udpEcho(t, "")
	t.Run("cut", func(t *testing.T) {
		p := n.udp(`%s`, echo)
		ask(t, dialUDP(t, p), "x", "x")
		n.withdraw(p)
		n.wantEnd("deleted")
		p.mustEnd(t)
	})
	t.Run("without sessions", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "on_delete": "keep"}`, echo)
		n.withdraw(p)
		p.mustEnd(t)
	})
	t.Run("drain", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "on_delete": "drain 300ms"}`, echo)
		c := dialUDP(t, p)
		ask(t, c, "x", "x")
		n.withdraw(p)
		ask(t, c, "y", "y")
		n.mustDrop(dialUDP(t, p), "x", "unmapped")
		p.mustGoOn(t)
		n.wantEnd("deleted")
		p.mustEnd(t)
	})
	t.Run("keep", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "on_delete": "keep", "idle_timeout": "300ms"}`, echo)
		c, other := dialUDP(t, p), dialUDP(t, p)
		ask(t, c, "x", "x")
		ask(t, other, "x", "x")
		n.withdraw(p)
		ask(t, c, "y", "y")
		n.mustDrop(dialUDP(t, p), "x", "unmapped")
		n.wantEnd("idle")
		n.wantEnd("idle")
		p.mustEnd(t)
	})
	t.Run("and put again", func(t *testing.T) {
		p := n.udp(`{"backend": "%s", "on_delete": "keep", "idle_timeout": "300ms"}`, echo)
		c := dialUDP(t, p)
		ask(t, c, "x", "x")
		n.withdraw(p)
		p.mapping.Store(parse(t, router.UDP, p.addr, `{"backend": "`+echo+`", "idle_timeout": "300ms"}`))
		ask(t, dialUDP(t, p), "x", "x")
		n.wantEnd("idle")
		n.wantEnd("idle")
		ask(t, dialUDP(t, p), "x", "x") // it serves on
		n.wantEnd("idle")
		p.mustGoOn(t)
		n.withdraw(p)
		p.mustEnd(t)
	})
}

// What comes to a withdrawn port at the last moment is handed back, for whoever
// maps it next.
func TestUDPDeleteLeavesDatagrams(t *testing.T) {
	n := newNode(t)
	var m *router.Mapping
	var mu sync.Mutex
	mapping := func() *router.Mapping {
		mu.Lock()
		defer mu.Unlock()
		return m
	}
	pc, err := listen.UDP(context.Background(), ":0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), pc.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	m = parse(t, router.UDP, addr, udpEcho(t, ""))
	c := openUDP(t, "udp4", "127.0.0.1:0")
	o := l4.UDPOptions{Resting: func() { c.WriteToUDPAddrPort([]byte("late"), addr) }}
	done := make(chan struct{})
	n.running.Go(func() {
		defer close(done)
		left, err := n.server.ServeUDP(t.Context(), pc, mapping, o)
		if err != nil || len(left) != 1 || string(left[0].Payload) != "late" || left[0].From != c.LocalAddr().(*net.UDPAddr).AddrPort() || left[0].Local != addr.Addr() {
			t.Errorf("ServeUDP left %v, error %v", left, err)
		}
	})
	was := mapping()
	mu.Lock()
	m = nil
	mu.Unlock()
	n.server.Withdraw(was, nil)
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("ServeUDP goes on")
	}
}

// slowNames are name servers that take their time.
type slowNames struct {
	asked chan string   // gets each name
	ready chan struct{} // is closed to have them answered
}

func (s slowNames) Lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	s.asked <- host
	select {
	case <-s.ready:
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour, nil
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
}

// While a backend is looked up datagrams wait, within bounds, and none of them
// is lost when another backend takes its place.
func TestUDPWaitsForNames(t *testing.T) {
	names := slowNames{make(chan string, 10), make(chan struct{})}
	n := newNode(t, func(cfg *l4.Config) { cfg.Dialer = upstream.NewDialer(upstream.Config{Resolver: names}) })
	echo := netip.MustParseAddrPort(udpEcho(t, ""))
	p := n.udp(`slow.x.test:%d`, echo.Port())
	c := dialUDP(t, p)
	for i := range 8 {
		send(t, c, fmt.Sprint(i))
	}
	if got := <-names.asked; got != "slow.x.test" {
		t.Errorf("%s was looked up", got)
	}
	n.mustDrop(c, "one too many", "queue")
	other := udpEcho(t, "other:")
	n.edit(p, `%s`, other)
	n.wantEnd("deleted")
	buf := make([]byte, 100)
	var got bytes.Buffer
	for range 8 {
		m, err := c.Read(buf)
		if err != nil {
			t.Fatalf("received %q so far: %v", got.String(), err)
		}
		got.Write(buf[:m])
	}
	if want := "other:0other:1other:2other:3other:4other:5other:6other:7"; got.String() != want {
		t.Errorf("received %q, want %q", got.String(), want)
	}
	ask(t, c, "8", "other:8")

	n.edit(p, `slow.x.test:%d`, echo.Port())
	n.wantEnd("deleted")
	send(t, c, "9")
	<-names.asked
	close(names.ready)
	m, err := c.Read(buf)
	if err != nil || string(buf[:m]) != "9" {
		t.Errorf("received %q, error %v", buf[:m], err)
	}
	ask(t, c, "10", "10")
}

// A session that ends while its backend is looked up leaves nothing behind.
func TestUDPEndsWhileLookingUp(t *testing.T) {
	names := slowNames{make(chan string, 10), make(chan struct{})}
	n := newNode(t, func(cfg *l4.Config) { cfg.Dialer = upstream.NewDialer(upstream.Config{Resolver: names}) })
	p := n.udp(`{"backend": "slow.x.test:1", "connect_timeout": "1h"}`)
	send(t, dialUDP(t, p), "x")
	<-names.asked
	n.withdraw(p)
	n.wantEnd("deleted")
	p.mustEnd(t)
}
