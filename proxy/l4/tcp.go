package l4

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/remotegpu/sluice/proxy/sniff"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

const (
	// headerTimeout bounds how long a trusted proxy may take to send its PROXY
	// header.
	headerTimeout = 5 * time.Second
	// handshakeTimeout bounds a TLS handshake that Relay finds unfinished.
	handshakeTimeout = 10 * time.Second
)

// serve takes a connection of a mapping, whose linked flow is f, to where a loop
// or Config.HTTP takes it on. It reports whether one does; else the flow has
// ended.
func (f *flow) serve(c *net.TCPConn) (goesOn bool) {
	peeked, ok := f.enter(c)
	if !ok {
		return false
	}
	if f.mapping.HTTP != nil {
		kind, err := f.sniff(c, peeked)
		if err != nil {
			f.stop(openingEnd(err), nil)
			return false
		}
		isHTTP := kind == sniff.TLS || kind == sniff.HTTP
		if m := f.refresh(); m.HTTP != nil && isHTTP {
			f.handOn(c, peeked, kind == sniff.TLS)
			return true
		}
	}
	m := f.mapping
	if m.Backend == nil {
		f.stop(failed, errNoBackend)
		return false
	}
	backend := f.connect(m.Backend, nil, m.EffectiveConnectTimeout(), m.ProxyProtocol.Send)
	return backend != nil && f.relay(c, backend, peeked, m.IdleTimeout)
}

// enter does what comes before the client's own bytes: the PROXY header, the
// lists and the limits. It returns what was read past the header.
func (f *flow) enter(c *net.TCPConn) (peeked []byte, ok bool) {
	if f.awaitsHeader() {
		conn, header, err := upstream.ReadProxyHeader(c, headerTimeout)
		if err != nil {
			f.stop(failed, err)
			return nil, false
		}
		f.identify(header)
		if replay, ok := conn.(*upstream.ReplayConn); ok {
			peeked = replay.TakeReplay()
		}
	}
	if why := f.letIn(); why != live {
		f.stop(why, nil)
		return nil, false
	}
	return peeked, true
}

// awaitsHeader reports whether the connection is to open with a PROXY header.
func (f *flow) awaitsHeader() bool {
	return f.mapping.ProxyProtocol.Accept && f.server.trusts(f.client.Addr())
}

// letIn admits f under its mapping, or says which end it has come to.
func (f *flow) letIn() end {
	if hasExpired(f.mapping, f.since) {
		return expired
	}
	return f.admit()
}

// trusts reports whether PROXY headers from peer are believed.
func (s *Server) trusts(peer netip.Addr) bool {
	for _, p := range s.cfg.TrustedProxies {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// connect dials b and opens the connection with a PROXY header of the given
// version, "" for none. nil means that the flow was stopped.
func (f *flow) connect(b *router.Backend, v *router.Vars, timeout time.Duration, header string) *net.TCPConn {
	began := time.Now()
	c, endpoint, lease, err := f.server.cfg.Dialer.Dial(f.ctx, b, v, f.client.Addr(), timeout)
	f.server.metrics.connect.Observe(time.Since(began).Seconds())
	if err != nil {
		f.stop(connectFailed, err)
		return nil
	}
	f.lease = lease
	f.setTarget(endpoint, addrPort(c.RemoteAddr()))
	if !f.attach(c) {
		return nil
	}
	if header == "" {
		return c
	}
	if err := upstream.WriteProxyHeader(c, header, f.proxyHeader()); err != nil {
		f.stop(failed, err)
		return nil
	}
	return c
}

// RelaySpec says where Relay takes a connection, and what to call the flow.
type RelaySpec struct {
	Listener string         // what logs call the listener, such as https/443
	Port     int            // of this node that the client came to
	Client   netip.AddrPort // zero: the connection's remote address
	Local    netip.AddrPort // zero: the connection's local address
	TLVs     upstream.TLVs  // of the PROXY header that named them

	Route    string // its name
	Backend  *router.Backend
	Vars     *router.Vars // what the backend's variables stand for; nil: nothing
	Timeouts router.Timeouts
	Env      string
	Service  string
}

// Relay takes c, of which peeked was read already, to the backend of r. It owns
// c. A *net.TCPConn, and one in an upstream.ReplayConn, goes on to an event loop
// once it has its backend, and Relay returns then. For any other c, such as a
// *tls.Conn, it returns when the flow has ended; such a connection is closed by
// halves if it has a method CloseWrite, and as a whole when either side is done
// if not. A TLS handshake that is not complete is completed first.
func (s *Server) Relay(c net.Conn, peeked []byte, r RelaySpec) {
	if r.Vars == nil {
		r.Vars = &router.Vars{}
	}
	f := s.newRouted(c, r)
	if why := s.linkRouted(f); why != live {
		f.refuse(why)
		return
	}
	goesOn := false // on a loop
	defer func() {
		if !goesOn {
			f.finish()
		}
	}()
	if err := shakeHands(f.ctx, c); err != nil {
		f.stop(failed, err)
		return
	}
	timeout := r.Timeouts.Connect
	if timeout <= 0 {
		timeout = router.DefaultConnectTimeout
	}
	if backend := f.connect(r.Backend, r.Vars, timeout, r.Backend.ProxyProtocol); backend != nil {
		goesOn = f.relay(c, backend, peeked, r.Timeouts.Idle)
	}
}

// Refuse resets c, which would have been Relay's but for a client that the
// route does not allow, and writes the flow's record.
func (s *Server) Refuse(c net.Conn, r RelaySpec) {
	f := s.newRouted(c, r)
	f.refuse(denied)
}

// newRouted returns the flow of a connection that a route takes whole.
func (s *Server) newRouted(c net.Conn, r RelaySpec) *flow {
	if !r.Client.IsValid() {
		r.Client = addrPort(c.RemoteAddr())
	}
	if !r.Local.IsValid() {
		r.Local = addrPort(c.LocalAddr())
	}
	f := s.newFlow(router.TCP, r.Client, r.Local, labels{listener: r.Listener, port: r.Port, route: r.Route, env: r.Env, service: r.Service})
	f.tlvs = r.TLVs
	f.begin()
	f.attach(c)
	return f
}

// shakeHands completes a TLS handshake, so that no backend is troubled by a
// client that never does.
func shakeHands(ctx context.Context, c net.Conn) error {
	secure, ok := c.(interface{ HandshakeContext(context.Context) error })
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return secure.HandshakeContext(ctx)
}

// addrPort returns a as address and port, IPv4 as IPv4; the zero value for what
// is neither TCP nor UDP.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return unmapped(a.AddrPort())
	case *net.UDPAddr:
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
