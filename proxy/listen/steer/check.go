package steer

import (
	"context"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/listen"
)

// fewPorts is up to how many ports Add tries one by one, at some microseconds
// each, before it rather asks for a list of all sockets once.
const fewPorts = 8

// Add steers ports, of 1 to 65535: from here on what comes to them comes to TCP
// or UDP. It leaves out those where another program listens already, since that
// would hear nothing any more, and returns for them a *listen.BusyError, whose
// owner listen.Owners can tell. Ports that are steered already stay so,
// whoever else listens there. err is for none of them having been steered.
func (s *Steerer) Add(ctx context.Context, proto Proto, ports ...int) (busy map[int]error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kernel == nil {
		return nil, ErrClosed
	}
	taken, err := s.taken(proto, ports)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for _, port := range ports {
		if taken[port] && !s.steered(proto, port) {
			if busy == nil {
				busy = map[int]error{}
			}
			busy[port] = &listen.BusyError{Network: proto.String(), Addr: ":" + strconv.Itoa(port)}
			continue
		}
		s.set(proto, port, true)
	}
	return busy, nil
}

// taken returns the ports among those given that other sockets listen on. s.mu
// is held.
func (s *Steerer) taken(proto Proto, ports []int) (map[int]bool, error) {
	if len(ports) <= fewPorts && !s.anyInUse(proto, ports) {
		return nil, nil
	}
	// A port may also be in use by a connection that left from it, which the
	// program does not touch: the list tells.
	all, err := s.others(proto)
	if err != nil {
		return nil, err
	}
	taken := make(map[int]bool, len(all))
	for _, o := range all {
		taken[int(o.Local.Port())] = true
	}
	return taken, nil
}

// anyInUse reports whether one of the ports cannot be bound to.
func (s *Steerer) anyInUse(proto Proto, ports []int) bool {
	for _, port := range ports {
		if !s.steered(proto, port) && inUse(proto, port) {
			return true
		}
	}
	return false
}

// inUse reports whether it is not sure that nobody uses the port: the socket
// that asks is never one that receives.
func inUse(proto Proto, port int) bool {
	kind := unix.SOCK_STREAM
	if proto == UDP {
		kind = unix.SOCK_DGRAM
	}
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		addr = &unix.SockaddrInet4{Port: port}
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	if _, ok := addr.(*unix.SockaddrInet6); ok && unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) != nil {
		return true
	}
	// Without it every connection that was accepted on the port would count.
	if proto == TCP && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) != nil {
		return true
	}
	return unix.Bind(fd, addr) != nil
}

// others returns the sockets that receive without being connected, except the
// Steerer's own.
func (s *Steerer) others(proto Proto) ([]listen.Socket, error) {
	all, err := listen.Receivers(proto.String())
	if err != nil {
		return nil, err
	}
	others := all[:0]
	for _, o := range all {
		if !s.own[o.Inode] {
			others = append(others, o)
		}
	}
	return others, nil
}

// Range is a run of ports, both ends included.
type Range struct{ First, Last int }

// Foreign is another program's socket.
type Foreign struct {
	Proto Proto
	Local netip.AddrPort // an unspecified address takes them all
	Owner string         // such as "sshd (pid 812)"
	// Steered says that the socket gets nothing, since its port is steered: it
	// came later.
	Steered bool
}

// Foreign returns the sockets of other programs that listen within the ranges.
// It looks through the open files of every process where there are any.
func (s *Steerer) Foreign(ctx context.Context, within ...Range) ([]Foreign, error) {
	var found []Foreign
	var inodes []uint32
	for proto := range Proto(numProtos) {
		all, err := s.others(proto)
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			port := int(o.Local.Port())
			if inside(port, within) {
				found = append(found, Foreign{Proto: proto, Local: o.Local, Steered: s.Steered(proto, port)})
				inodes = append(inodes, o.Inode)
			}
		}
	}
	mine := listen.ThisProcess()
	foreign := found[:0]
	for i, owner := range listen.Processes(ctx, inodes...) {
		if found[i].Owner = owner; owner != mine {
			foreign = append(foreign, found[i])
		}
	}
	return foreign, ctx.Err()
}

func inside(port int, within []Range) bool {
	for _, r := range within {
		if port >= r.First && port <= r.Last {
			return true
		}
	}
	return false
}
