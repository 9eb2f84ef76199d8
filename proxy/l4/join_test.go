package l4_test

import (
	"net"
	"testing"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/l4/loop"
)

// joined has a node relay a connection that was handed to HTTP and a backend's.
func joined(t *testing.T, n *node, p *port, b *backend) (client, server *net.TCPConn, h handed, ended chan loop.Report) {
	t.Helper()
	client = dial(t, p)
	send(t, client, "GET / ")
	h = n.handedOn()
	expect(t, h.conn, "GET / ")
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	server = b.next(t)
	ended = make(chan loop.Report, 1)
	_, taken, err := n.server.Join(l4.Joint{
		Client: h.conn, Backend: c.(*net.TCPConn), ToBackend: []byte("more"), ToClient: []byte("hello"),
		Ended: func(r loop.Report) { ended <- r },
	})
	if !taken || err != nil {
		t.Fatalf("taken %v, %v", taken, err)
	}
	expect(t, server, "more")
	expect(t, client, "hello")
	send(t, client, "up")
	expect(t, server, "up")
	send(t, server, "down")
	expect(t, client, "down")
	return client, server, h, ended
}

const joinedValue = `{"backend": "127.0.0.1:1", "http": "127.0.0.1:1", "limits": {"bytes_per_second": {"up": "1MB", "down": "1MB"}}}`

// TestJoinedIsPartOfItsFlow counts what passes over a joint for the flow that was
// handed on.
func TestJoinedIsPartOfItsFlow(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(joinedValue)
	client, server, h, ended := joined(t, n, p, b)
	moved := func() (up, down int64) {
		for f := range n.server.Flows() {
			up, down = up+f.Up, down+f.Down
		}
		return up, down
	}
	eventually(t, "the flow to have all that passed", func() bool {
		up, down := moved()
		return up == int64(len("GET / up")) && down == int64(len("hellodown"))
	})
	client.CloseWrite()
	expectEOF(t, server)
	send(t, server, "late")
	expect(t, client, "late")
	server.Close()
	expectEOF(t, client)
	if r := <-ended; r.End != loop.ClientClosed || r.Up != 2 || r.Down != 13 {
		t.Errorf("report %+v", r)
	}
	if up, down := moved(); up != 8 || down != 13 {
		t.Errorf("the flow has %d bytes up and %d down, want 8 and 13", up, down)
	}
	h.conn.Close()
	if n.live() != 0 {
		t.Error("the flow is still listed")
	}
}

// TestJoinedEndsWithItsFlow cuts a joint in each way in which its flow is ended.
func TestJoinedEndsWithItsFlow(t *testing.T) {
	for name, end := range map[string]func(n *node, p *port, h handed){
		"cut":      func(n *node, _ *port, _ handed) { n.server.Cut(func(l4.FlowInfo) bool { return true }) },
		"withdraw": func(n *node, p *port, _ handed) { n.edit(p, `{"http": "127.0.0.1:2"}`) },
		"close":    func(_ *node, _ *port, h handed) { h.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.tcp(joinedValue)
			client, server, h, ended := joined(t, n, p, newBackend(t, nil))
			end(n, p, h)
			expectReset(t, client)
			expectReset(t, server)
			if r := <-ended; r.End != loop.Cut {
				t.Errorf("report %+v", r)
			}
			h.conn.Close()
		})
	}
}

// TestShutdownWaitsForJoints has a server stop with a joint under way, and take no
// other.
func TestShutdownWaitsForJoints(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	p := n.tcp(joinedValue)
	client, server, h, ended := joined(t, n, p, b)
	done := make(chan struct{})
	go func() {
		n.server.Shutdown(t.Context())
		close(done)
	}()
	eventually(t, "the server to take nothing", func() bool {
		c, err := net.Dial("tcp", p.addr.String())
		if err != nil {
			return false
		}
		defer c.Close()
		c.Write([]byte("G"))
		select {
		case h := <-n.http:
			h.conn.Close()
			return false
		case r := <-n.flows:
			return r["end"] == "drain"
		}
	})
	other, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, taken, err := n.server.Join(l4.Joint{Client: other}); taken || err != nil {
		t.Errorf("taken %v, %v", taken, err)
	}
	send(t, client, "still")
	expect(t, server, "still")
	select {
	case <-done:
		t.Error("Shutdown did not wait")
	default:
	}
	client.Close()
	server.Close()
	<-ended
	<-done
	h.conn.Close()
}

// TestJoinLeavesOthersAlone refuses connections that no loop can relay.
func TestJoinLeavesOthersAlone(t *testing.T) {
	n := newNode(t)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	defer ours.Close()
	if _, taken, err := n.server.Join(l4.Joint{Client: ours, Ended: func(loop.Report) {}}); taken || err != nil {
		t.Errorf("taken %v, %v", taken, err)
	}
}
