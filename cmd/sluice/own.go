package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// ownRefresh is how often the machine's addresses are read again. They hardly
// ever change while a node runs.
const ownRefresh = 30 * time.Second

// ownAddresses knows the addresses of the machine. The zero value knows those
// that every machine has; its methods may be called from any goroutine.
type ownAddresses struct {
	set atomic.Pointer[map[netip.Addr]bool]
}

// Has reports whether a connection to addr, IPv4 as IPv4 and without a zone,
// stays on this machine.
func (o *ownAddresses) Has(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() { // to 0.0.0.0 is to oneself
		return true
	}
	set := o.set.Load()
	return set != nil && (*set)[addr]
}

// run keeps the addresses true until ctx ends.
func (o *ownAddresses) run(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(ownRefresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			o.refresh(log)
		}
	}
}

// refresh reads the addresses. Those of before stay where it cannot.
func (o *ownAddresses) refresh(log *slog.Logger) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		log.Warn("cannot read this machine's addresses; backends that are this node itself may go unnoticed", "err", err)
		return
	}
	set := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				set[addr.Unmap()] = true
			}
		}
	}
	o.set.Store(&set)
}
