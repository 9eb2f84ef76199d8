package http

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
)

const (
	maxIdle          = 4096 // connections of one sites
	maxIdlePerTarget = 256
	idleTime         = time.Minute
	// variantTime is how long a site is kept that nobody uses. Its idle
	// connections close before that.
	variantTime = 2 * time.Minute

	maxResponseHead = 256 << 10

	siteShards = 16
	// sweepEvery is how often idle connections are looked at; the longest that
	// one stays which its backend has closed.
	sweepEvery = 15 * time.Second
	// maxSites is how many sites there may be before those without idle
	// connections go. Targets can have names made of what clients ask for, and a
	// site is made before anybody knows whether the name is one.
	maxSites = 4 * maxIdle
)

// siteKey is a kind of connection to a target. Connections of different kinds are
// never taken for one another.
type siteKey struct {
	endpoint upstream.Endpoint
	addr     netip.AddrPort // of the endpoint's name; the zero value: whichever it has
	secure   upstream.Secure
	proxy    string // version of the PROXY header
	h2c      bool   // HTTP/2 in clear text
	routed   bool   // of routes, whose connections may not lead where those of mappings may
}

// site keeps the connections of one kind: of those that speak HTTP/1.1 the idle
// ones, the one used last on top, so that those beneath grow old when there is
// little to do, and go; of those that speak HTTP/2 all.
type site struct {
	key   siteKey
	name  string      // host:port
	tls   *tls.Config // nil in clear text
	pool  *sites
	http2 atomic.Bool // the target has chosen HTTP/2
	gone  atomic.Bool // it is closed
	h2Pool

	mu     sync.Mutex // guards the following fields
	idle   []*upConn
	used   time.Time // when the last exchange began that one was kept of
	closed bool      // no connection is kept any more
}

// sites are the kinds of connections in use.
type sites struct {
	forwarder *forwarder
	idle      atomic.Int64 // connections, of all sites
	count     atomic.Int64 // of sites
	h2        atomic.Int64 // connections that speak HTTP/2, idle or not
	shards    [siteShards]siteShard
	purging   atomic.Bool

	mu     sync.Mutex // guards the following fields
	sweep  *time.Timer
	closed bool
}

type siteShard struct {
	mu    sync.Mutex // guards sites
	sites map[siteKey]*site
	_     [40]byte // keeps the locks out of each other's cache lines
}

func newSites(f *forwarder) *sites { return &sites{forwarder: f} }

// ownSites returns the sites for upstream connections that no other client may
// use.
func (c *conn) ownSites(f *forwarder) *sites {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sites == nil {
		c.sites = newSites(f)
	}
	return c.sites
}

// home returns the site that u belongs to: it was made for another one where the
// address that was asked for did not take it, or was not known.
func (u *upConn) home() *site {
	if !u.astray {
		return u.site
	}
	k := u.site.key
	k.addr = u.at
	return u.site.pool.site(k, nil)
}

// site returns the site of a kind of connection. last is one that was asked for
// before, and is likely the same; nil where there is none.
func (p *sites) site(k siteKey, last *site) *site {
	if last != nil && last.pool == p && last.key == k && !last.gone.Load() {
		return last
	}
	s, made := p.findOrMake(k)
	if made && p.count.Add(1) > maxSites {
		p.purge()
	}
	return s
}

func (p *sites) findOrMake(k siteKey) (s *site, made bool) {
	shard := &p.shards[(k.endpoint.Port^len(k.endpoint.Host)^len(k.secure.ServerName))%siteShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if s := shard.sites[k]; s != nil {
		return s, false
	}
	// The key may lie in a buffer of the exchange that it came by.
	k.endpoint.Host, k.secure.ServerName = strings.Clone(k.endpoint.Host), strings.Clone(k.secure.ServerName)
	s = &site{key: k, name: k.endpoint.String(), pool: p, used: time.Now()}
	if k.secure.On {
		s.tls = p.forwarder.clientTLS(k)
	}
	if shard.sites == nil {
		shard.sites = map[siteKey]*site{}
	}
	shard.sites[k] = s
	if s.closed = !p.plan(); s.closed {
		s.gone.Store(true)
	}
	return s, true
}

// purge forgets sites without idle connections, of which there are maxIdle at
// most, so that it is done once for many new ones. An exchange under way goes on
// with a site that is forgotten; its connection is closed behind it.
func (p *sites) purge() {
	if p.purging.Swap(true) {
		return
	}
	defer p.purging.Store(false)
	for i := range p.shards {
		p.shards[i].forget((*site).closeIfBare, &p.count)
	}
}

// forget takes out the sites that useless reports true for, and counts them off.
func (h *siteShard) forget(useless func(*site) bool, count *atomic.Int64) (left int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, s := range h.sites {
		if useless(s) {
			delete(h.sites, k)
			count.Add(-1)
		}
	}
	return len(h.sites)
}

// take returns an idle connection, or nil.
func (s *site) take() *upConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.idle)
	if n == 0 {
		return nil
	}
	u := s.idle[n-1]
	s.idle[n-1] = nil
	s.idle = s.idle[:n-1]
	s.pool.idle.Add(-1)
	return u
}

// put keeps a connection for the next exchange, or closes it.
func (s *site) put(u *upConn, now time.Time) {
	u.since = now
	s.mu.Lock()
	keep := !s.closed && len(s.idle) < maxIdlePerTarget && s.pool.idle.Load() < maxIdle
	if keep {
		s.idle = append(s.idle, u)
		s.used = now
		s.pool.idle.Add(1)
	}
	s.mu.Unlock()
	if !keep {
		u.close()
	}
}

// plan has sites swept later on; ok is false if they are closed.
func (p *sites) plan() (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sweep == nil && !p.closed {
		p.sweep = time.AfterFunc(sweepEvery, p.sweepOnce)
	}
	return !p.closed
}

// sweepOnce closes connections that nobody used for long, or that their backend
// has closed, and forgets sites without any that nobody asks for.
func (p *sites) sweepOnce() {
	now, left := time.Now(), false
	for i := range p.shards {
		sweep := func(s *site) bool { return s.sweep(now) }
		left = p.shards[i].forget(sweep, &p.count) > 0 || left
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sweep = nil; left && !p.closed {
		p.sweep = time.AfterFunc(sweepEvery, p.sweepOnce)
	}
}

// sweep reports whether s is of no more use, and closes it then.
func (s *site) sweep(now time.Time) (useless bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.idle[:0]
	for _, u := range s.idle {
		if now.Sub(u.since) > idleTime || u.raw.isStale() {
			u.close()
			s.pool.idle.Add(-1)
		} else {
			kept = append(kept, u)
		}
	}
	clear(s.idle[len(kept):])
	s.idle = kept
	if s.sweepH2(now) > 0 || len(s.waiters) > 0 {
		s.used = now
	}
	if len(kept) == 0 && now.Sub(s.used) > variantTime {
		s.closed = true
		s.gone.Store(true)
	}
	return s.closed
}

// closeIfBare has s keep no connection any more if it has none.
func (s *site) closeIfBare() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conns := s.conns.Load(); len(s.idle)+len(s.waiters) == 0 && (conns == nil || len(*conns) == 0) {
		s.closed = true
		s.gone.Store(true)
	}
	return s.closed
}

// close closes idle connections, and those in use once they are put back.
func (p *sites) close() {
	p.mu.Lock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.mu.Unlock()
	for i := range p.shards {
		shard := &p.shards[i]
		shard.mu.Lock()
		for k, s := range shard.sites {
			s.mu.Lock()
			s.closed = true
			s.gone.Store(true)
			for _, u := range s.idle {
				u.close()
			}
			s.idle = nil
			s.closeH2()
			s.mu.Unlock()
			delete(shard.sites, k)
		}
		shard.mu.Unlock()
	}
}
