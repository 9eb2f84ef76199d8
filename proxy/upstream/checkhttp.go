package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/remotegpu/sluice/router"
)

// Asking is how the targets of a backend are asked by HTTP. Values are
// comparable; the zero value stands for checks by TCP, which ask nothing.
type Asking struct {
	Secure Secure
	H2C    bool
	Proxy  string // version of the PROXY header
}

// AskingOf says how checks of b ask the target at host, which is all the same to
// those by TCP.
func AskingOf(b *router.Backend, host string) Asking {
	if b.Health == nil || b.Health.Path == "" {
		return Asking{}
	}
	a := Asking{H2C: b.H2C, Proxy: b.ProxyProtocol}
	if b.TLS != nil {
		name := b.TLS.ServerName.String() // router lets no variable pass here
		if name == "" {
			name = host
			if _, err := netip.ParseAddr(host); err == nil && b.Health.Host != "" {
				name = b.Health.Host
				if bare, _, err := net.SplitHostPort(name); err == nil {
					name = bare
				}
			}
		}
		a.Secure = SecureAs(b.TLS, name)
	}
	return a
}

// ask asks the target over conn, which it closes, until ctx ends. It speaks
// through net/http: checks are few, and none of the code that carries exchanges
// is needed to find out whether that works.
func (c *check) ask(ctx context.Context, d *Dialer, conn net.Conn) error {
	defer conn.Close()
	unwatch := context.AfterFunc(ctx, func() { conn.Close() })
	defer unwatch()
	if c.asking.Proxy != "" {
		src, dst := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		if err := WriteProxyHeader(conn, c.asking.Proxy, ProxyHeader{Src: src, Dst: dst}); err != nil {
			return err
		}
	}
	var protocols http.Protocols
	protocols.SetHTTP1(!c.asking.H2C)
	protocols.SetUnencryptedHTTP2(c.asking.H2C)
	protocols.SetHTTP2(c.asking.Secure.On)
	t := &http.Transport{Protocols: &protocols, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			secured := tls.Client(conn, d.ClientTLS(c.asking.Secure, nil, "h2", "http/1.1"))
			return secured, secured.HandshakeContext(ctx)
		},
	}
	defer t.CloseIdleConnections()
	target, err := url.ParseRequestURI(c.health.Path)
	if err != nil {
		return err
	}
	target.Scheme, target.Host = "http", c.ep.String()
	if c.asking.Secure.On {
		target.Scheme = "https"
	}
	req := (&http.Request{Method: c.health.Method, URL: target, Host: c.health.Host,
		Header: http.Header{"User-Agent": {"sluice-health"}}}).WithContext(ctx)
	resp, err := t.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("no answer in time")
		}
		return fmt.Errorf("%s %s: %w", c.health.Method, c.health.Path, err)
	}
	resp.Body.Close()
	if !c.health.Status.Has(resp.StatusCode) {
		return fmt.Errorf("%s %s: status %d, and %v is wanted", c.health.Method, c.health.Path, resp.StatusCode, c.health.Status)
	}
	return nil
}
