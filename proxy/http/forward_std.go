package http

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// stdCall is an exchange at a backend over HTTP/2, by net/http's transport.
type stdCall struct {
	x    *exchange
	body *outgoing

	mu     sync.Mutex // guards headed
	headed bool       // the response head has come, or never will
}

// dialing is what a transport's dial function is told through the context of
// the request that it dials for.
type dialing struct {
	ctx      context.Context // of the exchange: a dial for nobody is given up
	endpoint upstream.Endpoint
	timeout  time.Duration
	proxy    upstream.ProxyHeader // where the backend gets one

	made atomic.Pointer[tls.Conn] // a connection that is there already
}

type dialingKey struct{}

// forwardStd has target answer x. made, unless nil, is a connection to it, which
// it takes over.
func (f *forwarder) forwardStd(x *exchange, target upstream.Endpoint, made *tls.Conn) *failure {
	c := &stdCall{x: x}
	p := f.std
	if x.hop.backend.ProxyProtocol != "" {
		p = x.conn.ownPool(f)
	}
	d := &dialing{ctx: x.life.context(), endpoint: target, timeout: x.hop.connect, proxy: x.proxyHeader()}
	d.made.Store(made)
	defer func() {
		if unused := d.made.Swap(nil); unused != nil {
			unused.NetConn().Close()
		}
	}()
	resp, failed := c.send(p, d)
	if failed != nil {
		return failed
	}
	defer resp.Body.Close()
	defer c.body.end()
	return c.relay(resp)
}

func (c *stdCall) send(p *pool, d *dialing) (*http.Response, *failure) {
	defer c.noMoreHeads()
	x := c.x
	target := d.endpoint
	out := &http.Request{
		Method: x.req.method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: stdFields(x.req.header), Host: x.hop.hostName,
		URL: targetURL(x.req.target, target.String(), x.hop.hostName),
	}
	if c.body = newOutgoing(x.body); c.body != nil {
		out.Body, out.ContentLength, out.Trailer = c.body, c.body.size(), c.body.fields
		// Where the backend wants no body it must not be read: net/http would
		// then ask the client for it.
		out.Close = out.Header.Get("Expect") != ""
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // else the transport names itself
	}
	k := siteOf(x.hop.backend, x, target)
	// A pool outlives the buffer that the host asked for lies in.
	v := variant{tls: k.tls, serverName: strings.Clone(k.serverName), insecure: k.insecure, h2c: x.hop.backend.H2C, proxy: k.proxy}
	if v.tls {
		out.URL.Scheme = "https"
	}
	ctx := context.WithValue(x.life.context(), dialingKey{}, d)
	resp, err := p.transport(v).RoundTrip(out.WithContext(httptrace.WithClientTrace(ctx, c.trace())))
	if err != nil {
		failed := c.failure(err)
		c.body.end()
		return nil, failed
	}
	return resp, nil
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

// outgoing is a body as http.Transport wants it. The transport may read it beyond
// the exchange's end, when it fails.
type outgoing struct {
	body
	fields http.Header // of the trailer; the transport sends what is in it at the end

	reading sync.Mutex // held while the body is read
	over    bool
}

// newOutgoing returns nil where there is no body.
func newOutgoing(b body) *outgoing {
	if b.size() == 0 {
		return nil
	}
	o := &outgoing{body: b}
	if b.size() < 0 {
		o.fields = http.Header{}
		var promised field.List
		announce(&promised, b.announced())
		for name := range stringsOf(promised.GetID(field.Trailer)) {
			o.fields[textproto.CanonicalMIMEHeaderKey(name)] = nil
		}
	}
	return o
}

func (o *outgoing) Read(p []byte) (int, error) {
	o.reading.Lock()
	defer o.reading.Unlock()
	if o.over {
		return 0, errBodyOver
	}
	n, err := o.body.Read(p)
	if err == io.EOF && o.fields != nil {
		if t := allowedTrailer(o.body.trailer()); t != nil {
			for _, l := range t.Lines() {
				o.fields.Add(l.Name, l.Value)
			}
		}
	}
	return n, err
}

// Close does nothing: another target may be tried with the body.
func (o *outgoing) Close() error { return nil }

// end has nobody read the body any more.
func (o *outgoing) end() {
	if o == nil {
		return
	}
	if !o.reading.TryLock() {
		o.body.stop()
		o.reading.Lock()
	}
	o.over = true
	o.reading.Unlock()
}

// trace watches an attempt for informational heads, and for the moment from
// which the backend owes a response.
func (c *stdCall) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			c.inform(status, http.Header(h))
			return nil
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { c.expectHead() },
	}
}

// inform passes an informational head on. 100 (Continue) is the codec's: it
// sends one when the body is first read, which is when the backend asked for it.
func (c *stdCall) inform(status int, h http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headed || status == http.StatusContinue {
		return
	}
	var fields field.List
	addStd(&fields, h)
	dropFields(&fields, isAdvertising)
	fields.DelID(field.ContentLength)
	c.x.down.inform(status, &fields)
}

// expectHead is called by the transport, which may come to it when the exchange
// is over and its place another's.
func (c *stdCall) expectHead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headed {
		return
	}
	if limit := c.x.hop.first; limit > 0 {
		c.x.life.expectHead(limit)
	}
}

func (c *stdCall) noMoreHeads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headed = true
	c.x.life.expectHead(0)
}

// relay sends the response on.
func (c *stdCall) relay(resp *http.Response) *failure {
	x := c.x
	x.life.headCame()
	addStd(x.down.header(), resp.Header)
	x.relayHead(resp.StatusCode, joinNames(resp.Trailer))
	if resp.ContentLength < 0 {
		// Nothing says when the first byte will come, and the client may be
		// waiting for the head.
		if err := x.down.flush(); err != nil {
			return x.clientGone(err)
		}
	}
	if failed := c.copyBody(resp); failed != nil {
		return failed
	}
	for name, values := range resp.Trailer {
		for _, value := range values {
			if field.MayTrail(name) && h1.ValidLine(name, value) {
				x.down.trailer(name, value)
			}
		}
	}
	return nil
}

// copyBody passes every part of the body on as it comes.
func (c *stdCall) copyBody(resp *http.Response) *failure {
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
func (c *stdCall) failure(err error) *failure {
	if c.x.life.abandoned() == nil {
		if failed := c.x.bodyFailure(); failed != nil {
			return failed
		}
	}
	return c.x.failureOf(err)
}
