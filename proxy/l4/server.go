package l4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Config wires a Server. Dialer and HTTP are needed. It must not be modified
// after it was passed to New.
type Config struct {
	// Dialer connects to backends.
	Dialer *upstream.Dialer
	// HTTP takes over a connection to a mapping with http that opened with a
	// TLS ClientHello (tls) or with anything that is to be read as HTTP. It
	// owns c, which gives every byte that the client sent, and must close it.
	// The addresses of c are the client's own where a PROXY header named them.
	HTTP func(c net.Conn, m *router.Mapping, tls bool)
	// TrustedProxies are the networks whose PROXY headers are believed, on
	// mappings that accept one. A connection from anywhere else is served as
	// it comes: what looks like a header in it is data for the backend, and
	// its source address is the client's.
	TrustedProxies []netip.Prefix
	// UDPSessions bounds the UDP sessions of the server, each of which has a
	// socket; 0 means 16384, or half the file descriptors that the process
	// may open where that is less. Where an eighth of them or less is left, no
	// port may have more than its share.
	UDPSessions int
	// UDPSessionsPerClient bounds the UDP sessions of one client: an IPv4
	// address, or a /64 of IPv6 addresses; 0 means 512.
	UDPSessionsPerClient int

	// TCPFlows bounds the TCP flows of the server, each of which has two file
	// descriptors; 0 means as many as leave an eighth of the descriptors that
	// the process may open to others.
	TCPFlows int
	// AcceptFailed is called when a connection cannot be accepted for want of
	// descriptors or memory; nil: nobody is told. It must not block.
	AcceptFailed func()

	FirstFlow  uint64                // IDs of flows begin after it
	AccessLog  *slog.Logger          // one record per flow at its end, which must not block; nil: off
	Logger     *slog.Logger          // nil: off
	Registerer prometheus.Registerer // nil: metrics are kept and not shown
}

const (
	defaultUDPSessions          = 16384
	defaultUDPSessionsPerClient = 512
)

// Server serves flows. Make it with New; its methods may be called from any
// goroutine.
type Server struct {
	cfg     Config
	metrics *metrics
	loops   tcpLoops
	udp     udpLoops
	udpCaps sessionCaps
	routed  *port // the flows of routes, which have no mapping

	running  sync.WaitGroup // flows that are not handed on
	lastFlow atomic.Uint64  // the ID of the flow that began last
	tcpFlows atomic.Int64   // linked ones

	mu       sync.RWMutex // guards the following fields; taken before a port's
	ports    map[portKey]*port
	leaving  map[portKey][]*port // with flows of mappings that are gone
	unused   []unusedPort
	past     [2]traffic           // by router.Proto, of ports that are no more
	services map[serviceKey]Tally // likewise
	kept     map[portKey]Tally    // of mapped ports no longer in ports
	draining bool
}

// New checks cfg and returns a Server. Nothing is started before the first flow.
func New(cfg Config) (*Server, error) {
	if cfg.Dialer == nil || cfg.HTTP == nil {
		return nil, errors.New("l4: Dialer and HTTP are both needed")
	}
	if cfg.TCPFlows < 0 || cfg.UDPSessions < 0 || cfg.UDPSessionsPerClient < 0 {
		return nil, errors.New("l4: TCPFlows, UDPSessions and UDPSessionsPerClient must be 0 (the default) or more")
	}
	s := &Server{
		cfg: withDefaults(cfg), ports: map[portKey]*port{}, leaving: map[portKey][]*port{}, routed: &port{},
		services: map[serviceKey]Tally{}, kept: map[portKey]Tally{},
	}
	s.udpCaps.total, s.udpCaps.perClient = s.cfg.UDPSessions, s.cfg.UDPSessionsPerClient
	s.lastFlow.Store(s.cfg.FirstFlow)
	s.loops.server = s
	s.metrics = newMetrics(s)
	if cfg.Registerer != nil {
		if err := s.metrics.register(cfg.Registerer); err != nil {
			return nil, fmt.Errorf("l4: register metrics: %w", err)
		}
	}
	return s, nil
}

func withDefaults(cfg Config) Config {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		files.Cur = 1 << 20
	}
	if cfg.TCPFlows == 0 {
		cfg.TCPFlows = int(min((files.Cur-files.Cur/8)/2, 1<<30))
	}
	if cfg.UDPSessions == 0 {
		cfg.UDPSessions = defaultUDPSessions
		if files.Cur/2 < defaultUDPSessions {
			cfg.UDPSessions = int(files.Cur / 2)
			cfg.Logger.Warn("few files may be open, so there can be few UDP sessions; raise LimitNOFILE or ulimit -n",
				"files", files.Cur, "sessions", cfg.UDPSessions)
		}
	}
	if cfg.UDPSessionsPerClient == 0 {
		cfg.UDPSessionsPerClient = defaultUDPSessionsPerClient
	}
	return cfg
}

// Shutdown refuses new flows, waits for those there are until ctx ends, then
// cuts the rest and says how many it cut. Connections that have not yet sent
// a byte, on ports that wait for one, are closed at once and not counted.
// Connections handed to Config.HTTP are its owner's to end, and Shutdown returns
// when the calls have. No flow is left then, no listener, and no goroutine but
// those of ServeUDP calls whose context has not ended.
func (s *Server) Shutdown(ctx context.Context) (cut int) {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	// A flow that begins to wait from here on sees that the node drains.
	for _, f := range s.snapshot() {
		if f.awaitsFirstByte.Load() {
			f.stop(drained, nil)
		}
	}
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		for _, f := range s.snapshot() {
			if !f.handed.Load() && f.stop(drained, nil) {
				cut++
			}
		}
		<-done
	}
	s.loops.stop()
	return cut
}

// lingerLook is how often Linger looks whether there are flows.
const lingerLook = 100 * time.Millisecond

// Linger waits until there is no flow, or ctx ends. Flows may begin meanwhile:
// those whose connection was accepted before nothing came any more.
func (s *Server) Linger(ctx context.Context) {
	tick := time.NewTicker(lingerLook)
	defer tick.Stop()
	for s.Live() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Pulse returns once every event loop of the server has turned, with nil, or when
// ctx ends, and says which has not.
func (s *Server) Pulse(ctx context.Context) error {
	s.loops.mu.Lock()
	group, stopped := s.loops.group, s.loops.stopped
	s.loops.mu.Unlock()
	if group != nil && !stopped {
		if err := group.Pulse(ctx); err != nil {
			return err
		}
	}
	return s.udp.pulse(ctx)
}

// Live returns how many flows there are: TCP connections, those handed to
// Config.HTTP included, and UDP sessions.
func (s *Server) Live() int {
	s.udpCaps.mu.Lock()
	defer s.udpCaps.mu.Unlock()
	return int(s.tcpFlows.Load()) + s.udpCaps.node.count
}

// EachUDPSocket calls visit with another descriptor of each socket that ServeUDP
// serves, and its port, until an error. visit owns the file, the only one of them
// that is open then. A port that opens or closes meanwhile may be among them or not.
func (s *Server) EachUDPSocket(visit func(number int, f *os.File) error) error {
	return s.udp.each(visit)
}

func (s *Server) isDraining() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.draining
}
