package l4_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// delete withdraws the port's mapping as an engine would that closed its
// listener.
func (n *node) delete(p *port) {
	p.close()
	n.server.Withdraw(p.mapping.Load(), nil)
}

func TestDeleteCuts(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p, other := n.tcp(`%s`, b.addr), n.tcp(`%s`, b.addr)
	c, s := n.open(t, p, b)
	bystander, hears := n.open(t, other, b)
	n.delete(p)
	expectReset(t, c)
	expectReset(t, s)
	n.wantEnd("deleted")
	send(t, bystander, "x")
	expect(t, hears, "x")
}

func TestDeleteOfExpired(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	soon := time.Now().Add(time.Second)
	p := n.tcp(`{"backend": "%s", "expires_at": "%s"}`, b.addr, soon.Format(time.RFC3339Nano))
	c := dial(t, p)
	b.next(t)
	<-time.After(time.Until(soon))
	n.delete(p)
	expectReset(t, c)
	n.wantEnd("expired")
}

func TestDeleteDrains(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "on_delete": "drain 2s"}`, b.addr)
	c, s := n.open(t, p, b)
	finishes, hears := n.open(t, p, b)
	began := time.Now()
	n.delete(p)
	send(t, c, "x")
	expect(t, s, "x")
	finishes.Close()
	expectEOF(t, hears)
	hears.Close()
	n.wantEnd("client_closed")
	expectReset(t, c)
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("cut after %v, want 2s", took)
	}
	n.wantEnd("deleted")
}

func TestDeleteKeeps(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`{"backend": "%s", "on_delete": "keep"}`, b.addr)
	c, s := n.open(t, p, b)
	n.delete(p)
	send(t, c, "x")
	expect(t, s, "x")
	if got := n.live(); got != 1 {
		t.Errorf("%d live flows, want 1", got)
	}
	n.hangUp(c, s)
}

func TestEdits(t *testing.T) {
	n := newNode(t)
	b, second := newBackend(t, nil), newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	c, s := n.open(t, p, b)
	works := func() {
		t.Helper()
		send(t, c, "x")
		expect(t, s, "x")
		send(t, s, "y")
		expect(t, c, "y")
	}
	for range 200 { // none of these touches the backend
		n.edit(p, `{"backend": "%s", "env": "renamed", "limits": {"connections": 5}, "deny": ["127.0.0.1"]}`, b.addr)
		n.edit(p, `{"backend": "%s"}`, b.addr)
	}
	works()
	n.edit(p, `{"backend": "%s", "on_delete": "keep"}`, second.addr) // the new value's on_delete counts
	works()
	c2, s2 := n.open(t, p, second)
	send(t, c2, "z")
	expect(t, s2, "z")
	n.edit(p, `%s`, second.addr) // the backend has not changed now
	works()
	n.edit(p, `%s`, b.addr) // and now it is that of the first flow again
	expectReset(t, c2)
	expectReset(t, s2)
	n.wantEnd("deleted")
	works()
}

// A connection that was accepted just before its mapping was withdrawn, and
// comes here just after, is treated as if it had come before.
func TestConnectionOfWithdrawnMapping(t *testing.T) {
	n := newNode(t)
	b, second := newBackend(t, nil), newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	stale := p.mapping.Load()
	n.edit(p, `%s`, second.addr)
	p.mapping.Store(stale)
	c, s := n.open(t, p, second)
	send(t, c, "x")
	expect(t, s, "x")

	n.server.Withdraw(stale, nil)
	n.wantEnd("deleted")
	expectRefusal(t, p)
	n.wantEnd("deleted")
	// The same mapping again, by a later decision, is served.
	began := time.Now()
	eventually(t, "the mapping is served again", func() bool {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		timeout, ok := err.(net.Error)
		return ok && timeout.Timeout()
	})
	if took := time.Since(began); took > patience/2 {
		t.Errorf("served again after %v, want about a second", took)
	}
}

func TestShutdownWaits(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	c, s := n.open(t, p, b)
	done := make(chan int)
	go func() { done <- n.server.Shutdown(context.Background()) }()
	eventually(t, "new flows are refused", func() bool {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
		if err != nil {
			return true
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		timeout, ok := err.(net.Error)
		return !ok || !timeout.Timeout()
	})
	for len(n.flows) > 0 {
		<-n.flows // those refused; some may have been let in before
	}
	send(t, c, "x")
	expect(t, s, "x")
	for len(b.conns) > 0 {
		b.next(t).Close()
	}
	c.Close()
	s.Close()
	if cut := <-done; cut != 0 {
		t.Errorf("Shutdown cut %d flows, want 0", cut)
	}
}

func TestShutdownCuts(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(`%s`, b.addr)
	const stragglers = 5
	clients := make([]*net.TCPConn, stragglers)
	for i := range clients {
		clients[i] = dial(t, p)
		b.next(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if cut := n.server.Shutdown(ctx); cut != stragglers {
		t.Errorf("Shutdown cut %d flows, want %d", cut, stragglers)
	}
	for _, c := range clients {
		expectReset(t, c)
		n.wantEnd("drain")
	}
	if cut := n.server.Shutdown(ended()); cut != 0 {
		t.Errorf("a second Shutdown cut %d flows", cut)
	}
}

// A dial that goes nowhere does not hold Shutdown up.
func TestShutdownWhileDialling(t *testing.T) {
	n := newNode(t)
	p := n.tcp(`{"backend": "%s", "connect_timeout": "1h"}`, newDeafBackend(t))
	c := dial(t, p)
	eventually(t, "the flow is listed", func() bool { return n.live() == 1 })
	if cut := n.server.Shutdown(ended()); cut != 1 {
		t.Errorf("Shutdown cut %d flows, want 1", cut)
	}
	expectReset(t, c)
	n.wantEnd("drain")
}

// Flows that begin, move bytes, end, and are edited, listed and cut all at once:
// for the race detector, and for nothing to be left.
func TestEverythingAtOnce(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`%s`, b.addr)
	stop := make(chan struct{})
	var clients, others sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 40 {
				c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.addr))
				if err != nil {
					continue // cut while connecting
				}
				c.SetDeadline(time.Now().Add(patience))
				c.Write(make([]byte, 100))
				c.Read(make([]byte, 100))
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
			n.edit(p, `{"backend": {"targets": [{"address": "%s", "weight": %d}]}}`, b.addr, 1+i%2)
			n.live()
			n.metrics.Gather()
		}
	})
	clients.Wait()
	close(stop)
	others.Wait()
	eventually(t, "all flows are over", func() bool { return n.live() == 0 })
}
