package l4

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

// portMemory is how long a port without flows is remembered: as long as the
// state of its limits matters (they all look back one second at most), and as
// long as a connection that was accepted under a mapping may take to arrive
// here after the mapping was withdrawn.
const portMemory = time.Second

// sweepBatch bounds the forgotten ports per call that adds one, so that no
// flow pays for thousands.
const sweepBatch = 32

type portKey struct {
	proto  router.Proto
	number int
}

// traffic is a number of bytes each way.
type traffic struct{ up, down int64 }

// port is what the server knows of one mapped port: its live flows, and the
// state of its limits. It outlives the mappings that replace each other on it,
// so that an edit resets nothing; but not the last of them, if that is deleted.
// The flows that live on have it for themselves then.
type port struct {
	key      portKey
	up, down bucket      // bytes per second
	queued   atomic.Bool // it is in Server.unused

	mu       sync.Mutex // guards the following fields
	mapping  *router.Mapping
	flows    *flow              // a list, the newest first
	count    int                // admitted flows
	byClient map[netip.Addr]int // admitted flows; nil until a limit asks
	starts   tokens             // new flows per second
	past     traffic            // of flows that have ended, but for those handed on
	tallies  []serviceTally     // since the port was made; one as a rule
	before   Tally              // of the mapping, from when the port was last forgotten
	mapped   bool               // it has a mapping, whose account outlives the port
	left     bool               // its mapping is gone, and another port in its place
	lastUsed time.Time

	// gone are the mappings withdrawn within portMemory, and successor is what
	// replaced the last of them, nil if nothing did.
	gone      []withdrawal
	successor *router.Mapping
}

// withdrawal is a mapping that was withdrawn, and when.
type withdrawal struct {
	mapping *router.Mapping
	at      time.Time
}

type unusedPort struct {
	port  *port
	since time.Time
}

// link enters f, of mapping m, into the list of its port, from where it can be
// cut. It returns why f cannot be served, if so: the node drains, or m was
// withdrawn while the connection was on its way here. Where m was replaced
// meanwhile, f goes on under its successor.
func (s *Server) link(f *flow, m *router.Mapping) end {
	key := portKey{m.Proto, m.Port}
	s.mu.RLock()
	if p := s.ports[key]; p != nil {
		defer s.mu.RUnlock()
		return s.linkLocked(p, f, m)
	}
	s.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linkLocked(s.portLocked(key), f, m)
}

// linkLocked needs s.mu, for reading at least.
func (s *Server) linkLocked(p *port, f *flow, m *router.Mapping) end {
	if s.draining {
		return drained
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m != nil {
		if m = p.inForce(m, f.since); m == nil {
			return deleted
		}
		p.adopt(m)
	}
	if m == nil {
		p.tally(f.labels.service).Started++
	}
	if f.proto == router.TCP && s.tcpFlows.Add(1) > int64(s.cfg.TCPFlows) {
		s.tcpFlows.Add(-1)
		p.tally(f.labels.service).Refused++
		return limited
	}
	f.mapping = m
	f.at.Store(p)
	p.insert(f)
	s.running.Add(1)
	return live
}

// insert puts f into the list. p.mu is held.
func (p *port) insert(f *flow) {
	f.next = p.flows
	if p.flows != nil {
		p.flows.prev = f
	}
	p.flows = f
}

// remove takes f out of the list, and of the counts if it was admitted. p.mu is
// held.
func (p *port) remove(f *flow) {
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		p.flows = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
	if f.admitted {
		p.count--
		p.forgetClient(f.client.Addr())
	}
}

// move takes the admitted flow f from one port to another. The server's mu and
// that of both ports are held.
func (f *flow) move(from, to *port) {
	from.remove(f)
	to.insert(f)
	to.count++
	if to.byClient != nil {
		to.byClient[f.client.Addr()]++
	}
	f.at.Store(to)
}

// lockPort locks the mu of the flow's port, which may change until then.
func (f *flow) lockPort() *port {
	for {
		p := f.at.Load()
		p.mu.Lock()
		if f.at.Load() == p {
			return p
		}
		p.mu.Unlock()
	}
}

// linkRouted enters a flow of a route.
func (s *Server) linkRouted(f *flow) end {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.linkLocked(s.routed, f, nil)
}

// portLocked returns the port of key, made if it is not there. s.mu is held.
func (s *Server) portLocked(key portKey) *port {
	p := s.ports[key]
	if p == nil {
		p = &port{key: key, before: s.kept[key]}
		s.ports[key] = p
		delete(s.kept, key)
	}
	return p
}

// inForce returns the mapping that a connection accepted under m is served by:
// m, or what replaced it since; nil if it was withdrawn. p.mu is held.
func (p *port) inForce(m *router.Mapping, now time.Time) *router.Mapping {
	for _, w := range p.gone {
		if w.mapping == m && now.Sub(w.at) <= portMemory {
			return p.successor
		}
	}
	return m
}

// adopt makes m the mapping whose limits the port enforces. p.mu is held.
func (p *port) adopt(m *router.Mapping) {
	if p.mapping == m {
		return
	}
	p.mapping, p.mapped = m, true
	p.up.setRate(int64(m.Limits.BytesPerSecond.Up))
	p.down.setRate(int64(m.Limits.BytesPerSecond.Down))
}

// refresh returns the mapping that decides about f from here on: the newest of
// its port, which may have come while the client kept f waiting.
func (f *flow) refresh() *router.Mapping {
	p := f.lockPort()
	defer p.mu.Unlock()
	f.mapping = p.mapping
	return f.mapping
}

// admit counts f against the limits of its mapping, or says which end it has
// come to. f is linked and knows its client.
func (f *flow) admit() end {
	m, client := f.mapping, f.client.Addr()
	if !router.Allowed(client, m.Allow, m.Deny) {
		return denied
	}
	p := f.lockPort()
	defer p.mu.Unlock()
	limits := m.Limits
	if limits.Connections > 0 && p.count >= limits.Connections {
		return limited
	}
	if limits.PerClient > 0 && p.clientFlows(client) >= limits.PerClient {
		return limited
	}
	// Last, so that a flow refused by another limit takes no token.
	if limits.NewPerSecond > 0 && !p.starts.take(limits.NewPerSecond, f.since) {
		return limited
	}
	p.count++
	p.tally(f.labels.service).Started++
	f.admitted = true
	if p.byClient != nil {
		p.byClient[client]++
	}
	return live
}

// readmit counts a flow that another process has admitted.
func (f *flow) readmit() {
	p := f.lockPort()
	defer p.mu.Unlock()
	p.count++
	f.admitted = true
	if p.byClient != nil {
		p.byClient[f.client.Addr()]++
	}
}

// clientFlows returns how many flows of the client were admitted. The first
// call counts them all; from then on the count is kept. p.mu is held.
func (p *port) clientFlows(client netip.Addr) int {
	if p.byClient == nil {
		p.byClient = map[netip.Addr]int{}
		for f := p.flows; f != nil; f = f.next {
			if f.admitted {
				p.byClient[f.client.Addr()]++
			}
		}
	}
	return p.byClient[client]
}

// unlink takes f out of its port. now is f's end.
func (s *Server) unlink(f *flow, now time.Time) {
	if f.proto == router.TCP {
		s.tcpFlows.Add(-1)
	}
	p := f.lockPort()
	p.remove(f)
	if !f.handed.Load() {
		p.past.add(f.moved())
	}
	p.settle(f)
	p.lastUsed = now
	empty, left := p.flows == nil, p.left
	p.mu.Unlock()
	switch {
	case !empty || p == s.routed:
	case left:
		s.mu.Lock()
		p.mu.Lock()
		s.dissolve(p)
		p.mu.Unlock()
		s.mu.Unlock()
	case !p.queued.Load():
		s.mu.Lock()
		s.retire(p, now)
		s.mu.Unlock()
	}
}

func (p *port) forgetClient(client netip.Addr) {
	if p.byClient == nil {
		return
	}
	if p.byClient[client]--; p.byClient[client] == 0 {
		delete(p.byClient, client)
	}
}

// retire queues p, which has no flows at the moment, to be forgotten, and
// forgets some of those whose time has come. s.mu is held.
func (s *Server) retire(p *port, now time.Time) {
	if !p.queued.Swap(true) {
		s.unused = append(s.unused, unusedPort{p, now})
	}
	for range sweepBatch {
		if len(s.unused) == 0 || now.Sub(s.unused[0].since) < portMemory {
			return
		}
		p := s.unused[0].port
		s.unused = s.unused[1:]
		s.forget(p, now)
	}
}

// forget drops p unless it is in use or was until lately; what happened on it
// stays counted. s.mu is held, so that nobody can link a flow meanwhile.
func (s *Server) forget(p *port, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queued.Store(false)
	switch {
	case p.left: // it is not among the ports any more
	case p.flows != nil: // queued again when the last one ends
	case now.Sub(p.lastUsed) < portMemory:
		p.queued.Store(true)
		s.unused = append(s.unused, unusedPort{p, now})
	default:
		delete(s.ports, p.key)
		s.bank(p)
		s.keep(p)
	}
}

func (t *traffic) add(more traffic) {
	t.up += more.up
	t.down += more.down
}

// snapshot returns the flows of the port.
func (p *port) snapshot() []*flow {
	p.mu.Lock()
	defer p.mu.Unlock()
	var flows []*flow
	for f := p.flows; f != nil; f = f.next {
		flows = append(flows, f)
	}
	return flows
}

// snapshot returns all flows.
func (s *Server) snapshot() []*flow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var flows []*flow
	s.eachPort(func(p *port) { flows = append(flows, p.snapshot()...) })
	return flows
}
