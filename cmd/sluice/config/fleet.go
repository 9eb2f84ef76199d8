package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// Fleet says what the node is among others.
type Fleet struct {
	// Addresses are where clients reach the node. Default: those of its
	// interfaces.
	Addresses []netip.Addr `json:"addresses"`
	// Reflectors say at which public addresses the node is, where Addresses does
	// not: the one that more than half of them say. Default: none.
	Reflectors []string `json:"reflectors"`
	// Region is where the node stands. Default: the zone.
	Region string `json:"region"`
	// Weight is its share of clients, 1 to 1000. Default: 1.
	Weight int `json:"weight"`
	// DrainWait is how long a node that is drained goes on to serve new clients.
	// Default: 0, for as long as names take to change and to be forgotten.
	DrainWait time.Duration `json:"drain_wait"`
}

func (f Fleet) withDefaults(zone string) Fleet {
	f.Region = cmp.Or(f.Region, zone)
	f.Weight = cmp.Or(f.Weight, 1)
	return f
}

const (
	maxWeight     = 1000
	maxReflectors = 16
)

func (c Config) checkFleet() error {
	for i, a := range c.Fleet.Addresses {
		if !a.IsGlobalUnicast() || a.Zone() != "" {
			return wrong(fmt.Sprintf("fleet.addresses[%d]", i), "clients cannot reach the node at %v; write global unicast addresses", a)
		}
	}
	if len(c.Fleet.Addresses) > 0 && len(c.Fleet.Reflectors) > 0 {
		return wrong("fleet.reflectors", "find addresses, and fleet.addresses has them; leave one out")
	}
	if len(c.Fleet.Reflectors) > maxReflectors {
		return wrong("fleet.reflectors", "must be %d at most", maxReflectors)
	}
	for i, text := range c.Fleet.Reflectors {
		if carriesLogin(text) {
			return wrong(fmt.Sprintf("fleet.reflectors[%d]", i), "has a user or a password in it, which would be in logs; name one that answers everybody")
		}
		if u, err := url.Parse(text); err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "dns"}, u.Scheme) {
			return wrong(fmt.Sprintf("fleet.reflectors[%d]", i), "%q is no reflector; write https://host/path or dns://server/name", text)
		}
	}
	if c.Fleet.Weight < 1 || c.Fleet.Weight > maxWeight {
		return wrong("fleet.weight", "must be from 1 to %d", maxWeight)
	}
	if c.Fleet.DrainWait < 0 || c.Fleet.DrainWait > 24*time.Hour {
		return wrong("fleet.drain_wait", "must be from 0s to 24h, not %v", c.Fleet.DrainWait)
	}
	return nil
}
