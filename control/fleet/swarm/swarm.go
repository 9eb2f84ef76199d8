// Package swarm runs many nodes of a fleet in one process, on a real etcd: their
// records, leases, watches, looks at each other and votes are those of real nodes,
// and only the network between them is made up. Tests and bench run it; no node
// does.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

// TTL is that of nodes' leases.
const TTL = 6 * time.Second

// Swarm is nodes that run. Its methods are safe for concurrent use.
type Swarm struct {
	endpoint string // host:port of etcd
	nodes    []*node

	looks atomic.Int64

	mu sync.Mutex // guards what nodes say to looks, and the sides that they are on
}

// node is one of them.
type node struct {
	swarm     *Swarm
	name      string
	addr      netip.Addr
	registry  *fleet.Registry
	registrar *fleet.Registrar
	verdicts  *etcd.Verdicts
	relay     *relay
	stop      context.CancelFunc
	running   sync.WaitGroup

	dead, silent bool // guarded by swarm.mu
	side         int  // of a partition; guarded by swarm.mu
}

// Start starts n nodes on the etcd at endpoint, a host:port. They run until Close.
func Start(endpoint string, n int) (*Swarm, error) {
	s := &Swarm{endpoint: endpoint}
	for i := range n {
		addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		s.nodes = append(s.nodes, &node{swarm: s, name: fmt.Sprintf("n%03d", i), addr: addr})
	}
	for _, n := range s.nodes {
		if err := n.start(); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Close stops all nodes.
func (s *Swarm) Close() {
	var closing sync.WaitGroup
	for _, n := range s.nodes {
		closing.Go(n.close)
	}
	closing.Wait()
}

// Looks returns how often nodes have looked at each other.
func (s *Swarm) Looks() int64 { return s.looks.Load() }

// Kill has a node die: it refuses connections, and its lease ends when its time is
// over. It returns at once.
func (s *Swarm) Kill(i int) {
	s.mu.Lock()
	s.nodes[i].dead = true
	s.mu.Unlock()
	s.nodes[i].relay.close() // before stop, which would give the lease back
	s.nodes[i].stop()
}

// Revive starts a node that was killed.
func (s *Swarm) Revive(i int) error {
	s.nodes[i].running.Wait()
	err := s.nodes[i].start()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[i].dead = false
	return err
}

// Hang has a node answer nothing, or again; its lease goes on.
func (s *Swarm) Hang(i int, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[i].silent = silent
}

// Split has the first n nodes and the others not reach each other; all reach etcd.
// 0 heals it.
func (s *Swarm) Split(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.nodes {
		if s.nodes[i].side = 0; i < n {
			s.nodes[i].side = 1
		}
	}
}

// Apply has every node say that it has applied a revision, and what it did with a
// key.
func (s *Swarm) Apply(rev int64) {
	for _, n := range s.nodes {
		n.verdicts.Set("ports/tcp/20022", fmt.Sprintf("applied@%d", rev))
		n.registrar.SetApplied(rev, "")
	}
}

// Await waits until every node that lives says of each whether it is healthy as
// want does, by number, and returns how long that took.
func (s *Swarm) Await(ctx context.Context, want func(i int) bool) (time.Duration, error) {
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		odd := s.odd(want)
		if odd == "" {
			return time.Since(began), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, errors.New(odd)
		}
	}
}

// odd returns what is not as want says; "": all is.
func (s *Swarm) odd(want func(i int) bool) string {
	for _, n := range s.nodes {
		s.mu.Lock()
		dead := n.dead
		s.mu.Unlock()
		if dead {
			continue
		}
		members, _ := n.registry.Members()
		healthy := make(map[string]fleet.Member, len(members))
		for _, m := range members {
			healthy[m.Node] = m
		}
		for i, peer := range s.nodes {
			if m := healthy[peer.name]; m.Healthy != want(i) {
				return fmt.Sprintf("%s says of %s: healthy %t, state %q, %s", n.name, peer.name, m.Healthy, m.State, m.Why)
			}
		}
	}
	return ""
}

// look is what a look of n at an address comes to.
func (n *node) look(ctx context.Context, addr string) error {
	n.swarm.looks.Add(1)
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	n.swarm.mu.Lock()
	var peer *node
	for _, p := range n.swarm.nodes {
		if p.addr.String() == host {
			peer = p
		}
	}
	dead := peer.dead
	silent := peer.silent || peer.side != n.side
	n.swarm.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return errors.New("no answer")
	case dead:
		return errors.New("connection refused")
	}
	return nil
}

// HTTPS implements fleet.Prober.
func (n *node) HTTPS(ctx context.Context, addr string) error { return n.look(ctx, addr) }

// TCP implements fleet.Prober.
func (n *node) TCP(ctx context.Context, addr string) error { return n.look(ctx, addr) }

// nobody is a handler of a watch that nobody listens to.
type nobody struct{}

func (nobody) Load(int64, []etcd.KV)       {}
func (nobody) Change(int64, []etcd.Change) {}

// start starts a node, or starts it again.
func (n *node) start() (err error) {
	if n.relay, err = newRelay(n.swarm.endpoint); err != nil {
		return err
	}
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{"http://" + n.relay.addr()}, Prefix: "/sluice", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	session, err := client.NewSession(etcd.SessionConfig{Node: n.name, Instance: n.name, TTL: TTL})
	if err != nil {
		return err
	}
	registrar, err := fleet.New(fleet.Config{Name: n.name, Instance: n.name, Version: "swarm", Addresses: []netip.Addr{n.addr}}, session)
	if err != nil {
		return err
	}
	n.registrar, n.verdicts = registrar, session.Verdicts()
	registrar.SetState(fleet.Ready)
	registrar.SetPorts(443, 20022)
	n.registry = fleet.NewRegistry(n.name)
	watcher := fleet.NewWatcher(fleet.WatcherConfig{Node: n.name, Registry: n.registry, Prober: n, Set: session.Set})
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	var parts sync.WaitGroup
	for _, run := range []func(context.Context) error{
		session.Run, registrar.Run, n.registry.Run, watcher.Run,
		func(ctx context.Context) error {
			return client.WatchWith(ctx, nobody{}, etcd.Aside{Folders: fleet.Folders, Handler: n.registry})
		},
	} {
		parts.Go(func() { _ = run(ctx) }) // of an etcd that ends nothing is to be said
	}
	n.running.Go(func() {
		parts.Wait()
		_ = client.Close()
	})
	return nil
}

func (n *node) close() {
	if n.stop != nil {
		n.stop()
	}
	n.running.Wait()
	if n.relay != nil {
		n.relay.close()
	}
}

// relay is a node's way to etcd, which can be cut without a word.
type relay struct {
	ln net.Listener

	mu      sync.Mutex // guards the following fields
	conns   map[net.Conn]bool
	over    bool
	running sync.WaitGroup
}

func newRelay(to string) (*relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{ln: ln, conns: map[net.Conn]bool{}}
	r.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.running.Go(func() { r.carry(c, to) })
		}
	})
	return r, nil
}

func (r *relay) addr() string { return r.ln.Addr().String() }

func (r *relay) carry(c net.Conn, to string) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	r.mu.Lock()
	over := r.over
	r.conns[c], r.conns[up] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
		delete(r.conns, up)
	}()
	if over {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, up)
		c.Close()
	})
	_, _ = io.Copy(up, c)
	up.Close()
	back.Wait()
}

// close cuts all connections, and takes no more. Further calls do nothing.
func (r *relay) close() {
	r.ln.Close()
	r.mu.Lock()
	r.over = true
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
}

// HostOf returns the host:port of an endpoint of etcd.
func HostOf(endpoint string) string {
	_, host, ok := strings.Cut(endpoint, "://")
	if !ok {
		return endpoint
	}
	return host
}
