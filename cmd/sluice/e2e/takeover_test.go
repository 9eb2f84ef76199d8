package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/remotegpu/sluice/certs/certstest"
)

// gate holds up whoever passes it with an event that is waited for, until
// somebody opens it. It is safe for concurrent use.
type gate struct {
	mu      sync.Mutex
	shut    string // what its events begin with; "": it is open
	reached chan struct{}
	opened  chan struct{}
	counts  map[string]int // of events
}

// pass notes an event, and returns once it may go on.
func (g *gate) pass(event string) {
	g.mu.Lock()
	g.counts[event]++
	held := g.shut != "" && strings.HasPrefix(event, g.shut)
	opened := g.opened
	if held {
		g.shut = "" // one is enough
		close(g.reached)
	}
	g.mu.Unlock()
	if held {
		<-opened
	}
}

// close has the next event with that prefix held up, and returns what is closed
// once that is, and what opens the gate again.
func (g *gate) close(event string) (reached <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.reached, g.opened = event, make(chan struct{}), make(chan struct{})
	return g.reached, sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.shut = ""
		close(g.opened)
	})
}

// count returns how often there was an event.
func (g *gate) count(event string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts[event]
}

// issuing is three nodes that share an etcd, an authority and a DNS server, whose
// answers pass a gate.
type issuing struct {
	t         *testing.T
	etcd      *node // which serves nothing else
	nodes     []*node
	authority *certstest.ACME
	dns       *certstest.DNS
	gate      *gate
}

func startIssuing(t *testing.T) *issuing {
	t.Helper()
	x := &issuing{t: t, dns: certstest.NewDNS(t), gate: &gate{counts: map[string]int{}}}
	x.authority = certstest.NewACME(t, x.dns.Addr, certstest.ACMEOptions{})
	x.authority.After(func(path string, status int) {
		place, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		x.gate.pass(fmt.Sprintf("%s %d", place, status))
	})
	var added atomic.Bool
	x.dns.Twist(func(reply *dns.Msg) bool {
		switch {
		case reply.Opcode != dns.OpcodeUpdate:
		case len(x.dns.TXT("_acme-challenge.record.x.test")) > 0:
			x.gate.pass("record added")
		case len(x.dns.TXT("_acme-challenge.cleaned.x.test")) > 0:
			added.Store(true)
		case added.Swap(false):
			x.gate.pass("record deleted")
		}
		return true
	})
	x.etcd = startHost(t)
	for i := range 3 {
		n := newNode(t, withoutLocalCA(), withYAML(fmt.Sprintf(`acme: {directory: %q, ca_file: %q, resolvers: [%q]}
dns: {main: {provider: rfc2136, server: %[3]q, key_name: %[4]q, key_algorithm: %[5]s, key: %[6]q, zones: [x.test], nameservers: [%[3]q]}}`,
			x.authority.DirectoryURL, x.authority.RootsFile, x.dns.Addr, certstest.KeyName, certstest.KeyAlgorithm, certstest.Key)))
		n.edit("node: test\n", fmt.Sprintf("node: hk%d\n", i+1))
		n.useEtcdOf(x.etcd)
		if i > 0 {
			shareClusterKey(x.t, x.nodes[0], n)
		}
		n.start()
		x.nodes = append(x.nodes, n)
	}
	return x
}

// keys returns the keys below a folder of what the nodes share.
func (x *issuing) keys(folder string) []string {
	x.t.Helper()
	return strings.Fields(x.etcd.etcdctl("get", "--prefix", "--keys-only", "/sluice/acme/"+folder))
}

// holder returns the node that has the lock of a name.
func (x *issuing) holder(name string) *node {
	x.t.Helper()
	var found *node
	eventually(x.t, "a node has the lock of "+name, func() error {
		lines := x.etcd.etcdctl("get", "--prefix", "/sluice/acme/locks/issue_cert_"+name)
		for i, n := range x.nodes {
			if strings.Contains(lines, fmt.Sprintf("hk%d", i+1)) {
				found = n
				return nil
			}
		}
		return fmt.Errorf("below locks/ there is %q", lines)
	})
	return found
}

// served waits until a node serves a certificate for name, and returns it.
func (x *issuing) served(n *node, name string) (leaf *x509.Certificate) {
	x.t.Helper()
	eventually(x.t, fmt.Sprintf("%s serves a certificate for %s", filepath.Base(n.dir), name), func() (err error) {
		leaf, err = n.in(x.t).leaf(name, x.authority.Roots)
		return err
	})
	return leaf
}

// TestTakeover kills the node that obtains a certificate, at every step of the
// order. Another one obtains it instead; it is stored once and served by all, and
// neither a lock nor a challenge record is left.
func TestTakeover(t *testing.T) {
	t.Parallel()
	x := startIssuing(t)
	for _, step := range []struct {
		name, event string
		orders      int // that the certificate takes, all in all
	}{
		{"account", "sign-me-up 201", 1},
		{"order", "order-plz 201", 2},
		{"record", "record added", 2},
		{"challenge", "chalZ 200", 2},
		{"cleaned", "record deleted", 2},
		{"finalised", "finalize-order 200", 2},
		{"before-store", "certZ 200", 2},
		{"after-store", "", 1},
	} {
		t.Run(step.name, func(t *testing.T) { x.in(t).kill(step.name+".x.test", step.event, step.orders) })
	}
	t.Run("distribution", func(t *testing.T) { x.in(t).distribute(10) })
}

func (x *issuing) in(t *testing.T) *issuing {
	sub := *x
	sub.t = t
	return &sub
}

// kill has a certificate obtained and kills the node that is at it, once the
// event has happened and before it hears of it; "": once it is stored.
func (x *issuing) kill(name, event string, orders int) {
	t := x.t
	before := x.gate.count("order-plz 201")
	var reached <-chan struct{}
	open := func() {}
	if event != "" {
		reached, open = x.gate.close(event)
		defer open()
	}
	x.etcd.etcdctl("put", "/sluice/domains/"+name, "{}")
	if event != "" {
		eventually(t, "the order is at "+event, func() error {
			select {
			case <-reached:
				return nil
			default:
				return fmt.Errorf("it is not")
			}
		})
	}
	victim := x.holder(name)
	if event == "" {
		eventually(t, "the certificate is stored", func() error {
			if len(x.certificate(name)) == 0 {
				return fmt.Errorf("it is not")
			}
			return nil
		})
	}
	victim.cmd.Process.Kill()
	<-victim.exited
	open()

	eventually(t, "its locks are free", func() error {
		for _, key := range x.keys("locks/") {
			if value := x.etcd.etcdctl("get", key); strings.Contains(value, x.nameOf(victim)) {
				return fmt.Errorf("%s", value)
			}
		}
		return nil
	})
	var leaf *x509.Certificate
	for _, n := range x.nodes {
		if n == victim {
			continue
		}
		is := x.served(n, name)
		if leaf != nil && !is.Equal(leaf) {
			t.Errorf("two nodes serve two certificates")
		}
		leaf = is
	}
	x.leftNothing(name)
	if got := x.gate.count("order-plz 201") - before; got != orders {
		t.Errorf("%d orders, want %d", got, orders)
	}
	victim.start()
	if is := x.served(victim, name); !is.Equal(leaf) {
		t.Errorf("the node that was killed serves another certificate")
	}
}

func (x *issuing) nameOf(n *node) string {
	for i, other := range x.nodes {
		if other == n {
			return fmt.Sprintf("hk%d", i+1)
		}
	}
	return ""
}

// certificate returns the keys of what is stored for a name.
func (x *issuing) certificate(name string) (keys []string) {
	x.t.Helper()
	for _, key := range x.keys("certificates/") {
		if strings.Contains(key, "/"+name+"/") {
			keys = append(keys, key)
		}
	}
	return keys
}

// leftNothing checks that an order has left its certificate, once and sealed,
// and nothing else.
func (x *issuing) leftNothing(name string) {
	t := x.t
	t.Helper()
	eventually(t, "nothing is left of the order", func() error {
		switch {
		case len(x.keys("locks/")) > 0:
			return fmt.Errorf("locks: %q", x.keys("locks/"))
		case len(x.dns.TXT("_acme-challenge."+name)) > 0:
			return fmt.Errorf("challenge records: %q", x.dns.TXT("_acme-challenge."+name))
		}
		return nil
	})
	stored := x.certificate(name)
	if len(stored) != 3 {
		t.Errorf("stored: %q, want one certificate", stored)
	}
	for _, key := range stored {
		if value := x.etcd.etcdctl("get", "--print-value-only", key); bytes.Contains([]byte(value), []byte("-----BEGIN")) || strings.Contains(value, "sans") {
			t.Errorf("%s is in clear", key)
		}
	}
}

// distribute has certificates obtained, first one after the other and then many
// at once, and reports how long they took from being stored to being served by
// the nodes, most of which did not obtain them.
func (x *issuing) distribute(names int) {
	x.t.Helper()
	start := x.distribution()
	for i := range names {
		name := fmt.Sprintf("one%d.x.test", i)
		x.etcd.etcdctl("put", "/sluice/domains/"+name, "{}")
		x.servedByAll(name)
	}
	crowd := x.distribution()
	x.report("one by one", start, crowd)
	for i := range 3 * names {
		x.etcd.etcdctl("put", fmt.Sprintf("/sluice/domains/n%d.x.test", i), "{}")
	}
	for i := range 3 * names {
		x.servedByAll(fmt.Sprintf("n%d.x.test", i))
	}
	x.report("many at once", crowd, x.distribution())
}

// servedByAll waits until all nodes serve the same certificate for a name.
func (x *issuing) servedByAll(name string) {
	x.t.Helper()
	first := x.served(x.nodes[0], name)
	for _, n := range x.nodes[1:] {
		if !x.served(n, name).Equal(first) {
			x.t.Errorf("the nodes serve several certificates for %s", name)
		}
	}
}

// distribution returns how many certificates took at most how many seconds, by
// the metric of all nodes together.
func (x *issuing) distribution() map[string]float64 {
	x.t.Helper()
	all := map[string]float64{}
	for _, n := range x.nodes {
		_, body, err := n.adminGet("/metrics")
		if err != nil {
			x.t.Fatal(err)
		}
		for line := range strings.Lines(body) {
			rest, ok := strings.CutPrefix(line, "sluice_certs_distribution_seconds_bucket{le=\"")
			if !ok {
				continue
			}
			bound, count, _ := strings.Cut(strings.TrimSpace(rest), "\"} ")
			is, err := strconv.ParseFloat(count, 64)
			if err != nil {
				x.t.Fatal(err)
			}
			all[bound] += is
		}
	}
	return all
}

func (x *issuing) report(what string, before, after map[string]float64) {
	total := after["+Inf"] - before["+Inf"]
	text := fmt.Sprintf("%s, from stored to served, of %.0f:", what, total)
	for _, bound := range []string{"0.001", "0.004", "0.016", "0.064", "0.256", "1.024"} {
		text += fmt.Sprintf(" %.1f%% within %ss,", 100*(after[bound]-before[bound])/total, bound)
	}
	x.t.Log(strings.TrimSuffix(text, ","))
}
