package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestUDP sends datagrams of several clients through a mapped port. A connected
// UDP socket gets only what comes from the very address and port that it sends
// to, so each echo also proves where the reply came from.
func TestUDP(t *testing.T) { eachPortsMode(t, testUDP) }

func testUDP(t *testing.T, n *node) {
	backend := startUDPEcho(t, "first")
	key := fmt.Sprintf("ports/udp/%d", n.port(0))
	n.mustPut(key, fmt.Sprintf(`{"backend": %q, "env": "abc", "service": "rdp"}`, backend))

	var clients []*udpClient
	sources := map[string]bool{} // that the backend sees
	for _, to := range []string{"127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		c := dialUDP(t, to, n.port(0))
		clients = append(clients, c)
		for _, size := range []int{1, 1200, 60000} {
			c.want("first", size)
		}
		sources[c.source] = true
	}
	if len(sources) != len(clients) {
		t.Errorf("the backend sees %d clients, want %d, each apart: %v", len(sources), len(clients), sources)
	}
	for _, c := range clients {
		before := c.source
		if c.want("first", 100); c.source != before {
			t.Errorf("to the backend the client was %s and then %s, want one session", before, c.source)
		}
	}

	// Sessions end with what withdraws them, so the next datagram goes anew.
	n.mustPut(key, startUDPEcho(t, "second"))
	clients[0].want("second", 100)
	n.delete(key)
	clients[0].wantUnreachable()

	r := n.accessRecord(map[string]any{
		"msg": "flow", "listener": fmt.Sprintf("udp/%d", n.port(0)), "proto": "udp", "port": n.port(0),
		"client": clients[1].LocalAddr(), "backend": backend, "env": "abc", "service": "rdp", "end": "deleted",
	})
	// A datagram that was lost on the way was sent again.
	if up, ok := r["bytes_up"].(float64); !ok || up < 1+1200+60000+100 {
		t.Errorf("the record counts %v bytes up", r["bytes_up"])
	}
}

func TestUDPAndTCPOnOnePort(t *testing.T) { eachPortsMode(t, testUDPAndTCPOnOnePort) }

func testUDPAndTCPOnOnePort(t *testing.T, n *node) {
	udp, tcp := fmt.Sprintf("ports/udp/%d", n.port(0)), fmt.Sprintf("ports/tcp/%d", n.port(0))
	n.mustPut(udp, startUDPEcho(t, "datagrams"))
	n.mustPut(tcp, startLines(t, "bytes"))
	c := dialUDP(t, "127.0.0.1", n.port(0))
	c.want("datagrams", 10)
	s := openSession(t, n.port(0))
	s.want("bytes", "hello")
	n.delete(udp)
	c.wantUnreachable()
	s.want("bytes", "still here")
	n.mustPut(udp, startUDPEcho(t, "again"))
	n.delete(tcp)
	s.wantCut()
	c.want("again", 10)
}

func TestBusyUDPPort(t *testing.T) { eachPortsMode(t, testBusyUDPPort, openEyed) }

func testBusyUDPPort(t *testing.T, n *node) {
	holder, err := net.ListenPacket("udp", loopback(n.port(0)))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	key := fmt.Sprintf("ports/udp/%d", n.port(0))
	n.wantBusy(key, startUDPEcho(t, "backend"))
	holder.Close()
	dialUDP(t, "127.0.0.1", n.port(0)).want("backend", 10)
}

// startUDPEcho answers each datagram with its own name, whom it came from, and
// what was in it.
func startUDPEcho(t *testing.T, name string) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(append(fmt.Appendf(nil, "%s %s\n", name, from), buf[:n]...), from)
		}
	})
	t.Cleanup(func() {
		pc.Close()
		serving.Wait()
	})
	return pc.LocalAddr().String()
}

// udpClient is a client of startUDPEcho, through a mapped port.
type udpClient struct {
	*net.UDPConn
	t      *testing.T
	source string // whom the backend took it for, in the last answer
	sent   byte
}

func dialUDP(t *testing.T, host string, port int) *udpClient {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addrPort(t, fmt.Sprintf("%s:%d", host, port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &udpClient{UDPConn: c, t: t}
}

// want sends size bytes until the server called name has echoed them: datagrams
// may be lost, and a port that is just being opened answers with an error.
func (c *udpClient) want(name string, size int) {
	c.t.Helper()
	c.sent++ // tells late answers from this one
	payload := bytes.Repeat([]byte{c.sent}, size)
	eventually(c.t, fmt.Sprintf("%s echoes %d bytes", name, size), func() error {
		if _, err := c.Write(payload); err != nil {
			return err
		}
		for {
			answer, err := c.read(time.Second)
			if err != nil {
				return err
			}
			who, echo, _ := bytes.Cut(answer, []byte("\n"))
			server, source, _ := bytes.Cut(who, []byte(" "))
			if bytes.Equal(echo, payload) && string(server) == name {
				c.source = string(source)
				return nil
			}
		}
	})
}

// wantUnreachable sends until the port turns out to be closed.
func (c *udpClient) wantUnreachable() {
	c.t.Helper()
	eventually(c.t, "the UDP port is closed", func() error {
		c.Write([]byte("anybody there?")) // an error shows at the read as well
		for {
			switch _, err := c.read(100 * time.Millisecond); {
			case errors.Is(err, syscall.ECONNREFUSED):
				return nil
			case err != nil:
				return err
			}
		}
	})
}

func (c *udpClient) read(limit time.Duration) ([]byte, error) {
	buf := make([]byte, 64<<10)
	c.SetReadDeadline(time.Now().Add(limit))
	n, err := c.Read(buf)
	if err == io.EOF {
		err = nil // an empty datagram
	}
	return buf[:n], err
}

func addrPort(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
