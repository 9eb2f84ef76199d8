package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
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

// listensAt reports whether a listener at addr, host:port, answers at an address
// of this machine.
func (o *ownAddresses) listensAt(addr string, at netip.AddrPort) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port != strconv.Itoa(int(at.Port())) {
		return false
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "localhost":
		return at.Addr().IsLoopback()
	case err != nil || ip.IsUnspecified(): // a name, or none: may be any of them
		return o.Has(at.Addr())
	}
	return ip.Unmap().WithZone("") == at.Addr()
}

// private says what of the node itself answers at an address.
func (n *node) private(at netip.AddrPort) string {
	switch {
	case n.own.listensAt(n.cfg.Admin, at):
		return "the admin address"
	case n.embedded != nil && n.own.listensAt(n.cfg.Etcd.Listen, at):
		return "the embedded etcd"
	}
	return ""
}

// public says which public listener of the node is at an address.
func (n *node) public(at netip.AddrPort) string {
	for _, l := range n.cfg.Listeners.HTTPS {
		if n.own.listensAt(l.Address, at) {
			return "the https listener"
		}
	}
	for _, l := range n.cfg.Listeners.HTTP {
		if n.own.listensAt(l.Address, at) {
			return "the http listener"
		}
	}
	return ""
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
