package proxy

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/router"
)

var errExpired = errors.New("expired: expires_at has passed; put a later time or delete the key")

// portKey is a port of one protocol.
type portKey struct {
	proto  router.Proto
	number int
}

func keyOf(m *router.Mapping) portKey { return portKey{m.Proto, m.Port} }

// key returns the port's key in etcd, below the prefix.
func (k portKey) key() string { return router.MappingKey(k.proto, k.number) }

// addr is where the port is listened on.
func (k portKey) addr() string { return ":" + strconv.Itoa(k.number) }

// label is what logs call the port.
func (k portKey) label() string { return k.proto.String() + "/" + strconv.Itoa(k.number) }

// opener has what comes to ports come to the engine, in one of the ports modes.
// mappedPorts calls it, one call at a time.
type opener interface {
	// open opens ports that are closed, and returns why for those that it
	// could not open: a *listen.BusyError without its owner, mostly.
	open(ports []portKey) (failed map[portKey]error)
	// close closes an open port: when it returns, no new flow is let in and the
	// port can be opened again. TCP flows go on. UDP sessions answer through
	// the port's socket, which stays for as long as Withdraw lets them live.
	close(port portKey)
	// stop closes every port to new flows for good, or, unless forAll, leaves
	// them to another process that has the same sockets. The sockets that UDP
	// sessions answer through stay open until the engine's context ends.
	stop(forAll bool)
	// each calls visit with another descriptor of each socket that connections
	// come to, and of that which first datagrams come to, until an error. visit
	// owns the file. This call alone may overlap with others: whoever the files
	// are sent to may take its time, and ports are not to wait for that.
	each(visit func(Socket, *os.File) error) error
	// accept has connections accepted that come to sockets which all ports have in
	// common. Without Config.Held they are from the start.
	accept() error
	// adopt takes over what another process has left of UDP ports, whose sockets
	// have not been read from until now. Ports that nobody wants any more are
	// closed.
	adopt(from []l4.UDPPort)
	// release closes what is open after the engine's context has ended.
	release()
}

// mappedPorts keeps the ports of the mappings in force open. Ports are numerous
// and mostly well: what it knows of one that is open is a bit.
type mappedPorts struct {
	engine *Engine
	opener opener

	mu       sync.Mutex // guards the following fields
	isOpen   [2]portSet // by router.Proto
	busy     map[portKey]*busyPort
	told     map[portKey]bool // the last report was an error
	expiries expiries
	searches []*busyPort // whose owners are to be found
	search   bool        // that is under way
	stopped  bool
	resting  bool // all are closed, and none is opened
	left     bool // another process has the ports; flows go on
}

// portSet is a set of ports.
type portSet [(router.MaxPort + 1) / 64]uint64

func (s *portSet) has(port int) bool { return s[port/64]&(1<<(port%64)) != 0 }
func (s *portSet) add(port int)      { s[port/64] |= 1 << (port % 64) }
func (s *portSet) remove(port int)   { s[port/64] &^= 1 << (port % 64) }

func (p *mappedPorts) init(e *Engine) {
	p.engine = e
	p.busy, p.told = map[portKey]*busyPort{}, map[portKey]bool{}
}

// mapping returns the mapping in force of a port, or nil. It takes no lock.
func (e *Engine) mapping(proto router.Proto, port int) *router.Mapping {
	return e.table.Load().Mapping(proto, port)
}

// follow brings the ports in step with t, which has just replaced was: it closes
// those that are no longer mapped, opens the new ones, all at once, and deals
// with the flows of the mappings that are withdrawn or replaced.
func (p *mappedPorts) follow(t, was *router.Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := time.Now()
	var wanted []portKey
	t.DiffMappings(was, func(was, is *router.Mapping) {
		if is == nil {
			p.drop(keyOf(was))
			p.engine.l4.Withdraw(was, nil)
			return
		}
		port := keyOf(is)
		switch {
		case hasExpired(is, now):
			p.expire(is)
			if was != nil {
				p.engine.l4.Withdraw(was, nil)
			}
			return
		case !p.left && !p.resting && !p.isOpen[port.proto].has(port.number):
			wanted = append(wanted, port)
			p.engine.l4.Resume(is)
			if b := p.busy[port]; b != nil { // somebody cares: as if it were new
				b.backoff = reopenBackoffMin
			}
		case was != nil:
			p.engine.l4.Withdraw(was, is)
		default:
			p.engine.l4.Resume(is)
		}
		if !is.ExpiresAt.IsZero() {
			p.expiries.add(is)
		}
	})
	p.open(wanted)
	p.scheduleExpiry(now)
}

// open opens ports that are not open. What cannot be opened is tried again
// later. p.mu is held.
func (p *mappedPorts) open(ports []portKey) {
	if len(ports) == 0 || p.resting {
		return
	}
	failed := p.opener.open(ports)
	for _, port := range ports {
		if err := failed[port]; err != nil {
			p.isBusy(port, err)
			continue
		}
		p.isOpen[port.proto].add(port.number)
		p.noteOpened(port)
		if p.told[port] {
			p.tell(port, nil)
		}
	}
}

// failed notes that an open port has closed by itself, if isClosed, which is
// called with p.mu held, says so still.
func (p *mappedPorts) failed(port portKey, err error, isClosed func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.left || !p.isOpen[port.proto].has(port.number) || !isClosed() {
		return
	}
	p.isOpen[port.proto].remove(port.number)
	p.isBusy(port, err)
}

// shut closes the port, if it is open, and forgets retries. p.mu is held.
func (p *mappedPorts) shut(port portKey) {
	p.forgetBusy(port)
	if p.isOpen[port.proto].has(port.number) {
		p.isOpen[port.proto].remove(port.number)
		p.opener.close(port)
	}
}

// drop closes a port that is no longer mapped. p.mu is held.
func (p *mappedPorts) drop(port portKey) {
	p.shut(port)
	delete(p.told, port)
}

// expire closes the port of m, which has expired, and says so. p.mu is held.
func (p *mappedPorts) expire(m *router.Mapping) {
	p.shut(keyOf(m))
	p.tell(keyOf(m), errExpired)
}

// tell reports what became of a port. p.mu is held.
func (p *mappedPorts) tell(port portKey, err error) {
	if err == nil {
		delete(p.told, port)
	} else {
		p.told[port] = true
	}
	p.engine.cfg.PortState(port.key(), err)
}

func (p *mappedPorts) accept() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opener.accept()
}

// adopt has the sessions of a process before this one go on.
func (p *mappedPorts) adopt(from []l4.UDPPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opener.adopt(from)
}

// stop closes the ports to new flows for good, for all processes or for this one.
func (p *mappedPorts) stop(forAll bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.left && !forAll {
		return
	}
	for port := range p.busy {
		p.forgetBusy(port)
	}
	if !p.left {
		// Until it begins, the process that has the sockets as well serves on.
		p.opener.stop(forAll && p.engine.hasBegun())
	}
	p.isOpen = [2]portSet{}
	p.stopped, p.left = forAll, true
	if p.stopped {
		p.expiries.stop()
	}
}
