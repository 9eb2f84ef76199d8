package http

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
)

const (
	// maxVariants bounds the kinds of connections kept apart at a time.
	maxVariants = 1024
	// variantTime is how long a kind is kept that nobody uses. Its idle
	// connections close before that.
	variantTime = 2 * time.Minute
	idleTime    = time.Minute

	maxIdle          = 4096 // connections of one kind
	maxIdlePerTarget = 256
	maxResponseHead  = 256 << 10

	// continueTime is how long a client's body is held back while the backend
	// does not say whether it wants it. Backends that never do are out there,
	// and most clients wait for no more than a second themselves.
	continueTime = 5 * time.Second

	// A backend's HTTP/2 connection on which nothing came for pingAfter is
	// asked for a sign of life, and closed without one after pingTime.
	pingAfter = 30 * time.Second
	pingTime  = 15 * time.Second
)

// variant is a kind of upstream connection. Connections of different kinds are
// never taken for one another.
type variant struct {
	tls        bool
	serverName string
	insecure   bool
	h2c        bool
	proxy      string // version of the PROXY header
}

// pool keeps upstream connections, one http.Transport for each kind.
type pool struct {
	forwarder *forwarder

	mu    sync.Mutex // guards the following fields
	kinds map[variant]*pooled
	swept time.Time
}

type pooled struct {
	transport *http.Transport
	used      time.Time
}

func newPool(f *forwarder) *pool {
	return &pool{forwarder: f, kinds: map[variant]*pooled{}, swept: time.Now()}
}

// ownPool returns the pool for upstream connections that no other client may
// use.
func (c *conn) ownPool(f *forwarder) *pool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.std == nil {
		c.std = newPool(f)
	}
	return c.std
}

// transport returns the transport for a kind of connection.
func (p *pool) transport(v variant) *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.swept) > variantTime {
		p.sweep(now)
	}
	kind := p.kinds[v]
	if kind == nil {
		if len(p.kinds) >= maxVariants {
			p.evict()
		}
		kind = &pooled{transport: p.forwarder.newTransport(v)}
		p.kinds[v] = kind
	}
	kind.used = now
	return kind.transport
}

// sweep lets go of kinds that were not used for a while, as those of backends
// that are no more. p.mu is held.
func (p *pool) sweep(now time.Time) {
	p.swept = now
	for v, kind := range p.kinds {
		if now.Sub(kind.used) > variantTime {
			p.drop(v)
		}
	}
}

// evict lets go of the kind that was not used for longest. p.mu is held.
func (p *pool) evict() {
	var oldest variant
	var used time.Time
	for v, kind := range p.kinds {
		if used.IsZero() || kind.used.Before(used) {
			oldest, used = v, kind.used
		}
	}
	p.drop(oldest)
}

// drop lets go of a kind: its connections close once idle. p.mu is held.
func (p *pool) drop(v variant) {
	p.kinds[v].transport.CloseIdleConnections()
	delete(p.kinds, v)
}

// close lets go of every kind.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for v := range p.kinds {
		p.drop(v)
	}
}

func (f *forwarder) newTransport(v variant) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!v.h2c)
	protocols.SetUnencryptedHTTP2(v.h2c)
	protocols.SetHTTP2(v.tls)
	t := &http.Transport{
		Protocols:              &protocols,
		DialContext:            v.dial(f.dialer),
		DisableCompression:     true, // what the client did not ask for is not decoded either
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerTarget,
		IdleConnTimeout:        idleTime,
		MaxResponseHeaderBytes: maxResponseHead,
		ExpectContinueTimeout:  continueTime,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTime},
	}
	if v.tls {
		t.DialTLSContext = f.dialTLS(v)
	}
	return t
}

// dial returns the function that connects to a target and introduces the
// client by a PROXY header where the kind has one.
func (v variant) dial(dialer *upstream.Dialer) func(ctx context.Context, _, _ string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := ctx.Value(dialingKey{}).(*dialing)
		c, err := dialer.DialEndpoint(d.ctx, d.endpoint, d.timeout)
		if err != nil {
			return nil, &dialError{err: err}
		}
		if v.proxy == "" {
			return c, nil
		}
		if err := upstream.WriteProxyHeader(c, v.proxy, d.proxy); err != nil {
			c.Close()
			return nil, &dialError{err: err}
		}
		return c, nil
	}
}

// dialTLS returns the function that connects to a target by TLS.
func (f *forwarder) dialTLS(v variant) func(ctx context.Context, _, _ string) (net.Conn, error) {
	dial := v.dial(f.dialer)
	cfg := &tls.Config{
		ServerName: v.serverName, InsecureSkipVerify: v.insecure, RootCAs: f.roots, MinVersion: tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(0), NextProtos: []string{"h2", "http/1.1"},
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := ctx.Value(dialingKey{}).(*dialing)
		if made := d.made.Swap(nil); made != nil {
			return made, nil
		}
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		bounded, cancel := context.WithTimeout(d.ctx, d.timeout)
		defer cancel()
		secured := tls.Client(c, cfg)
		if err := secured.HandshakeContext(bounded); err != nil {
			c.Close()
			return nil, &dialError{err: err, tls: true}
		}
		return secured, nil
	}
}
