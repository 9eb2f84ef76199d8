package http

import (
	"crypto/x509"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// forwarder takes exchanges to backends, by HTTP/1.1 or HTTP/2.
type forwarder struct {
	dialer *upstream.Dialer
	roots  *x509.CertPool
	shared *sites
	grown  atomic.Int64 // what windows of streams have grown by, in bytes
}

func newForwarder(dialer *upstream.Dialer, roots *x509.CertPool) *forwarder {
	f := &forwarder{dialer: dialer, roots: roots}
	f.shared = newSites(f)
	return f
}

// close closes idle connections to backends.
func (f *forwarder) close() {
	f.shared.close()
}

// forward has a target of x.hop.backend answer x.
func (f *forwarder) forward(x *exchange) *failure {
	t := &x.tries
	if err := t.begin(x, f.dialer); err != nil {
		return &failure{class: endNoTarget, status: 400, err: err,
			say: "the request leads to no backend: a part of its host is not a plain name or port\n"}
	}
	defer t.targets.Done()
	var failed *failure
	for {
		target, ok := t.targets.NextTarget()
		if !ok {
			break
		}
		t.made++
		x.out.address = ""
		failed = f.forwardTo(x, target, t.targets.Address())
		x.judge(failed)
		if failed == nil || !x.again(failed) {
			break
		}
	}
	if failed != nil && failed.retry != 0 { // the pause before another try saw the end
		return x.clientGone(failed.err)
	}
	return failed
}

// forwardTo has target answer x, at addr if its name has several addresses.
func (f *forwarder) forwardTo(x *exchange, target upstream.Endpoint, addr netip.AddrPort) *failure {
	b := x.hop.backend
	own := f.shared
	if b.ProxyProtocol != "" {
		own = x.conn.ownSites(f)
	}
	last := x.conn.site.Load()
	key := siteOf(b, x, target)
	key.addr = addr
	s := own.site(key, last)
	if s != last {
		x.conn.site.Store(s)
	}
	x.out.target = s.name
	x.seen.towards.Store(&s.name)
	if s.key.h2c || s.http2.Load() && x.req.upgrade == "" {
		return f.forwardH2(x, s, nil)
	}
	return f.forwardH1(x, s)
}

// at notes that x is at the backend by u.
func (x *exchange) at(u *upConn) {
	x.out.address = u.addr
	x.seen.at.Store(&u.addr)
	x.tries.targets.Used(u.at)
}

// proxyHeader is what a backend that wants it is told of x's client.
func (x *exchange) proxyHeader() upstream.ProxyHeader {
	return upstream.ProxyHeader{Src: x.client, Dst: x.conn.local, TLVs: x.conn.info.TLVs}
}

// bodyFailure returns how reading x's body from the client failed, or nil.
func (x *exchange) bodyFailure() *failure {
	failed := x.body.failure()
	if failed != nil && failed.class == endClientGone {
		failed = x.clientGone(failed.err)
	}
	return failed
}

// siteOf says which kind of connection to target x needs.
func siteOf(b *router.Backend, x *exchange, target upstream.Endpoint) siteKey {
	k := siteKey{endpoint: target, proxy: b.ProxyProtocol, h2c: b.H2C, routed: b.OfRoute()}
	if b.TLS == nil {
		return k
	}
	name := b.TLS.ServerName.Expand(&x.hop.vars)
	if name == "" {
		name = target.Host
		if _, err := netip.ParseAddr(target.Host); err == nil {
			name = x.req.host
		}
	}
	k.secure = upstream.SecureAs(b.TLS, name)
	return k
}

// announce has the final head promise the trailer fields that names lists, as
// far as they may be passed on.
func announce(h *field.List, names string) {
	if names == "" {
		return
	}
	var kept []string
	for name := range strings.SplitSeq(names, ",") {
		if name = strings.Trim(name, " \t"); name != "" && field.MayTrail(name) {
			kept = append(kept, name)
		}
	}
	if len(kept) > 0 {
		h.SetID(field.Trailer, strings.Join(kept, ", "))
	}
}

// relayHead edits and sends the final head of a backend's response. promised has
// the names of trailer fields to come.
func (x *exchange) relayHead(status int, promised string) {
	h := x.down.header()
	dropFields(h, isAdvertising)
	if status == 304 || status == 204 {
		h.DelID(field.ContentLength) // speaks of another response; some clients wait for as much
	}
	x.editResponse(true)
	x.setCookie(h)
	announce(h, promised)
	page := ""
	if status >= 400 && x.pinger == nil {
		page = x.replaced(status, h)
	}
	x.headFollows(h)
	if r := x.hop.route; r != nil && r.Events != nil {
		x.ping(status)
	}
	if x.hop.compress != nil && (x.pinger == nil || !x.pinger.committed()) {
		x.compress(status)
	}
	x.writeHead(status)
	if page != "" {
		x.replace(page)
	}
}
