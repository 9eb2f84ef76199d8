package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Fleet says what the node is among others.
type Fleet struct {
	// Addresses are where clients reach the node. Default: those of its
	// interfaces.
	Addresses []netip.Addr `json:"addresses"`
	// Region is where the node stands. Default: the zone.
	Region string `json:"region"`
	// Weight is its share of clients, 1 to 1000. Default: 1.
	Weight int `json:"weight"`
	// DrainWait is how long a node that is drained goes on to serve new clients.
	// Default: 90s.
	DrainWait time.Duration `json:"drain_wait"`
}

func (f Fleet) withDefaults(zone string) Fleet {
	f.Region = cmp.Or(f.Region, zone)
	f.Weight = cmp.Or(f.Weight, 1)
	f.DrainWait = cmp.Or(f.DrainWait, 90*time.Second)
	return f
}

const maxWeight = 1000

func (c Config) checkFleet() error {
	for i, a := range c.Fleet.Addresses {
		if !a.IsGlobalUnicast() || a.Zone() != "" {
			return wrong(fmt.Sprintf("fleet.addresses[%d]", i), "clients cannot reach the node at %v; write global unicast addresses", a)
		}
	}
	if c.Fleet.Weight < 1 || c.Fleet.Weight > maxWeight {
		return wrong("fleet.weight", "must be from 1 to %d", maxWeight)
	}
	if c.Fleet.DrainWait < 0 || c.Fleet.DrainWait > 24*time.Hour {
		return wrong("fleet.drain_wait", "must be from 1ms to 24h, not %v", c.Fleet.DrainWait)
	}
	return nil
}
