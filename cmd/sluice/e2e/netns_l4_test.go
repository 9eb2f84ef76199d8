package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startNetwork makes a network with a node on its middle host.
func startNetwork(t *testing.T, options ...nodeOption) (*network, *node) {
	t.Helper()
	hosts := newNetwork(t)
	n := startNode(t, append(options, withHost(hosts.node, backendAddr(0)))...)
	n.leavesNoFile()
	return hosts, n
}

// eachNetwork runs f with a network for each mode of having ports.
func eachNetwork(t *testing.T, f func(t *testing.T, hosts *network, n *node)) {
	t.Parallel()
	for _, mode := range []string{"bind", "steer"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			hosts, n := startNetwork(t, withYAML("ports_mode: "+mode))
			f(t, hosts, n)
		})
	}
}

// at returns host:port of an address of a mapped port.
func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

// connect connects from an address of the clients' host to a port of the node,
// by the same family.
func (h *network) connect(t *testing.T, from string, port int) *net.TCPConn {
	t.Helper()
	c, err := h.tryConnect(t, from, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *network) tryConnect(t *testing.T, from string, port int) (*net.TCPConn, error) {
	t.Helper()
	to := nodeAddr
	if strings.Contains(from, ":") {
		to = nodeAddr6
	}
	c, err := h.clients.dial(from, at(to, port))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c, nil
}

// wantReset connects and wants to be reset without a byte.
func (h *network) wantReset(t *testing.T, from string, port int) {
	t.Helper()
	c, err := h.tryConnect(t, from, port)
	var got []byte
	if err == nil {
		got, err = io.ReadAll(c)
	}
	if len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s to port %d: read %q, %v, want a reset", from, port, got, err)
	}
}

// TestTrueClients has clients of two families, from several addresses, reach
// backends of two families, which are told who the clients are.
func TestTrueClients(t *testing.T) {
	eachNetwork(t, func(t *testing.T, hosts *network, n *node) {
		seen := make(chan proxied, 1)
		four := serveRaw(t, hosts.backends.listen(at(backendAddr(1), 7)), readProxied(seen))
		six := serveRaw(t, hosts.backends.listen(at(backendAddr6(1), 7)), readProxied(seen))
		port := 0
		for _, version := range []string{"v1", "v2"} {
			for _, backend := range []string{four, six} {
				p := n.port(port)
				port++
				n.mustPut(fmt.Sprintf("ports/tcp/%d", p), fmt.Sprintf(`{"backend": %q, "proxy_protocol": {"send": %q}}`, backend, version))
				for _, from := range []string{clientAddr(0), clientAddr(3), clientAddr6(0), clientAddr6(3)} {
					c := hosts.connect(t, from, p)
					io.WriteString(c, "payload")
					c.CloseWrite()
					if answer, err := io.ReadAll(c); err != nil || string(answer) != "thanks" {
						t.Errorf("%s: the client got %q, %v", from, answer, err)
					}
					want := proxied{version, c.LocalAddr().String(), c.RemoteAddr().String(), "payload"}
					if got := <-seen; got != want {
						t.Errorf("%s to %s: the backend got %+v, want %+v", from, backend, got, want)
					}
					n.accessRecord(map[string]any{"port": p, "client": c.LocalAddr(), "backend": backend, "bytes_up": 7, "bytes_down": 6})
					c.Close()
				}
			}
		}
	})
}

// TestPoliciesByTrueAddress limits and refuses clients by where they come from.
func TestPoliciesByTrueAddress(t *testing.T) {
	eachNetwork(t, func(t *testing.T, hosts *network, n *node) {
		backend := serveRaw(t, hosts.backends.listen(at(backendAddr(1), 7)), answerLines("backend"))
		t.Run("allow and deny", func(t *testing.T) {
			port := n.port(0)
			n.in(t).mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "allow": ["%s/31", "%s/127"], "deny": ["%s", "%s"]}`,
				backend, clientAddr(0), clientAddr6(0), clientAddr(1), clientAddr6(1)))
			for i, admitted := range []bool{true, false, false} {
				for _, from := range []string{clientAddr(i), clientAddr6(i)} {
					if !admitted {
						hosts.wantReset(t, from, port)
						continue
					}
					s := sessionOn(t, hosts.connect(t, from, port))
					s.want("backend", "hello")
					s.Close()
				}
			}
		})
		t.Run("per client", func(t *testing.T) {
			n, port := n.in(t), n.port(1)
			n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "limits": {"per_client": 2}}`, backend))
			var held []*session
			for _, from := range []string{clientAddr(0), clientAddr(1), clientAddr6(0)} {
				for range 2 {
					s := sessionOn(t, hosts.connect(t, from, port))
					s.want("backend", "hello")
					held = append(held, s)
				}
				hosts.wantReset(t, from, port)
			}
			for _, s := range held {
				s.want("backend", "still here")
			}
			held[0].Close()
			n.accessRecord(map[string]any{"client": held[0].LocalAddr(), "end": "client_closed"})
			sessionOn(t, hosts.connect(t, clientAddr(0), port)).want("backend", "in its place")
			hosts.wantReset(t, clientAddr(1), port)
			n.delete(fmt.Sprintf("ports/tcp/%d", port))
			for _, s := range held[1:] {
				s.wantCut()
			}
		})
	})
}

// TestResetsAreResets has either end of a flow reset it, and wants the other end
// to be told so and not of an end in order.
func TestResetsAreResets(t *testing.T) {
	eachNetwork(t, func(t *testing.T, hosts *network, n *node) {
		accepted := make(chan *net.TCPConn)
		release := make(chan struct{})
		backend := serveRaw(t, hosts.backends.listen(at(backendAddr(1), 7)), func(c net.Conn) {
			select {
			case accepted <- c.(*net.TCPConn):
			case <-t.Context().Done():
			}
			select {
			case <-release:
			case <-t.Context().Done():
			}
		})
		port := n.port(0)
		n.mustPut(fmt.Sprintf("ports/tcp/%d", port), backend)
		for _, tc := range []struct {
			name, end string
			words     int // that were exchanged before
			byClient  bool
		}{
			{"the client", "client_reset", 2, true},
			{"the backend", "backend_reset", 2, false},
			{"the client without a word", "client_reset", 0, true},
			{"the backend without a word", "backend_reset", 1, false},
		} {
			t.Run(tc.name, func(t *testing.T) {
				n := n.in(t)
				c := hosts.connect(t, clientAddr(0), port)
				b := await(t, accepted, "a connection to the backend")
				b.SetDeadline(time.Now().Add(patience))
				for _, way := range [][2]*net.TCPConn{{c, b}, {b, c}}[:tc.words] {
					io.WriteString(way[0], "ping")
					if got := make([]byte, 4); mustRead(t, way[1], got) != "ping" {
						t.Errorf("got %q", got)
					}
				}
				from, to := b, c
				if tc.byClient {
					from, to = c, b
				}
				client := c.LocalAddr()
				from.SetLinger(0) // closing resets
				from.Close()
				if got, err := io.ReadAll(to); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the other end read %q, %v, want a reset", got, err)
				}
				n.accessRecord(map[string]any{"client": client, "end": tc.end})
				give(t, release, "the backend's connection")
			})
		}
	})
}

func mustRead(t *testing.T, c net.Conn, p []byte) string {
	t.Helper()
	if n, err := io.ReadFull(c, p); err != nil {
		t.Fatalf("read %q: %v", p[:n], err)
	}
	return string(p)
}

// TestHalfCloseBetweenHosts moves megabytes each way after the other way has
// ended.
func TestHalfCloseBetweenHosts(t *testing.T) {
	const size = 4 << 20
	eachNetwork(t, func(t *testing.T, hosts *network, n *node) {
		atBackend := make(chan transfer, 1)
		for i, tc := range []struct {
			name, end string
			serve     func(net.Conn)
			client    func(*net.TCPConn) transfer
		}{
			{"the client first", "client_closed", receiveThenSend('b', size, atBackend), func(c *net.TCPConn) transfer {
				io.Copy(c, pseudoRandom('c', size))
				c.CloseWrite()
				return receive(c)
			}},
			{"the backend first", "backend_closed", func(c net.Conn) {
				io.Copy(c, pseudoRandom('b', size))
				c.(*net.TCPConn).CloseWrite()
				atBackend <- receive(c)
			}, func(c *net.TCPConn) (got transfer) {
				got = receive(c)
				io.Copy(c, pseudoRandom('c', size))
				c.CloseWrite()
				return got
			}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				n, port := n.in(t), n.port(i)
				n.mustPut(fmt.Sprintf("ports/tcp/%d", port), serveRaw(t, hosts.backends.listen(at(backendAddr(1), 8+i)), tc.serve))
				c := hosts.connect(t, clientAddr(0), port)
				if got := tc.client(c); got != transferOf('b', size) {
					t.Errorf("the client got %v, want %v", got, transferOf('b', size))
				}
				if got := await(t, atBackend, "the backend's side"); got != transferOf('c', size) {
					t.Errorf("the backend got %v, want %v", got, transferOf('c', size))
				}
				n.accessRecord(map[string]any{"client": c.LocalAddr(), "end": tc.end, "bytes_up": float64(size), "bytes_down": float64(size)})
				c.Close()
			})
		}
	})
}

func receiveThenSend(seed byte, size int64, got chan<- transfer) func(net.Conn) {
	return func(c net.Conn) {
		tr := receive(c)
		io.Copy(c, pseudoRandom(seed, size))
		got <- tr
	}
}

// TestHostsThatVanish pulls the plug of the backends' host, and of the clients':
// nobody says anything any more.
func TestHostsThatVanish(t *testing.T) {
	eachNetwork(t, func(t *testing.T, hosts *network, n *node) {
		backend := serveRaw(t, hosts.backends.listen(at(backendAddr(1), 7)), answerLines("backend"))
		port := n.port(0)
		n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "idle_timeout": "2s", "connect_timeout": "500ms"}`, backend))

		s := sessionOn(t, hosts.connect(t, clientAddr(0), port))
		s.want("backend", "hello")
		hosts.backends.ip("link set tono down")
		io.WriteString(s, "into the void\n")
		s.wantCut()
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "idle"})
		hosts.wantReset(t, clientAddr(1), port)
		n.accessRecord(map[string]any{"port": port, "backend": nil, "end": "connect_failed", "bytes_up": 0})

		// Taking an interface down takes its IPv6 addresses away, and leaves IPv4's.
		hosts.backends.ip("link set tono up")
		eventually(t, "the backend is reached again", func() error {
			c, err := hosts.tryConnect(t, clientAddr(0), port)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintln(c, "back")
			if got, err := io.ReadAll(io.LimitReader(c, int64(len("backend: back\n")))); err != nil || string(got) != "backend: back\n" {
				return fmt.Errorf("%q, %w", got, err)
			}
			return nil
		})

		s = sessionOn(t, hosts.connect(t, clientAddr(0), port))
		s.want("backend", "hello")
		hosts.clients.ip("link set tono down")
		n.accessRecord(map[string]any{"client": s.LocalAddr(), "end": "idle"})
	})
}
