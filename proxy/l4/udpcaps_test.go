package l4_test

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
)

// picky is a backend that answers with an echo what does not begin with "flood".
func picky(t testing.TB) (addr string) {
	t.Helper()
	return udpServer(t, func(p []byte) []byte {
		if len(p) >= 5 && string(p[:5]) == "flood" {
			return nil
		}
		return p
	})
}

// spoofer sends to a port from whatever address of 127.0.0.0/8 it likes.
type spoofer struct {
	t    testing.TB
	conn *net.UDPConn
	to   *net.UDPAddr
}

func newSpoofer(t testing.TB, p *port) *spoofer {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &spoofer{t, c, net.UDPAddrFromAddrPort(p.addr)}
}

func (s *spoofer) send(from netip.Addr, text string) {
	s.t.Helper()
	if _, _, err := s.conn.WriteMsgUDP([]byte(text), listen.AppendSource(nil, from), s.to); err != nil {
		s.t.Fatalf("send from %v: %v", from, err)
	}
}

// address returns the i-th address that no test uses otherwise.
func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 77, byte(i >> 8), byte(i)})
}

const (
	evictedUnanswered  = `sluice_l4_udp_evictions_total{state="unanswered"}`
	evictedUnconfirmed = `sluice_l4_udp_evictions_total{state="unconfirmed"}`
)

// A flood from as many sources as it likes ends neither the sessions that are at
// work nor keeps new clients out.
func TestUDPFlood(t *testing.T) {
	const total = 64
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessions = total })
	p := n.udp(`%s`, picky(t))
	clients := make([]*net.UDPConn, 10)
	for i := range clients {
		clients[i] = dialUDP(t, p)
		converse(t, clients[i])
	}
	flood := newSpoofer(t, p)
	for i := range 20 {
		for j := range 100 {
			flood.send(address(100*i+j), "flood")
		}
		for _, c := range clients {
			ask(t, c, "still there?", "still there?")
		}
		// Loopback keeps the order, so that the flood was taken in before this.
		converse(t, dialUDP(t, p, fmt.Sprintf("127.0.1.%d", i)))
	}
	if got := n.metric(evictedUnanswered); got < 2000-total {
		t.Errorf("%v unanswered sessions were evicted, want %d at least", got, 2000-total)
	}
	if got := n.metric(evictedUnconfirmed); got != 0 {
		t.Errorf("%v sessions with an answer were evicted", got)
	}
	p.close()
	ends := map[string]int{}
	for range 2000 + len(clients) + 20 {
		r := n.flow()
		ends[r["end"].(string)]++
		if r["end"] == "evicted" && r["bytes_down"] != int64(0) {
			t.Errorf("a session at work was evicted: %v", r)
		}
	}
	if ends["evicted"] < 2000-total || ends["evicted"]+ends["deleted"] != 2000+len(clients)+20 {
		t.Errorf("sessions ended by %v", ends)
	}
}

// Who makes room: first who has no answer, then who has not confirmed one, each
// the oldest first, then nobody.
func TestUDPEvictionOrder(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessionsPerClient = 4 })
	p := n.udp(`%s`, picky(t))
	confirmed := dialUDP(t, p)
	converse(t, confirmed)
	var once, never [2]*net.UDPConn
	for i := range once {
		once[i] = dialUDP(t, p)
		ask(t, once[i], "once", "once")
	}
	never[0] = dialUDP(t, p)
	send(t, never[0], "flood")
	eventually(t, "4 sessions", func() bool { return n.live() == 4 })

	expectEvicted := func(c *net.UDPConn, metric string, want float64) {
		t.Helper()
		if r := n.wantEnd("evicted"); r["client"] != c.LocalAddr().String() {
			t.Errorf("%v was evicted, want %v", r["client"], c.LocalAddr())
		}
		if got := n.metric(metric); got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	never[1] = dialUDP(t, p)
	send(t, never[1], "flood")
	expectEvicted(never[0], evictedUnanswered, 1)
	next := dialUDP(t, p)
	converse(t, next)
	expectEvicted(never[1], evictedUnanswered, 2)
	for i := range once {
		converse(t, dialUDP(t, p))
		expectEvicted(once[i], evictedUnconfirmed, float64(i+1))
	}
	n.mustDrop(dialUDP(t, p), "no room", "limit")
	// What is there goes on, and what was evicted may come back when there is room.
	ask(t, confirmed, "x", "x")
	ask(t, next, "x", "x")
}

// Whoever has an IPv6 address has the /64 around it.
func TestUDPCountsNetworks(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessionsPerClient = 2 })
	var first []l4.Datagram
	for _, from := range []string{"2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1", "2001:db8:0:1:ffff::3", "192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		first = append(first, l4.Datagram{Payload: []byte("flood"), From: netip.AddrPortFrom(netip.MustParseAddr(from), 4000)})
	}
	n.serveTurn(0, picky(t), l4.UDPOptions{First: first})
	if r := n.wantEnd("evicted"); r["client"] != "[2001:db8:0:1::1]:4000" {
		t.Errorf("%v was evicted", r["client"])
	}
	for range len(first) - 1 {
		n.wantEnd("idle")
	}
}

// When room gets scarce, a mapping has its share and no more, and one without
// any session gets one.
func TestUDPShares(t *testing.T) {
	const total = 32
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessions = total })
	backend := picky(t)
	greedy, modest := n.udp(`%s`, backend), n.udp(`%s`, backend)
	for range total - total/8 {
		converse(t, dialUDP(t, greedy))
	}
	n.mustDrop(dialUDP(t, greedy), "one more", "limit")
	for range total / 8 {
		converse(t, dialUDP(t, modest))
	}
	n.mustDrop(dialUDP(t, modest), "one more", "limit") // none is left at all
	if got := n.live(); got != total {
		t.Errorf("%d sessions, want %d", got, total)
	}
	greedy.close()
	for range total - total/8 {
		n.wantEnd("deleted")
	}
	converse(t, dialUDP(t, modest))
}

// A mapping that is flooded evicts its own sessions, not those of others.
func TestUDPFloodOfAnotherMapping(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessions = 32 })
	backend := picky(t)
	flooded, quiet := n.udp(`{"backend": "%s", "env": "flooded"}`, backend), n.udp(`{"backend": "%s", "env": "quiet"}`, backend)
	waiting := dialUDP(t, quiet)
	send(t, waiting, "flood") // older than any session of the flood, and unanswered as well
	eventually(t, "a session", func() bool { return n.live() == 1 })
	s := newSpoofer(t, flooded)
	for i := range 500 {
		s.send(address(i), "flood")
	}
	converse(t, dialUDP(t, flooded))
	for n.metric(evictedUnanswered) < 400 {
		n.wantEnd("evicted")
	}
	ask(t, waiting, "hello", "hello")
	for f := range n.server.Flows() {
		if f.Env == "quiet" && f.Up != int64(len("flood"+"hello")) {
			t.Errorf("another session serves the quiet mapping's client: %+v", f)
		}
	}
}

// A node holds thousands of sessions with a socket each and nothing else.
func TestUDPManySessions(t *testing.T) {
	const sessions = 10_000
	n := newNode(t, func(cfg *l4.Config) { cfg.UDPSessions = 2 * sessions })
	p := n.udp(`{"backend": "%s", "idle_timeout": "1h"}`, picky(t))
	s := newSpoofer(t, p)
	s.conn.SetReadBuffer(4 << 20)
	s.conn.SetDeadline(time.Now().Add(patience))
	converse(t, dialUDP(t, p)) // the loop has what it needs
	files, goroutines, buf := openFiles(t), runtime.NumGoroutine(), make([]byte, 100)
	for i := range sessions {
		s.send(address(i), "hello")
		if _, err := s.conn.Read(buf); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
	}
	if got := n.live(); got != sessions+1 {
		t.Errorf("%d sessions, want %d", got, sessions+1)
	}
	if got := openFiles(t) - files; got != sessions {
		t.Errorf("%d sessions have %d files, want one each", sessions, got)
	}
	if got := runtime.NumGoroutine(); got > goroutines {
		t.Errorf("%d goroutines run, %d more than before", got, got-goroutines)
	}
	go p.close()
	for range sessions + 1 {
		n.wantEnd("deleted")
	}
}
