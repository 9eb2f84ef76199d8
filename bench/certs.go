package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// certsResult is what a node with many certificates takes to start, to hold them
// and to shake hands, and how long a new one takes to get there.
type certsResult struct {
	Few    int          `json:"few_names"`
	Many   int          `json:"many_names"`
	Starts []certsStart `json:"starts"`
	// MemoryFew and MemoryMany are of nodes with so many.
	MemoryFew  footprint `json:"few_memory"`
	MemoryMany footprint `json:"many_memory"`
	// Shakes are the CPU time of a full handshake, in microseconds: the two
	// nodes had their turns one after the other in each round.
	ShakesFew  []float64 `json:"few_handshake_cpu_us"`
	ShakesMany []float64 `json:"many_handshake_cpu_us"`
	// Returned and Sent are the times from a certificate stored, and from before
	// it was sent to etcd, to the first handshake of the last node that got it.
	Returned []float64 `json:"stored_to_served_ms"`
	Sent     []float64 `json:"sent_to_served_ms"`
}

// certsStart is one start with all certificates in etcd.
type certsStart struct {
	Cold   float64 `json:"cold_ms"`        // to ready, with nothing on disk but the cluster key
	All    float64 `json:"cold_served_ms"` // until all certificates are opened and in use
	Warm   float64 `json:"warm_ms"`        // to ready with all of them on disk, and in use by then
	Needed float64 `json:"warm_cpu_ms"`
}

const (
	certsFew         = 10
	certsStarts      = 3
	certsIssuer      = "acme-v02.api.letsencrypt.org-directory"
	certsServedLimit = 1000.0 // ms
	certsShakeLimit  = 1.1
	certsRSSLimit    = 32 << 10 // bytes for each certificate
)

// certsCluster is nodes on one etcd that share certificates, and a store that is
// one more node's part in that.
type certsCluster struct {
	bench  *bench
	name   string
	server *etcdServer
	at     sluicePorts // of which Etcd counts
	client *etcd.Client
	store  *etcdstore.Store
	key    seal.Key
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	serial atomic.Int64
	nodes  []*sluiceNode
}

func (c *certsCluster) close() {
	for _, n := range c.nodes {
		n.edge.proc.stop()
	}
	if c.store != nil {
		c.store.Close()
	}
	if c.client != nil {
		c.client.Close()
	}
	c.server.close()
}

// newCertsCluster starts an etcd with so many names and their certificates. The
// caller closes it.
func (b *bench) newCertsCluster(ctx context.Context, name string, names int) (*certsCluster, error) {
	s, err := b.site(name + "-etcd")
	if err != nil {
		return nil, err
	}
	at, err := s.ports.pick()
	if err != nil {
		return nil, err
	}
	server, err := startEtcd(ctx, s, at)
	if err != nil {
		return nil, err
	}
	c := &certsCluster{bench: b, name: name, server: server, at: sluicePorts{Etcd: at}, key: seal.NewKey()}
	if err := c.fill(ctx, s.dir, names); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func certsName(i int) string { return fmt.Sprintf("n%05d.certs.test", i) }

// fill stores certificates as a node does, several at a time, and lists their
// names.
func (c *certsCluster) fill(ctx context.Context, dir string, names int) (err error) {
	keyFile := filepath.Join(dir, "cluster.key")
	if err = seal.WriteFile(keyFile, []seal.Key{c.key}, false); err != nil {
		return err
	}
	if c.client, err = etcd.Dial(etcd.Config{Endpoints: []string{"http://" + c.at.Etcd.String()}, Prefix: "/sluice"}); err != nil {
		return err
	}
	if c.store, err = etcdstore.New(etcdstore.Config{Client: c.client, Node: "store", KeyFile: keyFile}); err != nil {
		return err
	}
	if err = c.makeAuthority(); err != nil {
		return err
	}
	const atOnce = 16
	errs := make([]error, atOnce)
	var next atomic.Int64
	var storing sync.WaitGroup
	for w := range errs {
		storing.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= names {
					return
				}
				_, errs[w] = c.put(ctx, certsName(i))
			}
		})
	}
	storing.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	all := make([]keyValue, names)
	for i := range all {
		all[i] = keyValue{"/sluice/domains/" + certsName(i), "{}"}
	}
	return c.server.putAll(ctx, all)
}

func (c *certsCluster) makeAuthority() (err error) {
	if c.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	c.ca, _, err = c.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, c.caKey)
	return err
}

func (c *certsCluster) sign(tmpl *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, []byte, error) {
	now := time.Now()
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(c.serial.Add(1)), now.Add(-time.Hour), now.Add(90*24*time.Hour)
	parent := c.ca
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), c.caKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// put stores another certificate of name, with a key of its own and that of the
// authority behind it.
func (c *certsCluster) put(ctx context.Context, name string) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, chain, err := c.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Raw})...)
	return leaf, c.store.PutStored(ctx, &certs.Stored{
		Issuer: certsIssuer, Name: name, Chain: chain, Meta: []byte("{}"),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	})
}

// node starts a node with the cluster key and nothing else on its disk.
func (c *certsCluster) node(ctx context.Context, name string) (*sluiceNode, *site, error) {
	s, err := c.bench.site(name)
	if err != nil {
		return nil, nil, err
	}
	data := filepath.Join(s.dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, nil, err
	}
	if err := seal.WriteFile(filepath.Join(data, "cluster.key"), []seal.Key{c.key}, false); err != nil {
		return nil, nil, err
	}
	addrs, ports, err := s.sluiceAddrs(len(services()))
	if err != nil {
		return nil, nil, err
	}
	ports.Etcd, ports.External, ports.DNS, ports.Name = c.at.Etcd, true, true, name
	n := &sluiceNode{edge: &edge{name: judged, addrs: addrs, admin: ports.Admin}, ports: ports}
	if err := n.start(ctx, s); err != nil {
		return nil, nil, err
	}
	n.edge.roots = c.roots()
	return n, s, nil
}

func (c *certsCluster) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(c.ca)
	return roots
}

// hasCerts waits until a node has so many certificates in use.
func hasCerts(ctx context.Context, n *sluiceNode, want int) error {
	return until(ctx, n.edge.proc, 2*startLimit, func(ctx context.Context) error {
		text, err := getAdmin(ctx, n.ports.Admin, "/metrics")
		if err != nil {
			return err
		}
		obtained, err := metric(text, `sluice_certs_domains{state="obtained"}`)
		if err == nil && int(obtained) < want {
			err = fmt.Errorf("%.0f of %d certificates are in use", obtained, want)
		}
		return err
	})
}

func runCerts(ctx context.Context, b *bench) error {
	res := &certsResult{Few: certsFew, Many: b.options.certs}
	few, err := b.newCertsCluster(ctx, "certs-few", res.Few)
	if err != nil {
		return err
	}
	defer few.close()
	many, err := b.newCertsCluster(ctx, "certs-many", res.Many)
	if err != nil {
		return err
	}
	defer many.close()
	n, _, err := few.node(ctx, "certs-few")
	if err != nil {
		return err
	}
	few.nodes = append(few.nodes, n)
	if err := hasCerts(ctx, n, res.Few); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return many.measureStarts(ctx, res) },
		func() (err error) { res.MemoryFew, err = settled(ctx, few.nodes[0].edge); return err },
		func() (err error) { res.MemoryMany, err = settled(ctx, many.nodes[0].edge); return err },
		func() error { return b.measureShakes(ctx, res, few.nodes[0], many.nodes[0]) },
		func() error { return many.follow(ctx, res, b.options.puts) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	b.result.Certs = res
	return nil
}

// measureStarts leaves two nodes running, the first of which has its
// certificates from its disk.
func (c *certsCluster) measureStarts(ctx context.Context, res *certsResult) error {
	for i := range min(c.bench.options.rounds, certsStarts) {
		began := time.Now()
		n, s, err := c.node(ctx, fmt.Sprintf("certs-many-%d", i))
		if err != nil {
			return err
		}
		if i < 2 {
			c.nodes = append(c.nodes, n)
		}
		one := certsStart{Cold: millis(n.started)}
		err = hasCerts(ctx, n, res.Many)
		one.All = millis(time.Since(began))
		n.edge.proc.stop()
		if err != nil {
			return err
		}
		if err := n.start(ctx, s); err != nil {
			return err
		}
		n.edge.roots = c.roots()
		one.Warm, one.Needed = millis(n.started), millis(n.startCPU)
		if err := hasCerts(ctx, n, res.Many); err != nil {
			return err
		}
		if i >= 2 {
			n.edge.proc.stop()
		}
		res.Starts = append(res.Starts, one)
		fmt.Fprintf(c.bench.out, "certs     %d  ready in %.0f ms, all served in %.0f ms; again in %.0f ms\n", i+1, one.Cold, one.All, one.Warm)
	}
	return nil
}

// measureShakes has two nodes shake hands in turn.
func (b *bench) measureShakes(ctx context.Context, res *certsResult, few, many *sluiceNode) error {
	turn := func(n *sluiceNode, names int) (float64, error) {
		all := make([]string, names)
		for i := range all {
			all[i] = certsName(i)
		}
		s, err := handshakes{atOnce: 8, names: all}.measure(ctx, n.edge, b.options.phases)
		return s.Cost, err
	}
	for range b.options.rounds {
		one, err := turn(few, res.Few)
		if err != nil {
			return err
		}
		other, err := turn(many, res.Many)
		if err != nil {
			return err
		}
		res.ShakesFew, res.ShakesMany = append(res.ShakesFew, one), append(res.ShakesMany, other)
	}
	return nil
}

// follow stores certificates anew and takes the time until the last node serves
// each.
func (c *certsCluster) follow(ctx context.Context, res *certsResult, puts int) error {
	for i := range puts {
		name := certsName(i * 7919 % res.Many)
		sent := time.Now()
		leaf, err := c.put(ctx, name)
		if err != nil {
			return err
		}
		returned := time.Now()
		for _, n := range c.nodes {
			if err := c.served(ctx, n, name, leaf); err != nil {
				return errors.Join(err, n.edge.proc.alive())
			}
		}
		res.Returned = append(res.Returned, millis(time.Since(returned)))
		res.Sent = append(res.Sent, millis(time.Since(sent)))
	}
	return nil
}

// served shakes hands with a node until that shows the certificate.
func (c *certsCluster) served(ctx context.Context, n *sluiceNode, name string, leaf *x509.Certificate) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{RootCAs: n.edge.roots, ServerName: name}}
	for {
		conn, err := d.DialContext(ctx, "tcp", n.edge.addrs[serviceHTTPS].String())
		if err != nil {
			return fmt.Errorf("wait for the new certificate of %s: %w", name, err)
		}
		got := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
		conn.Close()
		if got.Equal(leaf) {
			return nil
		}
	}
}

// each is what one of the many certificates takes of resident memory.
func (r *certsResult) each() float64 {
	return float64(r.MemoryMany.RSS-r.MemoryFew.RSS) / float64(r.Many-r.Few)
}

// shakeRatio is of handshakes with many names to those with few, round by round.
func (r *certsResult) shakeRatio() spread {
	var s series
	for i := range r.ShakesMany {
		s.add(r.ShakesMany[i], r.ShakesFew[i])
	}
	return spreadOf(s.ratios)
}

func (r *certsResult) over(figure func(certsStart) float64) spread {
	var all []float64
	for _, s := range r.Starts {
		all = append(all, figure(s))
	}
	return spreadOf(all)
}

func (r *certsResult) section() string {
	ms := func(s spread) string {
		return fmt.Sprintf("%s ms (%s–%s)", figure(s.median), figure(s.min), figure(s.max))
	}
	row := func(all []float64) string {
		p := percentiles(slices.Clone(all), 50, 99, 100)
		return figure(p[0]) + " ms, " + figure(p[1]) + " ms, " + figure(p[2]) + " ms"
	}
	return align([][]string{
		{fmt.Sprintf("a node with %d names and certificates", r.Many), ""},
		{"from the start of the process to ready, with an empty disk", ms(r.over(func(s certsStart) float64 { return s.Cold }))},
		{"until all certificates have come from etcd and are in use", ms(r.over(func(s certsStart) float64 { return s.All }))},
		{"to ready with all of them on disk, and in use", ms(r.over(func(s certsStart) float64 { return s.Warm }))},
		{"CPU time until then", ms(r.over(func(s certsStart) float64 { return s.Needed }))},
		{"resident memory", fmt.Sprintf("%s; %s with %d names; %s for each certificate", byteSize(float64(r.MemoryMany.RSS)), byteSize(float64(r.MemoryFew.RSS)), r.Few, byteSize(r.each()))},
		{"CPU time of a full TLS 1.3 handshake, names at random", fmt.Sprintf("%s µs; %s µs with %d names; ratio %s",
			figure(median(slices.Clone(r.ShakesMany))), figure(median(slices.Clone(r.ShakesFew))), r.Few, ratioText(r.shakeRatio()))},
		{fmt.Sprintf("stored to served by the last of two nodes, %d certificates: p50, p99, longest", len(r.Returned)), row(r.Returned)},
		{"the same from before it was sent to etcd", row(r.Sent)},
	}) + "\netcd is Debian's, in a process of its own, and not counted.\n"
}

func (r *certsResult) bars() []bar {
	name := fmt.Sprintf("%d certificates: ", r.Many)
	p99 := percentiles(slices.Clone(r.Returned), 99)[0]
	ratio := r.shakeRatio()
	return []bar{
		{name + "p99 from stored to served by another node", "≤ " + figure(certsServedLimit) + " ms", figure(p99) + " ms", p99 <= certsServedLimit},
		{fmt.Sprintf("%sCPU of a handshake to that with %d", name, r.Few), "≤ " + times(certsShakeLimit), ratioText(ratio), ratio.median <= certsShakeLimit},
		{name + "resident memory of each", "≤ " + byteSize(certsRSSLimit), byteSize(r.each()), r.each() <= certsRSSLimit},
	}
}

func (r *certsResult) failures() []string { return nil }
