package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// sluice is the binary that make build leaves.
func sluice() contender {
	return sluiceOf(judged, func(o *options) string { return o.sluice })
}

// baselineName is the contender's that is another build of sluice.
const baselineName = "baseline"

func baseline() contender {
	return sluiceOf(baselineName, func(o *options) string { return o.baseline })
}

func sluiceOf(name string, binary func(*options) string) contender {
	return contender{
		name:  name,
		tools: []tool{etcdctlTool},
		start: func(ctx context.Context, s *site) (*edge, error) {
			s.binary = binary(s.options)
			n, err := startSluice(ctx, s, len(services()))
			if err != nil {
				return nil, err
			}
			if err := n.loadServices(ctx, s.origin); err != nil {
				n.edge.proc.stop()
				return nil, err
			}
			n.edge.name = name
			return n.edge, nil
		},
		version: func(ctx context.Context, o *options) string { return sluiceVersion(ctx, binary(o)) },
	}
}

// sluiceNode is a sluice that runs, with the way to tell it what to do.
type sluiceNode struct {
	edge    *edge
	etcd    etcdctl
	ports   sluicePorts
	started time.Duration // from the process's start until it said that it was ready
	// startCPU is the CPU time it took until then, which others at work on the
	// machine do not stretch.
	startCPU time.Duration
}

// sluicePorts is where a node listens beside its services.
type sluicePorts struct {
	Name        string // of the node; "": bench
	Etcd, Admin netip.AddrPort
	External    bool   // etcd is a process of its own
	DNS         bool   // there is a DNS provider, so that names can be listed
	Names       string // the DNS server whose zone bench.test the node may update, host:port; "": none
	Low, High   int    // the range of its mappings
}

// startSluice starts a node that may have so many mappings and has none yet. It
// returns once the node says that it is ready.
func startSluice(ctx context.Context, s *site, mappings int) (*sluiceNode, error) {
	addrs, ports, err := s.sluiceAddrs(mappings)
	if err != nil {
		return nil, err
	}
	n := &sluiceNode{edge: &edge{name: "sluice", addrs: addrs, admin: ports.Admin}, ports: ports}
	return n, n.start(ctx, s)
}

// start runs the node where its ports say and returns once it says that it is
// ready. On error nothing is left running.
func (n *sluiceNode) start(ctx context.Context, s *site) error {
	config, err := s.writeConfig("sluice.yaml", configValues{Listen: n.edge.addrs.byName(), Sluice: n.ports})
	if err != nil {
		return err
	}
	if n.etcd, err = newEtcdctl(n.ports.Etcd); err != nil {
		return err
	}
	began := time.Now()
	var p *process
	if err := s.host.do(func() (err error) {
		p, err = startProcess("sluice", s.dir, nil, nil, s.binary, "run", "--config", config)
		return err
	}); err != nil {
		return fmt.Errorf("%w; run make build first, or give -sluice", err)
	}
	if err := until(ctx, p, startLimit, n.ready); err != nil {
		p.stop()
		return err
	}
	n.started = time.Since(began)
	n.edge.proc, n.edge.root = p, p.pid()
	if n.startCPU, err = cpuTime([]int{p.pid()}); err != nil {
		p.stop()
		return err
	}
	if n.edge.roots, err = readRoots(filepath.Join(s.dir, "data", "ca.pem")); err != nil {
		p.stop()
	}
	return err
}

// sluiceAddrs picks a node's ports. Its mappings begin with those for echo, blast
// and UDP.
func (s *site) sluiceAddrs(mappings int) (addressBook, sluicePorts, error) {
	low, err := s.ports.pickRange(mappings)
	if err != nil {
		return nil, sluicePorts{}, err
	}
	ports := sluicePorts{Low: low, High: low + mappings - 1}
	addrs := addressBook{serviceEcho: loopback(low), serviceBlast: loopback(low + 1), serviceUDP: loopback(low + 2)}
	var errs [4]error
	addrs[serviceHTTP], errs[0] = s.ports.pick()
	addrs[serviceHTTPS], errs[1] = s.ports.pick()
	addrs[serviceH3] = addrs[serviceHTTPS]
	ports.Etcd, errs[2] = s.ports.pick()
	ports.Admin, errs[3] = s.ports.pick()
	return addrs, ports, errors.Join(errs[:]...)
}

// ready returns nil when the node says that it has applied its first full load.
func (n *sluiceNode) ready(ctx context.Context) error {
	_, err := getAdmin(ctx, n.ports.Admin, "/readyz")
	return err
}

// loadServices has the node proxy the services to the origin.
func (n *sluiceNode) loadServices(ctx context.Context, origin addressBook) error {
	backend := origin[serviceHTTP]
	clear := n.edge.addrs[serviceHTTP].Port()
	return n.etcd.putAll(ctx, []keyValue{
		{"/sluice/routes/bench", fmt.Sprintf(`{"host":"%s","backend":"%v"}`, host, backend)},
		// A clear listener answers only the routes that name its port.
		{"/sluice/routes/bench-clear", fmt.Sprintf(`{"host":"%s","ports":"%d","backend":"%v"}`, host, clear, backend)},
		{mappingKey(int(n.edge.addrs[serviceEcho].Port())), origin[serviceEcho].String()},
		{mappingKey(int(n.edge.addrs[serviceBlast].Port())), origin[serviceBlast].String()},
		{"/sluice/ports/udp/" + strconv.Itoa(int(n.edge.addrs[serviceUDP].Port())), origin[serviceUDP].String()},
	})
}

func mappingKey(port int) string { return "/sluice/ports/tcp/" + strconv.Itoa(port) }

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the node's own CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the node's own CA: no certificate in %s", path)
	}
	return roots, nil
}

// sluiceVersion is what the binary says of itself and what its builder recorded.
func sluiceVersion(ctx context.Context, binary string) string {
	out, err := command(ctx, binary, "version").CombinedOutput()
	if err != nil {
		return "unknown: " + err.Error()
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first + " " + buildOf(binary)
}
