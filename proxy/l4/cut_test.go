package l4_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/l4"
)

// TestCut ends the flows that are picked, of every kind, and no others.
func TestCut(t *testing.T) {
	n := newNode(t)
	doomed := n.tcp(`{"backend": "%s", "env": "doomed"}`, newBackend(t, echo).addr)
	spared := n.tcp(`{"backend": "%s", "env": "spared"}`, newBackend(t, echo).addr)
	web := n.tcp(`{"backend": "%s", "http": "127.0.0.1:1", "env": "doomed"}`, newBackend(t, echo).addr)
	datagrams := n.udp(`{"backend": "%s", "env": "doomed"}`, udpEcho(t, ""))

	cut, live := dial(t, doomed), dial(t, spared)
	for _, c := range []net.Conn{cut, live} {
		send(t, c, "hello")
		expect(t, c, "hello")
	}
	asking := dialUDP(t, datagrams)
	ask(t, asking, "datagram", "datagram")
	browser := dial(t, web)
	send(t, browser, "GET / HTTP/1.1\r\n")
	handed := n.handedOn()

	var seen []uint64
	picked := func(f l4.FlowInfo) bool {
		seen = append(seen, f.ID)
		return f.Env == "doomed"
	}
	if ended := n.server.Cut(picked); ended != 3 {
		t.Errorf("%d flows cut, want 3", ended)
	}
	ids := map[uint64]bool{}
	for _, id := range seen {
		ids[id] = true
	}
	if len(ids) != 4 || len(seen) != 4 {
		t.Errorf("the flows' IDs are %v, want four", seen)
	}
	if err := readError(cut); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the client of a cut flow got %v, want a reset", err)
	}
	for range 2 {
		n.wantEnd("cut")
	}
	if err := readError(browser); err == nil {
		t.Error("the connection handed on goes on")
	}
	cutBy := handed.conn.(interface{ CutBy() string }).CutBy
	if why := cutBy(); why != "cut" {
		t.Errorf("the connection handed on was cut by %q", why)
	}
	handed.conn.Close()

	send(t, live, "still here")
	expect(t, live, "still here")
	ask(t, asking, "datagram", "datagram") // another session
	if ended := n.server.Cut(func(l4.FlowInfo) bool { return false }); ended != 0 {
		t.Errorf("%d flows cut, want none", ended)
	}
	eventually(t, "the flows are counted", func() bool {
		return n.metric(`sluice_l4_flows_total{end="cut",proto="tcp"}`) == 1 && n.metric(`sluice_l4_flows_total{end="cut",proto="udp"}`) == 1
	})
}

// TestHandedConnectionsSayWhoEndedThem wants no reason where the node had none.
func TestHandedConnectionsSayWhoEndedThem(t *testing.T) {
	n := newNode(t)
	web := n.tcp(`{"http": "127.0.0.1:1"}`)
	send(t, dial(t, web), "GET / HTTP/1.1\r\n")
	handed := n.handedOn()
	cutBy := handed.conn.(interface{ CutBy() string }).CutBy
	for _, when := range []string{"while it lives", "after its end"} {
		if why := cutBy(); why != "" {
			t.Errorf("%s: cut by %q", when, why)
		}
		handed.conn.Close()
	}
	send(t, dial(t, web), "GET / HTTP/1.1\r\n")
	handed = n.handedOn()
	n.server.Withdraw(web.mapping.Load(), nil)
	if why := handed.conn.(interface{ CutBy() string }).CutBy(); why != "deleted" {
		t.Errorf("after its mapping: cut by %q", why)
	}
	handed.conn.Close()
}

// readError reads until c fails, and returns why it did.
func readError(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}
