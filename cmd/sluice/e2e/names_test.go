package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"github.com/remotegpu/sluice/certs/certstest"
)

// namesCluster is three nodes on one host, each with an address of its own, the
// first of them with the etcd of all, beside a Knot that they update.
type namesCluster struct {
	t     *testing.T
	knot  *certstest.Knot
	nodes []*node
}

func nameAddr(i int) string { return fmt.Sprintf("10.9.0.%d", i+1) }

func startNamesCluster(t *testing.T) *namesCluster {
	t.Helper()
	h := newHost(t)
	commands := "link set lo up\n"
	for i := range 3 {
		commands += fmt.Sprintf("addr add %s/32 dev lo\n", nameAddr(i))
	}
	h.ip(commands)
	c := &namesCluster{t: t, knot: certstest.NewKnotIn(t, h.do, certstest.KnotZone{Name: "x.test", Records: []string{"theirs A 203.0.113.9"}})}
	for i := range 3 {
		n := newNode(t, withHost(h, ""), withYAML(fmt.Sprintf(`fleet: {addresses: [%s]}
dns:
  knot: {provider: rfc2136, server: %q, key_name: %s, key_algorithm: %s, key: %q, zones: [x.test]}
`, nameAddr(i), c.knot.Addr, certstest.KeyName, certstest.KeyAlgorithm, certstest.Key)))
		if i > 0 {
			n.edit("node: test\n", fmt.Sprintf("node: hk%d\n", i+1))
			n.edit(fmt.Sprintf("etcd: {listen: %q}", n.Etcd), fmt.Sprintf("etcd: {endpoints: [%q]}", "http://"+c.nodes[0].Etcd))
		}
		n.start()
		c.nodes = append(c.nodes, n)
	}
	return c
}

// has waits until Knot has these addresses of a name, and no others.
func (c *namesCluster) has(name string, want ...string) {
	c.t.Helper()
	eventually(c.t, "the addresses of "+name, func() error {
		m, err := c.knot.Ask(name, dns.TypeA)
		if err != nil {
			return err
		}
		var got []string
		for _, rr := range m.Answer {
			got = append(got, rr.(*dns.A).A.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("they are %v, want %v", got, want)
		}
		return nil
	})
}

// command runs a command of the program on the host, where it is to end with code.
func (c *namesCluster) command(code int, args ...string) string {
	c.t.Helper()
	cmd := exec.Command(binary, append(args, "--config", filepath.Join(c.nodes[0].dir, "sluice.yaml"))...)
	out, _ := c.nodes[0].host.run(cmd)
	if got := cmd.ProcessState.ExitCode(); got != code {
		c.t.Fatalf("sluice %s: exit code %d, want %d; it said\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// Whoever puts a name that no node keeps, or asks for it, is told so at once.
func TestNamesThatNobodyKeeps(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	if v := n.put("names/edge.x.test", "{}"); !strings.HasPrefix(v, "degraded: no_provider: no node that runs has a DNS provider") {
		t.Errorf("the verdict is %q", v)
	}
	plan := func(want string) {
		t.Helper()
		for _, command := range []string{"plan", "apply"} {
			// Who waits for an hour is given up before.
			code, stdout, stderr := runSluice(t, n.dir, "dns", command, "edge.x.test", "--config", "sluice.yaml", "--wait", "1h")
			if code != 1 || !strings.Contains(stdout+stderr, want) {
				t.Errorf("dns %s: exit code %d, %s%s, want %q", command, code, stdout, stderr, want)
			}
		}
	}
	plan("no node leads names, since none that runs has a DNS provider; add one under dns")
	if _, _, stderr := runSluice(t, n.dir, "dns", "ls", "--config", "sluice.yaml"); !strings.Contains(stderr, "no node leads names") {
		t.Errorf("dns ls said %q", stderr)
	}

	// One has a provider, and that one does not have the zone.
	other := newNode(t, withYAML(fmt.Sprintf("dns: {knot: {provider: rfc2136, server: %q, key_name: k, key: %s, zones: [y.test]}}",
		loopback(1), certstest.Key)))
	other.edit("node: test\n", "node: other\n")
	other.useEtcdOf(n)
	other.start()
	n.wantVerdict("names/edge.x.test", "applied@")
	plan("no_zone: the DNS provider knot in the file of other lists no zone that edge.x.test is in")
	eventually(t, "the node with a provider says so", func() error {
		if v, _ := n.get("verdicts/other/names/edge.x.test"); !strings.HasPrefix(v, "degraded: no_zone") {
			return fmt.Errorf("it says %q", v)
		}
		return nil
	})
}

// Three nodes publish a name and a wildcard at a real server. One dies and
// returns; what is not theirs they leave alone until they are told to take it.
func TestNamesInDNS(t *testing.T) {
	t.Parallel()
	c := startNamesCluster(t)
	first := c.nodes[0]
	first.put("names/edge.x.test", `{"ttl": 5, "interval": "1s"}`)
	first.put("names/*.env.x.test", `{"zone": "x.test"}`)
	first.put("names/theirs.x.test", `{}`)
	all := []string{nameAddr(0), nameAddr(1), nameAddr(2)}
	c.has("edge.x.test", all...)
	c.has("anything.env.x.test", all...)
	says := func(name string, parts ...string) {
		t.Helper()
		eventually(t, "what the leader says of "+name, func() error {
			out := first.etcdctl("get", "--prefix", "/sluice/verdicts/")
			for _, part := range parts {
				if !strings.Contains(out, part) {
					return fmt.Errorf("no verdict has %q:\n%s", part, out)
				}
			}
			return nil
		})
	}
	says("edge.x.test", "published 10.9.0.1 10.9.0.2 10.9.0.3 in x.test by knot (rfc2136)")
	says("theirs.x.test", "degraded: not_owned: there are records of theirs.x.test (203.0.113.9)")

	dead := c.nodes[2]
	dead.signal(syscall.SIGKILL)
	<-dead.exited
	*dead.code = 0
	c.has("edge.x.test", all[:2]...)
	c.has("anything.env.x.test", all[:2]...)
	dead.start()
	c.has("edge.x.test", all...)

	c.has("theirs.x.test", "203.0.113.9")
	out := c.command(1, "dns", "plan", "theirs.x.test")
	if !strings.Contains(out, "sluice dns apply --adopt theirs.x.test") {
		t.Errorf("the plan does not say what to do:\n%s", out)
	}
	c.command(0, "dns", "apply", "--adopt", "theirs.x.test")
	c.has("theirs.x.test", all...)
	out = c.command(0, "dns", "ls")
	if strings.Count(out, "published") != 3 {
		t.Errorf("the names are\n%s", out)
	}
}
