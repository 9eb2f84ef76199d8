package l4_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/remotegpu/sluice/proxy/l4"
)

// tally returns the account of a port, empty if the server has none.
func (n *node) tally(p *port) l4.PortTally {
	n.t.Helper()
	m := p.mapping.Load()
	found := l4.PortTally{Proto: m.Proto, Port: m.Port}
	count := 0
	for _, t := range n.server.Tallies() {
		if t.Proto == m.Proto && t.Port == m.Port {
			found = t
			count++
		}
	}
	if count > 1 {
		n.t.Errorf("port %d has %d accounts", m.Port, count)
	}
	return found
}

func (n *node) wantTally(p *port, live int, want l4.Tally) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%d flows and %+v are counted, have %+v", live, want, n.tally(p)), func() bool {
		got := n.tally(p)
		return got.Live == live && got.Tally == want
	})
}

// TestPortAccounts follows the account of a port over flows, edits, the time
// that a port is remembered, and the end of its mapping.
func TestPortAccounts(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "service": "ssh", "limits": {"connections": 1}}`, b.addr)
	other := n.tcp(`{"backend": "%s", "service": "ssh"}`, b.addr)
	n.wantTally(p, 0, l4.Tally{})

	c := dial(t, p)
	send(t, c, "hello")
	expect(t, c, "hello")
	n.wantTally(p, 1, l4.Tally{Started: 1, Up: 5, Down: 5})
	knock(p)
	n.wantEnd("limit")
	n.wantTally(p, 1, l4.Tally{Started: 1, Refused: 1, Up: 5, Down: 5})
	send(t, c, "more")
	expect(t, c, "more")
	c.Close()
	n.wantEnd("client_closed")
	want := l4.Tally{Started: 1, Refused: 1, Up: 9, Down: 9}
	n.wantTally(p, 0, want)

	// The port is forgotten, its account is not.
	n.forget(other, p)
	n.wantTally(p, 0, want)
	n.edit(p, `{"backend": "127.0.0.1:1", "service": "rdp", "deny": ["127.0.0.2"]}`)
	n.wantTally(p, 0, want)
	knock(p)
	n.wantEnd("connect_failed")
	knock(p, "127.0.0.2")
	n.wantEnd("denied")
	want.Started, want.Refused, want.Unreachable = 2, 2, 1
	n.wantTally(p, 0, want)
	n.forget(other, p)
	n.wantTally(p, 0, want)

	for name, value := range map[string]float64{
		`flows_started_total{proto="tcp",service="rdp"}`:          1,
		`flows_refused_total{proto="tcp",service="rdp"}`:          1,
		`flows_unreachable_total{proto="tcp",service="rdp"}`:      1,
		`flows_refused_total{proto="tcp",service="ssh"}`:          1,
		`bytes_total{direction="up",proto="tcp",service="ssh"}`:   9,
		`bytes_total{direction="down",proto="tcp",service="rdp"}`: 0,
		`flows_active{proto="tcp",service="ssh"}`:                 0,
	} {
		if got := n.metric("sluice_l4_service_" + name); got != value {
			t.Errorf("%s is %v, want %v", name, got, value)
		}
	}

	n.server.Withdraw(p.mapping.Load(), nil)
	n.forget(other, p)
	n.wantTally(p, 0, l4.Tally{})
	if got := n.metric(`sluice_l4_service_flows_unreachable_total{proto="tcp",service="rdp"}`); got != 1 {
		t.Errorf("the account of the service fell to %v with its mapping", got)
	}
}

// knock connects to a port that resets the connection, maybe before the client
// knows that there is one.
func knock(p *port, from ...string) {
	d := net.Dialer{Timeout: patience}
	for _, ip := range from {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(ip)}
	}
	if c, err := d.Dial("tcp", p.addr.String()); err == nil {
		readError(c)
		c.Close()
	}
}

// forget waits until p, which has no flows, is remembered no more. An edit of
// another port is what has the server look.
func (n *node) forget(other, p *port) {
	n.t.Helper()
	m := p.mapping.Load()
	eventually(n.t, "the port is forgotten", func() bool {
		n.server.Withdraw(other.mapping.Load(), other.mapping.Load())
		return !l4.KnowsPort(n.server, m.Proto, m.Port)
	})
}

// TestAccountsOfHTTPAndUDP counts what is handed on, and sessions.
func TestAccountsOfHTTPAndUDP(t *testing.T) {
	n := newNode(t)
	web := n.tcp(`{"http": "127.0.0.1:1", "service": "jupyter"}`)
	c := dial(t, web)
	send(t, c, "GET / HTTP/1.1\r\n")
	handed := n.handedOn()
	buf := make([]byte, 100)
	for got := 0; got < 16; {
		k, err := handed.conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += k
	}
	if _, err := handed.conn.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	n.wantTally(web, 1, l4.Tally{Started: 1, Up: 16, Down: 6})
	handed.conn.Close()
	n.wantTally(web, 0, l4.Tally{Started: 1, Up: 16, Down: 6})

	u := n.udp(`{"backend": "%s", "limits": {"connections": 1}}`, udpEcho(t, ""))
	ask(t, dialUDP(t, u), "datagram", "datagram")
	n.wantTally(u, 1, l4.Tally{Started: 1, Up: 8, Down: 8})
	refused := dialUDP(t, u)
	send(t, refused, "datagram")
	n.wantTally(u, 1, l4.Tally{Started: 1, Refused: 1, Up: 8, Down: 8})
}

// TestServiceNamesAreBounded has more services than the label may have values.
func TestServiceNamesAreBounded(t *testing.T) {
	n := newNode(t)
	const services = 150
	for i := range services {
		p := n.tcp(`{"backend": "127.0.0.1:1", "service": "s%d"}`, i)
		knock(p)
		n.wantEnd("connect_failed")
	}
	for range 2 {
		families, err := n.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "sluice_l4_service_flows_unreachable_total" {
				continue
			}
			sum := 0.0
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
			if len(f.GetMetric()) != 101 || sum != services {
				t.Errorf("%d series that sum up to %v, want 101 and %d", len(f.GetMetric()), sum, services)
			}
		}
		if got := n.metric(`sluice_l4_service_flows_unreachable_total{proto="tcp",service="other"}`); got != services-100 {
			t.Errorf("%v flows of other services, want %d", got, services-100)
		}
	}
}

// TestServiceCountersNeverFall reads them while flows end and ports are
// forgotten.
func TestServiceCountersNeverFall(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "service": "ssh"}`, b.addr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			c := dial(t, p)
			send(t, c, "hello")
			expect(t, c, "hello")
			c.Close()
		}
	}()
	var last float64
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got := 0.0
		if len(n.server.Tallies()) > 0 {
			got = n.metric(`sluice_l4_service_bytes_total{direction="up",proto="tcp",service="ssh"}`)
		}
		if got < last {
			t.Fatalf("the counter fell from %v to %v", last, got)
		}
		last = got
	}
}

// BenchmarkTallies reads the accounts of 40,000 ports.
func BenchmarkTallies(b *testing.B) {
	n := newNode(b)
	l4.KeepTallies(n.server, 40000)
	b.ReportAllocs()
	for b.Loop() {
		if len(n.server.Tallies()) != 40000 {
			b.Fatal("not all")
		}
	}
}
