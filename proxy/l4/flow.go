package l4

import (
	"context"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/l4/loop"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// flow is one TCP connection or UDP session while it is served.
type flow struct {
	server *Server
	id     uint64
	// ctx ends when the flow is stopped. A flow that lives on a loop alone has
	// none; see begin.
	ctx    context.Context
	cancel context.CancelFunc
	since  time.Time
	proto  router.Proto
	labels labels

	// Bytes moved so far, one goroutine adding to each; what a loop has moved,
	// which counts that itself, from its end on. See moved.
	up, down  atomic.Int64
	datagrams atomic.Int64 // of UDP: an empty one is activity as well

	handed          atomic.Bool // to Config.HTTP, which logs and counts it
	unserved        atomic.Bool // and nothing came of that
	silent          atomic.Bool // it goes on in another process, which keeps its record
	awaitsFirstByte atomic.Bool // nothing is lost by closing it now

	session *session             // of UDP: told when the flow is stopped
	at      atomic.Pointer[port] // set by link; Resume may change it, under the mu of both ports
	lease   upstream.Lease       // of the flow's goroutine or loop: its place at the backend's target
	way     *approach            // of the flow's loop: to the backend; nil: is there

	// Guarded by the mu of the port at, see lockPort, except that the flow's goroutine or loop, which alone
	// writes them, may read them without.
	mapping       *router.Mapping // nil: of a route
	prev, next    *flow
	client, local netip.AddrPort
	tlvs          upstream.TLVs // of the PROXY header that named them
	admitted      bool
	// relayed is the flow on its loop; zero where it has none. It is written
	// under mu, too, and read under either.
	relayed loop.Flow

	mu      sync.Mutex // guards the following fields
	end     end
	err     error // what is behind connectFailed and failed
	stopped bool
	backend string            // "": target
	target  upstream.Endpoint // Port is 0 until the flow is connected
	address netip.AddrPort    // of target that it is connected to
	conns   [2]net.Conn       // client's, backend's; nil until attached, or where a loop has them
	idle    *time.Timer
	// deadline is when limit stops the flow, because of overdue.
	limit    *time.Timer
	deadline time.Time
	overdue  end
}

// labels are what logs and lists say about a flow besides its addresses.
type labels struct {
	listener            string // "": the mapping's, made when asked for
	port                int
	route, env, service string
}

func mappingLabels(m *router.Mapping) labels {
	return labels{port: m.Port, env: m.Env, service: m.Service}
}

func (f *flow) listener() string {
	if f.labels.listener == "" {
		return f.proto.String() + "/" + strconv.Itoa(f.labels.port)
	}
	return f.labels.listener
}

func (s *Server) newFlow(proto router.Proto, client, local netip.AddrPort, l labels) *flow {
	return &flow{server: s, id: s.lastFlow.Add(1), since: time.Now(), proto: proto, labels: l, client: client, local: local}
}

// NextFlow returns the ID of a flow that is somebody else's, so that there is none
// like it.
func (s *Server) NextFlow() uint64 { return s.lastFlow.Add(1) }

// moved returns the bytes moved so far. It needs the mu of the
// flow's port where it is linked.
func (f *flow) moved() traffic {
	if up, down, live := f.relayed.Bytes(); live {
		if f.handed.Load() { // HTTP has moved some before
			return traffic{up + f.up.Load(), down + f.down.Load()}
		}
		return traffic{up, down}
	}
	return traffic{f.up.Load(), f.down.Load()}
}

// identify takes what a PROXY header says.
func (f *flow) identify(h upstream.ProxyHeader) {
	p := f.lockPort()
	defer p.mu.Unlock()
	f.tlvs = h.TLVs
	if h.Src.IsValid() { // a health check of the proxy itself may name nobody
		f.client, f.local = h.Src, h.Dst
	}
}

// proxyHeader returns what a PROXY header says of the flow.
func (f *flow) proxyHeader() upstream.ProxyHeader {
	return upstream.ProxyHeader{Src: f.client, Dst: f.local, TLVs: f.tlvs}
}

// attach has c reset when the flow is stopped, at once if it already was. It
// reports whether the flow goes on.
func (f *flow) attach(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		reset(c)
		return false
	}
	if f.conns[0] == nil {
		f.conns[0] = c
	} else {
		f.conns[1] = c
	}
	return true
}

// stop ends the flow because of why and resets whatever connections it has. It
// reports whether it was this call that ended it. It does not wait for the
// flow's goroutines, which notice by their connections failing.
func (f *flow) stop(why end, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.concludeLocked(why, err)
	for _, c := range f.conns {
		if c != nil {
			reset(c)
		}
	}
	f.relayed.Cut(nil)
	if f.session != nil {
		f.session.stopped()
	}
	return true
}

// close ends the flow because of why, unless it was stopped before, and closes
// its connections in order.
func (f *flow) close(why end) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	f.concludeLocked(why, nil)
	for _, c := range f.conns {
		if c != nil {
			c.Close()
		}
	}
	f.relayed.Cut(nil) // a joint that its owner gives up
}

// conclude notes why the flow, whose connections are nobody's or closed, has
// ended, unless that is known.
func (f *flow) conclude(why end, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.concludeLocked(why, err)
	}
}

func (f *flow) concludeLocked(why end, err error) {
	f.stopped, f.end, f.err = true, why, err
	if f.cancel != nil {
		f.cancel()
	}
}

// stopAfter stops the flow because of why when d has passed. Of several calls
// the one that would stop it first counts.
func (f *flow) stopAfter(d time.Duration, why end) {
	deadline := time.Now().Add(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.stopped || f.limit != nil && !deadline.Before(f.deadline):
		return
	case f.limit == nil:
		f.limit = time.AfterFunc(d, f.stopOverdue)
	default:
		f.limit.Reset(d)
	}
	f.deadline, f.overdue = deadline, why
}

func (f *flow) stopOverdue() {
	f.mu.Lock()
	why, stays := f.overdue, f.limit == nil || time.Now().Before(f.deadline) // since the timer ran out
	f.mu.Unlock()
	if !stays {
		f.stop(why, nil)
	}
}

// stay takes back stopAfter. It reports whether the flow goes on.
func (f *flow) stay() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	if f.limit != nil {
		f.limit.Stop()
		f.limit = nil
	}
	return true
}

// idleChecks is how often per timeout an idle flow is looked at: it ends within
// two looks after its timeout.
const idleChecks = 8

// stopWhenIdle stops the flow once nothing moved for timeout; 0 means never.
// The copying knows nothing of it: a timer looks whether the counters grew.
func (f *flow) stopWhenIdle(timeout time.Duration) {
	if timeout <= 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return
	}
	step := timeout/idleChecks + time.Millisecond
	last, lastChange := f.activity(), time.Now()
	f.idle = time.AfterFunc(step, func() {
		if now := f.activity(); now != last {
			last, lastChange = now, time.Now()
		} else if time.Since(lastChange) >= timeout {
			f.stop(idle, nil)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.stopped {
			f.idle.Reset(step)
		}
	})
}

func (f *flow) activity() int64 { return f.up.Load() + f.down.Load() + f.datagrams.Load() }

// setBackend notes the target that the flow goes to, and where that is.
func (f *flow) setBackend(name string, addr netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.backend, f.address = name, addr
}

// setTarget notes the target that the flow is connected to, and where that is.
func (f *flow) setTarget(to upstream.Endpoint, addr netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.target, f.address = to, addr
}

// backendName returns the target that the flow goes to, "" until it is known.
// f.mu is held.
func (f *flow) backendName() string {
	if f.backend == "" && f.target.Port != 0 {
		return f.target.String()
	}
	return f.backend
}

// backendAt returns the target that the flow goes to and, where that is a name,
// the address.
func (f *flow) backendAt() (name, address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = f.backendName()
	if f.address.IsValid() {
		if address = f.address.String(); address == name {
			address = ""
		}
	}
	return name, address
}

// finish takes the ended flow out of the books and writes its record. All its
// goroutines but the calling one have returned.
func (f *flow) finish() {
	now := time.Now()
	f.lease.Done()
	f.mu.Lock()
	for _, t := range []*time.Timer{f.idle, f.limit} {
		if t != nil {
			t.Stop()
		}
	}
	why, err := f.end, f.err
	f.mu.Unlock()
	f.server.unlink(f, now)
	if f.silent.Load() {
		f.server.running.Done()
		return
	}
	handed := f.handed.Load()
	if handed && !f.unserved.Load() {
		return
	}
	f.server.metrics.ended(f.proto, why)
	f.log(now, why, err)
	if !handed { // else its new owner is waited for
		f.server.running.Done()
	}
}

// log writes the access log record.
func (f *flow) log(now time.Time, why end, err error) {
	log := f.server.cfg.AccessLog
	if log == nil || !log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	backend, address := f.backendAt()
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs,
		slog.String("listener", f.listener()), slog.String("proto", f.proto.String()),
		slog.Int("port", f.labels.port), slog.String("client", f.client.String()))
	for _, a := range [...]struct{ key, value string }{
		{"route", f.labels.route}, {"backend", backend}, {"address", address}, {"env", f.labels.env}, {"service", f.labels.service},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	attrs = append(attrs, slog.Int64("bytes_up", f.up.Load()), slog.Int64("bytes_down", f.down.Load()),
		slog.Float64("duration", now.Sub(f.since).Seconds()), slog.String("end", why.String()))
	if err != nil {
		attrs = append(attrs, slog.String("err", err.Error()))
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "flow", attrs...)
}

// FlowInfo describes a live flow.
type FlowInfo struct {
	ID       uint64 // of this process: flows that begin later have higher ones
	Proto    router.Proto
	Listener string // such as tcp/20022
	Port     int    // of this node that the client came to
	Client   netip.AddrPort
	Local    netip.AddrPort // this node's address that the client used
	Backend  string         // host:port; "" until it is connected, and for HTTP
	Address  string         // ip:port, where Backend has a name
	Route    string         // "" for mappings
	Env      string
	Service  string
	HTTP     bool  // handed on: its exchanges choose backends for themselves
	Up, Down int64 // bytes so far, to and from the backend
	Since    time.Time
}

// Flows gives every live flow, in no order. Flows that begin or end meanwhile
// may be missed or given.
func (s *Server) Flows() iter.Seq[FlowInfo] {
	return func(yield func(FlowInfo) bool) {
		for _, f := range s.snapshot() {
			if !yield(f.describe()) {
				return
			}
		}
	}
}

func (f *flow) describe() FlowInfo {
	p := f.lockPort()
	client, local, moved := f.client, f.local, f.moved()
	p.mu.Unlock()
	backend, address := f.backendAt()
	return FlowInfo{
		ID: f.id, Proto: f.proto, Listener: f.listener(), Port: f.labels.port, Client: client, Local: local,
		Backend: backend, Address: address, Route: f.labels.route, Env: f.labels.env, Service: f.labels.service,
		HTTP: f.handed.Load(), Up: moved.up, Down: moved.down, Since: f.since,
	}
}
