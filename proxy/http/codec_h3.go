package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// h3NoError is H3_NO_ERROR (RFC 9114 section 8.1).
const h3NoError = quic.ApplicationErrorCode(http3.ErrCodeNoError)

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

// quicSocket speaks HTTP/3 on a UDP socket, by quic-go's http3.
type quicSocket struct {
	server *Server
	port   int
	http   *http3.Server
	stop   context.CancelFunc // has it accept no more

	conns sync.WaitGroup
	// starting is held for reading while a connection goes from accepted to
	// counted: http3 must not be shut down meanwhile, or it may count down to
	// zero twice and panic.
	starting sync.RWMutex
}

// ServeQUIC serves HTTP/3 on pc, as the listener of a public port, until ctx
// ends, when connections are cut, or Shutdown has drained them. It returns nil
// then, and has let go of pc, which stays the caller's to close.
func (s *Server) ServeQUIC(ctx context.Context, pc *net.UDPConn, port int) error {
	if s.quicTLS == nil {
		return errors.New("serve HTTP/3: the server has no TLS configuration")
	}
	accepting, stop := context.WithCancel(ctx)
	defer stop()
	q := &quicSocket{server: s, port: port, stop: stop}
	q.http = &http3.Server{
		Handler:        http.HandlerFunc(q.serveHTTP),
		MaxHeaderBytes: s.cfg.Limits.HeadBytes,
		IdleTimeout:    s.cfg.Limits.Idle,
		Logger:         slog.New(debugHandler{s.cfg.Logger.Handler()}),
		ConnContext: func(ctx context.Context, _ *quic.Conn) context.Context {
			connFrom(ctx).started()
			return ctx
		},
	}
	if !s.registry.addSocket(q) {
		return nil
	}
	defer s.registry.removeSocket(q)

	transport := &quic.Transport{Conn: pc, ConnContext: q.admit}
	defer transport.Close()
	ln, err := transport.ListenEarly(http3.ConfigureTLSConfig(s.quicTLS), s.quicConfig())
	if err != nil {
		return fmt.Errorf("serve HTTP/3 on port %d: %w", port, err)
	}
	defer q.conns.Wait()
	defer ln.Close()
	for {
		qc, err := ln.Accept(accepting)
		if accepting.Err() != nil {
			if err == nil {
				qc.CloseWithError(h3NoError, "")
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
	return withConn(ctx, conn), nil
}

// serveConn serves one connection until it has ended. The end of ctx cuts it.
func (q *quicSocket) serveConn(ctx context.Context, qc *quic.Conn) {
	conn := connFrom(qc.Context())
	conn.local = addrPort(qc.LocalAddr())
	conn.hangUp = func() { qc.CloseWithError(h3NoError, "") }
	conn.over = conn.overQUIC
	if !q.server.registry.add(conn) {
		conn.close()
		return
	}
	defer q.server.registry.remove(conn)
	defer conn.close()
	defer context.AfterFunc(ctx, conn.sever)()
	defer q.server.metrics.connection(protoH3)()

	q.starting.RLock()
	conn.started = sync.OnceFunc(q.starting.RUnlock)
	defer conn.started()
	if err := q.http.ServeQUICConn(qc); err != nil {
		q.server.cfg.Logger.Debug("HTTP/3 connection", "listener", q.port, "client", conn.info.Client.String(), "err", err)
	}
}

// overQUIC is conn.over over QUIC. http3 leaves the closing to the client, who
// need not do it.
func (c *conn) overQUIC(began time.Time) bool {
	active, _, since := c.load()
	if since.Before(began) {
		since = began
	}
	return active == 0 && time.Since(since) >= goAwayTime
}

// drain has clients go: no new connections, GOAWAY on those there are. It
// returns when ctx ends or none is left.
func (q *quicSocket) drain(ctx context.Context) {
	q.stop()
	q.starting.Lock()
	//lint:ignore SA2001 having had the lock is the point: it waits for those being taken up
	q.starting.Unlock()
	q.http.Shutdown(ctx)
}

// serveHTTP makes an exchange of a request.
func (q *quicSocket) serveHTTP(w http.ResponseWriter, r *http.Request) {
	conn := connFrom(r.Context())
	if !conn.begin() {
		panic(http.ErrAbortHandler)
	}
	defer conn.end()
	conn.named.Do(func() { conn.setServerName(r.TLS.ServerName) })
	client := conn.info.Client
	if now, err := netip.ParseAddrPort(r.RemoteAddr); err == nil { // QUIC clients can move
		client = netip.AddrPortFrom(now.Addr().Unmap(), now.Port())
	}
	q.probeBody(w, r)
	d := newStdDown(w, r, conn)
	defer d.release()
	x := d.exchange(client)
	if r.Header.Get("Expect") != "" {
		d.body.beforeRead = func() { d.inform(http.StatusContinue, new(field.List)) }
	}
	q.server.serve(x)
	d.conclude()
}

// probeBody finds out whether a request of a kind that has mostly no body has
// one: in HTTP/3 only the stream's end tells. An HTTP/1.1 backend would get an
// empty chunked body otherwise, which some refuse. A client that leaves it open
// has as long as for a head.
func (q *quicSocket) probeBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength >= 0 {
		return
	}
	switch r.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "DELETE":
	default:
		return
	}
	first := make([]byte, 1)
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(q.server.cfg.Limits.Head))
	n, err := r.Body.Read(first)
	control.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		panic(http.ErrAbortHandler)
	case n == 0 && err == io.EOF:
		r.Body, r.ContentLength = http.NoBody, 0
	case n > 0:
		rest := r.Body
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(first), rest), rest}
	}
}

// debugHandler logs whatever it is given as debug: what a library finds
// noteworthy about its peers is their noise.
type debugHandler struct{ slog.Handler }

func (h debugHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h debugHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}

func (h debugHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return debugHandler{h.Handler.WithAttrs(attrs)}
}

func (h debugHandler) WithGroup(name string) slog.Handler {
	return debugHandler{h.Handler.WithGroup(name)}
}

func (s *Server) quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:       s.cfg.Limits.Handshake / 2,
		MaxIdleTimeout:             quicIdle,
		KeepAlivePeriod:            quicKeepAlive,
		InitialStreamReceiveWindow: streamWindow,
		MaxStreamReceiveWindow:     maxStreamWindow,
		MaxConnectionReceiveWindow: maxConnectWindow,
		MaxIncomingStreams:         int64(s.cfg.Limits.Streams),
		MaxIncomingUniStreams:      maxUniStreams,
		Allow0RTT:                  false, // requests could be replayed
	}
}
