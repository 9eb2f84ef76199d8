package http

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// tcpCodec speaks HTTP/2 downstream, by net/http's server.
type tcpCodec struct {
	server *Server
	http   *http.Server
}

func newTCPCodec(s *Server) *tcpCodec {
	c := &tcpCodec{server: s}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	c.http = &http.Server{
		Handler:                      c,
		Protocols:                    &protocols,
		DisableGeneralOptionsHandler: true, // OPTIONS * goes to the backend
		ReadHeaderTimeout:            s.cfg.Limits.Head,
		IdleTimeout:                  s.cfg.Limits.Idle,
		MaxHeaderBytes:               s.cfg.Limits.HeadBytes,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: s.cfg.Limits.Streams},
		ErrorLog:                     slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return s.hard },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return withConn(ctx, ownerOf(c)) },
		ConnState: func(c net.Conn, state http.ConnState) {
			switch owner := ownerOf(c); state {
			case http.StateActive:
				owner.socket.spoke.Store(true)
			case http.StateClosed:
				owner.letGo()
			}
		},
	}
	return c
}

// ownerOf returns the conn that net/http's connection is.
func ownerOf(c net.Conn) *conn {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	return c.(*socket).owner
}

// letGo says that the codec is done with the connection.
func (c *conn) letGo() { c.finish.Do(func() { close(c.done) }) }

// serve serves on c, which belongs to conn, until it has ended.
func (c *tcpCodec) serve(conn *conn, served net.Conn) {
	ln := &oneConn{c: served, end: conn.done, closed: make(chan struct{})}
	c.http.Serve(ln) // ends with ln
	if ln.taken {
		<-conn.done
	}
}

// drain has keep-alive end: Connection: close on HTTP/1.1, GOAWAY on HTTP/2,
// and idle connections closed. It returns when ctx ends or nothing is left.
func (c *tcpCodec) drain(ctx context.Context) { c.http.Shutdown(ctx) }

// overTCP is conn.over over TCP. net/http closes a connection after its last
// exchange, and needs help only with those that never had one.
func (c *conn) overTCP(began time.Time) bool {
	if h1 := c.h1.Load(); h1 != nil {
		return h1.over(began)
	}
	if _, hadExchange, _ := c.load(); hadExchange {
		return false
	}
	return !c.socket.spoke.Load() || time.Since(began) >= goAwayTime+goAwayTime/2
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	c      net.Conn
	taken  bool
	end    <-chan struct{} // closed when the connection has ended
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.c, nil
	}
	select {
	case <-l.end:
	case <-l.closed:
	}
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.c.LocalAddr() }

// ServeHTTP makes an exchange of a request.
func (c *tcpCodec) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := connFrom(r.Context())
	if !conn.begin() {
		panic(http.ErrAbortHandler)
	}
	defer conn.end()
	restoreExpect(r)
	d := newStdDown(w, r, conn)
	defer d.release()
	x := d.exchange(conn.info.Client)
	c.server.serve(x)
	d.conclude()
}

// stdDown answers through an http.ResponseWriter, whichever the version.
type stdDown struct {
	w      http.ResponseWriter
	r      *http.Request
	conn   *conn
	fields field.List // of the response
	body   *stdBody
	gone   func() bool // takes back that the end of r's context is x's

	mu    sync.Mutex // guards final, and w's header until final is set
	final bool       // the final head is being made

	aborted bool
}

func newStdDown(w http.ResponseWriter, r *http.Request, c *conn) *stdDown {
	return &stdDown{w: w, r: r, conn: c}
}

// exchange returns the exchange that the request is.
func (d *stdDown) exchange(client netip.AddrPort) *exchange {
	r := d.r
	x := &exchange{conn: d.conn, client: client, down: d}
	x.req = request{method: r.Method, authority: r.Host, header: new(field.List)}
	addStd(x.req.header, r.Header)
	x.req.target, _ = parseTarget(r.RequestURI)
	d.body = newStdBody(r, &x.bytes.up)
	x.body = d.body
	ctx := r.Context()
	x.life.base = ctx
	d.gone = context.AfterFunc(ctx, func() { x.life.abandon(context.Cause(ctx)) })
	return x
}

func (d *stdDown) inform(status int, h *field.List) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.final {
		return
	}
	out := d.w.Header()
	copyStd(out, h)
	d.w.WriteHeader(status)
	clear(out)
}

func (d *stdDown) header() *field.List {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.final = true
	return &d.fields
}

func (d *stdDown) writeHead(status int) {
	h := d.w.Header()
	copyStd(h, &d.fields)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps the server from guessing
	}
	if d.conn.proto != protoH3 && d.conn.server.registry.draining.Load() {
		h.Set("Connection", "close") // over HTTP/2 net/http makes it a GOAWAY
	}
	d.w.WriteHeader(status)
}

func (d *stdDown) write(p []byte) (int, error) { return d.w.Write(p) }

func (d *stdDown) flush() error { return http.NewResponseController(d.w).Flush() }

func (d *stdDown) trailer(name, value string) {
	d.w.Header().Add(http.TrailerPrefix+name, value)
}

func (d *stdDown) abort() { d.aborted = true }

// upgrade is for HTTP/1.1 alone: nothing else is offered one.
func (d *stdDown) upgrade() (io.ReadWriteCloser, error) {
	return nil, errors.New("only a connection of HTTP/1.1 can change protocols")
}

// conclude ends the exchange towards net/http.
func (d *stdDown) conclude() {
	if d.aborted {
		panic(http.ErrAbortHandler)
	}
}

// release lets go of the request's context, however the exchange ended.
func (d *stdDown) release() { d.gone() }
