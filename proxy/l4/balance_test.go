package l4_test

import (
	"io"
	"net"
	"testing"
)

// announcer is a backend that says its name to whoever connects, then echoes.
func announcer(t *testing.T, name string) string {
	b := newBackend(t, func(c *net.TCPConn) {
		defer c.Close()
		if _, err := io.WriteString(c, name); err == nil {
			_, _ = io.Copy(c, c)
		}
	})
	return b.addr
}

// TestLeastConnectionsSeesFlowsEnd holds TCP and UDP flows to one backend by the
// fewest flows: those that end count no more, whatever ended them.
func TestLeastConnectionsSeesFlowsEnd(t *testing.T) {
	value := `{"backend": {"balance": "least_connections", "targets": ["%s", "%s"]}, "env": "%s"}`
	t.Run("tcp", func(t *testing.T) {
		n := newNode(t)
		one, two := announcer(t, "1"), announcer(t, "2")
		p := n.tcp(value, one, two, "a")
		at := map[string][]net.Conn{}
		connect := func() string {
			t.Helper()
			c := dial(t, p)
			name := make([]byte, 1)
			if _, err := io.ReadFull(c, name); err != nil {
				t.Fatal(err)
			}
			at[string(name)] = append(at[string(name)], c)
			return string(name)
		}
		for range 8 {
			connect()
		}
		if len(at["1"]) != 4 || len(at["2"]) != 4 {
			t.Fatalf("%d and %d flows, want 4 each", len(at["1"]), len(at["2"]))
		}
		for _, c := range at["1"] {
			c.Close()
			n.flow()
		}
		n.edit(p, value, one, two, "b") // which keeps the flows and their count
		for i := range 4 {
			if name := connect(); name != "1" {
				t.Errorf("flow %d after the end of those to 1 went to %s", i, name)
			}
		}
	})
	t.Run("udp", func(t *testing.T) {
		n := newNode(t)
		p := n.udp(value, udpEcho(t, "1"), udpEcho(t, "2"), "a")
		count := func(flows int) map[byte]int {
			t.Helper()
			at := map[byte]int{}
			for range flows {
				c := dialUDP(t, p)
				send(t, c, "x")
				buf := make([]byte, 8)
				if _, err := c.Read(buf); err != nil {
					t.Fatal(err)
				}
				at[buf[0]]++
			}
			return at
		}
		if at := count(8); at['1'] != 4 || at['2'] != 4 {
			t.Errorf("sessions %v, want 4 each", at)
		}
	})
}
