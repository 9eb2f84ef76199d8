package steer

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
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
// owner listen.Owners can tell; and UDP ports that this process may not bind
// to, as Bind would have to, with an error that says what it takes. Ports that
// are steered already stay so, whoever else listens there. err is for none of
// them having been steered.
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
	if proto == UDP {
		busy = s.denied(ctx, ports)
	}
	for _, port := range ports {
		if busy[port] != nil {
			continue
		}
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

// denied returns why this process may not bind to UDP ports that are not
// steered, for those where it may not: the lowest, up to some number. s.mu is
// held.
func (s *Steerer) denied(ctx context.Context, ports []int) map[int]error {
	var denied map[int]error
	for _, port := range slices.Sorted(slices.Values(ports)) {
		if s.steered(UDP, port) {
			continue
		}
		if !errors.Is(probe(UDP, port), unix.EACCES) {
			break
		}
		pc, err := listen.UDP(ctx, ":"+strconv.Itoa(port)) // says why
		if err == nil {
			pc.Close()
			break
		}
		if denied == nil {
			denied = map[int]error{}
		}
		denied[port] = err
	}
	return denied
}

// anyInUse reports whether one of the ports cannot be bound to.
func (s *Steerer) anyInUse(proto Proto, ports []int) bool {
	for _, port := range ports {
		if !s.steered(proto, port) && probe(proto, port) != nil {
			return true
		}
	}
	return false
}

// probe returns nil if it is sure that nobody uses the port, else why it could
// not bind to it: the socket that asks is never one that receives.
func probe(proto Proto, port int) error {
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
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if _, ok := addr.(*unix.SockaddrInet6); ok {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	// Without it every connection that was accepted on the port would count.
	if proto == TCP {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, addr))
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
				found = append(found, Foreign{Proto: proto, Local: o.Local, Steered: s.Steered(proto, port) || proto == UDP && s.Steered(aside, port)})
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
