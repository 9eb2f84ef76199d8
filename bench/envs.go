package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// envsResult is what environments take that are created by the control API of
// three nodes.
type envsResult struct {
	Envs    int       `json:"environments"`
	Clients int       `json:"clients"`
	Nodes   int       `json:"nodes"`
	Took    []float64 `json:"post_ms"` // while all clients create
	Seconds float64   `json:"seconds"`
	Cost    envsCost  `json:"cost"`
	// Paced are those of a load of half that rate, from when each was due.
	Paced     []float64 `json:"paced_ms"`
	PacedRate float64   `json:"paced_rate"` // a second
	PacedCost envsCost  `json:"paced_cost"`

	Twice   []string  `json:"ports_twice"`    // ports that two environments have
	Audit   string    `json:"audit"`          // what sluice port audit found at the end
	Opened  []float64 `json:"answer_open_ms"` // from POST's answer to the ssh port's accepting on the last node
	Applied []float64 `json:"applied_ms"`     // POST?wait=applied
	Closed  int       `json:"applied_closed"` // ports that some node did not accept at then, at the first attempt
}

const (
	envsNodes     = 3
	envsClients   = 8
	envsMost      = 10000
	envsTookLimit = 50.0  // ms
	envsOpenLimit = 100.0 // ms
	// envsLow is where the pools' ports begin: above those that nodes listen on.
	envsLow = 8000
)

// envsServices are those of each environment; envsSSH is looked at.
func envsServices() []string { return []string{envsSSH, "jupyter", "code", "rdp"} }

const envsSSH = "ssh"

// envsCluster is nodes that all open the same ports, on one etcd, and who asks
// them.
type envsCluster struct {
	bench   *bench
	net     *nodeNet
	store   *etcdServer
	nodes   []*sluiceNode
	backend net.Listener // takes connections and ends them
	clients []*envsClient
}

func (c *envsCluster) close() {
	for _, client := range c.clients {
		client.http.CloseIdleConnections()
	}
	for _, n := range c.nodes {
		n.edge.proc.stop()
	}
	if c.backend != nil {
		c.backend.Close()
	}
	if c.store != nil {
		c.store.close()
	}
	c.net.close()
}

func (b *bench) newEnvsCluster(ctx context.Context) (*envsCluster, error) {
	where, err := newNodeNet(ctx, b.options, envsNodes)
	if err != nil {
		return nil, err
	}
	c := &envsCluster{bench: b, net: where}
	for _, step := range []func(context.Context) error{c.startBackend, c.startEtcd, c.startNodes, c.putPools, c.newClients} {
		if err := step(ctx); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// startBackend listens where all mappings lead.
func (c *envsCluster) startBackend(ctx context.Context) (err error) {
	if c.backend, err = new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(c.net.here, 22).String()); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := c.backend.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return nil
}

func (c *envsCluster) startEtcd(ctx context.Context) (err error) {
	c.store, err = c.bench.startEtcd(ctx, "envs-etcd", netip.AddrPortFrom(c.net.here, 2379))
	return err
}

func (c *envsCluster) startNodes(ctx context.Context) error {
	for i, h := range c.net.hosts {
		// Connections that the node makes take none of them.
		if err := h.do(func() error { return os.WriteFile(ephemeralRange, []byte("60000 65535"), 0) }); err != nil {
			return err
		}
		n, _, err := c.bench.startNodeOn(ctx, h, h.addr, sluicePorts{
			Name: fmt.Sprintf("envs%d", i), Etcd: c.store.addr, External: true,
			Low: envsLow, High: envsLow + len(envsServices())*c.poolSize() - 1,
		})
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	return nil
}

// followed is how many environments are followed to the open port, each way.
func (c *envsCluster) followed() int { return min(c.bench.options.puts, 500) }

// poolSize is how many ports a pool has: all that are asked for and a twentieth,
// so that the last of many clients still chooses.
func (c *envsCluster) poolSize() int {
	n := c.bench.options.envs
	return n + min(n, pacedMost) + 2*c.followed() + n/20 + envsClients
}

func (c *envsCluster) putPools(ctx context.Context) error {
	var all []keyValue
	for i, service := range envsServices() {
		low := envsLow + i*c.poolSize()
		all = append(all, keyValue{"/sluice/pools/" + service, fmt.Sprintf(`{"ports":"%d-%d","backend_port":22}`, low, low+c.poolSize()-1)})
	}
	return c.store.putAll(ctx, all)
}

func runEnvs(ctx context.Context, b *bench) error {
	c, err := b.newEnvsCluster(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	res := &envsResult{Envs: b.options.envs, Clients: envsClients, Nodes: envsNodes}
	taken := &takenPorts{by: map[int]string{}}
	for _, step := range []func(context.Context, *envsResult, *takenPorts) error{c.createMany, c.createPaced, c.follow, c.followApplied} {
		if err := step(ctx, res, taken); err != nil {
			for _, n := range c.nodes {
				err = errors.Join(err, n.edge.proc.alive())
			}
			return err
		}
	}
	res.Twice = taken.twice
	if res.Audit, err = c.audit(ctx); err != nil {
		return err
	}
	b.result.Envs = res
	return nil
}

// createMany has all clients create environments as fast as they are answered.
func (c *envsCluster) createMany(ctx context.Context, res *envsResult, taken *takenPorts) error {
	var next atomic.Int64
	var running sync.WaitGroup
	errs, took := make([]error, len(c.clients)), make([][]float64, len(c.clients))
	before, err := c.spent(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	for i, client := range c.clients {
		running.Go(func() {
			for errs[i] == nil {
				n := int(next.Add(1)) - 1
				if n >= res.Envs {
					return
				}
				sent := time.Now()
				_, errs[i] = client.create(ctx, fmt.Sprintf("env-%06d", n), "", taken)
				took[i] = append(took[i], millis(time.Since(sent)))
			}
		})
	}
	running.Wait()
	res.Seconds, res.Took = time.Since(began).Seconds(), slices.Concat(took...)
	after, err := c.spent(ctx)
	res.Cost = after.since(before, res.Envs)
	return errors.Join(append(errs, err)...)
}

// cpu is the CPU time that all nodes have spent so far, and the etcd.
func (c *envsCluster) cpu() (nodes, store time.Duration, err error) {
	var roots []int
	for _, n := range c.nodes {
		roots = append(roots, n.edge.root)
	}
	if nodes, err = cpuTime(roots); err == nil {
		store, err = cpuTime([]int{c.store.proc.pid()})
	}
	return nodes, store, err
}

// follow creates one environment at a time, and waits until its port is open on
// all nodes.
func (c *envsCluster) follow(ctx context.Context, res *envsResult, taken *takenPorts) error {
	for i := range c.followed() {
		port, err := c.clients[i%len(c.clients)].create(ctx, fmt.Sprintf("followed-%d", i), "", taken)
		if err != nil {
			return err
		}
		answered := time.Now()
		if _, err := c.awaitOpen(ctx, port); err != nil {
			return err
		}
		res.Opened = append(res.Opened, millis(time.Since(answered)))
	}
	return nil
}

// followApplied does so with ?wait=applied, where nothing is left to wait for.
func (c *envsCluster) followApplied(ctx context.Context, res *envsResult, taken *takenPorts) error {
	for i := range c.followed() {
		sent := time.Now()
		port, err := c.clients[i%len(c.clients)].create(ctx, fmt.Sprintf("applied-%d", i), "?wait=applied", taken)
		if err != nil {
			return err
		}
		res.Applied = append(res.Applied, millis(time.Since(sent)))
		atOnce, err := c.awaitOpen(ctx, port)
		if err != nil {
			return err
		}
		if !atOnce {
			res.Closed++
		}
	}
	return nil
}

// awaitOpen connects to a port of all nodes at the same time, and reports whether
// each took the first attempt.
func (c *envsCluster) awaitOpen(ctx context.Context, port int) (atOnce bool, err error) {
	var waiting sync.WaitGroup
	errs, attempts := make([]error, len(c.net.hosts)), make([]int, len(c.net.hosts))
	for i, h := range c.net.hosts {
		waiting.Go(func() {
			var conn net.Conn
			if conn, attempts[i], errs[i] = dialUntilOpen(ctx, netip.AddrPortFrom(h.addr, uint16(port))); errs[i] == nil {
				closeHard(conn)
			}
		})
	}
	waiting.Wait()
	return slices.Max(attempts) == 1, errors.Join(errs...)
}

// audit returns what the program itself finds amiss; empty: nothing.
func (c *envsCluster) audit(ctx context.Context) (string, error) {
	out, err := c.sluice(ctx, "port", "audit", "-o", "json")
	if len(out) > 0 {
		return string(tail(out)), nil // what it found, for which it exits with 1
	}
	return "", err
}

func (r *envsResult) rate() float64 { return float64(r.Envs) / r.Seconds }

func (r *envsResult) section() string {
	of := func(values []float64) string {
		p := percentiles(slices.Clone(values), 50, 99, 100)
		return figure(p[0]) + " ms, " + figure(p[1]) + " ms, " + figure(p[2]) + " ms"
	}
	return align([][]string{
		{fmt.Sprintf("%d environments of %d services by %d clients on %d nodes and one etcd", r.Envs, len(envsServices()), r.Clients, r.Nodes), ""},
		{"created", fmt.Sprintf("in %.1f s, %s a second", r.Seconds, figure(r.rate()))},
		{"each of them took", r.Cost.String()},
		{"POST, all clients at once: p50, p99, longest", of(r.Took)},
		{fmt.Sprintf("POST, %s a second: p50, p99, longest", figure(r.PacedRate)), of(r.Paced)},
		{"each of those took", r.PacedCost.String()},
		{fmt.Sprintf("POST answered to the ssh port open on all nodes, %d of them: p50, p99, longest", len(r.Opened)), of(r.Opened)},
		{"POST?wait=applied: p50, p99, longest", fmt.Sprintf("%s; %d ports not open then", of(r.Applied), r.Closed)},
		{"ports that two have; findings of the audit", fmt.Sprintf("%d; %s", len(r.Twice), orNone(r.findings()))},
	})
}

func (r *envsResult) findings() []string {
	if r.Audit == "" {
		return nil
	}
	return []string{r.Audit}
}

func (r *envsResult) bars() []bar {
	took, opened := percentiles(slices.Clone(r.Took), 99)[0], percentiles(slices.Clone(r.Opened), 99)[0]
	return []bar{
		{"environments: p99 of POST", "≤ " + figure(envsTookLimit) + " ms", figure(took) + " ms", took <= envsTookLimit},
		{"environments: p99 from the answer to ports open on all nodes", "≤ " + figure(envsOpenLimit) + " ms", figure(opened) + " ms", opened <= envsOpenLimit},
		{"environments: ports not open when wait=applied is answered", "0", fmt.Sprint(r.Closed), r.Closed == 0},
		{"environments: ports given twice", "0", fmt.Sprint(len(r.Twice)), len(r.Twice) == 0},
	}
}

func (r *envsResult) failures() []string {
	if r.Audit == "" {
		return nil
	}
	return []string{"environments: sluice port audit: " + r.Audit}
}
