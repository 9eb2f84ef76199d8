package l4_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
)

// put has value in force on a port that had no mapping, as an engine would.
func (n *node) put(p *port, value string, backend ...any) {
	n.t.Helper()
	m := parse(n.t, p.proto, p.addr, fmt.Sprintf(value, backend...))
	n.server.Resume(m)
	p.mapping.Store(m)
}

func works(t *testing.T, c, s net.Conn) {
	t.Helper()
	send(t, c, "x")
	expect(t, s, "x")
	send(t, s, "y")
	expect(t, c, "y")
}

// What an edit says of other targets, and how targets are chosen and checked,
// is nothing to those who are connected to one that stays.
func TestEditsOfTargets(t *testing.T) {
	n := newNode(t)
	a, b := newBackend(t, nil), newBackend(t, nil)
	p := n.tcp(`%s`, a.addr)
	c, s := n.open(t, p, a)
	for _, value := range []string{
		`{"backend": {"targets": [{"address": "%s", "weight": 3}]}}`,
		`{"backend": {"targets": ["%s"], "balance": "source_hash"}}`,
		`{"backend": {"targets": ["%s"], "health": {"interval": "1h"}}}`,
	} {
		n.edit(p, value, a.addr)
		works(t, c, s)
	}
	n.edit(p, `{"backend": ["%s", "%s"]}`, a.addr, b.addr)
	works(t, c, s)
	n.edit(p, `{"backend": ["%s", "%s"]}`, b.addr, a.addr)
	works(t, c, s)
	n.edit(p, `%s`, b.addr)
	expectReset(t, c)
	n.wantEnd("deleted")
	c, s = n.open(t, p, b)
	n.edit(p, `{"backend": ["%s", "%s"]}`, b.addr, a.addr)
	n.edit(p, `%s`, b.addr) // takes a target away that nobody uses
	works(t, c, s)
	n.hangUp(c, s)
}

func TestUDPEditsOfTargets(t *testing.T) {
	n := newNode(t)
	a, b := udpEcho(t, "a:"), udpEcho(t, "b:")
	p := n.udp(`%s`, a)
	c := dialUDP(t, p)
	ask(t, c, "x", "a:x")
	n.edit(p, `{"backend": {"targets": ["%s", "%s"], "balance": "least_connections"}}`, b, a)
	ask(t, c, "x", "a:x")
	n.edit(p, `%s`, b)
	n.wantEnd("deleted")
	ask(t, c, "x", "b:x")
}

// A connection that speaks HTTP goes to each target of its mapping in turn, so
// that it must end where one is taken away.
func TestEditsOfHTTPTargets(t *testing.T) {
	n := newNode(t)
	p := n.tcp(`{"http": "127.0.0.1:1"}`)
	c := dial(t, p)
	send(t, c, "GET / HTTP/1.1\r\n")
	h := n.handedOn()
	n.edit(p, `{"http": ["127.0.0.1:2", "127.0.0.1:1"]}`)
	n.edit(p, `{"http": {"targets": ["127.0.0.1:2", "127.0.0.1:1"], "tls": true}}`)
	if _, err := h.conn.Write([]byte("on")); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "on")
	n.edit(p, `{"http": "127.0.0.1:2"}`)
	expectReset(t, c)
	h.conn.Close()
}

// The flows that a deleted mapping leaves behind are nothing to the next one of
// the port.
func TestSuccessorOfDeleted(t *testing.T) {
	for _, rule := range []string{"keep", "drain 1h"} {
		t.Run(rule, func(t *testing.T) {
			n := newNode(t)
			b, second := newBackend(t, nil), newBackend(t, nil)
			p := n.tcp(`{"backend": "%s", "env": "one", "service": "ssh", "on_delete": "%s"}`, b.addr, rule)
			c, s := n.open(t, p, b)
			works(t, c, s)
			n.wantTally(p, 1, l4.Tally{Started: 1, Up: 1, Down: 1})
			n.server.Withdraw(p.mapping.Load(), nil)
			n.wantTally(p, 0, l4.Tally{})
			n.put(p, `{"backend": "%s", "env": "two", "limits": {"connections": 1, "per_client": 1}}`, b.addr)
			n.wantTally(p, 0, l4.Tally{})
			c2, s2 := n.open(t, p, b)
			works(t, c2, s2)
			n.wantTally(p, 1, l4.Tally{Started: 1, Up: 1, Down: 1})
			n.edit(p, `%s`, second.addr) // cuts its own
			expectReset(t, c2)
			if r := n.wantEnd("deleted"); r["env"] != "two" {
				t.Errorf("a flow of %v was cut, want two", r["env"])
			}
			n.server.Withdraw(p.mapping.Load(), nil)
			works(t, c, s)
			n.hangUp(c, s)
			eventually(t, "nothing is left of the mapping", func() bool { return l4.Leaving(n.server) == 0 })
			if got := n.metric(`sluice_l4_service_bytes_total{direction="up",proto="tcp",service="ssh"}`); got != 2 {
				t.Errorf("the service has moved %v bytes, want 2", got)
			}
		})
	}
}

// Its account ends with a mapping, also where no flow is left.
func TestAccountEndsWithItsMapping(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "service": "ssh"}`, b.addr)
	c := dial(t, p)
	send(t, c, "hello")
	expect(t, c, "hello")
	c.Close()
	n.wantEnd("client_closed")
	n.wantTally(p, 0, l4.Tally{Started: 1, Up: 5, Down: 5})
	n.server.Withdraw(p.mapping.Load(), nil)
	n.wantTally(p, 0, l4.Tally{})
	n.put(p, `{"backend": "%s", "service": "ssh"}`, b.addr)
	n.wantTally(p, 0, l4.Tally{})
	if got := n.metric(`sluice_l4_service_flows_started_total{proto="tcp",service="ssh"}`); got != 1 {
		t.Errorf("%v flows of the service have begun, want 1", got)
	}
}

// A mapping that was deleted by mistake and is put again has its flows back.
func TestPutAgainWhileDraining(t *testing.T) {
	n := newNode(t)
	b, second := newBackend(t, nil), newBackend(t, nil)
	const value = `{"backend": ["%s", "%s"], "env": "one", "on_delete": "drain 300ms"}`
	p := n.tcp(`{"backend": "%s", "env": "one", "on_delete": "drain 300ms"}`, b.addr)
	c, s := n.open(t, p, b)
	n.edit(p, value, b.addr, second.addr)
	n.server.Withdraw(p.mapping.Load(), nil)
	began := time.Now()
	n.put(p, value, second.addr, b.addr)
	other, hears := dial(t, p), second.next(t) // whose target goes
	n.wantLive(p, 2)
	n.edit(p, `{"backend": "%s", "env": "one", "on_delete": "drain 300ms"}`, b.addr)
	works(t, other, hears)
	expectReset(t, other) // when drained, and by then so would be the first
	n.wantEnd("deleted")
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("cut after %v, want 300ms", took)
	}
	works(t, c, s)
	n.edit(p, `{"backend": "%s", "env": "one"}`, second.addr) // its own flow again, to cut as well
	expectReset(t, c)
	n.wantEnd("deleted")
}

// The drain that an edit began is called off by the edit that repairs it, but
// only within one env.
func TestEditBackWhileDraining(t *testing.T) {
	n := newNode(t)
	b, second := newBackend(t, nil), newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "env": "one"}`, b.addr)
	c, s := n.open(t, p, b)
	n.edit(p, `{"backend": "%s", "env": "one", "on_delete": "drain 300ms"}`, second.addr)
	n.edit(p, `{"backend": "%s", "env": "one"}`, b.addr)
	later, hears := n.open(t, p, b)
	n.edit(p, `{"backend": "%s", "env": "two", "on_delete": "drain 300ms"}`, second.addr)
	n.edit(p, `{"backend": "%s", "env": "two"}`, b.addr) // somebody else's
	works(t, c, s)
	works(t, later, hears)
	expectReset(t, later)
	expectReset(t, c)
	n.wantEnd("deleted")
	n.wantEnd("deleted")
}

// A mapping of another env, or with another backend, does not get the flows; and
// once it is edited to what they are of, it does.
func TestPutOtherThanWasDeleted(t *testing.T) {
	n := newNode(t)
	b, second := newBackend(t, nil), newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "env": "one", "on_delete": "keep"}`, b.addr)
	c, s := n.open(t, p, b)
	n.server.Withdraw(p.mapping.Load(), nil)
	n.put(p, `{"backend": "%s", "env": "two"}`, b.addr)
	n.wantLive(p, 0)
	n.server.Withdraw(p.mapping.Load(), nil)
	n.put(p, `{"backend": "%s", "env": "one"}`, second.addr)
	n.wantLive(p, 0)
	n.edit(p, `{"backend": "%s", "env": "one"}`, b.addr)
	n.wantLive(p, 1)
	works(t, c, s)
	n.server.Withdraw(p.mapping.Load(), nil)
	expectReset(t, c)
	n.wantEnd("deleted")
}

func (n *node) wantLive(p *port, want int) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("the mapping has %d flows", want), func() bool { return n.tally(p).Live == want })
}

// Sessions are left behind and taken back like connections.
func TestUDPSuccessorOfDeleted(t *testing.T) {
	n := newNode(t)
	a, b := udpEcho(t, "a:"), udpEcho(t, "b:")
	p := n.udp(`{"backend": "%s", "env": "one", "on_delete": "drain 300ms"}`, a)
	c := dialUDP(t, p)
	ask(t, c, "x", "a:x")
	n.withdraw(p)
	n.put(p, `{"backend": "%s", "env": "two", "limits": {"connections": 1}}`, b)
	ask(t, c, "x", "a:x") // it is the old mapping's until its time has come
	other := dialUDP(t, p)
	ask(t, other, "x", "b:x")
	n.wantLive(p, 1)
	if r := n.wantEnd("deleted"); r["env"] != "one" {
		t.Errorf("a session of %v was cut, want one", r["env"])
	}
	n.edit(p, `{"backend": "%s", "env": "two", "on_delete": "drain 300ms", "limits": {"connections": 1}}`, b)
	n.withdraw(p)
	n.put(p, `{"backend": "%s", "env": "two", "limits": {"connections": 1}}`, b)
	witness := n.udp(`{"backend": "%s", "on_delete": "drain 300ms"}`, b)
	ask(t, dialUDP(t, witness), "x", "b:x")
	n.withdraw(witness)
	n.wantLive(p, 1)
	n.mustDrop(dialUDP(t, p), "x", "limit")
	n.wantEnd("deleted") // the witness, which was to end last
	witness.mustEnd(t)
	ask(t, other, "x", "b:x")
}

// Datagrams that the lists refuse are counted as connections are.
func TestUDPRefusalsAreCounted(t *testing.T) {
	n := newNode(t)
	p := n.udp(`{"backend": "%s", "deny": ["127.0.0.1"], "service": "game"}`, udpEcho(t, ""))
	n.mustDrop(dialUDP(t, p), "x", "denied")
	n.wantTally(p, 0, l4.Tally{Refused: 1})
	if got := n.metric(`sluice_l4_service_flows_refused_total{proto="udp",service="game"}`); got != 1 {
		t.Errorf("%v flows of the service were refused, want 1", got)
	}
}

// Flows that go from port to port while they begin, move bytes, are listed and
// end: for the race detector, for nothing to be left, and for the service to
// have all that they moved.
func TestChangesOfPortAtOnce(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	const value = `{"backend": "%s", "env": "%s", "service": "ssh", "on_delete": "keep", "limits": {"per_client": 1000, "bytes_per_second": {"up": "1GB"}}}`
	p := n.tcp(value, b.addr, "one")
	stop := make(chan struct{})
	var clients, others sync.WaitGroup
	var moved atomic.Int64
	for range 8 {
		clients.Go(func() {
			for range 40 {
				c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
				if err != nil {
					continue // refused while there is no mapping
				}
				c.SetDeadline(time.Now().Add(patience))
				for range 5 {
					c.Write(make([]byte, 100))
					k, _ := io.ReadFull(c, make([]byte, 100))
					moved.Add(int64(k))
				}
				c.Close()
			}
		})
	}
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-n.flows:
			}
		}
	})
	others.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n.server.Withdraw(p.mapping.Load(), nil)
			n.put(p, value, b.addr, []string{"one", "two"}[i/3%2])
			n.live()
			n.metrics.Gather()
		}
	})
	clients.Wait()
	close(stop)
	others.Wait()
	eventually(t, "all flows are over", func() bool { return n.live() == 0 && l4.Leaving(n.server) == 0 })
	if moved.Load() == 0 {
		t.Error("no byte was moved")
	}
	if got := n.metric(`sluice_l4_service_bytes_total{direction="down",proto="tcp",service="ssh"}`); int64(got) != moved.Load() {
		t.Errorf("the service has %v bytes down, want %d", got, moved.Load())
	}
}
