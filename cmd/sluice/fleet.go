package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/router"
)

// leaseTTL is how long after a node's death its record is in etcd. It is part of
// the time within which a dead node is out of DNS: see ARCHITECTURE.md.
const leaseTTL = 6 * time.Second

// registrarConfig returns what the node says of itself to begin with.
func (n *node) registrarConfig(instance string) fleet.Config {
	return fleet.Config{
		Name: n.cfg.Node, Instance: instance, Version: versionString(), Logger: n.log,
		Addresses: append(n.keptAddresses(), n.cfg.Fleet.Addresses...), Told: len(n.cfg.Fleet.Reflectors) > 0,
		Region: n.cfg.Fleet.Region, Weight: n.cfg.Fleet.Weight, Names: len(n.providers) > 0,
	}
}

// openFleet makes what the node knows of the others, and has it look at them.
func (n *node) openFleet(context.Context) error {
	names := &servedName{choose: n.chooseName}
	watcher := fleet.NewWatcher(fleet.WatcherConfig{
		Node: n.cfg.Node, Registry: n.members, Prober: fleet.NewNetProber(names.get), Set: n.session.Set,
		Logger: n.log, Registerer: n.registry,
	})
	n.drainer = fleet.NewDrainer(fleet.DrainerConfig{
		Node: n.cfg.Node, Registry: n.members, Registrar: n.registrar, Engine: wholeNode{n.engine, &n.elders}, Ready: n.control.Ready(),
		Wait: n.drainWait, Marker: n.drainMarker(), Logger: n.log, Registerer: n.registry,
	})
	n.parts["drain"] = n.drainer.Run
	n.parts["members"] = n.members.Run
	n.parts["watch of peers"] = watcher.Run
	n.parts["ports for peers"] = n.showPorts
	n.parts["load"] = n.showLoad
	return n.openAddresses()
}

// wholeNode is the data plane as a drain sees it: flows of older processes of the
// node are flows of the node.
type wholeNode struct {
	*proxy.Engine
	elders *elders
}

// Left returns how many flows there are in all processes of the node.
func (w wholeNode) Left() int { return w.Engine.Left() + w.elders.left() }

// openAddresses has the node's addresses follow what becomes of the machine's.
func (n *node) openAddresses() error {
	var finder *fleet.Finder
	changed := make(chan struct{}, 1)
	if len(n.cfg.Fleet.Reflectors) > 0 {
		finder = &fleet.Finder{Known: n.keptAddresses(), Logger: n.log, Found: func(now []netip.Addr) {
			n.registrar.SetAddresses(now)
			if err := fleet.KeepAddresses(n.addressesFile(), now); err != nil {
				n.log.Warn("after a restart this node is not in DNS until reflectors answer", "err", err)
			}
		}}
		for _, text := range n.cfg.Fleet.Reflectors {
			r, err := fleet.ParseReflector(text)
			if err != nil {
				return fmt.Errorf("fleet.reflectors: %w", err)
			}
			finder.Reflectors = append(finder.Reflectors, r)
		}
		n.parts["reflectors"] = func(ctx context.Context) error { return finder.Run(ctx, changed) }
	}
	n.parts["changes of addresses"] = func(ctx context.Context) error {
		err := fleet.WatchAddresses(ctx, func() {
			n.own.refresh(n.log)
			n.registrar.LookAgain()
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err != nil {
			n.log.Warn("the kernel does not tell when addresses of this machine change; they are looked at now and then", "err", err)
		}
		return nil
	}
	return nil
}

// addressesFile is where the addresses that reflectors found last over restarts.
func (n *node) addressesFile() string { return filepath.Join(n.cfg.Data, "addresses") }

// keptAddresses returns the addresses that the node begins with where reflectors
// find them: the last good ones.
func (n *node) keptAddresses() []netip.Addr {
	if len(n.cfg.Fleet.Reflectors) == 0 {
		return nil
	}
	return fleet.KeptAddresses(n.addressesFile())
}

// drainMarker is the file that says over restarts that the node is drained.
func (n *node) drainMarker() string { return filepath.Join(n.cfg.Data, "drained") }

// drainWait returns how long clients may go on to come once the node's record says
// that it is drained.
func (n *node) drainWait() time.Duration {
	switch named := time.Duration(n.nameLag.Load()); {
	case n.cfg.Fleet.DrainWait != 0:
		return n.cfg.Fleet.DrainWait
	case named != 0:
		return named + publishTime
	}
	return unnamedWait
}

const (
	// publishTime is how long a change of names takes at DNS providers, and to get there.
	publishTime = 15 * time.Second
	// unnamedWait is how long a drained node serves on where DNS is not Sluice's.
	unnamedWait = 90 * time.Second
)

// noteNames notes for how long clients may go on to come to an address that has
// been taken out of names.
func (n *node) noteNames(all []*router.PublishedName) {
	longest := time.Duration(0)
	for _, p := range all {
		longest = max(longest, time.Duration(p.TTL)*time.Second+p.Interval)
	}
	n.nameLag.Store(int64(longest))
}

// servedName is a name that nodes have a certificate for.
type servedName struct {
	choose func() string

	mu   sync.Mutex // guards the following fields
	name string
	next time.Time // when to choose again
}

// chooseEvery is how often a name is chosen.
const chooseEvery = 30 * time.Second

func (s *servedName) get() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.After(s.next) {
		s.name, s.next = s.choose(), now.Add(chooseEvery)
	}
	return s.name
}

// chooseName returns a name that this node has a certificate for, and so its peers
// have, where TLS ends at the node and clients need no certificate. "": there is none.
func (n *node) chooseName() string {
	best, until := "", time.Now().Add(time.Hour)
	table, port := n.engine.Table(), n.httpsPort()
	for _, s := range n.certs.Statuses() {
		name := s.Name
		if rest, wild := strings.CutPrefix(name, "*."); wild {
			name = "sluice-peer." + rest
		}
		if s.NotAfter.Before(until) || best != "" && best < name || table.ClientAuth(name) != nil {
			continue
		}
		if taken, _ := table.MatchTLS(name, port); taken == nil {
			best = name
		}
	}
	return best
}

// httpsPort returns the port of the first https listener that others can reach;
// 0: there is none.
func (n *node) httpsPort() int {
	for _, l := range n.cfg.Listeners.HTTPS {
		host, port, err := net.SplitHostPort(l.Address)
		if ip, bad := netip.ParseAddr(host); err != nil || host == "localhost" || bad == nil && ip.IsLoopback() {
			continue
		}
		if number, err := strconv.Atoi(port); err == nil {
			return number
		}
	}
	return 0
}

const (
	// portsEvery is how often it is seen to that the mapped port which peers are
	// shown is open, and portFor how long one is shown: its backend is not to be
	// bothered for long.
	portsEvery = time.Second
	portFor    = 10 * time.Minute
)

// showPorts tells peers which ports they may look at, until ctx ends.
func (n *node) showPorts(ctx context.Context) error {
	tick := time.NewTicker(portsEvery)
	defer tick.Stop()
	shown, since := 0, time.Time{}
	for {
		if shown == 0 || time.Since(since) > portFor || !n.engine.IsOpen(router.TCP, shown) {
			shown, since = n.anyOpenPort(), time.Now()
			n.registrar.SetPorts(n.httpsPort(), shown)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// anyOpenPort returns one of the mapped TCP ports that are open, 0 for none.
func (n *node) anyOpenPort() int {
	first, after, from := 0, 0, 1+rand.IntN(router.MaxPort)
	n.engine.Table().EachMapping(func(m *router.Mapping) {
		switch {
		case m.Proto != router.TCP || after != 0 || !n.engine.IsOpen(m.Proto, m.Port):
		case m.Port >= from:
			after = m.Port
		case first == 0:
			first = m.Port
		}
	})
	if after != 0 {
		return after
	}
	return first
}
