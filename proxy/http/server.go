package http

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Config wires a Server. Table, Dialer and Logger are needed.
type Config struct {
	// Table returns the table in force. It is called once per exchange, from
	// any goroutine, and never returns nil.
	Table func() *router.Table
	// Dialer connects to backends.
	Dialer *upstream.Dialer
	// TLS is the configuration for connections with TLS; GetCertificate is set,
	// GetConfigForClient is not. It must not be modified afterwards. nil: no
	// connection with TLS is served.
	TLS *tls.Config
	// Terms are what TLS with clients is spoken by. nil: those of a node that asks
	// no client for anything.
	Terms *clienttls.Terms
	// HTTPSPort is the public port that requests in clear text are redirected
	// to. 0: there is none, and they get 404.
	HTTPSPort int
	// UpstreamRoots are the authorities that certificates of backends must come
	// from; nil: the system's.
	UpstreamRoots *x509.CertPool
	// QUIC has what HTTP/3 keeps from one process to the next.
	QUIC QUICConfig
	// Limits bound what clients may take; the zero value means the defaults.
	Limits Limits
	// Policy is for the responses of all routes that do not say otherwise.
	Policy router.Policy
	// Pages are the files that error pages may be taken from, by name.
	Pages map[string]router.Template
	// Relay, unless nil, copies between the connections of an upgraded pair at
	// less cost than two goroutines. Where it reports false, it has left them as
	// they were, and the server copies by itself; else they are its own, and on
	// error closed. Any goroutine may call it.
	Relay func(Upgraded) (relayed Relayed, taken bool, err error)
	// PasswordFiles are the paths of the files of users that BasicAuth refers to,
	// by name.
	PasswordFiles map[string]string
	// NextFlow gives an ID to a flow that is listed, unlike any other of the
	// process; nil: the server counts by itself. Any goroutine may call it.
	NextFlow   func() uint64
	AccessLog  *slog.Logger // nil: off
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// QUICConfig is what processes of one node have in common over QUIC, and what
// tells them apart. The zero value is that of a node that keeps nothing.
type QUICConfig struct {
	// Secret is what the keys of stateless resets and address tokens are derived
	// from. With the same one as before, clients of a former process learn at
	// once that their connection is gone. nil: a random one.
	Secret []byte
	// Tag is the beginning of every connection id, in the clear, by which
	// datagrams find the process that has their connection.
	Tag uint32
}

// Limits bound what a client connection may take. A zero field means its
// default.
type Limits struct {
	// Handshake bounds the TLS handshake; default 10 seconds.
	Handshake time.Duration
	// Head bounds the time from the first byte of a request head over HTTP/1.1
	// to its last; default 15 seconds.
	Head time.Duration
	// HeadBytes bounds the size of a request head; default 64 KiB.
	HeadBytes int
	// Idle ends a connection that carries no exchange; over HTTP/1.1 also one
	// whose client for as long sends nothing of a body, before the backend has
	// answered, or takes nothing of a response. Default 2 minutes.
	Idle time.Duration
	// Streams bounds the concurrent exchanges of one HTTP/2 or HTTP/3
	// connection; default 128.
	Streams int
}

func (l Limits) withDefaults() Limits {
	if l.Handshake == 0 {
		l.Handshake = 10 * time.Second
	}
	if l.Head == 0 {
		l.Head = 15 * time.Second
	}
	if l.HeadBytes == 0 {
		l.HeadBytes = 64 << 10
	}
	if l.Idle == 0 {
		l.Idle = 2 * time.Minute
	}
	if l.Streams == 0 {
		l.Streams = 128
	}
	return l
}

// ConnInfo says what is known of a client connection before its first byte.
type ConnInfo struct {
	// Port is the public port that the client connected to.
	Port int
	// TLS has the connection open with a TLS handshake.
	TLS bool
	// Client is the client's address: the peer's, or the one that a trusted
	// PROXY header named.
	Client netip.AddrPort
	// TLVs are of that header, for backends that get PROXY headers, version 2.
	TLVs upstream.TLVs
	// Mapping, unless nil, takes every request to Mapping.HTTP; routes have no
	// say.
	Mapping *router.Mapping
	// CutBy, unless nil, says why somebody else ended the connection, for the
	// access log; "" where nobody did. Any goroutine may call it.
	CutBy func() string
	// Unserved, unless nil, is told before the connection is closed that no
	// exchange came of it, and why where that is known: somebody else keeps the
	// record.
	Unserved func(why error)
	// AltSvcPort, unless 0, is the UDP port announced for HTTP/3. It is ignored
	// on connections without TLS.
	AltSvcPort int
}

// Server serves HTTP on connections handed to it. Make it with New; all methods
// may be called concurrently. It runs nothing but what ServeConn and ServeQUIC
// run, and keeps idle connections to backends until Shutdown.
type Server struct {
	cfg      Config
	tcpTLS   *clienttls.Server // for h1 and h2; nil without TLS
	quicTLS  *clienttls.Server // for h3; nil without TLS
	quicKeys *quicKeys
	metrics  *metrics

	forward *forwarder
	limiter *limiter

	passwords     *passwords
	passwordFiles map[string]*passwordFile // by name
	grants        grants

	hard context.Context // ends when exchanges are cut
	cut  context.CancelFunc

	encoders encoders
	lastFlow atomic.Uint64
	registry registry
	shutdown sync.Mutex // held by Shutdown
}

// New checks cfg and wires a Server; it starts nothing.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Table == nil || cfg.Dialer == nil || cfg.Logger == nil:
		return nil, errors.New("http: Table, Dialer and Logger are all needed")
	case cfg.TLS != nil && cfg.TLS.GetCertificate == nil:
		return nil, errors.New("http: TLS needs GetCertificate, by which the certificate of a connection is known")
	case cfg.TLS != nil && cfg.TLS.GetConfigForClient != nil:
		return nil, errors.New("http: TLS must not have GetConfigForClient, which would go past GetCertificate")
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Terms == nil {
		cfg.Terms = clienttls.New(clienttls.Config{})
	}
	s := &Server{cfg: cfg, metrics: newMetrics(cfg.Registerer), limiter: newLimiter(), passwords: newPasswords()}
	s.passwordFiles = passwordFiles(cfg.PasswordFiles, s.cfg.Logger)
	if cfg.TLS != nil {
		s.tcpTLS = tlsServer(&s.cfg, "h2", "http/1.1")
		s.quicTLS = tlsServer(&s.cfg, "h3")
	}
	var err error
	if s.quicKeys, err = newQUICKeys(cfg.QUIC.Secret); err != nil {
		return nil, err
	}
	s.hard, s.cut = context.WithCancel(context.Background())
	s.grants.key = s.passwords.key[:]
	s.registry.init()
	s.forward = newForwarder(cfg.Dialer, cfg.UpstreamRoots)
	return s, nil
}

// ServeConn serves HTTP/1.1, or with TLS also HTTP/2, on c and closes it. It
// takes ownership of c, whose first bytes have not been read (or are given
// again by c), and returns when the connection has ended. While the server is
// shutting down, c is closed at once.
func (s *Server) ServeConn(c net.Conn, info ConnInfo) {
	conn := newConn(s, c, info)
	conn.over = conn.overTCP
	if !s.registry.add(conn) {
		conn.close()
		return
	}
	defer s.registry.remove(conn)
	defer conn.close()

	conn.proto = protoH1
	var secured *tls.Conn
	if info.TLS {
		var err error
		if secured, err = s.handshake(conn); err != nil {
			conn.unserved(err)
			s.cfg.Logger.Debug("TLS handshake", "listener", info.Port, "client", info.Client.String(), "err", err)
			return
		}
	}
	conn.socket.greeted.Store(true)
	defer s.metrics.connection(conn.proto)()
	if conn.proto == protoH2 {
		s.serveH2(conn, secured)
	} else {
		s.serveH1(conn, secured)
	}
}
