package http

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/remotegpu/sluice/proxy/http/h3"
)

const (
	// quicIdle ends a QUIC connection whose client has gone silent. Clients are
	// asked for a sign of life before that, so that a stream may be silent for
	// long.
	quicIdle      = time.Minute
	quicKeepAlive = 20 * time.Second

	// What one client can have us hold of bodies that a backend does not take.
	streamWindow     = 512 << 10
	maxStreamWindow  = 4 << 20
	maxConnectWindow = 8 << 20

	// Control and two QPACK streams, and room for ones that are ignored.
	maxUniStreams = 8
)

// quicSocket speaks HTTP/3 on a UDP socket, over quic-go's streams.
type quicSocket struct {
	server *Server
	port   int
	shared *sharedUDP
	stop   context.CancelFunc // has it accept no more
	conns  sync.WaitGroup

	unproven atomic.Int32 // connections whose client has not completed the handshake
}

// maxUnproven is how many connections may be in their handshake before clients
// have to prove their address first, which takes them a round trip (RFC 9000
// section 8.1.2): who sends first flights from made-up addresses costs no more
// memory then.
const maxUnproven = 128

// ServeQUIC serves HTTP/3 on pc, as the listener of a public port, until ctx
// ends, when connections are cut, or Shutdown has drained them. It returns nil
// then, and has let go of pc, which stays the caller's to close. What is for one of
// elders, whose sockets it owns, is passed on to that.
func (s *Server) ServeQUIC(ctx context.Context, pc *net.UDPConn, port int, elders ...QUICElder) error {
	if s.quicTLS == nil {
		return errors.New("serve HTTP/3: the server has no TLS configuration")
	}
	accepting, stop := context.WithCancel(ctx)
	defer stop()
	shared, err := shareUDP(pc, s.cfg.QUIC.Tag, elders)
	if err != nil {
		return fmt.Errorf("serve HTTP/3 on port %d: %w", port, err)
	}
	defer shared.closeElders()
	q := &quicSocket{server: s, port: port, shared: shared, stop: stop}
	if !s.registry.addSocket(q) {
		return nil
	}
	defer s.registry.removeSocket(q)

	transport := &quic.Transport{
		Conn: shared, ConnContext: q.admit, ConnectionIDGenerator: quicIDs(s.cfg.QUIC.Tag),
		VerifySourceAddress: func(net.Addr) bool { return q.unproven.Load() >= maxUnproven },
		StatelessResetKey:   &s.quicKeys.reset, TokenGeneratorKey: &s.quicKeys.token,
	}
	defer transport.Close()
	ln, err := transport.ListenEarly(s.quicTLS.LastingConfig(), s.quicConfig())
	if err != nil {
		return fmt.Errorf("serve HTTP/3 on port %d: %w", port, err)
	}
	defer q.conns.Wait()
	defer ln.Close()
	for {
		qc, err := ln.Accept(accepting)
		if accepting.Err() != nil {
			if err == nil {
				qc.CloseWithError(quic.ApplicationErrorCode(h3.NoError), "")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept HTTP/3 connections on port %d: %w", port, err)
		}
		q.conns.Go(func() { q.serveConn(ctx, qc) })
	}
}

// admit gives a connection that begins its conn, or refuses it.
func (q *quicSocket) admit(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
	if q.server.registry.draining.Load() {
		return nil, errCut
	}
	info := ConnInfo{Port: q.port, TLS: true, Client: addrPort(client.RemoteAddr)}
	conn := newConn(q.server, nil, info)
	conn.proto = protoH3
	q.unproven.Add(1)
	var once sync.Once
	conn.proven = func() { once.Do(func() { q.unproven.Add(-1) }) }
	context.AfterFunc(ctx, func() {
		conn.proven()
		conn.refused(context.Cause(ctx)) // if it was that which ended it
	})
	return withConn(ctx, conn), nil
}

// serveConn serves one connection until it has ended. The end of ctx cuts it.
func (q *quicSocket) serveConn(ctx context.Context, qc *quic.Conn) {
	conn := connFrom(qc.Context())
	conn.local = addrPort(qc.LocalAddr())
	conn.hangUp = func() { qc.CloseWithError(quic.ApplicationErrorCode(h3.NoError), "") }
	conn.over = conn.overQUIC
	conn.setServerName(qc.ConnectionState().TLS.ServerName)
	// Asked for once the handshake is complete, before which there is none.
	conn.shown = func() []*x509.Certificate { return qc.ConnectionState().TLS.PeerCertificates }
	if !q.server.registry.add(conn) {
		conn.close()
		return
	}
	defer q.server.registry.remove(conn)
	defer conn.close()
	defer context.AfterFunc(ctx, conn.sever)()
	defer q.server.metrics.connection(protoH3)()

	c := newH3Conn(conn, qc)
	conn.h3.Store(c)
	if err := c.run(); err != nil {
		q.server.cfg.Logger.Debug("HTTP/3 connection", "listener", q.port, "client", conn.info.Client.String(), "err", err)
	}
}

// overQUIC is conn.over over QUIC. The closing is left to the client, who need
// not do it.
func (c *conn) overQUIC(began time.Time) bool {
	active, _, since := c.load()
	if since.Before(began) {
		since = began
	}
	return active == 0 && time.Since(since) >= goAwayTime
}

// drain has clients go: no new connections, GOAWAY on those there are.
func (q *quicSocket) drain() {
	q.stop()
	q.server.registry.each(func(c *conn) {
		if h3 := c.h3.Load(); h3 != nil {
			h3.goAway()
		}
	})
}

func (s *Server) quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:       s.cfg.Limits.Handshake / 2,
		MaxIdleTimeout:             quicIdle,
		KeepAlivePeriod:            quicKeepAlive,
		InitialStreamReceiveWindow: streamWindow,
		MaxStreamReceiveWindow:     maxStreamWindow,
		MaxConnectionReceiveWindow: maxConnectWindow,
		MaxIncomingStreams:         int64(s.cfg.Limits.Streams + maxSpent(s.cfg.Limits.Streams)),
		RequireStreamCreditRelease: true,
		MaxIncomingUniStreams:      maxUniStreams,
		Allow0RTT:                  true, // early gates what can be replayed
	}
}
