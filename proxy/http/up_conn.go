package http

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// upConn is a connection to a backend. Where that speaks HTTP/1.1, one exchange
// uses it at a time, and while idle it holds no buffer and no goroutine; where it
// speaks HTTP/2, it belongs to an h2Conn.
type upConn struct {
	site   *site
	raw    *rawTCP
	tls    *tls.Conn      // nil in clear text
	addr   string         // of the backend, ip:port
	at     netip.AddrPort // the same
	astray bool           // it is at another address than its site
	since  time.Time      // when its last exchange began
}

// errChoseHTTP2 is what dialing a backend by TLS comes to that chose HTTP/2.
var errChoseHTTP2 = errors.New("the backend speaks HTTP/2")

// connect connects to the target of s within limit, and introduces a client by
// header where the target wants that. Where the target chooses HTTP/2, err is
// errChoseHTTP2 and u is the connection.
func (s *site) connect(ctx context.Context, limit time.Duration, header upstream.ProxyHeader, upgrade bool) (u *upConn, err error) {
	tcp, err := s.pool.forwarder.dialer.DialAddress(ctx, upstream.Connecting{Endpoint: s.key.endpoint, Addr: s.key.addr, Routed: s.key.routed}, limit)
	if err != nil {
		return nil, &dialError{err: err}
	}
	if s.key.proxy != "" {
		if err := upstream.WriteProxyHeader(tcp, s.key.proxy, header); err != nil {
			tcp.Close()
			return nil, &dialError{err: err}
		}
	}
	raw, err := newRawTCP(tcp)
	if err != nil {
		tcp.Close()
		return nil, &dialError{err: err}
	}
	at := tcp.RemoteAddr().(*net.TCPAddr).AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	u = &upConn{site: s, raw: raw, addr: at.String(), at: at}
	if at != s.key.addr {
		_, err := netip.ParseAddr(s.key.endpoint.Host)
		u.astray = err != nil // a name's
	}
	if s.tls == nil {
		return u, nil
	}
	cfg := s.tls
	if upgrade {
		cfg = cfg.Clone()
		cfg.NextProtos = []string{"http/1.1"}
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	u.tls = tls.Client(u.raw.conn(), cfg)
	if err := u.tls.HandshakeContext(bounded); err != nil {
		tcp.Close()
		return nil, &dialError{err: err, tls: true}
	}
	if u.tls.ConnectionState().NegotiatedProtocol == "h2" {
		return u, errChoseHTTP2
	}
	return u, nil
}

// clientTLS returns how to speak TLS to a kind of target.
func (f *forwarder) clientTLS(k siteKey) *tls.Config {
	return f.dialer.ClientTLS(k.secure, f.roots, "h2", "http/1.1")
}

func (u *upConn) Read(p []byte) (int, error) {
	if u.tls != nil {
		return u.tls.Read(p)
	}
	return u.raw.Read(p)
}

func (u *upConn) Write(p []byte) (int, error) {
	if u.tls != nil {
		return u.tls.Write(p)
	}
	return u.raw.Write(p)
}

// saidMore reports whether the backend has said more than was read from u. What
// TLS has taken off the socket and nobody has read, isStale does not see, and the
// next exchange would take it for its response. scratch has room for a byte. No
// system call is made.
func (u *upConn) saidMore(scratch []byte) bool {
	if u.tls == nil {
		return false
	}
	u.raw.dry = true
	n, err := u.tls.Read(scratch)
	u.raw.dry = false
	return n > 0 || !errors.Is(err, os.ErrDeadlineExceeded)
}

// interrupt has reads and writes under way fail, and all that follow.
func (u *upConn) interrupt() { u.raw.tcp.SetDeadline(time.Unix(1, 0)) }

// closeWrite ends the sending direction.
func (u *upConn) closeWrite() error {
	if u.tls != nil {
		return u.tls.CloseWrite()
	}
	return u.raw.tcp.CloseWrite()
}

// close closes the connection. TLS says no goodbye: there is nobody to tell, and
// it could wait.
func (u *upConn) close() { u.raw.tcp.Close() }
