package l4_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// refusedAddr returns an address that nothing listens on.
func refusedAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	return ln.Addr().String()
}

func TestNextTarget(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	p := n.tcp(`{"backend": {"targets": ["%s", "%s"]}}`, refusedAddr(t), b.addr)
	for range 4 {
		c := dial(t, p)
		send(t, c, "x")
		expect(t, c, "x")
		c.Close()
		if r := n.wantEnd("client_closed"); r["backend"] != b.addr {
			t.Errorf("record %v, want backend %s", r, b.addr)
		}
	}
	p = n.tcp(`{"backend": {"targets": ["%s", "%s"]}}`, refusedAddr(t), refusedAddr(t))
	expectRefusal(t, p)
	if r := n.wantEnd("connect_failed"); strings.Count(r["err"].(string), "refused") != 2 {
		t.Errorf("record %v, want err to tell of both targets", r)
	}
}

// A name that is not in memory is resolved while the client waits on its loop.
func TestBackendByName(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, echo)
	port := netip.MustParseAddrPort(b.addr).Port()
	p := n.tcp(`{"backend": "localhost:%d"}`, port)
	for range 2 { // the second one from memory
		c := dial(t, p)
		send(t, c, "x")
		expect(t, c, "x")
		c.CloseWrite()
		expectEOF(t, c)
		if r := n.wantEnd("client_closed"); r["backend"] != fmt.Sprintf("localhost:%d", port) {
			t.Errorf("record %v", r)
		}
	}
	// The first target fails, and the next has to be resolved.
	p = n.tcp(`{"backend": {"targets": ["%s", "LOCALHOST:%d"]}}`, refusedAddr(t), port)
	for range 2 {
		c := dial(t, p)
		send(t, c, "y")
		expect(t, c, "y")
		c.CloseWrite()
		expectEOF(t, c)
		n.wantEnd("client_closed")
	}
}

// Flows end in every way while their backend's name is being resolved.
func TestEndsWhileResolving(t *testing.T) {
	n := newNode(t)
	p := n.tcp(`{"backend": "nobody.invalid:1", "connect_timeout": "1s"}`)
	expectRefusal(t, p)
	n.wantEnd("connect_failed")
	var clients []*net.TCPConn
	for range 30 {
		d := net.Dialer{Timeout: patience}
		if c, err := d.Dial("tcp", p.addr.String()); err == nil {
			clients = append(clients, c.(*net.TCPConn))
		}
	}
	for _, c := range clients {
		abort(c)
	}
	n.edit(p, `%s`, refusedAddr(t))
	eventually(t, "all flows are over", func() bool { return n.live() == 0 })
	for len(n.flows) > 0 {
		switch r := <-n.flows; r["end"] {
		case "connect_failed", "client_reset", "deleted":
		default:
			t.Errorf("record %v", r)
		}
	}
}

// The node's own bound on TCP flows holds for all ports together.
func TestFlowsAreBounded(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.TCPFlows = 3 })
	b := newBackend(t, echo)
	one, other := n.tcp(`%s`, b.addr), n.tcp(`%s`, b.addr)
	check := func(c net.Conn) {
		t.Helper()
		send(t, c, "x")
		expect(t, c, "x")
	}
	first := dial(t, one)
	check(first)
	check(dial(t, other))
	check(dial(t, one))
	for range 5 {
		expectRefusal(t, other)
		if r := n.wantEnd("limit"); !strings.Contains(fmt.Sprint(r["err"]), "open files") {
			t.Errorf("record %v, want err to say what the limit is", r)
		}
	}
	if got := n.metric(`sluice_l4_flows_total{end="limit",proto="tcp"}`); got != 5 {
		t.Errorf("%v flows are counted as refused by a limit, want 5", got)
	}
	first.Close()
	n.wantEnd("client_closed")
	check(dial(t, other))
	expectRefusal(t, one)
}

// relisten maps the port of p anew, as an engine would that had deleted it.
func (n *node) relisten(p *port, backend string) {
	n.t.Helper()
	p.mapping.Store(parse(n.t, router.TCP, p.addr, `{"backend": "`+backend+`", "on_delete": "keep"}`))
	ln, err := listen.TCP(n.t.Context(), p.addr.String())
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := n.server.ListenTCP(ln, func(int) *router.Mapping { return p.mapping.Load() })
	if err != nil {
		n.t.Fatal(err)
	}
	p.close = func() { l.Close() }
	n.stop = append(n.stop, p.close)
}

// Sessions that stay lose no byte while their mapping is withdrawn and put again
// under load.
func TestSessionsOutliveTheirMapping(t *testing.T) {
	n := newNode(t)
	b := newBackend(t, nil)
	newcomers := newBackend(t, echo)
	p := n.tcp(`{"backend": "%s", "on_delete": "keep"}`, b.addr)
	const sessions = 4
	over := make(chan struct{})
	var running sync.WaitGroup
	var moved atomic.Int64
	for i := range sessions {
		c, s := n.open(t, p, b)
		for _, way := range [][2]*net.TCPConn{{c, s}, {s, c}} {
			sent, received := sha256.New(), sha256.New()
			running.Go(func() {
				source := rand.NewChaCha8([32]byte{byte(i)})
				pause := time.NewTicker(time.Millisecond) // leaves the machine to the others
				defer pause.Stop()
				for stop := false; !stop; {
					select {
					case <-over:
						stop = true
					case <-pause.C:
					}
					if _, err := io.CopyN(way[0], io.TeeReader(source, sent), 10_000); err != nil {
						t.Errorf("send: %v", err)
						return
					}
				}
				way[0].CloseWrite()
			})
			running.Go(func() {
				got, err := io.Copy(received, struct{ io.Reader }{way[1]})
				if err != nil {
					t.Errorf("receive: %v", err)
				}
				moved.Add(got)
			})
			defer func() {
				if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
					t.Error("bytes were lost or changed")
				}
			}()
		}
	}
	for range 40 {
		n.delete(p)
		n.relisten(p, newcomers.addr)
		c := dial(t, p)
		send(t, c, "new")
		expect(t, c, "new")
		c.Close()
		n.wantEnd("client_closed")
	}
	close(over)
	running.Wait()
	var recorded int64
	for range sessions {
		r := n.flow()
		if end := r["end"]; end != "client_closed" && end != "backend_closed" {
			t.Errorf("record %v, want an orderly end", r)
		}
		recorded += r["bytes_up"].(int64) + r["bytes_down"].(int64)
	}
	if recorded != moved.Load() {
		t.Errorf("%d bytes are in the records, %d were received", recorded, moved.Load())
	}
}
