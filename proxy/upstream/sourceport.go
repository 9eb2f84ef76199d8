package upstream

import (
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/router"
)

const (
	// enoughPorts is how large a run of the kernel's own ports has to be to be
	// used alone: as many as there are UDP sessions.
	enoughPorts = 1 << 14
	// bindTries is how many ports are tried where the kernel is not to choose.
	bindTries = 32
	// lowestSource and the port after the kernel's are where sources are looked
	// for if the kernel's own are all mapped. Lower ones have well-known users.
	lowestSource = 10000

	localPortRange = "/proc/sys/net/ipv4/ip_local_port_range"
)

// sourcePorts says from which local ports UDP sockets towards backends send, so
// that none has the port of a mapping when that is put: two UDP sockets cannot
// share a port. The kernel chooses from a range (32768-60999, unless told
// otherwise) that mapped ports lie in as well. The zero value leaves it to do so.
type sourcePorts struct {
	within  router.PortRange // by IP_LOCAL_PORT_RANGE, Linux 6.3; zero: not needed, or no such run
	outside router.Ports     // to be bound where that cannot be had
}

// newSourcePorts avoids the ports of mapped. kernel is the range that the kernel
// chooses from.
func newSourcePorts(mapped router.Ports, kernel router.PortRange) sourcePorts {
	free := without(kernel, mapped)
	if len(free) == 1 && free[0] == kernel {
		return sourcePorts{}
	}
	var s sourcePorts
	for _, run := range free {
		if run.Size() > s.within.Size() || s.within == (router.PortRange{}) {
			s.within = run
		}
	}
	if len(free) == 0 || s.within.Size() < min(enoughPorts, kernel.Size()/2) {
		s.within = router.PortRange{}
	}
	s.outside = append(without(router.PortRange{First: lowestSource, Last: router.MaxPort}, mapped), free...)
	if lowestSource <= kernel.First { // they are in the first part already
		s.outside = s.outside[:len(s.outside)-len(free)]
	}
	return s
}

// without returns the ports of r that are not in mapped.
func without(r router.PortRange, mapped router.Ports) (free router.Ports) {
	for _, m := range mapped {
		if m.Last < r.First || m.First > r.Last {
			continue
		}
		if m.First > r.First {
			free = append(free, router.PortRange{First: r.First, Last: m.First - 1})
		}
		r.First = m.Last + 1
	}
	if r.First <= r.Last {
		free = append(free, r)
	}
	return free
}

// kernelPorts returns the range that the kernel chooses local ports from.
func kernelPorts() router.PortRange {
	r := router.PortRange{First: 32768, Last: 60999}
	if text, err := os.ReadFile(localPortRange); err == nil {
		var first, last int
		if _, err := fmt.Sscan(string(text), &first, &last); err == nil && 0 < first && first <= last && last <= router.MaxPort {
			r = router.PortRange{First: first, Last: last}
		}
	}
	return r
}

// prepare has the socket fd, which is about to be connected, send from one of
// the ports. Where that cannot be, the kernel chooses as it likes: a session is
// worth more than the chance that a mapping of that very port is put meanwhile.
func (s *sourcePorts) prepare(fd, family int) {
	if s.within != (router.PortRange{}) {
		if unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, s.within.Last<<16|s.within.First) == nil {
			return
		}
	}
	if len(s.outside) == 0 {
		return
	}
	for range bindTries {
		if bindAny(fd, family, s.pick()) == nil {
			return
		}
	}
}

// pick returns one of the ports to be bound.
func (s *sourcePorts) pick() int {
	total := 0
	for _, r := range s.outside {
		total += r.Size()
	}
	n := rand.IntN(total)
	for _, r := range s.outside {
		if n < r.Size() {
			return r.First + n
		}
		n -= r.Size()
	}
	return 0 // does not happen
}

func bindAny(fd, family, port int) error {
	if family == unix.AF_INET {
		return unix.Bind(fd, &unix.SockaddrInet4{Port: port})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Port: port})
}
