package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestVerdictsOnBadInput puts everything that a hurried person might, and wants
// to be told what is wrong and what would be right. Nothing else is harmed.
func TestVerdictsOnBadInput(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	good := fmt.Sprintf("ports/tcp/%d", n.port(0))
	n.mustPut(good, startLines(t, "good"))
	bystander := openSession(t, n.port(0))
	bystander.want("good", "before")

	port := func(i int) string { return fmt.Sprintf("ports/tcp/%d", n.port(i)) }
	for _, tc := range []struct{ key, value, want string }{
		{"ports/tcp/0", "10.0.0.1:22", "port 0 does not exist; ports run from 1 to 65535"},
		{"ports/tcp/70000", "10.0.0.1:22", "port 70000 does not exist; ports run from 1 to 65535"},
		{"ports/tcp/022", "10.0.0.1:22", `"022" is not a port; ports are plain numbers from 1 to 65535`},
		{"ports/tcp/ssh", "10.0.0.1:22", `"ssh" is not a port; ports are plain numbers from 1 to 65535`},
		{"ports/sctp/22", "10.0.0.1:22", `"ports/sctp/22" is not a mapping's key; write ports/tcp/<port> or ports/udp/<port>`},
		{"port/tcp/22", "10.0.0.1:22", `no key starts with "port"; did you mean "ports"?`},
		{"ports/tcp/22", "10.0.0.1:22", fmt.Sprintf("port 22 lies outside this node's ports (%d-%d); choose one of these or widen ports in sluice.yaml", n.Ports[0], n.Ports[1])},
		{port(1), "10.0.0.1", `"10.0.0.1" is not an address; write host:port`},
		{port(1), "10.0.0.1:0", "port 0 does not exist"},
		{port(1), "10.0.0.1:70000", "port 70000 does not exist"},
		{port(1), "10.0.0.256:22", "neither an IP address nor a host name"},
		{port(1), "", "the value is empty"},
		{port(1), `["10.0.0.1:22"]`, `write {"backend": ["10.0.0.1:22"]}`},
		{port(1), `{"backnd": "10.0.0.1:22"}`, `backnd: unknown field; did you mean "backend"?`},
		{port(1), `{"backend": "10.0.0.1:22", "limits": {"conections": 1}}`, `limits.conections: unknown field; did you mean "connections"?`},
		{port(1), `{"backend": "10.0.0.1:22", "idle_timeout": 10}`, `idle_timeout: must be a string, not a number`},
		{port(1), `{"backend": "10.0.0.1:22", "allow": ["10.0.0.0/33"]}`, "allow[0]: "},
		{port(1), fmt.Sprintf("127.0.0.1:%d", n.port(1)), "is this very port of this node"},
		{port(1), fmt.Sprintf("[::1]:%d", n.port(1)), "is this very port of this node"},
		{fmt.Sprintf("ports/udp/%d", n.port(1)), fmt.Sprintf("localhost:%d", n.port(1)), "is this very port of this node"},
		{"pools/ssh", fmt.Sprintf(`{"ports": "%d-%d", "backend_port": 22}`, n.port(0), n.Ports[1]+1), fmt.Sprintf("ports: port %d lies outside the node's ports", n.Ports[1]+1)},
		{"pools/ssh", fmt.Sprintf(`{"ports": "%d-%d,%d-%d", "backend_port": 22}`, n.port(0), n.port(5), n.port(5), n.port(9)), fmt.Sprintf("ports: the ranges %d-%d and %d-%d overlap; give each port once", n.port(0), n.port(5), n.port(5), n.port(9))},
		{"pools/ssh", fmt.Sprintf(`{"ports": "%d-%d", "backend_port": 22}`, n.port(5), n.port(0)), fmt.Sprintf("runs backwards; write %d-%d", n.port(0), n.port(5))},
	} {
		verdict := n.put(tc.key, tc.value)
		if !strings.HasPrefix(verdict, "refused: ") || !strings.Contains(verdict, tc.want) || !strings.HasSuffix(verdict, " (nothing is in force)") {
			t.Errorf("put %s %s: the verdict is\n%s\nwant it refused: ...%s", tc.key, tc.value, verdict, tc.want)
		}
	}

	t.Run("a circle of three", func(t *testing.T) {
		n := n.in(t)
		n.mustPut(port(2), loopback(n.port(3)))
		n.mustPut(port(3), loopback(n.port(4)))
		verdict := n.put(port(4), loopback(n.port(2)))
		if want := fmt.Sprintf("(tcp/%d to tcp/%d to tcp/%d to tcp/%d)", n.port(4), n.port(2), n.port(3), n.port(4)); !strings.HasPrefix(verdict, "refused: ") || !strings.Contains(verdict, want) {
			t.Errorf("the verdict is %s, want it refused with %s", verdict, want)
		}
		n.mustPut(port(3), startLines(t, "out"))
		n.wantVerdict(port(4), "applied@")
		visit(t, n.port(4), "out", "by way of two others")
	})
	t.Run("two pools", func(t *testing.T) {
		n := n.in(t)
		pool := func(from, to int) string {
			return fmt.Sprintf(`{"ports": "%d-%d", "backend_port": 22}`, n.port(from), n.port(to))
		}
		n.mustPut("pools/ssh", pool(0, 9))
		if verdict := n.put("pools/code", pool(5, 19)); !strings.Contains(verdict, "overlaps") || !strings.Contains(verdict, "of the pool ssh; give each port to one pool") {
			t.Errorf("the verdict on the second is %s", verdict)
		}
		n.delete("pools/ssh")
		n.wantVerdict("pools/code", "applied@")
	})
	bystander.want("good", "after")
}

// wantVerdict waits until the verdict on a key begins as it should.
func (n *node) wantVerdict(key, prefix string) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("the verdict on %s is %s...", key, prefix), func() error {
		v, _ := n.get("verdicts/test/" + key)
		if strings.HasPrefix(v, prefix) || prefix == "applied@" && v == "" && n.applied() >= n.modRevision("/sluice/"+key) {
			return nil // the latter where it is left out, right after many others
		}
		return fmt.Errorf("it is %q", v)
	})
}

// applied returns the revision that the node's record says it has applied, 0
// without a record.
func (n *node) applied() int64 {
	n.t.Helper()
	var record struct {
		Applied int64 `json:"applied_revision"`
	}
	if text, _ := n.get("nodes/test"); text != "" {
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			n.t.Fatal(err)
		}
	}
	return record.Applied
}

// TestVerdictsOnDownBackends says of mappings and routes that every target fails
// its checks, and takes it back.
func TestVerdictsOnDownBackends(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	const health = `"health": {"interval": "1s", "timeout": "1s", "rise": 1, "fall": 1}`
	mapping := fmt.Sprintf("ports/tcp/%d", n.port(0))
	n.put(mapping, fmt.Sprintf(`{"backend": {"targets": [%q], %s}}`, addr, health))
	n.put("routes/web", fmt.Sprintf(`{"host": "web.localhost", "backend": {"targets": [%q], %s}}`, addr, health))
	n.wantVerdict(mapping, "degraded: backend_down: "+addr+" fails its checks: ")
	n.wantVerdict("routes/web", "degraded: backend_down: "+addr+" fails its checks: ")

	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	n.wantVerdict(mapping, "applied@")
	n.wantVerdict("routes/web", "applied@")
}
