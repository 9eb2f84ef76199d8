package http

import (
	"errors"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// FlowInfo describes a live exchange of a public listener. Those of mapped ports
// are part of the mapping's own flows.
type FlowInfo struct {
	// ID is given when the exchange is first listed: most are over before that,
	// and should not pay for it. It comes from Config.NextFlow.
	ID            uint64
	Listener      string // such as https/443
	Port          int
	Client, Local netip.AddrPort
	UDP           bool   // it came by QUIC
	Backend       string // host:port; "" until there is one
	Address       string // ip:port, where Backend has a name and there is a connection
	Route         string
	Env, Service  string
	Up, Down      int64 // bytes of bodies, or of what an upgraded connection carried
	Since         time.Time
}

// visible is what others than an exchange's goroutine may look at while it is
// under way, with the lock held by which its codec lists it.
type visible struct {
	id      atomic.Uint64          // 0: none yet
	towards atomic.Pointer[string] // the target; nil: none yet
	at      atomic.Pointer[string] // its address; nil: not connected yet
}

func (v *visible) reset() {
	if v.id.Load() != 0 {
		v.id.Store(0)
	}
	if v.towards.Load() != nil {
		v.towards.Store(nil)
	}
	if v.at.Load() != nil {
		v.at.Store(nil)
	}
}

// Flows gives the exchanges of public listeners that are under way, in no order.
// Those that begin or end meanwhile may be missed.
func (s *Server) Flows() iter.Seq[FlowInfo] {
	return func(yield func(FlowInfo) bool) {
		var all []FlowInfo
		s.registry.each(func(c *conn) {
			if c.info.Mapping == nil {
				c.eachExchange(func(x *exchange) { all = append(all, x.describe()) })
			}
		})
		for _, f := range all {
			if !yield(f) {
				return
			}
		}
	}
}

// Cut ends the exchanges that match picks, of those that Flows gives, and returns
// how many there were. The access log says "cut". match is called without locks
// held. An exchange over HTTP/1.1 ends with its connection.
func (s *Server) Cut(match func(FlowInfo) bool) (ended int) {
	picked := map[uint64]bool{}
	for f := range s.Flows() {
		if match(f) {
			picked[f.ID] = true
		}
	}
	if len(picked) == 0 {
		return 0
	}
	s.registry.each(func(c *conn) {
		hangUp := false
		c.eachExchange(func(x *exchange) {
			if picked[x.seen.id.Load()] {
				x.life.abandon(errCutOff)
				ended++
				hangUp = c.proto == protoH1
			}
		})
		if hangUp { // what waits for the client waits no longer
			c.hangUp()
		}
	})
	return ended
}

// errCutOff is why an exchange ended that an operator cut.
var errCutOff = errors.New("an operator has ended the exchange")

// eachExchange calls visit for each exchange under way that is past its routing,
// with a lock held that keeps it from being over.
func (c *conn) eachExchange(visit func(*exchange)) {
	routed := func(x *exchange) {
		if x.routed.Load() {
			visit(x)
		}
	}
	if h1 := c.h1.Load(); h1 != nil {
		h1.watch.mu.Lock()
		defer h1.watch.mu.Unlock()
		if h1.watch.x != nil {
			routed(h1.watch.x)
		}
	}
	if h2 := c.h2.Load(); h2 != nil {
		h2.mu.Lock()
		defer h2.mu.Unlock()
		for _, s := range h2.streams {
			routed(&s.x)
		}
	}
	if h3 := c.h3.Load(); h3 != nil {
		h3.mu.Lock()
		defer h3.mu.Unlock()
		for s := h3.streams; s != nil; s = s.after {
			routed(&s.x)
		}
	}
}

// describe returns what there is to tell of x.
func (x *exchange) describe() FlowInfo {
	c := x.conn
	if x.seen.id.Load() == 0 {
		x.seen.id.CompareAndSwap(0, c.server.nextFlow())
	}
	f := FlowInfo{
		ID: x.seen.id.Load(), Port: c.info.Port, Client: x.client, Local: c.local, UDP: c.proto == protoH3,
		Env: strings.Clone(x.out.env), Service: x.out.service,
		Since: x.began, Listener: c.listener(),
	}
	f.Up, f.Down = x.moved()
	if name := x.seen.towards.Load(); name != nil {
		f.Backend = *name
		if at := x.seen.at.Load(); at != nil && *at != *name {
			f.Address = *at
		}
	}
	if r := x.hop.route; r != nil {
		f.Route = r.Name
	}
	return f
}

// listener returns what the log and lists call the place that the client came
// to, such as https/443 or, of a mapped port, tcp/20022.
func (c *conn) listener() string {
	if s := c.came.Load(); s != nil {
		return *s
	}
	kind := "http/"
	switch {
	case c.info.Mapping != nil:
		kind = c.info.Mapping.Proto.String() + "/"
	case c.info.TLS:
		kind = "https/"
	}
	s := kind + strconv.Itoa(c.info.Port)
	c.came.Store(&s)
	return s
}

// cutBy returns the end of an exchange that the node cut, and an error that says
// so; "" where it did not.
func (x *exchange) cutBy() (end string, err error) {
	if x.life.abandoned() == errCutOff {
		return endCutOff, errCutOff
	}
	return x.conn.cutBy()
}

func (s *Server) nextFlow() uint64 {
	if s.cfg.NextFlow != nil {
		return s.cfg.NextFlow()
	}
	return s.lastFlow.Add(1)
}
