package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/pires/go-proxyproto"
)

func TestAllowAndDeny(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := startLines(t, "backend")
	for i, tc := range []struct{ name, lists, admitted, refused string }{
		{"allow", `"allow": ["127.0.0.2", "192.0.2.0/24"]`, "127.0.0.2", "127.0.0.3"},
		{"deny", `"deny": ["127.0.0.2/32"]`, "127.0.0.1", "127.0.0.2"},
		{"deny some of the allowed", `"allow": ["127.0.0.0/8"], "deny": ["127.0.0.0/30"]`, "127.0.0.4", "127.0.0.3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, port := n.in(t), n.port(i)
			n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, %s}`, backend, tc.lists))
			sessionOn(t, dialFrom(t, tc.admitted, port)).want("backend", "hello")
			n.wantRefused(tc.refused, port, "denied")
		})
	}
}

func TestLimitsOfAMapping(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := startLines(t, "backend")
	for i, tc := range []struct {
		name, limits string
		others       bool // whether other clients are still served
	}{
		{"per_client", `{"per_client": 2}`, true},
		{"connections", `{"connections": 2}`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, port := n.in(t), n.port(i)
			n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "limits": %s}`, backend, tc.limits))
			first, second := openSession(t, port), openSession(t, port)
			first.want("backend", "one")
			second.want("backend", "two")
			n.wantRefused("127.0.0.1", port, "limit")
			if tc.others {
				sessionOn(t, dialFrom(t, "127.0.0.2", port)).want("backend", "from elsewhere")
			} else {
				n.wantRefused("127.0.0.2", port, "limit")
			}
			first.want("backend", "still here")

			first.Close()
			n.accessRecord(map[string]any{"client": first.LocalAddr(), "end": "client_closed"})
			visit(t, port, "backend", "in the place of the first")
			second.want("backend", "still here")
		})
	}
}

func TestProxyHeaderForTheBackend(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	seen := make(chan proxied, 1)
	backend := startProxied(t, seen)
	for i, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			n, port := n.in(t), n.port(i)
			n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "proxy_protocol": {"send": %q}}`, backend, version))
			c := dial(t, port)
			io.WriteString(c, "payload")
			c.CloseWrite()
			if answer, err := io.ReadAll(c); err != nil || string(answer) != "thanks" {
				t.Errorf("the client got %q, %v", answer, err)
			}
			want := proxied{version, c.LocalAddr().String(), c.RemoteAddr().String(), "payload"}
			if got := <-seen; got != want {
				t.Errorf("the backend got %+v, want %+v", got, want)
			}
		})
	}
}

func TestProxyHeaderOfTheClient(t *testing.T) {
	t.Parallel()
	n := startNode(t, withYAML(`trusted_proxies: ["127.0.0.1/32"]`))
	const client = "203.0.113.7:4711"
	header := func(version byte, from string) string {
		src, dst := net.TCPAddrFromAddrPort(addrPort(t, from)), &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 22}
		text, err := proxyproto.HeaderProxyFromAddrs(version, src, dst).Format()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	open := func(t *testing.T, from string, port int, opening string) *session {
		t.Helper()
		c := dialFrom(t, from, port)
		if _, err := io.WriteString(c, opening); err != nil {
			t.Fatal(err)
		}
		return sessionOn(t, c)
	}
	accepting := fmt.Sprintf("ports/tcp/%d", n.port(0))
	n.mustPut(accepting, fmt.Sprintf(`{"backend": %q, "proxy_protocol": {"accept": true}, "deny": ["203.0.113.99"]}`, startLines(t, "backend")))

	for _, version := range []byte{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			n := n.in(t)
			client := fmt.Sprintf("203.0.113.%d:4711", version)
			s := open(t, "127.0.0.1", n.port(0), header(version, client))
			s.want("backend", "hello")
			s.Close()
			n.accessRecord(map[string]any{"port": n.port(0), "client": client, "end": "client_closed"})
		})
	}
	t.Run("a denied client", func(t *testing.T) {
		n := n.in(t)
		s := open(t, "127.0.0.1", n.port(0), header(2, "203.0.113.99:1"))
		s.wantCut()
		n.accessRecord(map[string]any{"port": n.port(0), "client": "203.0.113.99:1", "end": "denied"})
	})
	t.Run("none from a trusted proxy", func(t *testing.T) {
		n := n.in(t)
		s := open(t, "127.0.0.1", n.port(0), "hello without a header\n")
		s.wantCut()
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "error", "bytes_up": 0})
	})
	t.Run("forged by somebody else", func(t *testing.T) {
		n := n.in(t)
		s := open(t, "127.0.0.2", n.port(0), "")
		s.want("backend", "PROXY TCP4 203.0.113.7 198.51.100.1 4711 22")
		s.Close()
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "client_closed"})
	})
	t.Run("passed on", func(t *testing.T) {
		n, seen := n.in(t), make(chan proxied, 1)
		n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf(
			`{"backend": %q, "proxy_protocol": {"accept": true, "send": "v2"}}`, startProxied(t, seen)))
		c := open(t, "127.0.0.1", n.port(1), header(1, client)+"payload")
		c.CloseWrite()
		want := proxied{"v2", client, "198.51.100.1:22", "payload"}
		if got := <-seen; got != want {
			t.Errorf("the backend got %+v, want %+v", got, want)
		}
	})
}

// proxied is what a backend behind PROXY headers got on one connection.
type proxied struct{ version, source, destination, payload string }

// startProxied reads one PROXY header and the payload of each connection, and
// thanks.
func startProxied(t *testing.T, seen chan<- proxied) (addr string) {
	t.Helper()
	return startRaw(t, readProxied(seen))
}

func readProxied(seen chan<- proxied) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			seen <- proxied{payload: err.Error()}
			return
		}
		payload, err := io.ReadAll(r)
		if err != nil {
			payload = []byte(err.Error())
		}
		seen <- proxied{fmt.Sprintf("v%d", h.Version), h.SourceAddr.String(), h.DestinationAddr.String(), string(payload)}
		io.WriteString(c, "thanks")
	}
}

// wantRefused connects from an address and wants the connection to be reset
// without a byte, and a record of why, which it returns.
func (n *node) wantRefused(from string, port int, end string) map[string]any {
	n.t.Helper()
	var c *net.TCPConn
	// A reset may come so soon that connecting itself fails, and then nothing
	// tells which record is of this connection.
	eventually(n.t, "a connection lasts long enough to have an address", func() (err error) {
		c, err = tryDial(n.t, from, port)
		return err
	})
	if got, err := io.ReadAll(c); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		n.t.Errorf("the refused client read %q, %v, want a reset", got, err)
	}
	return n.accessRecord(map[string]any{"client": c.LocalAddr(), "end": end, "bytes_up": 0, "bytes_down": 0})
}

// ownName is how the kernel calls the test process. A message that names it may
// have the pid of a child, which holds its parent's sockets for the moment
// between fork and exec.
func ownName(t *testing.T) string {
	t.Helper()
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(name)) + " (pid "
}
