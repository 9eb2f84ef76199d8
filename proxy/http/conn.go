package http

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/clienttls"
)

// proto is the HTTP version spoken downstream, as logs and metrics name it.
type proto uint8

const (
	protoH1 proto = iota
	protoH2
	protoH3
	numProtos
)

func (p proto) String() string { return [...]string{"h1", "h2", "h3"}[p] }

// conn is one client connection.
type conn struct {
	server *Server
	info   ConnInfo
	proto  proto
	local  netip.AddrPort
	altSvc string // the Alt-Svc value to announce, or ""

	serverName  string // as by NormalizeHost; "" where the client sent none
	certificate atomic.Pointer[tls.Certificate]

	asked     atomic.Pointer[clienttls.Auth] // of the client, in the handshake; nil: nothing
	askedName string                         // for which server name, normalized; written before asked
	shown     func() []*x509.Certificate     // by the client; nil without TLS
	identity  atomic.Pointer[identified]     // of the last exchange that asked for one

	socket *socket // nil over QUIC
	hangUp func()  // ends the connection at once; may be called repeatedly
	// over reports, while the server has been shutting down since began, whether
	// the connection is to be hung up because its codec would keep it open.
	over    func(began time.Time) bool
	severed atomic.Bool // it was the node that ended it, with exchanges under way

	told atomic.Pointer[told]
	came atomic.Pointer[string]     // where to, as listener says; nil: not asked yet
	site atomic.Pointer[site]       // that the last exchange went to
	h1   atomic.Pointer[h1Conn]     // of a connection that speaks HTTP/1.1
	h2   atomic.Pointer[h2DownConn] // of one that speaks HTTP/2 over TCP
	h3   atomic.Pointer[h3Conn]     // of one over QUIC

	proven func() // over QUIC: told when the handshake is complete; may be called repeatedly

	mu        sync.Mutex // guards the following fields
	active    int        // exchanges
	began     bool       // there has been an exchange
	ended     bool       // no further exchange may begin
	idleSince time.Time
	lastEnded chan struct{} // closed when ended and no exchange is active
	sites     *sites        // of upstream connections that carry this client's address
}

func newConn(s *Server, c net.Conn, info ConnInfo) *conn {
	conn := &conn{server: s, info: info, lastEnded: make(chan struct{}), idleSince: time.Now()}
	if info.TLS && info.AltSvcPort != 0 {
		conn.altSvc = `h3=":` + strconv.Itoa(info.AltSvcPort) + `"; ma=86400`
	}
	if c != nil {
		conn.socket = newSocket(c, conn)
		conn.local = addrPort(c.LocalAddr())
		conn.hangUp = func() { c.Close() }
	}
	return conn
}

// begin admits an exchange, unless the connection is over.
func (c *conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.active++
	c.began = true
	return true
}

// end follows begin when the exchange is over.
func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active--
	c.idleSince = time.Now()
	if c.ended && c.active == 0 {
		close(c.lastEnded)
	}
}

// close ends the connection, waits for its exchanges and releases what it held.
func (c *conn) close() {
	c.hangUp()
	c.mu.Lock()
	already := c.ended
	c.ended = true
	if !already && c.active == 0 {
		close(c.lastEnded)
	}
	c.mu.Unlock()
	<-c.lastEnded
	if c.sites != nil {
		c.sites.close()
	}
}

// overTCP is conn.over over TCP. Before a codec has taken the connection up, it
// closes at once, or if the client has begun to speak, a little later.
func (c *conn) overTCP(began time.Time) bool {
	if h1 := c.h1.Load(); h1 != nil {
		return h1.over(began)
	}
	if h2 := c.h2.Load(); h2 != nil {
		return h2.over(began)
	}
	return !c.socket.spoke.Load() || time.Since(began) >= goAwayTime+goAwayTime/2
}

// sever cuts the exchanges of the connection.
func (c *conn) sever() {
	c.severed.Store(true)
	if h3 := c.h3.Load(); h3 != nil {
		h3.cut()
	}
	c.hangUp()
	if h1 := c.h1.Load(); h1 != nil {
		h1.cut()
	}
}

// cutBy returns the end of exchanges that the node cut, and an error that says
// so; "" where it cut none.
func (c *conn) cutBy() (end string, err error) {
	if c.severed.Load() {
		return endCut, errCut
	}
	if c.info.CutBy != nil {
		if end = c.info.CutBy(); end != "" {
			return end, errEnded
		}
	}
	return "", nil
}

// unserved tells whose the connection is that no exchange came of it, if that is
// so.
func (c *conn) unserved(why error) {
	if _, began, _ := c.load(); !began && c.info.Unserved != nil {
		c.info.Unserved(why)
	}
}

// load returns the number of active exchanges, whether there has been any, and
// since when there is none.
func (c *conn) load() (active int, began bool, idleSince time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active, c.began, c.idleSince
}

type connKey struct{}

func withConn(ctx context.Context, c *conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connFrom returns the connection that ctx belongs to, or nil.
func connFrom(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// socket is a client's TCP connection, below TLS.
type socket struct {
	net.Conn
	owner *conn
	raw   *rawTCP // of the connection beneath Conn; nil where that is not TCP
	rest  []byte  // was read from it already

	// hold has writes gathered in held, to be sent with the next read. They are
	// of the goroutine that serves the connection.
	hold    bool
	held    *[]byte
	reading heldAnswer

	greeted atomic.Bool  // what is read from now on is HTTP, not handshake
	spoke   atomic.Bool  // the client has sent some HTTP
	linger  atomic.Int64 // how much the client may still be sending that nobody wants
	closing sync.Once
}

// newSocket takes c over. Bytes that c gives again are taken off it, so that the
// connection beneath can be read itself.
func newSocket(c net.Conn, owner *conn) *socket {
	s := &socket{Conn: c, owner: owner}
	tcp, ok := c.(*net.TCPConn)
	if wrapped, is := c.(wrappedTCP); is {
		if tcp, ok = wrapped.NetConn().(*net.TCPConn); ok {
			s.rest = wrapped.TakeReplay()
		}
	}
	if !ok {
		return s
	}
	var err error
	if s.raw, err = newRawTCP(tcp); err != nil {
		s.raw = nil // it is closed, and all else will fail as well
		return s
	}
	s.raw.meter, _ = c.(meter)
	return s
}

// wrappedTCP is a TCP connection of which more was read than was wanted. If it
// is a meter too, it is told of what is read and written beneath it.
type wrappedTCP interface {
	NetConn() net.Conn
	// TakeReplay returns what was read, which is the caller's to serve first.
	TakeReplay() []byte
}

func (s *socket) Read(p []byte) (n int, err error) {
	switch {
	case len(s.rest) > 0:
		n = copy(p, s.rest)
		s.rest = s.rest[n:]
	case s.held != nil:
		n, err = s.answer(p)
	case s.raw != nil:
		n, err = s.raw.Read(p)
	default:
		n, err = s.Conn.Read(p)
	}
	if n > 0 && !s.spoke.Load() && s.greeted.Load() {
		s.spoke.Store(true)
	}
	return n, err
}

// answer sends what is held and reads into p what comes then.
func (s *socket) answer(p []byte) (n int, err error) {
	held := *s.held
	s.reading.p = p
	sent, n, err := s.raw.answer(held, &s.reading)
	s.reading.p = nil
	if sent < len(held) && err == nil {
		if _, err = s.raw.Write(held[sent:]); err == nil {
			s.letHeldGo()
			n, err = s.raw.Read(p)
		}
	}
	return n, err
}

// holdFor begins to hold what is written, for c.
func (s *socket) holdFor(c *h1Conn) {
	s.held, s.hold = heldBuffers.Get().(*[]byte), true
	*s.held = (*s.held)[:0]
	s.reading.c = c
}

func (s *socket) letHeldGo() {
	if s.held != nil {
		heldBuffers.Put(s.held)
		s.held = nil
	}
}

var heldBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, responseBuffer)
	return &b
}}

// heldAnswer lends what crypto/tls reads into, and gives back what an exchange
// took once its answer is sent.
type heldAnswer struct {
	p []byte
	c *h1Conn
}

func (a *heldAnswer) lend() []byte { return a.p }

func (a *heldAnswer) takeBack() {
	a.c.conn.socket.letHeldGo()
	a.c.takeBack()
}

func (s *socket) Write(p []byte) (int, error) {
	if s.hold {
		*s.held = append(*s.held, p...)
		return len(p), nil
	}
	if s.raw != nil {
		return s.raw.Write(p)
	}
	return s.Conn.Write(p)
}

// canWaitBare reports whether raw can be waited for, with no buffer.
func (s *socket) canWaitBare() bool { return s.raw != nil && len(s.rest) == 0 }

// stalled returns for how long the client has taken nothing of what is sent.
func (s *socket) stalled(now time.Time) time.Duration {
	if s.raw == nil {
		return 0
	}
	return s.raw.blockedFor(now)
}

// A client that is still sending when the connection closes is answered by a
// reset, which may overtake the response. So the write side closes first, and
// what comes is read and dropped for a while (RFC 9112 section 9.6): as much as
// an upload may be, or a little behind what was no request.
const (
	lingerTime   = 5 * time.Second
	lingerBody   = 64 << 20
	lingerNoBody = 1 << 20
)

// Close closes the connection, lingering where it should. hangUp does not wait.
func (s *socket) Close() error {
	s.closing.Do(func() {
		most := s.linger.Load()
		if most == 0 || s.CloseWrite() != nil {
			return
		}
		s.Conn.SetReadDeadline(time.Now().Add(lingerTime))
		io.CopyN(io.Discard, s.Conn, most)
	})
	return s.Conn.Close()
}

// CloseWrite ends the sending direction, where the transport can.
func (s *socket) CloseWrite() error {
	if tcp := s.tcp(); tcp != nil {
		return tcp.CloseWrite()
	}
	return net.ErrClosed
}

// reset closes the connection so that the client cannot take what it got for
// complete: by a reset, and without TLS saying goodbye.
func (s *socket) reset() {
	if tcp := s.tcp(); tcp != nil {
		tcp.SetLinger(0)
	}
	s.Conn.Close()
}

// tcp returns the TCP connection below whatever wraps it, or nil.
func (s *socket) tcp() *net.TCPConn {
	for c := s.Conn; ; {
		switch at := c.(type) {
		case *net.TCPConn:
			return at
		case interface{ NetConn() net.Conn }:
			c = at.NetConn()
		default:
			return nil
		}
	}
}

// addrPort returns a TCP or UDP address as netip has it, IPv4 as IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	var at netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		at = a.AddrPort()
	case *net.UDPAddr:
		at = a.AddrPort()
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
