// Package clienttls is how TLS with clients is spoken, over TCP and QUIC alike:
// versions and cipher suites, session tickets that other nodes open too,
// certificates of clients, and hellos whose server name is encrypted.
//
// It makes the configurations of crypto/tls that servers of the data plane use,
// and answers what the certificate that a client has shown is worth. Which
// certificate the node shows, it leaves to GetCertificate; where a connection
// goes, to routes. It reads files of authorities, and opens no connection.
package clienttls

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/router"
)

// Config wires Terms. The zero value is that of a node that asks no client for
// anything.
type Config struct {
	// MinVersion is the oldest version of TLS spoken; 0 means TLS 1.2.
	MinVersion uint16
	// Authorities are those that certificates of clients may come from, by the
	// name that domains refer to.
	Authorities map[string]AuthorityFiles
	// Table returns the table in force, whose domains say which clients are
	// asked. nil: none are.
	Table func() *router.Table
	// Changed, unless nil, is told that Trouble has another answer. It is called
	// by Run only.
	Changed    func()
	Logger     *slog.Logger          // nil: nobody is told
	Registerer prometheus.Registerer // nil: no metrics
}

// Terms is what a node's servers of TLS have in common. Make it with New; all
// methods may be called from any goroutine.
type Terms struct {
	cfg     Config
	metrics *metrics

	tickets atomic.Pointer[tls.Config] // holds keys and nothing else
	ech     atomic.Pointer[[]tls.EncryptedClientHelloKey]

	refusals refusals

	authorities map[string]*authority // never modified
	unknown     *authority            // of domains that name none of them
	reading     sync.Mutex            // held while files are read
}

// New reads the files of cfg.Authorities, which may all be missing: Trouble says
// so then, and nobody is let in by them. It starts nothing.
func New(cfg Config) *Terms {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Table == nil {
		none := &router.Table{}
		cfg.Table = func() *router.Table { return none }
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	t := &Terms{cfg: cfg, metrics: newMetrics(cfg.Registerer), authorities: map[string]*authority{}, unknown: newAuthority("", AuthorityFiles{})}
	var key [32]byte
	rand.Read(key[:])
	t.SetTicketKeys([][32]byte{key})
	t.ech.Store(&[]tls.EncryptedClientHelloKey{})
	for name, files := range cfg.Authorities {
		t.authorities[name] = newAuthority(name, files)
	}
	t.Reread()
	return t
}

// rereadEvery is how often files are looked at.
const rereadEvery = 2 * time.Second

// Run has changed files taken up until ctx ends, and returns nil then.
func (t *Terms) Run(ctx context.Context) error {
	tick := time.NewTicker(rereadEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if t.Reread() {
				t.cfg.Changed()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Server is one kind of server of TLS: one list of protocols.
type Server struct {
	terms  *Terms
	plain  *tls.Config // asks for nothing, and knows no encrypted hellos
	hooked *tls.Config // looks at each hello
	noECH  bool
	asked  func(context.Context, *Auth, string) // may be nil
}

// Option says in what a Server differs from others.
type Option func(*Server)

// WithoutECH has a Server know no encrypted hellos, where a connection's route
// was chosen by the server name in the clear.
func WithoutECH() Option { return func(s *Server) { s.noECH = true } }

// WithAsked has f told, by the context of the handshake, what a client is about to
// be asked for, and the server name that it asks for. Where the handshake fails then, Refused wants to know.
func WithAsked(f func(context.Context, *Auth, string)) Option { return func(s *Server) { s.asked = f } }

// Server returns the terms for a server that would use base otherwise, of which
// GetCertificate is set and GetConfigForClient is not. base is not modified.
func (t *Terms) Server(base *tls.Config, options ...Option) *Server {
	s := &Server{terms: t}
	for _, o := range options {
		o(s)
	}
	s.plain = base.Clone()
	s.plain.MinVersion = max(base.MinVersion, t.cfg.MinVersion, tls.VersionTLS12)
	s.plain.CipherSuites = suites12
	s.plain.WrapSession = t.wrapper(nil)
	s.plain.UnwrapSession = t.unwrapper(nil)
	s.hooked = s.plain.Clone()
	if !s.noECH {
		s.hooked.GetEncryptedClientHelloKeys = t.echKeys
	}
	s.hooked.GetConfigForClient = s.configFor
	return s
}

// suites12 are the cipher suites of TLS 1.2: forward secret and authenticated.
// Those of TLS 1.3 all are. crypto/tls orders them by what the processors of both
// ends are good at. Key exchanges are left to crypto/tls, whose own list begins
// with X25519MLKEM768.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// Config returns the configuration for a connection that begins now. It does not
// allocate. Hooks make crypto/tls gather what a hello says once more, so they are
// left out while nobody needs them.
func (s *Server) Config() *tls.Config {
	if !s.terms.cfg.Table().AsksClients() && (s.noECH || len(*s.terms.ech.Load()) == 0) {
		return s.plain
	}
	return s.hooked
}

// LastingConfig returns the configuration for somebody who keeps it for
// connections to come.
func (s *Server) LastingConfig() *tls.Config { return s.hooked }

// configFor is tls.Config.GetConfigForClient. It returns nil, which leaves the
// configuration as it is, or one that was made before.
func (s *Server) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	host, ok := router.NormalizeHost(hello.ServerName)
	if !ok {
		return nil, nil
	}
	auth := s.terms.Auth(s.terms.cfg.Table().ClientAuth(host))
	if auth == nil {
		return nil, nil
	}
	if s.asked != nil {
		s.asked(hello.Context(), auth, host)
	}
	if made, ok := auth.configs.Load(s); ok {
		return made.(*tls.Config), nil
	}
	made, _ := auth.configs.LoadOrStore(s, s.asking(auth))
	return made.(*tls.Config), nil
}

// asking returns the configuration for clients that are asked as auth has it.
func (s *Server) asking(auth *Auth) *tls.Config {
	cfg := s.hooked.Clone()
	cfg.GetConfigForClient = nil
	cfg.WrapSession = s.terms.wrapper(auth)
	cfg.UnwrapSession = s.terms.unwrapper(auth)
	// Tickets over QUIC promise 0-RTT, which is not for requests that somebody's
	// certificate stands for, and there are clients that fail once refused it.
	cfg.SessionTicketsDisabled = slices.Contains(cfg.NextProtos, "h3")
	cfg.ClientCAs = auth.pool
	cfg.ClientAuth = tls.RequestClientCert
	if auth.required {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	// Resumed sessions come by here as well.
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		id := auth.Identify(state.PeerCertificates, time.Now())
		s.terms.metrics.judged(id)
		if auth.required && !id.Verified {
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: errRefused(id.Why)}
		}
		return nil
	}
	return cfg
}
