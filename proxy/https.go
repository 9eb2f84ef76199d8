package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/remotegpu/sluice/proxy/clienttls"
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/sniff"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// openingTimeout bounds how long a client may take to send what must come
// before any decision: a PROXY header, a ClientHello, the rest of a handshake.
const openingTimeout = 10 * time.Second

func (e *Engine) acceptHTTPS(ln *net.TCPListener, l *Listener) {
	port := ln.Addr().(*net.TCPAddr).Port
	acceptLoop(ln, e.cfg.Logger, e.metrics.acceptErrors.Inc, func(c *net.TCPConn) {
		e.inHand.Add(1)
		e.accepting.Go(func() {
			defer e.inHand.Add(-1)
			e.handleTLS(c, port, l)
		})
	})
}

func (e *Engine) acceptHTTP(ln *net.TCPListener, trusted []netip.Prefix) {
	port := ln.Addr().(*net.TCPAddr).Port
	acceptLoop(ln, e.cfg.Logger, e.metrics.acceptErrors.Inc, func(c *net.TCPConn) {
		e.inHand.Add(1)
		e.accepting.Go(func() {
			defer e.inHand.Add(-1)
			if conn, from, ok := e.unwrapProxyHeader(c, trusted); ok {
				e.http.ServeConn(conn, proxyhttp.ConnInfo{Port: port, Client: from.Src, TLVs: from.TLVs})
			}
		})
	})
}

// serveMappedHTTP takes a connection to a mapped port that turned out to be
// HTTP, clear or inside TLS.
func (e *Engine) serveMappedHTTP(c net.Conn, m *router.Mapping, isTLS bool) {
	info := proxyhttp.ConnInfo{Port: m.Port, TLS: isTLS, Client: clientOf(c), Mapping: m}
	if flow, ok := c.(interface{ CutBy() string }); ok {
		info.CutBy = flow.CutBy
	}
	if flow, ok := c.(interface{ Unserved(error) }); ok {
		info.Unserved = flow.Unserved
	}
	if flow, ok := c.(interface{ ProxyTLVs() upstream.TLVs }); ok {
		info.TLVs = flow.ProxyTLVs()
	}
	e.http.ServeConn(c, info)
}

// unwrapProxyHeader takes the PROXY header off a connection from a trusted
// proxy and returns what it says: the true client, and the address that it
// connected to. Nobody else's bytes are read as one; of them only the client is
// returned.
func (e *Engine) unwrapProxyHeader(c *net.TCPConn, trusted []netip.Prefix) (conn net.Conn, from upstream.ProxyHeader, ok bool) {
	client := clientOf(c)
	if len(trusted) == 0 || !router.Allowed(client.Addr(), trusted, nil) {
		return c, upstream.ProxyHeader{Src: client}, true
	}
	defer context.AfterFunc(e.opening, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	conn, from, err := upstream.ReadProxyHeader(c, openingTimeout)
	if err != nil {
		e.cfg.Logger.Warn("closed a connection from a trusted proxy without a good PROXY header", "client", client.String(), "err", err)
		c.Close()
		return nil, from, false
	}
	return conn, from, true
}

func clientOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

var errGivenUp = errors.New("the node stops")

// handleTLS reads the ClientHello of a connection to an HTTPS listener and
// gives the connection to whoever takes it: a passthrough or raw route by
// server name, or else HTTP.
func (e *Engine) handleTLS(tcp *net.TCPConn, port int, l *Listener) {
	c, from, ok := e.unwrapProxyHeader(tcp, l.TrustedProxies)
	if !ok {
		return
	}
	client := from.Src
	table := e.table.Load()
	info := proxyhttp.ConnInfo{Port: port, TLS: true, Client: client, TLVs: from.TLVs, AltSvcPort: l.altSvcPort(port)}
	if !table.HasConnectionRoutes() {
		// Nothing depends on the server name: crypto/tls reads it just once.
		e.metrics.takenByHTTP.Inc()
		e.http.ServeConn(c, info)
		return
	}
	release := context.AfterFunc(e.opening, func() { tcp.SetReadDeadline(time.Unix(1, 0)) })
	peeked, hello, err := readHello(c)
	// From here on the connection is somebody's, who lets it end in order.
	if !release() && err == nil {
		err = errGivenUp
	}
	if err != nil {
		e.metrics.takenByNobody.Inc()
		e.cfg.Logger.Debug("closed a connection that did not open with a TLS ClientHello", "port", port, "client", client.String(), "err", err)
		if errors.Is(err, sniff.ErrNotTLS) {
			e.http.ServeConn(upstream.Replay(c, peeked), info) // who asks in clear text is told
			return
		}
		c.Close()
		return
	}
	serverName, _ := router.NormalizeHost(hello.ServerName)
	route, captures := table.MatchTLS(serverName, port)
	if route == nil {
		e.metrics.takenByHTTP.Inc()
		e.http.ServeConn(upstream.Replay(c, peeked), info)
		return
	}
	e.metrics.takenByRoute.Inc()
	vars := &router.Vars{
		Host: serverName, SNI: serverName, Port: strconv.Itoa(port), ClientIP: client.Addr().String(), Captures: captures,
	}
	e.relay(c, peeked, table, route, l4.RelaySpec{
		Listener: "https/" + vars.Port, Port: port, Client: client, Local: from.Dst, TLVs: from.TLVs, Route: route.Name,
		Backend: route.Backend, Vars: vars, Timeouts: route.Timeouts,
		Env: route.EnvName(vars), Service: route.Service,
	})
}

var errNotAsked = errors.New("the client was not asked for the certificate that its host takes")

// askedKey is where, in the context of a handshake, lies a *clienttls.Auth to be
// set to what the client is asked for.
type askedKey struct{}

func noteAsked(ctx context.Context, auth *clienttls.Auth, _ string) {
	if to, ok := ctx.Value(askedKey{}).(**clienttls.Auth); ok {
		*to = auth
	}
}

// relay gives a TLS connection to a route of table that takes it whole.
func (e *Engine) relay(c net.Conn, peeked []byte, table *router.Table, route *router.Route, spec l4.RelaySpec) {
	if !router.Allowed(spec.Client.Addr(), route.Allow, route.Deny) {
		e.l4.Refuse(c, spec)
		return
	}
	if route.Passthrough() {
		e.l4.Relay(c, peeked, spec)
		return
	}
	conn := tls.Server(upstream.Replay(c, peeked), e.rawTLS.Config())
	conn.SetDeadline(time.Now().Add(openingTimeout))
	var asked *clienttls.Auth
	err := conn.HandshakeContext(context.WithValue(e.opening, askedKey{}, &asked))
	// The route is of a table that may be older than the one in force by now.
	if want := e.terms.Auth(table.ClientAuth(spec.Vars.Host)); err == nil && want != nil && !asked.Like(want) {
		err = errNotAsked
	}
	if err != nil {
		e.terms.Refused(clienttls.Refusal{Asked: asked, Client: spec.Client, ServerName: spec.Vars.Host, Listener: spec.Listener, Err: err})
		e.cfg.Logger.Debug("TLS handshake failed", "route", route.Name, "client", spec.Client.String(), "err", err)
		c.Close()
		return
	}
	conn.SetDeadline(time.Time{})
	e.l4.Relay(conn, nil, spec)
}

// readHello reads from c up to the end of the ClientHello. It returns all that
// it read, hello or not, and leaves no deadline behind.
func readHello(c net.Conn) (peeked []byte, hello sniff.Hello, err error) {
	c.SetReadDeadline(time.Now().Add(openingTimeout))
	defer c.SetReadDeadline(time.Time{})
	peeked = make([]byte, 0, 2048) // holds most hellos, post-quantum key shares included
	for {
		need := 0
		if hello, need, err = sniff.ClientHello(peeked); err != nil || need == 0 {
			return peeked, hello, err
		}
		if need > sniff.MaxPeek {
			return peeked, hello, errors.New("the ClientHello is too long")
		}
		peeked = slices.Grow(peeked, max(512, need-len(peeked)))
		n, err := c.Read(peeked[len(peeked):cap(peeked)])
		peeked = peeked[:len(peeked)+n]
		if err != nil {
			return peeked, hello, err
		}
	}
}
