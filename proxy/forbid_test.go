package proxy_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy"
	"github.com/remotegpu/sluice/router"
)

// TestRoutesDoNotLeadToTheNodeItself puts routes in force that control refuses,
// or cannot refuse since a name or a capture leads there: none gets to what is
// the node's own, and none comes back to the node to be routed again.
func TestRoutesDoNotLeadToTheNodeItself(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	t.Cleanup(backend.Close)
	private := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("somebody got to the private service") }))
	t.Cleanup(private.Close)
	portOf := func(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }

	log, public, back, straight := &records{}, freePort(t), freePort(t), freePort(t)
	e := newEdge(t, func(c *proxy.Config) {
		c.AccessLog = slog.New(slog.NewJSONHandler(log, nil))
		c.HTTP = []proxy.Listener{{Address: fmt.Sprintf("127.0.0.1:%d", public)}}
		c.Own = netip.Addr.IsLoopback
		c.Private = portsAre("the admin address", portOf(private))
		c.Public = portsAre("the http listener", public)
	})
	e.put(t, back, fmt.Sprintf("localhost:%d", public))
	e.put(t, straight, fmt.Sprintf("localhost:%d", portOf(backend)))
	mapped := freePort(t)
	e.put(t, mapped, fmt.Sprintf(`{"http":"localhost:%d"}`, portOf(private)))
	if err := e.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	const digits = `~^(?<a>\\d+)-(?<b>\\d+)-(?<c>\\d+)-(?<d>\\d+)\\.cap\\.test$`
	for i, tc := range []struct {
		name, host, ask, backend string
		more                     string
		port                     int // 0: the public listener
		status                   int
		end                      string
	}{
		{name: "an own address by captures", host: digits, ask: "127-0-0-1.cap.test", backend: fmt.Sprintf("${a}.${b}.${c}.${d}:%d", portOf(backend)), status: 502, end: "backend_forbidden"},
		{name: "an own address in IPv6's clothes", host: "a.test", backend: fmt.Sprintf("[::ffff:127.0.0.1]:%d", portOf(private)), status: 502, end: "backend_forbidden"},
		{name: "a private service", host: "a.test", backend: private.Listener.Addr().String(), status: 502, end: "backend_forbidden"},
		{name: "a private service by name", host: "a.test", backend: fmt.Sprintf("localhost:%d", portOf(private)), status: 502, end: "backend_forbidden"},
		{name: "a private service by its port", host: `~^p(?<p>\\d+)\\.test$`, ask: fmt.Sprintf("p%d.test", portOf(private)), backend: "127.0.0.1:${p}", status: 502, end: "backend_forbidden"},
		{name: "a private service to ask", host: "a.test", backend: backend.Listener.Addr().String(), more: fmt.Sprintf(`,"forward_auth":{"backend":"localhost:%d"}`, portOf(private)), status: 503, end: "auth_failed"},
		{name: "a mapping to a private service", host: "a.test", backend: "127.0.0.1:1", port: mapped, status: 502, end: "backend_forbidden"},
		{name: "the listener itself", host: "*", backend: fmt.Sprintf("localhost:%d", public), status: 502, end: "backend_forbidden"},
		{name: "the listener by a mapping", host: "*", backend: fmt.Sprintf("localhost:%d", back), status: 502, end: "backend_forbidden"},
		{name: "a service of this machine", host: "a.test", backend: backend.Listener.Addr().String(), status: 204},
		{name: "a service of this machine by its port", host: `~^p(?<p>\\d+)\\.test$`, ask: fmt.Sprintf("p%d.test", portOf(backend)), backend: "127.0.0.1:${p}", status: 204},
		{name: "a mapping that leads elsewhere", host: "a.test", backend: fmt.Sprintf("localhost:%d", straight), status: 204},
	} {
		r, err := router.ParseRoute("r", fmt.Appendf(nil, `{"host":"%s","ports":%d,"backend":"%s"%s}`, tc.host, public, tc.backend, tc.more))
		if err != nil {
			t.Fatal(err)
		}
		e.builder.SetRoute(r)
		e.apply()
		if tc.ask == "" {
			tc.ask = "a.test"
		}
		if tc.port == 0 {
			tc.port = public
		}
		ask := (&http.Request{Method: "GET", Host: tc.ask, Close: true, Header: http.Header{}, URL: mustURL(t, fmt.Sprintf("http://127.0.0.1:%d/%d", tc.port, i))}).WithContext(t.Context())
		resp, err := http.DefaultTransport.RoundTrip(ask)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.status {
			t.Errorf("%s: status %d, want %d", tc.name, resp.StatusCode, tc.status)
		}
		var of []map[string]any
		eventually(t, "the request is in the log", func() error {
			of = nil
			for _, record := range log.list() {
				if record["path"] == fmt.Sprintf("/%d", i) {
					of = append(of, record)
				}
			}
			if len(of) == 0 {
				return fmt.Errorf("%v", log.list())
			}
			return nil
		})
		said, _ := json.Marshal(of)
		if len(of) != 1 || tc.end != "" && !strings.Contains(string(said), `"`+tc.end+`"`) {
			t.Errorf("%s: the log has %s, want one record with %q", tc.name, said, tc.end)
		}
	}
}

// portsAre says that some ports of whichever address are what.
func portsAre(what string, ports ...int) func(netip.AddrPort) string {
	return func(at netip.AddrPort) string {
		for _, p := range ports {
			if int(at.Port()) == p {
				return what
			}
		}
		return ""
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
