package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/remotegpu/sluice/certs/certstest"
)

// The key that Knot lets change the zone, and one that it does not know.
const (
	goodKey  = "ZWRnZS10ZXN0LWtleS1vZi0zMi1ieXRlcy1sb25nISE="
	wrongKey = "YW5vdGhlci1rZXktb2YtMzItYnl0ZXMtYnV0LXdyb25n"
)

// startKnot starts Debian's Knot DNS, authoritative for x.test, whose TXT
// records may be changed by whoever has the key. It returns its address.
func startKnot(t *testing.T) string {
	t.Helper()
	port := reservePorts(t, 1)
	// Knot's control socket has a path of at most 107 characters.
	dir, err := os.MkdirTemp("", "knot-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("x.test.zone", `$ORIGIN x.test.
@ 60 SOA ns hostmaster 1 60 60 3600 60
@ 60 NS ns
ns 60 A 127.0.0.1
`)
	conf := write("knot.conf", fmt.Sprintf(`server:
    rundir: %[1]q
    listen: 127.0.0.1@%[2]d
database:
    storage: %[1]q
log:
  - target: stderr
    any: info
key:
  - id: edge-key.
    algorithm: hmac-sha256
    secret: %[3]s
acl:
  - id: edge
    address: 127.0.0.1
    key: edge-key.
    action: update
    update-type: TXT
zone:
  - domain: x.test.
    storage: %[1]q
    file: x.test.zone
    acl: edge
`, dir, port, goodKey))
	knotd, err := exec.LookPath("knotd")
	if err != nil {
		knotd = "/usr/sbin/knotd" // where Debian has it, out of an ordinary user's path
	}
	p := startProcess(t, exec.Command(knotd, "-c", conf))
	addr := loopback(port)
	eventually(t, "Knot answers", func() error {
		select {
		case <-p.exited:
			t.Fatalf("Knot exited with %d", p.code)
		default:
		}
		_, err := lookup(addr, "x.test", dns.TypeSOA)
		return err
	})
	return addr
}

// lookup asks a DNS server and returns the records of that type.
func lookup(addr, name string, kind uint16) (records []dns.RR, err error) {
	client := &dns.Client{Net: "tcp"}
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), addr)
	if err != nil {
		return nil, err
	}
	if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("the answer is %s", dns.RcodeToString[reply.Rcode])
	}
	for _, rr := range reply.Answer {
		if rr.Header().Rrtype == kind {
			records = append(records, rr)
		}
	}
	return records, nil
}

// withACME has the node obtain certificates from authority. The providers are
// "knot", which works, and "stranger", whose key Knot does not know.
func withACME(authority *certstest.ACME, knot string) nodeOption {
	return withYAML(fmt.Sprintf(`acme:
  directory: %q
  email: ops@example.com
  ca_file: %q
  resolvers: [%q]
dns:
  knot: {provider: rfc2136, server: %[3]q, key_name: edge-key., key_algorithm: hmac-sha256, key: %[4]q}
  stranger: {provider: rfc2136, server: %[3]q, key_name: edge-key., key_algorithm: hmac-sha256, key: %[5]q}
`, authority.DirectoryURL, authority.RootsFile, knot, goodKey, wrongKey))
}

// verdictHas waits until the node's verdict on a key holds all of want.
func (n *node) verdictHas(key string, want ...string) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("the verdict on %s holds %q", key, want), func() error {
		verdict, _ := n.get("verdicts/test/" + key)
		for _, text := range want {
			if !strings.Contains(verdict, text) {
				return fmt.Errorf("it is %q", verdict)
			}
		}
		return nil
	})
}

// leaf returns the certificate that the node serves for a name, which must
// verify against roots.
func (n *node) leaf(name string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: name}}).DialContext(within(n.t), "tcp", loopback(n.HTTPS))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// A key under domains/ is all it takes to have a wildcard certificate, by ACME
// and a DNS server that takes updates.
func TestWildcardByACME(t *testing.T) {
	t.Parallel()
	knot := startKnot(t)
	authority := certstest.NewACME(t, knot, certstest.ACMEOptions{})
	n := startNode(t, withoutLocalCA(), withACME(authority, knot))
	const missing = "degraded: no_certificate: needs *.x.test; put domains/*.x.test"
	if v := n.put("routes/site", respondRoute("*.x.test", "${host}")); !strings.HasPrefix(v, missing) {
		t.Errorf("the route's verdict is %q, want %q", v, missing)
	}
	if _, err := n.leaf("a.x.test", authority.Roots); err == nil {
		t.Fatal("a.x.test has a certificate already")
	}

	// Several providers are configured, so that a key has to choose.
	n.put("domains/*.x.test", `{}`)
	n.verdictHas("domains/*.x.test", "degraded: ", "no_certificate", "knot", "stranger")
	n.put("domains/*.x.test", `{"provider": "knot"}`)
	n.verdictHas("domains/*.x.test", "applied@", "obtained until ")
	n.verdictHas("routes/site", "applied@", ": certificate *.x.test")

	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			c := newClientWith(t, n, proto, authority.Roots)
			resp, body := c.get("a.x.test", "/")
			if body != "a.x.test" {
				t.Errorf("body %q", body)
			}
			if got := resp.TLS.PeerCertificates[0].DNSNames; len(got) != 1 || got[0] != "*.x.test" {
				t.Errorf("the certificate is for %q, want the wildcard alone", got)
			}
		})
	}
	if _, err := n.leaf("x.test", authority.Roots); err == nil {
		t.Error("the wildcard's certificate is served for its parent")
	}
	if records, err := lookup(knot, "_acme-challenge.x.test", dns.TypeTXT); err != nil || len(records) > 0 {
		t.Errorf("challenge records are left behind: %v, %v", records, err)
	}

	t.Run("failures leave the rest alone", func(t *testing.T) {
		n := n.in(t)
		n.put("domains/b.x.test", `{"provider": "nope"}`)
		n.verdictHas("domains/b.x.test", "degraded: ", `"nope"`, "knot, stranger")
		n.put("domains/b.x.test", `{"provider": "stranger"}`)
		n.verdictHas("domains/b.x.test", "degraded: ", "TSIG key edge-key.")
		if v := n.put("domains/b.x.test", `{"provider": "knot", "ttl": 5}`); !strings.HasPrefix(v, "refused: ") || !strings.Contains(v, "ttl") {
			t.Errorf("a field that does not exist: %s", v)
		}
		if _, body := newClientWith(t, n, "h2", authority.Roots).get("b.x.test", "/"); body != "b.x.test" {
			t.Errorf("by the wildcard: body %q", body)
		}
		n.put("domains/b.x.test", `{"provider": "knot"}`)
		n.verdictHas("domains/b.x.test", "applied@", "obtained until ")
		leaf, err := n.leaf("b.x.test", authority.Roots)
		if err != nil || leaf.DNSNames[0] != "b.x.test" {
			t.Errorf("%v, %v, want a certificate of its own", leaf, err)
		}
	})

	// A restart needs nobody: the certificate is on disk.
	before, err := n.leaf("a.x.test", authority.Roots)
	if err != nil {
		t.Fatal(err)
	}
	orders := authority.Orders()
	authority.Down(true)
	if code := n.stop(); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	n.start()
	n.verdictHas("domains/*.x.test", "applied@", "obtained until ")
	after, err := n.leaf("a.x.test", authority.Roots)
	if err != nil {
		t.Fatal(err)
	}
	if !after.Equal(before) {
		t.Error("the restart brought another certificate")
	}
	if got := authority.Orders(); got != orders {
		t.Errorf("the restart made %d orders", got-orders)
	}
}
