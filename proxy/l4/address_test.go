package l4_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// oneName has every name stand for 127.0.0.1.
type oneName struct{}

func (oneName) Lookup(context.Context, string) ([]netip.Addr, time.Duration, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Minute, nil
}

// TestFlowsTellTheAddress looks at flows to a backend with a name, while they
// live and once they are over.
func TestFlowsTellTheAddress(t *testing.T) {
	n := newNode(t, func(cfg *l4.Config) { cfg.Dialer = upstream.NewDialer(upstream.Config{Resolver: oneName{}}) })
	expect := func(backend, address string, end func()) {
		t.Helper()
		eventually(t, "the flow tells where it is", func() bool {
			for f := range n.server.Flows() {
				return f.Backend == backend && f.Address == address
			}
			return false
		})
		end()
		record := n.flow()
		if got, _ := record["address"].(string); record["backend"] != backend || got != address {
			t.Errorf("record %v, want backend %s, address %q", record, backend, address)
		}
	}
	b := newBackend(t, echo)
	for _, at := range []struct{ backend, address string }{
		{"web.x.test:" + port16(b.addr), b.addr}, {b.addr, ""},
	} {
		c := dial(t, n.tcp(`%s`, at.backend))
		expect(at.backend, at.address, func() { c.Close() })
	}
	echoes := udpEcho(t, "")
	for _, at := range []struct{ backend, address string }{
		{"web.x.test:" + port16(echoes), echoes}, {echoes, ""},
	} {
		p := n.udp(`%s`, at.backend)
		ask(t, dialUDP(t, p), "x", "x")
		expect(at.backend, at.address, func() { n.withdraw(p) })
	}
}

// TestNamesThatLeadToABarredAddress connects nobody, by TCP or UDP, to where no name
// of an environment's backend may lead.
func TestNamesThatLeadToABarredAddress(t *testing.T) {
	bar := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	n := newNode(t, func(cfg *l4.Config) { cfg.Dialer = upstream.NewDialer(upstream.Config{Resolver: oneName{}, Bar: bar}) })
	b := newBackend(t, echo)
	p := n.tcp(`{"backend":"web.x.test:%s","env":"a"}`, port16(b.addr))
	if c, err := net.Dial("tcp", p.addr.String()); err == nil { // unless it is reset by then
		t.Cleanup(func() { c.Close() })
	}
	n.wantEnd("connect_failed")
	echoes := udpEcho(t, "")
	u := n.udp(`{"backend":"web.x.test:%s","env":"a"}`, port16(echoes))
	client := dialUDP(t, u)
	send(t, client, "x")
	n.wantEnd("connect_failed")
	// Whose it is makes the difference, for what comes next.
	n.edit(p, `web.x.test:%s`, port16(b.addr))
	n.edit(u, `web.x.test:%s`, port16(echoes))
	again := dial(t, p)
	send(t, again, "x")
	expect(t, again, "x")
	again.Close()
	ask(t, client, "x", "x")
}

// port16 returns the port of an address.
func port16(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}
