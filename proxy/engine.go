package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy/clienttls"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Config wires an Engine. TLS and Logger are needed.
type Config struct {
	// HTTPS and HTTP are the public listeners.
	HTTPS, HTTP []Listener
	// TLS is the configuration for TLS that ends here; GetCertificate is set.
	// It must not be modified afterwards.
	TLS *tls.Config
	// Authorities are those that certificates of clients may come from, by the
	// name that domains refer to.
	Authorities map[string]clienttls.AuthorityFiles
	// MinTLS is the oldest version of TLS spoken with clients; 0 means TLS 1.2.
	MinTLS uint16
	// AuthoritiesChanged, unless nil, is told when TLSTerms().Trouble has
	// other answers than before.
	AuthoritiesChanged func()
	// TrustedProxies are the networks whose connections open with a PROXY
	// header, on mappings that accept one.
	TrustedProxies []netip.Prefix
	// Limits bound what client connections may take; the zero value means the
	// defaults.
	Limits proxyhttp.Limits
	// Policy is what is done with the responses of routes that do not say
	// otherwise.
	Policy router.Policy
	// Pages are the node's files for error pages, by name.
	Pages map[string]router.Template
	// Own reports whether an address, IPv4 as IPv4, is one of the node's own:
	// nothing is connected to a mapped port there that would lead back to
	// itself. nil: no address is.
	Own func(netip.Addr) bool
	// Private says what of the node itself answers at an address of its own, such
	// as "the admin address", to which nobody is connected; "": nothing does. nil:
	// nothing does anywhere.
	Private func(netip.AddrPort) string
	// Public says likewise which of the node's public listeners is at an address,
	// to which no route leads.
	Public func(netip.AddrPort) string
	// PortsMode says how mapped ports are opened; "" means PortsAuto.
	PortsMode PortsMode
	// Ports are those that mappings may have, among which other programs'
	// sockets are looked for; none: nobody looks.
	Ports router.Ports
	// Inherited are sockets to be used rather than opened anew. The engine takes
	// those that it wants. nil: there are none.
	Inherited *listen.Inherited
	// Held has nothing read from UDP sockets before Begin: another process does.
	Held bool
	// QUIC is what this process and others of the node have in common over QUIC.
	QUIC proxyhttp.QUICConfig
	// Zone is where the node stands, in the words of targets' zones; "": nowhere.
	Zone string
	// UpstreamTLS are the files that backends' TLS refers to, by name.
	UpstreamTLS map[string]upstream.TLSFiles
	// PasswordFiles are the paths of files of users, by name.
	PasswordFiles map[string]string
	// Bar are networks where no name may lead that an environment has for a backend.
	Bar []netip.Prefix
	// CookieKey is what the cookies of sticky backends are made by; nil: a key
	// that is forgotten when the process ends.
	CookieKey []byte
	// PortState is told what became of a mapping's port, by key: err says why
	// it is not open, nil that it is open again. More may be told of why later.
	// It is called from any goroutine, also from within Apply. nil: nobody is
	// told.
	PortState  func(key string, err error)
	Logger     *slog.Logger
	FirstFlow  uint64                // IDs of flows begin after it
	AccessLog  *slog.Logger          // nil: off
	Registerer prometheus.Registerer // nil: no metrics
}

// Listener is a public address.
type Listener struct {
	Address string // host:port
	// TrustedProxies are the networks whose connections open with a PROXY
	// header.
	TrustedProxies []netip.Prefix
	// NoHTTP3 has an HTTPS listener open no UDP socket and announce no HTTP/3.
	NoHTTP3 bool
	// HTTP3Port is the UDP port that clients are told of; 0: the listener's own.
	HTTP3Port int
}

// altSvcPort returns the port for Alt-Svc of a listener at port; 0: there is none.
func (l *Listener) altSvcPort(port int) int {
	switch {
	case l.NoHTTP3:
		return 0
	case l.HTTP3Port != 0:
		return l.HTTP3Port
	}
	return port
}

// Engine is the data plane of one node. Make it with New; it serves mappings
// from the first Apply, and the public listeners once Listen has opened them.
type Engine struct {
	cfg     Config
	table   atomic.Pointer[router.Table]
	dialer  *upstream.Dialer
	l4      *l4.Server
	http    *proxyhttp.Server
	terms   *clienttls.Terms
	rawTLS  *clienttls.Server // of routes that take TLS connections
	metrics *metrics
	mode    PortsMode     // PortsBind or PortsSteer
	held    chan struct{} // closed when UDP sockets are read from
	begin   sync.Once
	retired atomic.Bool

	leaving         context.Context // ends when UDP sessions are handed over
	leave           context.CancelFunc
	udpServing      sync.WaitGroup                   // UDP ports
	publicAccepting sync.WaitGroup                   // accept loops of public listeners
	inHand          atomic.Int64                     // connections of public listeners that are accepted
	elders          map[string][]proxyhttp.QUICElder // by the socket's address; written before held is closed
	leftMu          sync.Mutex                       // guards the following field
	left            []l4.UDPPort

	applying sync.Mutex // held while a table is put in force

	accepting sync.WaitGroup  // accept loops, and connections not yet handed on
	ctx       context.Context // ends when the engine stops accepting
	stop      context.CancelFunc

	overQUIC   context.Context // ends when HTTP/3 does, with ctx at the latest
	forsakeUDP context.CancelFunc

	// opening ends when connections that have not said yet what they want are
	// given up: before the drain, since they are nobody's flow.
	opening context.Context
	giveUp  context.CancelFunc

	rest    rest
	resting atomic.Bool // rest.on, for who takes up flows

	public publicListeners
	mapped mappedPorts
	names  *backendNames
	downs  *backendDowns
	states *portStates
}

// New checks cfg and wires an Engine. It opens no socket but those that steered
// ports have in common, which Shutdown closes.
func New(cfg Config) (*Engine, error) {
	if cfg.TLS == nil || cfg.Logger == nil {
		return nil, errors.New("proxy: TLS and Logger are both needed")
	}
	if cfg.PortState == nil {
		cfg.PortState = func(string, error) {}
	}
	if cfg.Own == nil {
		cfg.Own = func(netip.Addr) bool { return false }
	}
	none := func(netip.AddrPort) string { return "" }
	if cfg.Private == nil {
		cfg.Private = none
	}
	if cfg.Public == nil {
		cfg.Public = none
	}
	states := newPortStates(cfg.PortState)
	cfg.PortState = states.port
	e := &Engine{cfg: cfg, metrics: newMetrics(cfg.Registerer), states: states, names: newBackendNames()}
	e.table.Store(&router.Table{})
	e.held = make(chan struct{})
	if !cfg.Held {
		e.begin.Do(func() { close(e.held) })
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.overQUIC, e.forsakeUDP = context.WithCancel(e.ctx)
	e.leaving, e.leave = context.WithCancel(context.Background())
	e.opening, e.giveUp = context.WithCancel(e.ctx)
	e.mapped.init(e)
	e.downs = newBackendDowns(states.health)
	e.dialer = e.newDialer()
	e.downs.down = e.dialer.AllDown
	e.terms = clienttls.New(clienttls.Config{
		MinVersion: cfg.MinTLS, Authorities: cfg.Authorities, Table: e.table.Load, Changed: cfg.AuthoritiesChanged,
		Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	e.rawTLS = e.terms.Server(cfg.TLS, clienttls.WithoutECH(), clienttls.WithAsked(noteAsked))
	var err error
	e.http, err = proxyhttp.New(proxyhttp.Config{
		Table: e.table.Load, Dialer: e.dialer, TLS: cfg.TLS, Terms: e.terms, HTTPSPort: firstPort(cfg.HTTPS), Policy: cfg.Policy, Pages: cfg.Pages,
		PasswordFiles: cfg.PasswordFiles,
		NextFlow:      func() uint64 { return e.l4.NextFlow() }, Limits: cfg.Limits, Relay: e.relayUpgraded,
		AccessLog: cfg.AccessLog, Logger: cfg.Logger, Registerer: cfg.Registerer, QUIC: cfg.QUIC,
	})
	if err != nil {
		return nil, err
	}
	e.l4, err = l4.New(l4.Config{
		Dialer: e.dialer, TrustedProxies: cfg.TrustedProxies, HTTP: e.serveMappedHTTP, AcceptFailed: e.metrics.acceptErrors.Inc,
		FirstFlow: cfg.FirstFlow, AccessLog: cfg.AccessLog, Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	if err := e.chooseMode(); err != nil {
		return nil, err
	}
	return e, nil
}

// CheckBackend says what this node lacks to connect to b as b has it, if
// anything. The error is a *router.FieldError whose path begins behind that of b.
func (e *Engine) CheckBackend(b *router.Backend) error {
	err := e.dialer.CheckTLS(b.TLS)
	if field, ok := errors.AsType[*router.FieldError](err); ok {
		return &router.FieldError{Path: "tls." + field.Path, Msg: field.Msg}
	}
	return err
}

// TLSTerms returns what TLS with clients is spoken by. Whoever runs the engine
// runs them beside it.
func (e *Engine) TLSTerms() *clienttls.Terms { return e.terms }

// CheckBasicAuth says what this node lacks to let users in as b, which may be nil,
// has it. The error is a *router.FieldError whose path begins behind that of b.
func (e *Engine) CheckBasicAuth(b *router.BasicAuth) error { return e.http.CheckBasicAuth(b) }

// newDialer returns the dialler of the engine, which connects to nothing that
// forbid stands against, and has names checked by it.
func (e *Engine) newDialer() *upstream.Dialer {
	var dialer *upstream.Dialer
	loop := func(m *router.Mapping, lookup func(string) []netip.Addr) *router.Loop {
		return e.chains(lookup).Loop(m)
	}
	dialer = upstream.NewDialer(upstream.Config{
		Logger: e.cfg.Logger, Registerer: e.cfg.Registerer, Ports: e.cfg.Ports,
		HealthChanged: e.downs.changed,
		Zone:          e.cfg.Zone, CookieKey: e.cfg.CookieKey, TLS: e.cfg.UpstreamTLS, Bar: e.cfg.Bar,
		Forbid: func(to upstream.Connecting) error { return e.forbid(to, dialer.Known) },
	})
	e.names.own, e.names.loop, e.names.tell = e.cfg.Own, loop, e.states.backend
	e.names.resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
		found, err := dialer.Resolve(ctx, upstream.Endpoint{Host: name, Port: 1}) // any port
		addrs := make([]netip.Addr, len(found))
		for i := range found {
			addrs[i] = found[i].Addr()
		}
		return addrs, err
	}
	return dialer
}

// Bind opens the public listeners, which Listen does otherwise: what comes to
// them waits until then. On error none stays open.
func (e *Engine) Bind(ctx context.Context) error {
	if err := e.public.open(ctx, e.cfg); err != nil {
		e.public.close()
		e.public.closeQUIC()
		e.public = publicListeners{}
		return err
	}
	e.public.bound = true
	return nil
}

// Listen opens the public listeners, unless Bind has, and starts to serve on
// them. On error none stays open.
func (e *Engine) Listen(ctx context.Context) error {
	if !e.public.bound {
		if err := e.Bind(ctx); err != nil {
			return err
		}
	}
	if err := e.mapped.accept(); err != nil {
		e.public.close()
		return err
	}
	e.rest.mu.Lock()
	if e.rest.on {
		e.public.close()
		e.public.https, e.public.http = nil, nil
	}
	e.acceptPublic()
	e.rest.mu.Unlock()
	for _, pc := range e.public.quic {
		port := pc.LocalAddr().(*net.UDPAddr).Port
		e.accepting.Go(func() {
			if !e.mayRead() {
				return
			}
			if err := e.http.ServeQUIC(e.overQUIC, pc, port, e.eldersOf(pc)...); err != nil {
				e.cfg.Logger.Error("HTTP/3 stopped; clients fall back to HTTP/2", "listener", pc.LocalAddr().String(), "err", err)
			}
			if e.overQUIC.Err() != nil {
				pc.Close()
			}
		})
	}
	return nil
}

// acceptPublic serves the public listeners of TCP that are open. e.rest.mu is held.
func (e *Engine) acceptPublic() {
	for i, ln := range e.public.https {
		e.publicAccepting.Go(func() { e.acceptHTTPS(ln, &e.cfg.HTTPS[i]) })
	}
	for i, ln := range e.public.http {
		e.publicAccepting.Go(func() { e.acceptHTTP(ln, e.cfg.HTTP[i].TrustedProxies) })
	}
}

// Apply makes t the table in force. When it returns, new flows are routed by t
// and every port of t that could be opened is open; for the others PortState
// has been told why, and they are tried again with back-off. Apply must not be
// called from two goroutines at once.
func (e *Engine) Apply(t *router.Table) {
	e.applying.Lock()
	defer e.applying.Unlock()
	was := e.table.Swap(t)
	e.mapped.follow(t, was)
	if e.retired.Load() {
		return
	}
	e.setChecked(t, was)
	e.names.apply(t, was)
	t.DiffMappings(was, func(was, is *router.Mapping) {
		if is == nil {
			e.states.forget(was.Key())
		}
	})
	mappings, routes := t.Len()
	e.metrics.mappings.Set(float64(mappings))
	e.metrics.routes.Set(float64(routes))
}

// setChecked has the backends of t checked that want it, and no others.
func (e *Engine) setChecked(t, was *router.Table) {
	var came, gone []checked
	t.DiffChecked(was,
		func(key string, b *router.Backend) { came = append(came, checked{key, b}) },
		func(key string, b *router.Backend) { gone = append(gone, checked{key, b}) })
	e.dialer.SetChecked(backendsOf(came), backendsOf(gone))
	e.downs.apply(came, gone)
}

// Shutdown stops accepting, lets flows end until ctx does, then cuts the rest.
// When it returns nothing of the engine runs any more. cut says how many flows
// had to be cut.
func (e *Engine) Shutdown(ctx context.Context) (cut int) {
	e.mapped.stop(true)
	e.names.stop()
	e.downs.stop()
	e.rest.mu.Lock()
	e.rest.end = true
	e.public.close()
	e.rest.mu.Unlock()
	e.publicAccepting.Wait()
	e.giveUp()
	var http, raw int
	var draining sync.WaitGroup
	draining.Go(func() { http = e.http.Shutdown(ctx) })
	draining.Go(func() { raw = e.l4.Shutdown(ctx) })
	draining.Wait()
	e.stop()
	e.leave()
	e.mapped.opener.release()
	e.accepting.Wait()
	e.public.closeQUIC()
	e.dialer.Close()
	return http + raw
}

// publicListeners are the sockets of the public addresses.
type publicListeners struct {
	https, http []*net.TCPListener
	quic        []*net.UDPConn
	bound       bool // all are open
}

func (p *publicListeners) open(ctx context.Context, cfg Config) error {
	for _, l := range cfg.HTTPS {
		addr := l.Address
		ln, err := cfg.Inherited.TCP(ctx, addr)
		if err != nil {
			return fmt.Errorf("open the https listener %s: %w", addr, listen.WithOwner(ctx, err))
		}
		p.https = append(p.https, ln)
		if l.NoHTTP3 {
			continue
		}
		pc, err := cfg.Inherited.UDP(ctx, addr)
		if err != nil {
			return fmt.Errorf("open the HTTP/3 socket %s: %w", addr, listen.WithOwner(ctx, err))
		}
		p.quic = append(p.quic, pc)
	}
	for _, l := range cfg.HTTP {
		ln, err := cfg.Inherited.TCP(ctx, l.Address)
		if err != nil {
			return fmt.Errorf("open the http listener %s: %w", l.Address, listen.WithOwner(ctx, err))
		}
		p.http = append(p.http, ln)
	}
	return nil
}

// close stops accepting TCP. The QUIC sockets stay open: connections that are
// draining send and receive through them.
func (p *publicListeners) close() {
	for _, ln := range p.https {
		ln.Close()
	}
	for _, ln := range p.http {
		ln.Close()
	}
}

func (p *publicListeners) closeQUIC() {
	for _, pc := range p.quic {
		pc.Close()
	}
}

func firstPort(listeners []Listener) int {
	if len(listeners) == 0 {
		return 0
	}
	_, text, err := net.SplitHostPort(listeners[0].Address)
	if err != nil {
		return 0
	}
	port, _ := router.ParsePort(text)
	return port
}
