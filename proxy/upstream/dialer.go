package upstream

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/upstream/dns"
	"github.com/remotegpu/sluice/router"
)

const (
	// A backend that vanished is found out after idle + count*interval, two
	// minutes, of silence; idle is below the timeouts of the NATs and firewalls
	// that flows to backends pass, few of which are shorter than two minutes.
	keepAliveIdle     = time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 4
)

// Endpoint is one place to connect to. Endpoints are comparable.
type Endpoint struct {
	Host string // an IP address, without brackets, or a name
	Port int    // 1 to 65535
	// FromClient says that a client's words are part of Host or Port: addresses
	// of the node's link, where clouds keep secrets, are then refused.
	FromClient bool
	// NamedByClient says that they are part of Host.
	NamedByClient bool
	// Barred says that addresses of Config.Bar are refused: Host is a name, or a
	// client's words, in the backend of an environment.
	Barred bool
}

// EndpointOf returns the endpoint that target i of b is, where its variables, if it
// has any, stand for host and port.
func EndpointOf(b *router.Backend, i int, host string, port int) Endpoint {
	at := &b.Targets[i].Address
	ep := Endpoint{Host: host, Port: port, FromClient: !at.IsLiteral(), NamedByClient: !at.HasLiteralHost()}
	if b.OfEnvironment() {
		_, itself := ep.ip()
		// Whoever wrote an address, or this machine's own name, meant it.
		ep.Barred = ep.NamedByClient || !itself && !router.IsLocalhost(host)
	}
	return ep
}

// String returns host:port, with brackets around an IPv6 address.
func (e Endpoint) String() string { return net.JoinHostPort(e.Host, strconv.Itoa(e.Port)) }

// ip returns the host as an IP address, IPv4 as IPv4; ok is false for a name.
func (e Endpoint) ip() (addr netip.Addr, ok bool) {
	// What cannot be an address is no error that somebody would have to make.
	if !strings.Contains(e.Host, ":") && strings.Trim(e.Host, "0123456789.") != "" {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(e.Host)
	return addr.Unmap(), err == nil
}

// Config is what a Dialer is made of. The zero value works.
type Config struct {
	// Logger is told of names that are served from memory because they do not
	// resolve; nil discards that.
	Logger *slog.Logger
	// Registerer gets the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
	// Ports are those that mappings may have: UDP sockets send from others.
	Ports router.Ports
	// Resolver looks names up; nil means the system's name servers.
	Resolver Resolver
	// Forbid is asked before each attempt to connect and says why that must not
	// be, if so; what fails by it is a *ForbiddenError. It must not wait for
	// anything; nil forbids nothing.
	Forbid func(Connecting) error
	// Bar are networks where no name may lead that an environment has for a
	// backend: whoever made it may be trusted with it alone. What fails by that is
	// a *ForbiddenError.
	Bar []netip.Prefix
	// HealthChanged is called when checks find that a target went down or came
	// back. It must not wait for anything, nor call the Dialer; nil: nobody.
	HealthChanged func()
	// Zone is where this node stands, in the words of targets' zones; "": nowhere
	// in particular.
	Zone string
	// CookieKey keeps what the cookies of router.Sticky stand for to this node
	// and those that have the same; nil: to this Dialer.
	CookieKey []byte
	// TLS are the files that backends' TLS refers to, by the names that it has for
	// them.
	TLS map[string]TLSFiles
}

// Connecting is what is about to be connected to.
type Connecting struct {
	Proto    router.Proto
	Endpoint Endpoint
	Addr     netip.AddrPort // of the endpoint
	Routed   bool           // it is for what a route or its forward_auth has for a backend
}

// ForbiddenError is the failure of an attempt that Config.Forbid stood against.
type ForbiddenError struct{ Err error }

func (e *ForbiddenError) Error() string { return e.Err.Error() }

// Unwrap returns what Config.Forbid said.
func (e *ForbiddenError) Unwrap() error { return e.Err }

// Dialer connects to backends. It is safe for concurrent use, and what it
// learns serves all who share it, so a process has one.
type Dialer struct {
	metrics *metrics
	names   *resolver
	groups  groups
	loads   loads
	checks  *checks
	log     *slog.Logger
	net     net.Dialer
	sources sourcePorts
	forbid  func(Connecting) error // nil: nothing
	bar     []netip.Prefix
	zone    string

	cookieKey []byte
	ejections *ejections
	tls       *tlsStore

	failedEndpoints *failures[Endpoint]       // see Attempt
	failedAddrs     *failures[netip.AddrPort] // of names with several addresses
}

// NewDialer returns a Dialer with nothing in its memory. It panics if its
// metrics are registered already, as prometheus.MustRegister does.
func NewDialer(cfg Config) *Dialer {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	names := cfg.Resolver
	if names == nil {
		names = dns.New(dns.Config{})
	}
	m := newMetrics()
	if cfg.Registerer != nil {
		m.register(cfg.Registerer)
	}
	d := &Dialer{
		metrics: m,
		log:     log,
		sources: newSourcePorts(cfg.Ports, kernelPorts()),
		forbid:  cfg.Forbid,
		bar:     cfg.Bar,
		zone:    cfg.Zone,
		names:   newResolver(names, log, m),
		net: net.Dialer{
			Control:       shareLocalPort,
			FallbackDelay: -1, // addresses are tried here, one after the other
			KeepAliveConfig: net.KeepAliveConfig{
				Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
			},
		},
		failedEndpoints: newFailures[Endpoint](),
		failedAddrs:     newFailures[netip.AddrPort](),
	}
	d.checks = newChecks(d)
	d.checks.changed = cfg.HealthChanged
	d.ejections = newEjections(m, log)
	d.tls = newTLSStore(cfg.TLS, log)
	if d.cookieKey = cfg.CookieKey; d.cookieKey == nil {
		d.cookieKey = make([]byte, 32)
		rand.Read(d.cookieKey) // which never fails
	}
	return d
}

// Close ends what the Dialer does in the background and waits for that. What is
// asked of it afterwards still works, without the help of the background.
func (d *Dialer) Close() {
	d.checks.close()
	d.names.close()
}

// shareLocalPort lets a listener have the port that an outgoing TCP connection
// was given. The kernel picks those from a range (32768-60999, unless told
// otherwise) in which mapped ports lie too. It never picks one that is being
// listened on; but without SO_REUSEADDR on both sockets a connection that got a
// port first would keep a later mapping from opening it, for minutes or hours.
//
// IP_BIND_ADDRESS_NO_PORT has no place here: it postpones the choice of a port
// to the time of connecting, where without bind it is made anyway. For UDP there
// is nothing of the kind; see sourcePorts. net.ipv4.ip_local_reserved_ports keeps
// the kernel's hands off mapped ports altogether, for other programs too.
func shareLocalPort(network, _ string, c syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return nil // for UDP it would mean that two sockets share datagrams
	}
	var err error
	cerr := c.Control(func(fd uintptr) { err = ShareLocalPort(int(fd)) })
	return errors.Join(cerr, err)
}

// ShareLocalPort prepares a TCP socket that is about to connect to a backend, for
// those who connect by themselves: its local port does not keep a listener from
// opening the same one. It is a system call that never waits, of which the
// scheduler is not told: on an event loop that would be what wakes the runtime's
// monitor for each connection.
func ShareLocalPort(fd int) error {
	on := int32(1)
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR,
		uintptr(unsafe.Pointer(&on)), unsafe.Sizeof(on), 0)
	if errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}

// Dial connects to the first target of b that takes the connection, each for at
// most timeout, and tells which; see Attempt for client, the order and what is
// remembered. The caller owns the connection, and calls Done of the Lease when
// the flow is over. The error tells of every target.
func (d *Dialer) Dial(ctx context.Context, b *router.Backend, v *router.Vars, client netip.Addr, timeout time.Duration) (*net.TCPConn, Endpoint, Lease, error) {
	a, err := d.Attempt(b, v, client)
	if err != nil {
		return nil, Endpoint{}, Lease{}, err
	}
	a.Timeout = timeout
	c, err := a.dial(ctx)
	if err != nil {
		return nil, Endpoint{}, Lease{}, err
	}
	return c, a.ep, a.Lease(), nil
}

// DialEndpoint connects to ep by TCP, with TCP_NODELAY and keepalive on, within
// timeout; 0 means router.DefaultConnectTimeout. A name is resolved, and its
// addresses are tried one after the other, from the one whose turn it is. The caller owns the connection.
//
// A failure that is not this node's own (nor ctx's end) is remembered for a
// short while and shows in the order of Attempt.
func (d *Dialer) DialEndpoint(ctx context.Context, ep Endpoint, timeout time.Duration) (*net.TCPConn, error) {
	return d.DialAddress(ctx, Connecting{Endpoint: ep}, timeout)
}

// DialAddress is DialEndpoint with to.Addr, which Attempt.Address gave, before
// the other addresses of the endpoint's name, unless it failed lately or is none
// of them any more. The zero AddrPort has no say, nor has to.Proto.
func (d *Dialer) DialAddress(ctx context.Context, to Connecting, timeout time.Duration) (*net.TCPConn, error) {
	a := Attempt{dialer: d, Timeout: timeout, routed: to.Routed}
	a.begin(to.Endpoint)
	a.addr = to.Addr
	return a.dial(ctx)
}

// dial walks a to its first connection.
func (a *Attempt) dial(ctx context.Context) (*net.TCPConn, error) {
	for {
		addr, _, state := a.Next()
		switch state {
		case Exhausted:
			return nil, a.err
		case Unresolved:
			_ = a.Resolve(ctx) // Next and Err know
			continue
		}
		began := time.Now()
		bounded, cancel := context.WithTimeoutCause(ctx, a.Limit(), errTimeLimit)
		c, err := a.dialer.dialAddress(bounded, addr)
		o := outcomeOf(bounded, err)
		cancel()
		took := time.Since(began)
		if err == nil {
			a.Connected(took)
			return c, nil
		}
		a.fail(took, err, o)
	}
}

// Resolve returns the addresses of ep in the order to try, at least one. An IP
// address is its own answer. What names stand for is remembered as their TTL
// says, and for longer while they do not resolve.
func (d *Dialer) Resolve(ctx context.Context, ep Endpoint) ([]netip.AddrPort, error) {
	if addrs, err, known := d.recall(ep); known {
		return addrs, err
	}
	found, err := d.names.resolve(ctx, ep.Host)
	if err != nil {
		return nil, err
	}
	return d.addrPorts(ep, found)
}

// Known returns what is remembered of a name, however old; nil if that is
// nothing, or if the name had no address. The slice must not be modified.
func (d *Dialer) Known(name string) []netip.Addr {
	if a, ok := d.names.answers.load(strings.ToLower(name)); ok {
		return a.addrs
	}
	return nil
}

// recall is Resolve from memory alone; known is false where that does not do.
func (d *Dialer) recall(ep Endpoint) (addrs []netip.AddrPort, err error, known bool) {
	if addr, ok := ep.ip(); ok {
		addrs, err = d.addrPorts(ep, []netip.Addr{addr})
		return addrs, err, true
	}
	found, err, known := d.names.recall(ep.Host)
	if !known || err != nil {
		return nil, err, known
	}
	addrs, err = d.addrPorts(ep, found)
	return addrs, err, true
}

// addrPorts makes of the addresses of ep's name what may be connected to, in the
// order to try.
func (d *Dialer) addrPorts(ep Endpoint, found []netip.Addr) ([]netip.AddrPort, error) {
	addrs := make([]netip.AddrPort, 0, len(found))
	for _, a := range found {
		if !ep.FromClient || !isOfTheLink(a) {
			addrs = append(addrs, netip.AddrPortFrom(a.Unmap(), uint16(ep.Port)))
		}
	}
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "it stands for an address of the link, and a client chose it", Name: ep.Host, IsNotFound: true}
	}
	if len(addrs) > 1 {
		addrs = d.failedAddrs.last(addrs)
	}
	return addrs, nil
}

// isOfTheLink reports whether a means something on this node's link alone, such
// as where a cloud tells a machine its secrets.
func isOfTheLink(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() ||
		a == netip.AddrFrom4([4]byte{100, 100, 100, 200}) || a == netip.MustParseAddr("fd00:ec2::254")
}

func (d *Dialer) dialAddress(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	// Not by DialTCP: it takes the zero local address for one to bind to, and
	// binding makes the kernel look for a port that no connection to anywhere
	// has, through every socket in TIME_WAIT.
	c, err := d.net.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, inWords(err)
	}
	return c.(*net.TCPConn), nil
}

// inWords takes network and addresses off an error of net, which stand in ours.
func inWords(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
