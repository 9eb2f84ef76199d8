package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	knotTool    = tool{pkg: "knot", file: "knotd"}
	unboundTool = tool{pkg: "unbound", file: "unbound"}
)

// dnsRig is nodes on machines of their own, and on the bench's an etcd, Debian's
// Knot with a zone that the nodes may update, and Debian's unbound, which asks
// Knot and keeps answers for as long as their TTL says.
type dnsRig struct {
	bench    *bench
	net      *nodeNet
	store    *etcdServer
	sites    []*site
	nodes    []*sluiceNode
	servers  []*process
	knot     string // host:port
	resolver string
	moved    []netip.Addr // where nodes move to, and back from
}

func (r *dnsRig) close() {
	for _, n := range r.nodes {
		syscall.Kill(-n.edge.proc.pid(), syscall.SIGCONT) // a frozen one could not end
		n.edge.proc.stop()
	}
	for _, p := range r.servers {
		p.stop()
	}
	if r.store != nil {
		r.store.close()
	}
	r.net.close()
}

func (b *bench) newDNSRig(ctx context.Context) (*dnsRig, error) {
	where, err := newNodeNet(ctx, b.options, dnsNodes)
	if err != nil {
		return nil, err
	}
	r := &dnsRig{bench: b, net: where, knot: netip.AddrPortFrom(where.here, 53).String(), resolver: "127.0.0.1:53"}
	for _, h := range where.hosts {
		as4 := h.addr.As4()
		as4[3] += 100
		r.moved = append(r.moved, netip.AddrFrom4(as4))
	}
	for _, step := range []func(context.Context) error{r.startKnot, r.startUnbound, r.startEtcd, r.startNodes, r.publish} {
		if err := step(ctx); err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

// serve starts a DNS server with a configuration and waits until it answers.
func (r *dnsRig) serve(ctx context.Context, t tool, at string, conf func(dir string) string, args func(path string) []string) error {
	s, err := r.bench.site("dns-" + t.file)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, t.file+".conf")
	if err := os.WriteFile(path, []byte(conf(s.dir)), 0o644); err != nil {
		return err
	}
	program, err := t.path()
	if err != nil {
		return err
	}
	p, err := startProcess(t.file, s.dir, nil, nil, append([]string{program}, args(path)...)...)
	if err != nil {
		return err
	}
	r.servers = append(r.servers, p)
	return until(ctx, p, startLimit, func(ctx context.Context) error {
		got, err := lookUp(ctx, at, dnsPlain)
		if err == nil && len(got) != dnsNodes {
			err = fmt.Errorf("%s has the addresses %v", dnsPlain, got)
		}
		return err
	})
}

func (r *dnsRig) startKnot(ctx context.Context) error {
	zone := fmt.Sprintf("$ORIGIN %s.\n$TTL %d\n@ SOA ns hostmaster 1 3600 3600 7200 1\n@ NS ns\nns A %v\nmail A 203.0.113.9\nedge MX 10 mail\nedge CAA 0 issue \"ca.test\"\n", dnsZone, dnsTTL, r.net.here)
	for _, h := range r.net.hosts {
		zone += fmt.Sprintf("plain A %v\n", h.addr)
	}
	host, port, _ := net.SplitHostPort(r.knot)
	return r.serve(ctx, knotTool, r.knot, func(dir string) string {
		// A failure to write the zone shows as Knot's own.
		_ = os.WriteFile(filepath.Join(dir, "zone"), []byte(zone), 0o644)
		return fmt.Sprintf(`server:
    rundir: %[1]q
    listen: %[2]s@%[3]s
database:
    storage: %[1]q
log:
  - target: stderr
    any: info
key:
  - id: bench
    algorithm: hmac-sha256
    secret: YmVuY2g=
acl:
  - id: nodes
    key: bench
    action: update
  - id: bench
    address: %[2]s
    action: transfer
zone:
  - domain: %[4]s
    storage: %[1]q
    file: zone
    acl: [nodes, bench]
`, dir, host, port, dnsZone)
	}, func(path string) []string { return []string{"-c", path} })
}

func (r *dnsRig) startUnbound(ctx context.Context) error {
	host, port, _ := net.SplitHostPort(r.resolver)
	at, _, _ := net.SplitHostPort(r.knot)
	return r.serve(ctx, unboundTool, r.resolver, func(dir string) string {
		return fmt.Sprintf(`server:
    directory: %[1]q
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    interface: %[2]s
    port: %[3]s
    do-ip6: no
    module-config: "iterator"
    rrset-roundrobin: yes
    num-threads: 1
    local-zone: "test." nodefault
stub-zone:
    name: %[4]q
    stub-addr: %[5]s
remote-control:
    control-enable: no
`, dir, host, port, dnsZone, at)
	}, func(path string) []string { return []string{"-d", "-c", path} })
}

func (r *dnsRig) startEtcd(ctx context.Context) (err error) {
	r.store, err = r.bench.startEtcd(ctx, "dns-etcd", netip.AddrPortFrom(r.net.here, 2379))
	return err
}

func (r *dnsRig) startNodes(ctx context.Context) error {
	for i, h := range r.net.hosts {
		n, s, err := r.bench.startNodeOn(ctx, h, netip.IPv4Unspecified(), sluicePorts{
			Name: fmt.Sprintf("dns%d", i), Etcd: r.store.addr, External: true, Names: r.knot, Low: 8000, High: 8000,
		})
		if err != nil {
			return err
		}
		r.nodes, r.sites = append(r.nodes, n), append(r.sites, s)
	}
	return nil
}

// publish has the name kept, and waits until it is there.
func (r *dnsRig) publish(ctx context.Context) error {
	value := fmt.Sprintf(`{"zone":%q,"ttl":%d,"interval":"5s"}`, dnsZone, dnsTTL)
	if err := r.store.putAll(ctx, []keyValue{{"/sluice/names/" + dnsKept, value}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	for {
		got, err := lookUp(ctx, r.knot, dnsKept)
		if err == nil && len(got) == dnsNodes {
			return nil
		}
		if wait(ctx, pollInterval) != nil {
			return fmt.Errorf("%s is not published with %d addresses: %v, %w", dnsKept, dnsNodes, got, err)
		}
	}
}

func (r *dnsRig) kill(ctx context.Context, watch *dnsWatch, f *dnsFault) error {
	n := r.nodes[f.Node]
	return r.fails(ctx, watch, f, func() error {
		err := syscall.Kill(-n.edge.proc.pid(), syscall.SIGKILL)
		<-n.edge.proc.done
		return err
	}, func() error { return n.start(ctx, r.sites[f.Node]) })
}

func (r *dnsRig) freeze(ctx context.Context, watch *dnsWatch, f *dnsFault) error {
	send := func(s syscall.Signal) func() error {
		return func() error { return syscall.Kill(-r.nodes[f.Node].edge.proc.pid(), s) }
	}
	return r.fails(ctx, watch, f, send(syscall.SIGSTOP), send(syscall.SIGCONT))
}

// partition takes a node's cable out.
func (r *dnsRig) partition(ctx context.Context, watch *dnsWatch, f *dnsFault) error {
	set := func(state string) func() error {
		return func() error { return ip(ctx, fmt.Sprintf("link set node%d %s\n", f.Node, state)) }
	}
	return r.fails(ctx, watch, f, set("down"), set("up"))
}

// move gives a node another address in place of its own, and then its own again:
// what it loses goes, and what it gets comes, from the same moment on.
func (r *dnsRig) move(ctx context.Context, watch *dnsWatch, f *dnsFault) error {
	h := r.net.hosts[f.Node]
	for _, way := range [][2]netip.Addr{{h.addr, r.moved[f.Node]}, {r.moved[f.Node], h.addr}} {
		began := time.Now()
		if err := h.do(func() error {
			return ip(ctx, fmt.Sprintf("addr del %v/24 dev tobench\naddr add %v/24 dev tobench\n", way[0], way[1]))
		}); err != nil {
			return err
		}
		gone, err := watch.until(ctx, func(is []netip.Addr) bool { return !slices.Contains(is, way[0]) })
		if err != nil {
			return fmt.Errorf("the record of %v stays: %w", way[0], err)
		}
		back, err := watch.until(ctx, func(is []netip.Addr) bool { return slices.Contains(is, way[1]) })
		if err != nil {
			return fmt.Errorf("there is no record of %v: %w", way[1], err)
		}
		f.Out = max(f.Out, gone.Sub(began).Seconds())
		f.Back = max(f.Back, back.Sub(began).Seconds())
		if err := wait(ctx, time.Until(began.Add(dnsOutage))); err != nil {
			return err
		}
	}
	return nil
}

// takesConnections waits until clients can connect to a node.
func (r *dnsRig) takesConnections(ctx context.Context, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	for {
		err := takes(ctx, addr)
		if err == nil {
			return nil
		}
		if wait(ctx, pollInterval) != nil {
			return fmt.Errorf("it takes no connections: %w", err)
		}
	}
}

// said returns what nodes say of the name, and who leads.
func (r *dnsRig) said(ctx context.Context) string {
	var all []string
	for _, folder := range []string{"/sluice/leaders/names", "/sluice/verdicts/", "/sluice/dns/state/", "/sluice/members/", "/sluice/health/"} {
		got, err := r.store.client.Get(ctx, folder, clientv3.WithPrefix())
		if err != nil {
			return err.Error()
		}
		for _, kv := range got.Kvs {
			all = append(all, fmt.Sprintf("%s: %s", kv.Key, kv.Value))
		}
	}
	return strings.Join(all, "\n")
}

// foreign returns the records of the zone that are nobody's to change but those
// of whoever made the zone.
func (r *dnsRig) foreign(context.Context) ([]string, error) {
	answers, err := new(dns.Transfer).In(new(dns.Msg).SetAxfr(dnsZone+"."), r.knot)
	if err != nil {
		return nil, fmt.Errorf("read the zone: %w", err)
	}
	var all []string
	var failed error
	for a := range answers {
		failed = errors.Join(failed, a.Error)
		for _, rr := range a.RR {
			own := rr.Header().Name == dnsKept+"." && slices.Contains([]uint16{dns.TypeA, dns.TypeAAAA}, rr.Header().Rrtype)
			if !own && rr.Header().Rrtype != dns.TypeSOA && !strings.HasPrefix(rr.Header().Name, "_sluice-edge.") {
				all = append(all, rr.String())
			}
		}
	}
	return all, failed
}

// lookUp asks a server for the IPv4 addresses of a name.
func lookUp(ctx context.Context, at, name string) ([]netip.Addr, error) {
	client := dns.Client{Timeout: time.Second}
	m, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(name+".", dns.TypeA), at)
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("%s says %s", at, dns.RcodeToString[m.Rcode])
	}
	var all []netip.Addr
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				all = append(all, addr)
			}
		}
	}
	return all, nil
}

// takes reports whether a node takes a connection as clients make it.
func takes(ctx context.Context, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(addr, 443).String())
	if err != nil {
		return err
	}
	closeHard(conn)
	return nil
}
