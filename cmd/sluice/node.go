package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/cmd/sluice/accesslog"
	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/cmd/sluice/demo"
	"github.com/remotegpu/sluice/cmd/sluice/systemd"
	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/names"
	"github.com/remotegpu/sluice/proxy"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// node is one running sluice: the parts, wired.
type node struct {
	cfg    *config.Config
	stdout io.Writer
	log    *slog.Logger

	registry  *prometheus.Registry
	accessLog *accesslog.Log // nil: none
	certs     *certs.Manager
	engine    *proxy.Engine
	embedded  *embedded // nil: there is a cluster
	client    *etcd.Client
	shared    *etcdstore.Store
	api       *controlAPI
	control   *control.Controller
	session   *etcd.Session
	registrar *fleet.Registrar
	providers map[string]*dns.Provider // of DNS, by their names in the file
	names     *names.Keeper            // nil: there are no providers
	unkept    unkept                   // where there are none
	members   *fleet.Registry          // of the cluster, as etcd has them
	drainer   *fleet.Drainer
	nameLag   atomic.Int64 // nanoseconds; see noteNames
	own       ownAddresses
	asking    askingDomains
	draining  atomic.Bool

	deepRoutes sync.Map // names of routes: those that take hosts deeper than their wildcards

	inherited *listen.Inherited
	lock      *os.File  // of the data directory
	taking    *takeover // nil: there was no process before this one
	tookOver  atomic.Bool
	sockets   []nodeSocket // that are handed over besides the engine's
	gate      sync.Mutex   // held while nothing is to be changed, and for each change
	elders    elders
	upgrades  *upgradeMetrics
	requests  chan upgradeRequest
	answering sync.WaitGroup // who waits for an upgrade
	told      os.Signal      // to stop, in the midst of an upgrade; run's
	running   *parts
	watchdog  time.Duration

	parts   map[string]func(context.Context) error
	closers []func() error // in the order of opening
}

// newNode wires a node as far as that needs nothing from the system but the
// access log's file and the data directory.
func newNode(c *config.Config, stdout, stderr io.Writer) (*node, error) {
	n := &node{cfg: c, stdout: stdout, log: newLogger(c.Log, stderr), registry: prometheus.NewRegistry(), members: fleet.NewRegistry(c.Node)}
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.parts = map[string]func(context.Context) error{"older processes": n.followElders, "requests for upgrades": n.takeRequests, "watchdog": n.runWatchdog}
	n.requests = make(chan upgradeRequest)
	n.upgrades = newUpgradeMetrics(&n.elders)
	n.registry.MustRegister(n.upgrades)
	n.watchdog = systemd.Watchdog()
	return n, nil
}

// open makes every part and opens every socket but those of mappings. What it
// opened before an error is closed by close.
func (n *node) open(ctx context.Context) error {
	n.tellConfinement()
	if err := n.inherit(ctx); err != nil {
		return err
	}
	if err := n.lockData(); err != nil {
		return err
	}
	n.own.refresh(n.log)
	n.parts["own addresses"] = func(ctx context.Context) error { return n.own.run(ctx, n.log) }
	for _, step := range []func(context.Context) error{
		n.openAccessLog, n.openAdmin, n.openEtcd, n.openShared, n.openCertificates, n.openEngine, n.openDemo, n.openAPI, n.openNames, n.openControl, n.openFleet, n.serve,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// lockData makes the data directory, and keeps other processes out of it: two
// would be the same node to etcd, and overwrite each other's state.
func (n *node) lockData() error {
	if n.lock != nil { // the process before has it, too
		return nil
	}
	if err := os.MkdirAll(n.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("create the data directory: %w", err)
	}
	path := filepath.Join(n.cfg.Data, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the data directory: %w", err)
	}
	n.onClose(n.unlockData)
	n.lock = f
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("the data directory %s is in use by another process; `fuser %s` names it; stop it, or give this node a directory of its own",
			n.cfg.Data, path)
	}
	if err != nil {
		return fmt.Errorf("lock the data directory %s: %w", n.cfg.Data, err)
	}
	return nil
}

// unlockData gives the data directory up, unless another process has the lock too.
func (n *node) unlockData() error {
	if err := n.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// serve puts the last good state on disk in force before any public listener
// opens, so that no client is answered as if nothing were configured, and then
// opens them. With such a state the embedded etcd is started beside; without,
// its failure to start is the node's.
func (n *node) serve(ctx context.Context) error {
	if n.taking != nil {
		return n.takeOver(ctx)
	}
	restored := n.control.Restore()
	if n.embedded != nil && !restored && n.cfg.Etcd.Cluster == nil { // a member waits for the others
		if err := n.embedded.startAlone(ctx); err != nil {
			return err
		}
	}
	if err := n.engine.Listen(ctx); err != nil {
		return err
	}
	if closed := n.inherited.CloseRest(); len(closed) > 0 {
		n.log.Warn("closed sockets that systemd gave and nothing wants; the addresses in sluice.yaml say which are", "sockets", closed)
	}
	return nil
}

// close closes what open opened, in the reverse order.
func (n *node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	return errors.Join(errs...)
}

func (n *node) onClose(f func() error) { n.closers = append(n.closers, f) }

func (n *node) openAdmin(ctx context.Context) error {
	ln, err := n.listenTCP(ctx, "admin", n.cfg.Admin)
	if err != nil {
		return err
	}
	n.onClose(func() error { return ignoreClosed(ln.Close()) })
	server := api.New(api.Config{
		Readiness: n.readiness, Gatherer: n.registry, Live: live{n}, API: http.HandlerFunc(n.serveAPI), Name: hostName(n.cfg.Admin), Logger: n.log,
	})
	n.parts["admin"] = func(ctx context.Context) error { return server.Serve(ctx, ln) }
	return nil
}

// hostName returns the host of an address where it is a name, else "".
func hostName(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

func (n *node) readiness() api.Readiness {
	r := api.Readiness{Source: "none", Detail: "starting"}
	if e := n.engine; e != nil {
		r.PortsMode = string(e.PortsMode())
	}
	if c := n.control; c != nil {
		r.Source, r.Rev = c.Status()
		r.Fingerprint = c.Fingerprint().String()
		select {
		case <-c.Ready():
			r.Ready = n.shared.Blind() == nil
			r.Detail = n.trouble()
		default:
			// The process before was ready, and this one has all that it had.
			r.Ready = n.tookOver.Load() && n.shared.Blind() == nil
			r.Detail = strings.TrimSuffix("waiting for the first full load from etcd: "+n.trouble(), ": ")
		}
	}
	if n.draining.Load() || n.drainer != nil && n.drainer.Draining() {
		r.Ready, r.Detail = false, draining
	}
	return r
}

// trouble says what is amiss with a node that serves; "" for nothing.
func (n *node) trouble() string {
	var said []string
	if watch := n.client.State(); !watch.Connected && watch.Err != nil {
		said = append(said, fmt.Sprintf("etcd does not answer, and what is in force stays so: %v", watch.Err))
	}
	if n.embedded != nil {
		if err := n.embedded.trouble(); err != nil {
			said = append(said, fmt.Sprintf("the embedded etcd does not run: %v", err))
		}
	}
	if held := n.control.Held(); held > 0 {
		said = append(said, fmt.Sprintf("%d deletions are held back; `sluice status` shows them, `sluice confirm` applies them", held))
	}
	if err := n.shared.Trouble(); err != nil {
		said = append(said, err.Error())
	}
	if err := n.control.SaveTrouble(); err != nil {
		said = append(said, fmt.Sprintf("what is in force cannot be saved, and a restart without etcd would serve an older state: %v", err))
	}
	if n.client.Full() {
		said = append(said, etcd.ErrFull.Error())
	}
	if err := n.session.Conflict(); err != nil {
		said = append(said, err.Error())
	}
	return strings.Join(said, "; ")
}

func (n *node) openEngine(context.Context) error {
	var accessLog *slog.Logger
	if n.accessLog != nil {
		accessLog = slog.New(n.accessLog)
	}
	quic, err := quicConfig(n.cfg.Data, n.cfg.Node)
	if err != nil {
		return err
	}
	cookieKey, err := n.cookieKey()
	if err != nil {
		return err
	}
	pages, err := n.cfg.ErrorPages()
	if err != nil {
		return err
	}
	n.engine, err = proxy.New(proxy.Config{
		Zone: n.cfg.Zone, CookieKey: cookieKey, Bar: n.cfg.API.DenyBackends, UpstreamTLS: upstreamTLS(n.cfg.UpstreamTLS), PasswordFiles: n.cfg.PasswordFiles,
		HTTPS: n.listeners(n.cfg.Listeners.HTTPS), HTTP: n.listeners(n.cfg.Listeners.HTTP),
		TLS:    &tls.Config{GetCertificate: n.certs.GetCertificate, MinVersion: tls.VersionTLS12},
		MinTLS: minTLS(n.cfg.TLS.MinVersion), Authorities: clientAuthorities(n.cfg.ClientAuth), AuthoritiesChanged: n.authoritiesChanged,
		TrustedProxies: n.cfg.TrustedProxies, Policy: n.cfg.HTTP, Pages: pages, PortState: n.portState, Own: n.own.Has, Private: n.private, Public: n.public,
		Limits: proxyhttp.Limits{Head: n.cfg.Clients.HeadTimeout, HeadBytes: int(n.cfg.Clients.HeadSize),
			Idle: n.cfg.Clients.IdleTimeout, Streams: n.cfg.Clients.Streams},
		Inherited: n.inherited, Held: n.taking != nil,
		PortsMode: proxy.PortsMode(n.cfg.PortsMode), Ports: n.cfg.Ports, QUIC: quic,
		FirstFlow: uint64(n.upgrades.done.Load()) << 32, // an older process of this node does not come that far
		Logger:    n.log, AccessLog: accessLog, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	if fleet.Resting(n.drainMarker()) {
		n.engine.BeginRest()
	}
	n.parts["authorities of clients"] = n.engine.TLSTerms().Run
	n.shareTLSKeys()
	n.onClose(func() error { // after a drain this has nothing left to do
		over, cancel := context.WithCancel(context.Background())
		cancel()
		n.engine.Shutdown(over)
		return nil
	})
	return nil
}

func upstreamTLS(from map[string]config.UpstreamTLS) map[string]upstream.TLSFiles {
	to := map[string]upstream.TLSFiles{}
	for name, files := range from {
		to[name] = upstream.TLSFiles(files)
	}
	return to
}

// cookieKey returns the key of sticky cookies. By default it is made of what only
// this node, and who may read its record in etcd, where targets stand openly,
// knows.
func (n *node) cookieKey() ([]byte, error) {
	secret := n.cfg.CookieKey
	if secret == "" {
		var err error
		if secret, err = fleet.Instance(n.cfg.Data); err != nil {
			return nil, err
		}
	}
	key := sha256.Sum256([]byte("sluice cookie key\n" + secret))
	return key[:], nil
}

// listeners returns public addresses as the engine has them.
func (n *node) listeners(from []config.Listener) []proxy.Listener {
	var to []proxy.Listener
	for _, l := range from {
		trusted := l.TrustedProxies
		if trusted == nil {
			trusted = n.cfg.TrustedProxies
		}
		to = append(to, proxy.Listener{Address: l.Address, TrustedProxies: trusted, NoHTTP3: !l.ServesHTTP3(), HTTP3Port: l.HTTP3Port})
	}
	return to
}

// portState brings the verdict of a mapping up to date.
func (n *node) portState(key string, err error) {
	if err == nil {
		n.control.SetState(key, false, "")
		return
	}
	n.control.SetState(key, true, err.Error())
}

func (n *node) openDemo(ctx context.Context) error {
	if n.cfg.Demo == "" {
		return nil
	}
	ln, err := n.listenTCP(ctx, "demo", n.cfg.Demo)
	if err != nil {
		return err
	}
	n.onClose(func() error { return ignoreClosed(ln.Close()) })
	n.parts["demo"] = func(ctx context.Context) error { return demo.Serve(ctx, ln, n.log) }
	return nil
}

func (n *node) openEtcd(context.Context) error {
	c := n.cfg.Etcd
	endpoints := c.Endpoints
	if len(endpoints) == 0 {
		seed := func(ctx context.Context) error { return nil }
		if n.cfg.Demo != "" {
			seed = func(ctx context.Context) error { return seedDemo(ctx, n.embedded.endpoint(), c.Prefix, n.cfg.Demo) }
		}
		n.embedded = newEmbedded(etcd.ServerConfig{
			Dir: filepath.Join(n.cfg.Data, "etcd"), Name: n.cfg.Node, ListenClient: c.Listen, Cluster: etcdMember(n.cfg), Logger: n.log,
		}, seed, n.registry)
		n.onClose(n.embedded.close)
		n.parts["embedded etcd"] = n.embedded.run
		endpoints = []string{n.embedded.endpoint()}
	}
	tlsConfig, err := etcdTLS(c.TLS)
	if err != nil {
		return err
	}
	n.client, err = etcd.Dial(etcd.Config{
		Endpoints: endpoints, Prefix: c.Prefix, Username: c.Username, Password: c.Password, TLS: tlsConfig,
		Logger: n.log, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.onClose(n.client.Close)
	return nil
}

// etcdMember returns what makes the embedded etcd a member of a cluster, nil
// where it is alone.
func etcdMember(c *config.Config) *etcd.Cluster {
	m := c.Etcd.Cluster
	if m == nil {
		return nil
	}
	return &etcd.Cluster{
		Peers: m.Peers, SRV: m.SRV, URL: m.URL, Listen: m.Listen, Token: m.Token, Joining: m.Joining,
		CA: m.TLS.CA, Cert: m.TLS.Cert, Key: m.TLS.Key,
	}
}

// etcdTLS reads the PEM files for etcd, or returns nil where there are none.
func etcdTLS(c config.EtcdTLS) (*tls.Config, error) {
	if c == (config.EtcdTLS{}) {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("read etcd.tls.ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read etcd.tls.ca: %s holds no PEM certificate", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("read etcd.tls.cert and key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

func (n *node) openControl(context.Context) error {
	session, err := n.openSession()
	if err != nil {
		return err
	}
	recorder := history.New(history.Config{
		Client: n.client, Node: n.cfg.Node, Keep: n.cfg.History.Keep, Bytes: int64(n.cfg.History.Size),
		Logger: n.log, Registerer: n.registry,
	})
	n.control, err = control.New(control.Config{
		Watch:    n.watch,
		Applier:  gated{n},
		Verdicts: session.Verdicts(),
		Domains:  n.domainsChanged, Routes: n.routesChanged, Names: n.namesChanged,
		Applied: func(rev int64, f control.Fingerprint) {
			n.registrar.SetApplied(rev, f.String())
			recorder.Poke()
		},
		Ports: n.cfg.Ports, Own: n.own.Has, Private: n.private, Public: n.public, Backend: n.engine.CheckBackend, BasicAuth: n.engine.CheckBasicAuth, Pool: n.poolState, StateFile: filepath.Join(n.cfg.Data, "state"),
		Guard:   control.Guard(n.cfg.ShrinkGuard),
		Cluster: func() uint64 { return n.client.State().Cluster },
		Logger:  n.log, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.parts["history"] = recorder.Run
	n.parts["environments"] = n.keepEnvironments
	n.parts["control"] = n.control.Run
	if n.cfg.Demo != "" {
		n.parts["hints"] = n.runHints
	}
	return nil
}

// keepEnvironments has one node of the cluster end environments that expire.
func (n *node) keepEnvironments(ctx context.Context) error {
	return n.client.Lead(ctx, "environments", n.cfg.Node, func(ctx context.Context, _ *etcd.Term) error {
		var forgetting sync.WaitGroup
		defer forgetting.Wait()
		forgetting.Go(func() { n.forgetRequests(ctx) })
		k := envs.Keeper{Client: n.client, Ports: n.cfg.Ports, By: n.cfg.Node + ": expired", Logger: n.log}
		return k.Run(ctx)
	})
}

// openSession makes what the node shows of itself in etcd: its record and its
// verdicts, under one lease.
func (n *node) openSession() (*etcd.Session, error) {
	instance, err := fleet.Instance(n.cfg.Data)
	if err != nil {
		return nil, err
	}
	session, err := n.client.NewSession(etcd.SessionConfig{Node: n.cfg.Node, Instance: instance, TTL: leaseTTL})
	if err != nil {
		return nil, err
	}
	self := n.registrarConfig(instance)
	self.ClusterKeys = n.shared.Keys
	if n.registrar, err = fleet.New(self, session); err != nil {
		return nil, err
	}
	n.session = session
	n.parts["session"] = session.Run
	n.parts["registrar"] = n.registrar.Run
	return session, nil
}

// gated is the engine for changes, which wait while it is handed over.
type gated struct{ n *node }

func (g gated) Apply(t *router.Table) {
	g.n.gate.Lock()
	defer g.n.gate.Unlock()
	g.n.engine.Apply(t)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
