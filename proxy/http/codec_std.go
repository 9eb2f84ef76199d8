package http

import (
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// tcpCodec speaks HTTP/1.1 and HTTP/2 downstream, by net/http's server.
type tcpCodec struct {
	server *Server
	http   *http.Server
}

func newTCPCodec(s *Server) *tcpCodec {
	c := &tcpCodec{server: s}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
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
	if conn.proto == protoH1 && r.ProtoMajor != 1 {
		http.Error(w, "HTTP/2 is served over TLS only", http.StatusHTTPVersionNotSupported)
		return
	}
	if conn.proto == protoH2 {
		restoreExpect(r)
	}
	d := newStdDown(w, r, conn)
	defer d.release()
	x := d.exchange(conn.info.Client)
	c.server.serve(x)
	d.conclude()
}

// stdHeader is a header that net/http understands.
type stdHeader http.Header

func (h stdHeader) Get(name string) string      { return http.Header(h).Get(name) }
func (h stdHeader) Values(name string) []string { return http.Header(h).Values(name) }
func (h stdHeader) Set(name, value string)      { http.Header(h).Set(name, value) }
func (h stdHeader) Del(name string)             { http.Header(h).Del(name) }

func (h stdHeader) DelFunc(drop func(name string) bool) {
	maps.DeleteFunc(h, func(name string, _ []string) bool { return name == "" || drop(name) })
}

// stdDown answers through an http.ResponseWriter, whichever the version.
type stdDown struct {
	w    http.ResponseWriter
	r    *http.Request
	conn *conn
	body *requestBody

	mu    sync.Mutex // guards final, and w's header until final is set
	final bool       // the final head is being made

	aborted  bool
	hijacked net.Conn
	endless  bool // only the connection's end marks the body's
}

func newStdDown(w http.ResponseWriter, r *http.Request, c *conn) *stdDown {
	return &stdDown{w: w, r: r, conn: c}
}

// exchange returns the exchange that the request is.
func (d *stdDown) exchange(client netip.AddrPort) *exchange {
	r := d.r
	x := &exchange{conn: d.conn, ctx: r.Context(), client: client, down: d}
	x.req = request{method: r.Method, authority: r.Host, header: stdHeader(r.Header)}
	x.req.target, _ = parseTarget(r.RequestURI)
	if d.conn.proto == protoH1 && r.ProtoAtLeast(1, 1) {
		// With a body on the way there is no telling where it ends and the new
		// protocol begins, so the offer is passed over (RFC 9110 section 7.8).
		if r.ContentLength == 0 && len(r.TransferEncoding) == 0 {
			x.req.upgrade = upgradeOffer(x.req.header)
		}
	}
	d.body = newRequestBody(r, &x.bytes.up)
	return x
}

func (d *stdDown) inform(status int, h header) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.final || !d.r.ProtoAtLeast(1, 1) {
		return
	}
	out := d.w.Header()
	maps.Copy(out, http.Header(h.(stdHeader)))
	d.w.WriteHeader(status)
	clear(out)
}

func (d *stdDown) header() header {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.final = true
	return stdHeader(d.w.Header())
}

func (d *stdDown) writeHead(status int) {
	h := d.w.Header()
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps the server from guessing
	}
	if d.conn.proto != protoH3 && d.conn.server.registry.draining.Load() {
		h.Set("Connection", "close") // over HTTP/2 net/http makes it a GOAWAY
	}
	if d.conn.proto == protoH1 {
		d.endless = !d.r.ProtoAtLeast(1, 1) && h.Get("Content-Length") == ""
		if d.body.streaming.Load() && !d.body.complete.Load() {
			// The rest of the request may never come, or be long: what follows
			// on the connection could not be told from it.
			h.Set("Connection", "close")
		}
	}
	d.w.WriteHeader(status)
}

func (d *stdDown) write(p []byte) (int, error) { return d.w.Write(p) }

func (d *stdDown) flush() error { return http.NewResponseController(d.w).Flush() }

func (d *stdDown) trailer(name string, values []string) {
	d.w.Header()[http.TrailerPrefix+name] = values
}

func (d *stdDown) abort() { d.aborted = true }

// conclude ends the exchange towards net/http.
func (d *stdDown) conclude() {
	if d.hijacked != nil {
		return
	}
	if d.conn.proto == protoH1 && d.body.streaming.Load() && !d.body.complete.Load() {
		// Somebody may be waiting for more of the body, and net/http would wait
		// with them.
		d.conn.socket.linger.Store(!d.aborted)
		http.NewResponseController(d.w).SetReadDeadline(time.Unix(1, 0))
	}
	if !d.aborted {
		return
	}
	if d.endless {
		d.conn.socket.reset()
	}
	panic(http.ErrAbortHandler)
}

// release closes what upgrade took from net/http, however the exchange ended.
func (d *stdDown) release() {
	d.body.stop()
	if d.hijacked != nil {
		d.hijacked.Close()
		d.conn.letGo()
	}
}
