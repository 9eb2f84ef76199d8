package e2e

import (
	"errors"
	"fmt"
	"net"
	"testing"
)

// TestFloodsLeaveTheNodeInHand opens many more silent connections than a node
// may have files, at each kind of port. What was there before goes on, edits and
// the admin address work, and afterwards everything does.
func TestFloodsLeaveTheNodeInHand(t *testing.T) {
	eachPortsMode(t, func(t *testing.T, n *node) {
		n.stop()
		n.files = 500
		n.start()
		backend := startLines(t, "backend")
		n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(0)), backend)
		n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(1)), fmt.Sprintf(`{"backend": %q, "http": %q}`, backend, n.Demo))
		n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(2)), fmt.Sprintf(`{"http": %q}`, n.Demo))
		n.mustPut("routes/pass", passthroughRoute("pass.r.test", backend))
		bystander := openSession(t, n.port(0))
		bystander.want("backend", "before")
		for round, port := range []int{n.HTTPS, n.HTTP, n.port(0), n.port(1), n.port(2)} {
			var flood []net.Conn
			for range 1000 {
				c, err := net.Dial("tcp", loopback(port))
				if err != nil {
					continue // reset at once
				}
				flood = append(flood, c)
			}
			bystander.want("backend", "meanwhile")
			if status, body, err := n.adminGet("/readyz"); err != nil || status != 200 {
				t.Errorf("flood of port %d: readyz says %d %s, %v", port, status, body, err)
			}
			n.mustPut("routes/flood", respondRoute("flood.r.test", fmt.Sprint(round)))
			for _, c := range flood {
				c.Close()
			}
			eventually(t, fmt.Sprintf("after the flood of port %d new clients are served", port), func() error {
				c, err := tryDial(t, "127.0.0.1", n.port(0))
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprintln(c, "hello")
				if got := make([]byte, 8); readOnce(c, got) != "backend:" {
					return errors.New("not yet")
				}
				return nil
			})
		}
	})
}

// readOnce returns what one read gives, nothing if that is an error.
func readOnce(c net.Conn, p []byte) string {
	n, _ := c.Read(p)
	return string(p[:n])
}
