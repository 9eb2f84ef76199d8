package upstream

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenUDP returns a UDP socket that is connected to addr, from none of
// Config.Ports, and does not block. Nothing is sent, so whether a backend is
// there shows later, or never. The caller owns the descriptor, which the
// runtime's poller does not know.
func (d *Dialer) OpenUDP(addr netip.AddrPort) (fd int, err error) {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if a := addr.Addr().Unmap(); a.Is4() {
		to = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: a.As4()}
	} else {
		zone, err := zoneIndex(a.Zone())
		if err != nil {
			return -1, err
		}
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), ZoneId: zone, Addr: a.As16()}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	d.sources.prepare(fd, family)
	if err = unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// zoneIndex returns the number of the interface that zone names.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %s of the address: %w", zone, err)
	}
	return uint32(i.Index), nil
}
