package http_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// loopbackNames has every name stand for 127.0.0.1 and 127.0.0.2.
type loopbackNames struct{}

func (loopbackNames) Lookup(context.Context, string) ([]netip.Addr, time.Duration, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}, time.Minute, nil
}

// twoAddresses serves at one port of 127.0.0.1 and 127.0.0.2, and counts the
// connections to each.
func twoAddresses(t *testing.T) (port int, servers [2]*httptest.Server, conns *[2]atomic.Int32) {
	t.Helper()
	conns = new([2]atomic.Int32)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	for i := range servers {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:%d", i+1, port))
		if err != nil {
			t.Fatal(err)
		}
		port = ln.Addr().(*net.TCPAddr).Port
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(strconv.Itoa(i + 1)))
		}))
		s.Listener.Close()
		s.Listener = ln
		s.Config.Protocols = protocols
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				conns[i].Add(1)
			}
		}
		s.Start()
		t.Cleanup(s.Close)
		servers[i] = s
	}
	return port, servers, conns
}

// TestAddressesOfAName spreads exchanges over the addresses of one name, which
// have connections of their own, and goes on with the one that is left.
func TestAddressesOfAName(t *testing.T) {
	for name, more := range map[string]string{"HTTP/1.1": "", "HTTP/2": `,"h2c":true`} {
		t.Run(name, func(t *testing.T) {
			port, servers, conns := twoAddresses(t)
			target := net.JoinHostPort("two.x.test", strconv.Itoa(port))
			dialer := upstream.NewDialer(upstream.Config{Logger: slog.New(slog.DiscardHandler), Resolver: loopbackNames{}})
			t.Cleanup(dialer.Close)
			// The name is in memory, as that of a backend in use is.
			if _, err := dialer.Resolve(t.Context(), upstream.Endpoint{Host: "two.x.test", Port: port}); err != nil {
				t.Fatal(err)
			}
			r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + target + `"]` + more + `}}`},
				func(cfg *proxyhttp.Config, _ *rig) { cfg.Dialer = dialer })
			p := r.h1Clear()
			got := map[string]int{}
			for range 10 {
				resp, body := p.get(t, "app.x.test", "/")
				if resp.StatusCode != 200 {
					t.Fatalf("%d %q", resp.StatusCode, body)
				}
				got[body]++
			}
			if got["1"] != 5 || got["2"] != 5 || conns[0].Load() != 1 || conns[1].Load() != 1 {
				t.Errorf("exchanges by address %v, over %d and %d connections; want 5 each over one", got, conns[0].Load(), conns[1].Load())
			}
			servers[0].Close()
			for range 4 {
				if resp, body := p.get(t, "app.x.test", "/"); resp.StatusCode != 200 || body != "2" {
					t.Errorf("the first address is gone: %d %q", resp.StatusCode, body)
				}
			}
		})
	}
}

// TestBarredAddressOfAName has the route of an environment pass over an address that
// none of its names may lead to, where another route has connections to it at hand.
func TestBarredAddressOfAName(t *testing.T) {
	port, _, _ := twoAddresses(t)
	dialer := upstream.NewDialer(upstream.Config{Logger: slog.New(slog.DiscardHandler), Resolver: loopbackNames{}, Bar: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	t.Cleanup(dialer.Close)
	r := newRig(t, map[string]string{
		"all": fmt.Sprintf(`{"host":"all.x.test","backend":"two.x.test:%d"}`, port),
		"env": fmt.Sprintf(`{"host":"env.x.test","backend":"two.x.test:%d","env":"a"}`, port),
	}, func(cfg *proxyhttp.Config, _ *rig) { cfg.Dialer = dialer })
	p := r.h1Clear()
	for _, tc := range []struct {
		host string
		want map[string]int
	}{{"all.x.test", map[string]int{"1": 5, "2": 5}}, {"env.x.test", map[string]int{"2": 10}}} {
		got := map[string]int{}
		for range 10 {
			_, body := p.get(t, tc.host, "/")
			got[body]++
		}
		if !maps.Equal(got, tc.want) {
			t.Errorf("%s: exchanges by address %v, want %v", tc.host, got, tc.want)
		}
	}
}
