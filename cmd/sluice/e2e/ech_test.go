package e2e

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
)

// generateECH makes another key and returns what DNS would say of it.
func (n *node) generateECH() []byte {
	n.t.Helper()
	code, out, stderr := runSluice(n.t, n.dir, "certs", "ech", "generate", "edge.ech.test", "--config", "sluice.yaml", "-o", "json")
	var shown struct{ Record string }
	if err := json.Unmarshal([]byte(out), &shown); code != 0 || err != nil {
		n.t.Fatalf("sluice certs ech generate: %d %s%s %v", code, out, stderr, err)
	}
	list, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(shown.Record, "ech="))
	if err != nil {
		n.t.Fatalf("the record %q: %v", shown.Record, err)
	}
	return list
}

// hide connects to host, whose name goes encrypted to list, over TCP and QUIC.
func (n *node) hide(host string, list []byte) (tcp, udp tls.ConnectionState, err error) {
	cfg := &tls.Config{RootCAs: n.roots(), ServerName: host, NextProtos: []string{"h3", "http/1.1"}, EncryptedClientHelloConfigList: list}
	c, err := tls.Dial("tcp", loopback(n.HTTPS), cfg)
	if err != nil {
		return tcp, udp, err
	}
	defer c.Close()
	q, err := quic.DialAddr(within(n.t), loopback(n.HTTPS), cfg, nil)
	if err != nil {
		return tcp, udp, err
	}
	defer q.CloseWithError(0, "")
	return c.ConnectionState(), q.ConnectionState().TLS, nil
}

// TestEncryptedHellos hides server names with keys that are made, rotated and
// removed by commands while the node serves.
func TestEncryptedHellos(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	n := startNode(t, withYAML(fmt.Sprintf("client_auth: {staff: {ca: %q}}", s.file("ca.pem"))))
	n.mustPut("routes/all", respondRoute("*.ech.test", "here"))
	n.put("domains/must.ech.test", `{"client_auth": {"ca": "staff"}}`)
	accepted := func(list []byte) error {
		tcp, udp, err := n.hide("secret.ech.test", list)
		if err == nil && (!tcp.ECHAccepted || !udp.ECHAccepted || tcp.PeerCertificates[0].VerifyHostname("secret.ech.test") != nil) {
			err = fmt.Errorf("accepted over TCP %v, over QUIC %v", tcp.ECHAccepted, udp.ECHAccepted)
		}
		return err
	}
	first := n.generateECH()
	eventually(t, "the first key is in force", func() error { return accepted(first) })
	second := n.generateECH()
	eventually(t, "the second key is in force", func() error { return accepted(second) })
	if err := accepted(first); err != nil {
		t.Errorf("with the key of before: %v", err)
	}
	t.Run("HTTP", func(t *testing.T) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: n.roots(), EncryptedClientHelloConfigList: first}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		c := &client{t: t, n: n.in(t), proto: "h2", http: &http.Client{Transport: tr}}
		tr.DialContext = newClient(t, n, "h2").http.Transport.(*http.Transport).DialContext
		if resp, body := c.get("secret.ech.test", "/"); body != "here" || !resp.TLS.ECHAccepted {
			t.Errorf("%q, accepted %v", body, resp.TLS.ECHAccepted)
		}
	})
	t.Run("hidden names are asked for certificates", func(t *testing.T) {
		cfg := &tls.Config{RootCAs: n.roots(), ServerName: "must.ech.test", EncryptedClientHelloConfigList: second}
		c, err := tls.Dial("tcp", loopback(n.HTTPS), cfg)
		if err == nil {
			_, err = io.WriteString(c, "GET / HTTP/1.0\r\nHost: must.ech.test\r\n\r\n")
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			c.Close()
		}
		if err == nil {
			t.Error("a host that requires a certificate answers who has none")
		}
	})
	t.Run("a key of somebody else", func(t *testing.T) {
		other := startNode(t).generateECH()
		_, _, err := n.hide("secret.ech.test", other)
		rejected, is := errors.AsType[*tls.ECHRejectionError](err)
		if !is || len(rejected.RetryConfigList) == 0 {
			t.Fatalf("want to be told another key: %v", err)
		}
		if err := accepted(rejected.RetryConfigList); err != nil {
			t.Errorf("with the key that clients are told: %v", err)
		}
	})
	if code, _, stderr := runSluice(t, n.dir, "certs", "ech", "rm", "--config", "sluice.yaml"); code != 2 || !strings.Contains(stderr, "--yes") {
		t.Fatalf("sluice certs ech rm without --yes: %d %s", code, stderr)
	}
	if code, out, stderr := runSluice(t, n.dir, "certs", "ech", "rm", "--yes", "--config", "sluice.yaml"); code != 0 {
		t.Fatalf("sluice certs ech rm: %d %s%s", code, out, stderr)
	}
	eventually(t, "keys are gone", func() error {
		_, _, err := n.hide("secret.ech.test", second)
		if rejected, is := errors.AsType[*tls.ECHRejectionError](err); !is || len(rejected.RetryConfigList) != 0 {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
}
