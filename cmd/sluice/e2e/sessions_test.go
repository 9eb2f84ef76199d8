package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/quic-go/quic-go"
)

// beside starts a node that uses n's etcd and cluster key, under its own name.
func (n *node) beside(name string, options ...nodeOption) *node {
	n.t.Helper()
	other := newNode(n.t, append(options, withYAML(fmt.Sprintf("cluster_key_file: %q", filepath.Join(n.dir, "data", "cluster.key"))))...)
	other.useEtcdOf(n)
	other.edit("node: test", "node: "+name)
	other.start()
	return other
}

// sharesTickets waits until the node seals tickets with a key of all nodes.
func (n *node) sharesTickets() {
	n.t.Helper()
	eventually(n.t, "the node seals tickets with a key of all nodes", func() error {
		if keys, ok := n.metric(`sluice_tls_ticket_keys{sealed_by="cluster"}`); !ok || keys == "0" {
			return fmt.Errorf("it has %q of them", keys)
		}
		return nil
	})
}

// resumes has a session of n resumed at other by each kind of client, and says
// which cannot.
func (n *node) resumes(other *node) error {
	n.t.Helper()
	var all []error
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		session := filepath.Join(n.t.TempDir(), "session")
		request := "GET / HTTP/1.0\r\nHost: app.sessions.test\r\n\r\n"
		if out, err := n.sclient("app.sessions.test", request, version, "-ign_eof", "-sess_out", session); !strings.Contains(out, "here") {
			return fmt.Errorf("openssl %s: %w\n%s", version, err, out)
		}
		if out, err := other.sclient("app.sessions.test", request, version, "-ign_eof", "-sess_in", session); !strings.Contains(out, "Reused, ") || !strings.Contains(out, "here") {
			all = append(all, fmt.Errorf("openssl %s does not resume: %w\n%s", version, err, out))
		}
	}
	cfg := &tls.Config{RootCAs: n.roots(), ServerName: "app.sessions.test", NextProtos: []string{"h3"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	dial := func(at *node) (resumed bool, err error) {
		c, err := quic.DialAddr(within(n.t), loopback(at.HTTPS), cfg, nil)
		if err != nil {
			return false, err
		}
		defer c.CloseWithError(0, "")
		eventually(n.t, "a ticket by QUIC", func() error {
			if _, ok := cfg.ClientSessionCache.Get("app.sessions.test"); !ok {
				return errors.New("there is none")
			}
			return nil
		})
		return c.ConnectionState().TLS.DidResume, nil
	}
	if _, err := dial(n); err != nil {
		return fmt.Errorf("by QUIC: %w", err)
	}
	if resumed, err := dial(other); err != nil || !resumed {
		all = append(all, fmt.Errorf("by QUIC there is no resumption: %w", err))
	}
	return errors.Join(all...)
}

// TestSessionsResumeOnEveryNode sends clients from node to node, over rotations of
// the keys, one of which a node sleeps through.
func TestSessionsResumeOnEveryNode(t *testing.T) {
	t.Parallel()
	rotate := withYAML(`tls: {ticket_keys: 20s}`)
	a := startNode(t, rotate)
	a.mustPut("routes/all", respondRoute("*.sessions.test", "here"))
	b, c := a.beside("b", rotate), a.beside("c", rotate)
	nodes := []*node{a, b, c}
	made := func() (n int) {
		for _, one := range nodes {
			n += strings.Count(one.output.String(), "made the next key of session tickets")
		}
		return n
	}
	rotated := func() {
		t.Helper()
		before := made()
		eventually(t, "the keys rotate", func() error {
			if now := made(); now == before {
				return fmt.Errorf("%d were made", now)
			}
			return nil
		})
	}
	everywhere := func(when string) {
		t.Helper()
		for i, from := range nodes {
			to := nodes[(i+1)%len(nodes)]
			if err := from.resumes(to); err != nil {
				t.Errorf("%s: from node %d to the next: %v", when, i, err)
			}
		}
	}
	for _, n := range nodes {
		n.sharesTickets()
	}
	everywhere("at first")
	rotated()
	everywhere("after a rotation")
	c.signal(syscall.SIGSTOP)
	defer c.cmd.Process.Signal(syscall.SIGCONT) // for who gives up meanwhile
	rotated()
	c.signal(syscall.SIGCONT)
	c.sharesTickets()
	everywhere("after a node slept through one")
	a.stop() // and with it etcd
	if err := b.resumes(c); err != nil {
		t.Errorf("without etcd: %v", err)
	}
	if code := c.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	c.spawn()
	eventually(t, "a node that was started without etcd resumes by the keys on its disk", func() error { return b.resumes(c) })
}
