package http

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// forwarder takes exchanges to backends, by net/http's transport.
type forwarder struct {
	dialer *upstream.Dialer
	roots  *x509.CertPool
	shared *pool
}

func newForwarder(dialer *upstream.Dialer, roots *x509.CertPool) *forwarder {
	f := &forwarder{dialer: dialer, roots: roots}
	f.shared = newPool(f)
	return f
}

// close closes idle connections to backends.
func (f *forwarder) close() { f.shared.close() }

// call is one attempt after the other to have an exchange answered by a target.
type call struct {
	x      *exchange
	down   *stdDown
	ctx    context.Context
	cancel context.CancelCauseFunc
	pool   *pool

	mu     sync.Mutex // guards the following fields
	slow   *time.Timer
	headed bool // the response head has come, or never will
}

// dialing is what a transport's dial function is told through the context of
// the request that it dials for.
type dialing struct {
	ctx      context.Context // of the exchange: a dial for nobody is given up
	endpoint upstream.Endpoint
	timeout  time.Duration
	proxy    upstream.ProxyHeader // where the backend gets one
}

type dialingKey struct{}

// forward has a target of x.hop.backend answer x.
func (f *forwarder) forward(x *exchange) *failure {
	targets, err := f.dialer.Attempt(x.hop.backend, &x.hop.vars, x.client.Addr())
	if err != nil {
		return &failure{class: endNoTarget, status: 400, err: err,
			say: "the request leads to no backend: a part of its host is not a plain name or port\n"}
	}
	defer targets.Done()
	ctx, cancel := context.WithCancelCause(x.ctx)
	defer cancel(nil)
	c := &call{x: x, down: x.down.(*stdDown), ctx: ctx, cancel: cancel, pool: f.shared}
	if x.hop.backend.ProxyProtocol != "" {
		c.pool = x.conn.ownPool(f)
	}
	if x.conn.proto == protoH1 {
		// A backend may answer while the client is still sending.
		http.NewResponseController(c.down.w).EnableFullDuplex()
	}
	resp, failed := c.send(&targets)
	if failed != nil {
		return failed
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return c.upgrade(resp)
	}
	defer resp.Body.Close()
	return c.relay(resp)
}

// send tries one target after the other until one could be connected to.
func (c *call) send(targets *upstream.Attempt) (*http.Response, *failure) {
	defer c.noMoreHeads()
	var err error
	for {
		target, ok := targets.NextTarget()
		if !ok {
			break
		}
		c.x.out.target = target.String()
		var resp *http.Response
		if resp, err = c.sendTo(target); err == nil {
			return resp, nil
		}
		var dial *dialError
		if !errors.As(err, &dial) || c.ctx.Err() != nil {
			break
		}
	}
	return nil, c.failure(err)
}

func (c *call) sendTo(target upstream.Endpoint) (*http.Response, error) {
	x := c.x
	body := c.down.body
	out := &http.Request{
		Method: x.req.method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header(x.req.header.(stdHeader)), Host: x.hop.hostName,
		Body: body.outgoing(), URL: targetURL(x.req.target, target.String(), x.hop.hostName),
	}
	if out.Body != nil {
		out.ContentLength, out.Trailer = body.length, body.trailer
		// Where the backend wants no body it must not be read: net/http would
		// then ask the client for it.
		out.Close = out.Header.Get("Expect") != ""
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // else the transport names itself
	}
	v := variantOf(x.hop.backend, x, target)
	if v.tls {
		out.URL.Scheme = "https"
	}
	if v.upgrade = x.req.upgrade != "" && !v.h2c; v.upgrade {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", x.req.upgrade)
	}
	ctx := context.WithValue(c.ctx, dialingKey{}, &dialing{
		ctx: c.ctx, endpoint: target, timeout: x.hop.connect,
		proxy: upstream.ProxyHeader{Src: x.client, Dst: x.conn.local, TLVs: x.conn.info.TLVs},
	})
	return c.pool.transport(v).RoundTrip(out.WithContext(httptrace.WithClientTrace(ctx, c.trace())))
}

// targetURL has the transport send the target byte for byte to host. A target
// that begins with // is sent in absolute-form, with the authority asked for.
func targetURL(t target, host, authority string) *url.URL {
	u := &url.URL{Scheme: "http", Host: host}
	if t.query != "" {
		u.RawQuery, u.ForceQuery = t.query[1:], t.query == "?"
	}
	u.Path, _ = url.PathUnescape(t.path)
	u.RawPath = t.path
	switch {
	case u.EscapedPath() == t.path:
	case len(t.path) > 1 && t.path[:2] == "//":
		u.Opaque = "//" + cmp.Or(authority, host) + t.path
	default:
		u.Opaque = t.path
	}
	return u
}

// trace watches an attempt for informational heads, and for the moment from
// which the backend owes a response.
func (c *call) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			c.inform(status, stdHeader(h))
			return nil
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { c.expectHead() },
	}
}

// inform passes an informational head on. 100 (Continue) is the codec's: it
// sends one when the body is first read, which is when the backend asked for it.
func (c *call) inform(status int, h stdHeader) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headed || status == http.StatusContinue {
		return
	}
	dropFields(h, isAdvertising)
	h.Del("Content-Length")
	c.down.inform(status, h)
}

func (c *call) expectHead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.x.hop.first == 0 || c.headed {
		return
	}
	if c.slow != nil {
		c.slow.Stop()
	}
	c.slow = time.AfterFunc(c.x.hop.first, func() { c.cancel(errFirstByte) })
}

func (c *call) noMoreHeads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headed = true
	if c.slow != nil {
		c.slow.Stop()
	}
}

// relay sends the response on.
func (c *call) relay(resp *http.Response) *failure {
	x := c.x
	h := http.Header(x.down.header().(stdHeader))
	for name, values := range resp.Header {
		h[name] = values
	}
	dropFields(stdHeader(h), isAdvertising)
	if resp.StatusCode == http.StatusNotModified || resp.StatusCode == http.StatusNoContent {
		delete(h, "Content-Length") // speaks of another response; some clients wait for as much
	}
	x.editResponse(true)
	for name := range resp.Trailer {
		if !isHopByHop(name) {
			h.Add("Trailer", name)
		}
	}
	x.writeHead(resp.StatusCode)
	if resp.ContentLength < 0 {
		// Nothing says when the first byte will come, and the client may be
		// waiting for the head.
		if err := x.down.flush(); err != nil {
			return c.x.clientGone(err)
		}
	}
	if failed := c.copyBody(resp); failed != nil {
		return failed
	}
	for name, values := range resp.Trailer {
		if len(values) > 0 && !isHopByHop(name) {
			x.down.trailer(name, values)
		}
	}
	return nil
}

// copyBody passes every part of the body on as it comes.
func (c *call) copyBody(resp *http.Response) *failure {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for total := int64(0); ; {
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			if err := c.x.write((*buf)[:n]); err != nil {
				return c.x.clientGone(err)
			}
			// The last part goes out with the exchange's end, unless that may
			// come later: over HTTP/2 it is the backend's to say.
			total += int64(n)
			last := err != nil || total == resp.ContentLength && resp.ProtoMajor == 1
			if !last {
				if err := c.x.down.flush(); err != nil {
					return c.x.clientGone(err)
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return c.failure(err)
		}
	}
}

// failure says why the backend's side failed by err. Where the client's body
// failed first, that was why.
func (c *call) failure(err error) *failure {
	if failed := c.down.body.failure(); failed != nil && c.ctx.Err() == nil {
		if failed.class == endClientGone {
			failed = c.x.clientGone(failed.err)
		}
		return failed
	}
	return c.x.failureOf(c.ctx, err)
}

// upgrade joins the client's connection with the backend's.
func (c *call) upgrade(resp *http.Response) *failure {
	x := c.x
	up, writable := resp.Body.(io.ReadWriteCloser)
	if !writable || x.req.upgrade == "" {
		resp.Body.Close()
		err := errors.New("the backend changed protocols without being asked to")
		return &failure{class: endProtocol, status: 502, say: "the backend's answer is not well formed\n", err: err}
	}
	defer up.Close()
	h := http.Header(x.down.header().(stdHeader))
	for name, values := range resp.Header {
		h[name] = values
	}
	protocol := h.Values("Upgrade")
	dropFields(stdHeader(h), isAdvertising)
	x.editResponse(true)
	h.Del("Content-Length")
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, protocol
	x.noteHead(resp.StatusCode)
	down, err := x.down.upgrade()
	if err != nil {
		return c.x.clientGone(err)
	}
	return x.tunnel(x.ctx, down, up)
}

// variantOf says which kind of connection to target x needs.
func variantOf(b *router.Backend, x *exchange, target upstream.Endpoint) variant {
	v := variant{h2c: b.H2C, proxy: b.ProxyProtocol}
	if b.TLS == nil {
		return v
	}
	v.tls, v.insecure = true, b.TLS.Insecure
	v.serverName = b.TLS.ServerName.Expand(&x.hop.vars)
	if v.serverName == "" {
		v.serverName = target.Host
		if _, err := netip.ParseAddr(target.Host); err == nil {
			v.serverName = x.req.host
		}
	}
	return v
}
