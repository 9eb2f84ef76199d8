package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// TestOnePortForRawBytesAndHTTP maps one port to an ssh-like server and to a
// web server, and sees each client get to the right one.
func TestOnePortForRawBytesAndHTTP(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const banner = "SSH-2.0-OpenSSH_9.2\r\n"
	raw := startRaw(t, func(c net.Conn) {
		io.WriteString(c, banner)
		io.Copy(c, c)
	})
	port := n.port(0)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"backend": %q, "http": %q}`, raw, n.Demo))

	wantBanner := func(t *testing.T, c *net.TCPConn) *bufio.Reader {
		t.Helper()
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); err != nil || line != banner {
			t.Fatalf("the greeting was %q, %v", line, err)
		}
		return r
	}
	t.Run("a client that waits for the server", func(t *testing.T) {
		n := n.in(t)
		c := dial(t, port)
		wantBanner(t, c)
		c.Close()
		n.accessRecord(map[string]any{"msg": "flow", "client": c.LocalAddr(), "backend": raw})
	})
	t.Run("a client that speaks first", func(t *testing.T) {
		c := dial(t, port)
		const hello = "SSH-2.0-client\r\n"
		io.WriteString(c, hello)
		r := wantBanner(t, c)
		if line, err := r.ReadString('\n'); err != nil || line != hello {
			t.Errorf("the echo was %q, %v", line, err)
		}
	})
	t.Run("https", func(t *testing.T) {
		n := n.in(t)
		out := n.curl(fmt.Sprintf("https://6hif.jupyter.localhost:%d/echo?over=tls", port))
		if !strings.Contains(out, `"uri": "/echo?over=tls"`) || !strings.Contains(out, fmt.Sprintf(`"host": "6hif.jupyter.localhost:%d"`, port)) {
			t.Errorf("the answer was %s", out)
		}
		n.accessRecord(map[string]any{"msg": "request", "host": "6hif.jupyter.localhost", "path": "/echo", "status": 200})
	})
	t.Run("http", func(t *testing.T) {
		n := n.in(t)
		if out := n.curl(fmt.Sprintf("http://127.0.0.1:%d/echo?over=nothing", port)); !strings.Contains(out, `"uri": "/echo?over=nothing"`) {
			t.Errorf("the answer was %s", out)
		}
	})
	t.Run("http in pieces", func(t *testing.T) {
		c := dial(t, port)
		for _, piece := range []string{"G", "ET /bytes?n=3 HT", "TP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n"} {
			io.WriteString(c, piece) // TCP_NODELAY: segments of their own
		}
		if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") || !strings.HasSuffix(string(answer), "\x00\x00\x00") {
			t.Errorf("the answer was %q, %v", answer, err)
		}
	})
	t.Run("all of it is cut with the mapping", func(t *testing.T) {
		n := n.in(t)
		c := dial(t, port)
		wantBanner(t, c)
		n.delete(fmt.Sprintf("ports/tcp/%d", port))
		sessionOn(t, c).wantCut()
		if err := dialRefused(port); err != nil {
			t.Error(err)
		}
	})
}

// TestPortForHTTPOnly maps a port to a web server alone.
func TestPortForHTTPOnly(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	port := n.port(0)
	n.mustPut(fmt.Sprintf("ports/tcp/%d", port), fmt.Sprintf(`{"http": %q}`, n.Demo))
	for _, scheme := range []string{"http", "https"} {
		if out := n.curl(fmt.Sprintf("%s://demo.localhost:%d/echo", scheme, port)); !strings.Contains(out, `"uri": "/echo"`) {
			t.Errorf("%s: the answer was %s", scheme, out)
		}
	}
	c := dial(t, port)
	io.WriteString(c, "SSH-2.0-client\r\n")
	if answer, _ := io.ReadAll(c); !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") && len(answer) > 0 {
		t.Errorf("what is not HTTP was answered with %q", answer)
	}
}
