package main

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/names"
	upstreamdns "github.com/remotegpu/sluice/proxy/upstream/dns"
	"github.com/remotegpu/sluice/router"
)

// openNames makes what keeps names true. A node without a DNS provider leaves
// that to those that have one.
func (n *node) openNames(context.Context) error {
	if len(n.providers) == 0 {
		n.parts["names"] = n.followKeepers
		return nil
	}
	resolver := upstreamdns.New(upstreamdns.Config{})
	n.names = names.New(names.Config{
		Node: n.cfg.Node, Store: n.client, Providers: hostProviders(n.providers),
		Members: n.nameMembers, MembersChanged: n.members.Changed,
		Resolve: func(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
			return resolver.Lookup(ctx, name+".")
		},
		Verdict: func(key string, degraded bool, text string) { n.control.SetState(key, degraded, text) },
		Logger:  n.log, Registerer: n.registry,
	})
	n.parts["names"] = func(ctx context.Context) error {
		return n.client.Lead(ctx, "names", n.cfg.Node, func(ctx context.Context, t *etcd.Term) error { return n.names.Lead(ctx, t) })
	}
	return nil
}

// namesChanged gets the names that are to be kept.
func (n *node) namesChanged(all []*router.PublishedName) {
	n.noteNames(all)
	if n.names != nil {
		n.names.SetNames(all)
		return
	}
	n.unkept.mu.Lock()
	defer n.unkept.mu.Unlock()
	n.unkept.names, n.unkept.said = all, ""
	n.tellUnkept()
}

// unkept are the names of a cluster on a node that has no DNS provider.
type unkept struct {
	mu    sync.Mutex // guards the following fields, and the order of what is said
	names []*router.PublishedName
	said  string // of names
}

const (
	leftToOthers = "this node has no DNS provider, and leaves it to those that have one"
	nobodyKeeps  = "no_provider: no node that runs has a DNS provider, so nobody keeps this name; add one under dns in the files of nodes, and have `sluice upgrade` read them there"
)

// tellUnkept says of names whether any node may keep them. n.unkept.mu is held.
func (n *node) tellUnkept() {
	some, known := n.members.KeepsNames()
	text := leftToOthers
	if known && !some {
		text = nobodyKeeps
	}
	if text == n.unkept.said {
		return
	}
	n.unkept.said = text
	for _, p := range n.unkept.names {
		n.control.SetState(names.Key(p.Name), text == nobodyKeeps, text)
	}
}

// followKeepers has verdicts follow whether any node may keep names, until ctx ends.
func (n *node) followKeepers(ctx context.Context) error {
	for {
		changed := n.members.Changed()
		n.unkept.mu.Lock()
		n.tellUnkept()
		n.unkept.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// nameMembers returns the nodes as names may be published for them.
func (n *node) nameMembers() ([]names.Member, bool) {
	members, complete := n.members.Members()
	all := make([]names.Member, len(members))
	for i, m := range members {
		all[i] = names.Member{Node: m.Node, Addresses: m.Addresses, Region: m.Region, Weight: m.Weight, Healthy: m.Healthy, Why: m.Why}
	}
	return all, complete
}

// hostProviders returns providers as the keeper of names has them.
func hostProviders(from map[string]*dns.Provider) map[string]names.Provider {
	to := map[string]names.Provider{}
	for name, p := range from {
		if to[name] = (hostProvider{p}); p.Swaps() {
			to[name] = hostSwapper{hostProvider{p}}
		}
	}
	return to
}

// hostProvider is a provider of certs/dns as the keeper of names has it.
type hostProvider struct{ p *dns.Provider }

func (h hostProvider) Kind() string { return h.p.Kind() }

func (h hostProvider) Zones() []string {
	zones := make([]string, len(h.p.Zones()))
	for i, z := range h.p.Zones() {
		zones[i] = strings.TrimSuffix(z, ".")
	}
	return zones
}

func (h hostProvider) Read(ctx context.Context, zone string, asked []string) ([]names.Record, error) {
	found, err := h.p.ReadHosts(ctx, zone, asked)
	records := make([]names.Record, len(found))
	for i, r := range found {
		records[i] = names.Record(r)
	}
	return records, err
}

func (h hostProvider) Add(ctx context.Context, zone string, r names.Record) error {
	return h.p.AddHost(ctx, zone, dns.Host(r))
}

func (h hostProvider) Update(ctx context.Context, zone string, r names.Record) error {
	return h.p.UpdateHost(ctx, zone, dns.Host(r))
}

func (h hostProvider) Remove(ctx context.Context, zone string, r names.Record) error {
	return h.p.RemoveHost(ctx, zone, dns.Host(r))
}

func (h hostProvider) LeastTTL(ctx context.Context, zone string) (int, error) {
	return h.p.LeastTTL(ctx, zone)
}

func (h hostProvider) Weighted() bool { return h.p.Weighted() }

// hostSwapper is one that changes several names at once.
type hostSwapper struct{ hostProvider }

func (h hostSwapper) Swap(ctx context.Context, zone string, swaps []names.Swap) error {
	to := make([]dns.HostSwap, len(swaps))
	for i, s := range swaps {
		to[i] = dns.HostSwap{Name: s.Name, Marker: dns.Host(s.Marker), Found: hostsOf(s.Found), Before: hostsOf(s.Before), After: hostsOf(s.After)}
	}
	return h.p.SwapHosts(ctx, zone, to)
}

func hostsOf(records []names.Record) []dns.Host {
	hosts := make([]dns.Host, len(records))
	for i, r := range records {
		hosts[i] = dns.Host(r)
	}
	return hosts
}
