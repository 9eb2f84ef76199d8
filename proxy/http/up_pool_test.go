package http

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// TestSitesAreBounded asks for ever new names, as clients can where they choose
// the name of the target, and never reaches one.
func TestSitesAreBounded(t *testing.T) {
	p := newSites(&forwarder{dialer: upstream.NewDialer(upstream.Config{})})
	defer p.close()
	keyOf := func(name string) siteKey {
		return siteKey{endpoint: upstream.Endpoint{Host: name, Port: 443}, secure: upstream.Secure{On: true, ServerName: name}}
	}
	inUse := p.site(keyOf("in-use"), nil)
	inUse.put(&upConn{site: inUse, raw: idleTCP(t)}, time.Now())
	for i := range 3 * maxSites {
		p.site(keyOf(fmt.Sprint(i)), nil)
	}
	n := 0
	for i := range p.shards {
		n += len(p.shards[i].sites)
	}
	if n > maxSites || int64(n) != p.count.Load() {
		t.Errorf("there are %d sites, of at most %d, and %d are counted", n, maxSites, p.count.Load())
	}
	if again := p.site(keyOf("in-use"), nil); again != inUse || len(again.idle) != 1 {
		t.Error("the site with an idle connection was forgotten")
	}
}

// idleTCP returns a connection to a listener that says nothing.
func idleTCP(t *testing.T) *rawTCP {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := newRawTCP(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
