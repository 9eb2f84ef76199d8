package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// seen is a request as a backend got it.
type seen struct {
	Method, URI, Host string
	Header            http.Header
}

// startMirror starts a backend that answers with the request as JSON.
func startMirror(t *testing.T) string {
	t.Helper()
	return startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Host, r.Header})
	}))
}

func parseSeen(t *testing.T, body string) seen {
	t.Helper()
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatalf("the mirror's answer %q: %v", body, err)
	}
	return s
}

// dialTLS opens a TLS connection to the node's HTTPS port for HTTP/1.1 by hand.
func (n *node) dialTLS(serverName string, protocols ...string) *tls.Conn {
	n.t.Helper()
	d := tls.Dialer{Config: &tls.Config{RootCAs: n.roots(), ServerName: serverName, NextProtos: protocols}}
	c, err := d.DialContext(within(n.t), "tcp", loopback(n.HTTPS))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*tls.Conn)
}

// roundTrip sends the bytes of a request and returns the response.
func roundTrip(t *testing.T, c net.Conn, request string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("read the response: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the response's body: %v", err)
	}
	return resp, string(body)
}

func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	mirror := startMirror(t)
	n.mustPut("routes/mirror", routeJSON(map[string]any{
		"host": "mirror.r.test", "ports": fmt.Sprintf("%d,%d", n.HTTP, n.HTTPS), "backend": mirror}))
	n.mustPut("routes/edited", routeJSON(map[string]any{
		"host": `~^(?<id>[a-z]+)\.edit\.test$`, "backend": mirror,
		"request_headers": map[string]any{
			"set":    map[string]string{"X-Env": "${id} from ${client_ip}", "Host": "${id}.inner.test", "X-Added": "1"},
			"remove": []string{"Authorization", "x-unwanted"},
		}}))

	t.Run("who asks", func(t *testing.T) {
		forged := http.Header{
			"X-Forwarded-For": {"192.0.2.6", "192.0.2.66"}, "X-Forwarded-Proto": {"gopher"}, "X-Forwarded-Host": {"forged.test"},
			"X-Forwarded-Port": {"1"}, "X-Real-Ip": {"192.0.2.6"}, "Forwarded": {"for=192.0.2.6;host=forged.test;proto=gopher"},
			"X-Forwarded-Server": {"forged.test"}, "X_forwarded_for": {"192.0.2.6"}, // some backends take _ for -
		}
		eachProto(t, n, func(t *testing.T, c *client) {
			req := c.request(within(t), http.MethodGet, "mirror.r.test", "/", nil)
			req.Header = forged.Clone()
			_, body := c.mustDo(req)
			got := parseSeen(t, body)
			host := fmt.Sprintf("mirror.r.test:%d", n.HTTPS)
			if got.Host != host {
				t.Errorf("Host: %q, want %q", got.Host, host)
			}
			for name, want := range map[string]string{
				"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": host,
			} {
				if values := got.Header.Values(name); len(values) != 1 || values[0] != want {
					t.Errorf("%s: %q, want %q alone", name, values, want)
				}
			}
			for _, forgery := range []string{"192.0.2.6", "gopher", "forged"} {
				if strings.Contains(body, forgery) {
					t.Errorf("%q reached the backend: %s", forgery, body)
				}
			}
		})
		t.Run("in clear text", func(t *testing.T) {
			_, body := n.in(t).clearRequest("GET", "mirror.r.test", "/")
			if got := parseSeen(t, body).Header; got.Get("X-Forwarded-Proto") != "http" || got.Get("X-Forwarded-For") != "127.0.0.1" {
				t.Errorf("the backend got %v", got)
			}
		})
	})

	t.Run("the client's own pass", func(t *testing.T) {
		eachProto(t, n, func(t *testing.T, c *client) {
			req := c.request(within(t), http.MethodGet, "mirror.r.test", "/", nil)
			want := http.Header{
				"Cookie": {"a=1; b=2"}, "Authorization": {"Bearer x"}, "X-Many": {"1", "2"}, "X-Empty": {""},
				"Accept": {"*/*"}, "User-Agent": {"tester"},
			}
			req.Header = want.Clone()
			_, body := c.mustDo(req)
			got := parseSeen(t, body).Header
			for name := range got {
				if _, mine := want[name]; !mine && !strings.HasPrefix(name, "X-Forwarded-") && name != "X-Real-Ip" && name != "Forwarded" {
					t.Errorf("the backend got %s: %q, which nobody sent", name, got[name])
				}
			}
			for name, values := range want {
				if !slices.Equal(got[name], values) {
					t.Errorf("%s: %q, want %q", name, got[name], values)
				}
			}
		})
	})

	t.Run("of the connection", func(t *testing.T) {
		n := n.in(t)
		_, body := roundTrip(t, n.dialTLS("mirror.r.test"), "GET / HTTP/1.1\r\nHost: mirror.r.test\r\n"+
			"Connection: keep-alive, X-Named,x-also-named\r\nConnection: X-Third\r\nX-Named: 1\r\nX-Also-Named: 1\r\nX-Third: 1\r\n"+
			"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: gzip;q=1, trailers\r\n"+
			"Upgrade: h2c\r\nX-Stays: 1\r\n\r\n")
		got := parseSeen(t, body).Header
		for _, name := range []string{"X-Named", "X-Also-Named", "X-Third", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Upgrade", "Connection"} {
			if values, there := got[name]; there {
				t.Errorf("%s: %q reached the backend", name, values)
			}
		}
		if te := got.Get("Te"); te != "" && te != "trailers" {
			t.Errorf("TE: %q, want nothing beyond trailers", te)
		}
		if got.Get("X-Stays") != "1" {
			t.Error("X-Stays did not reach the backend")
		}
	})

	t.Run("edited by the route", func(t *testing.T) {
		eachProto(t, n, func(t *testing.T, c *client) {
			req := c.request(within(t), http.MethodGet, "abc.edit.test", "/", nil)
			req.Header = http.Header{"Authorization": {"Bearer x"}, "X-Unwanted": {"1"}, "X-Env": {"forged"}, "X-Kept": {"1"}}
			_, body := c.mustDo(req)
			got := parseSeen(t, body)
			if got.Host != "abc.inner.test" {
				t.Errorf("Host: %q, want abc.inner.test", got.Host)
			}
			for name, want := range map[string]string{"X-Env": "abc from 127.0.0.1", "X-Added": "1", "X-Kept": "1", "Authorization": "", "X-Unwanted": ""} {
				if values := strings.Join(got.Header.Values(name), "|"); values != want {
					t.Errorf("%s: %q, want %q", name, values, want)
				}
			}
		})
	})
}

// A trusted proxy in front names the true client, and a backend can be told of
// it in the same way.
func TestProxyHeaders(t *testing.T) {
	t.Parallel()
	n := startNode(t, withYAML("trusted_proxies: [127.0.0.1/32]"), withHTTP("trusted_proxies: []"))
	n.mustPut("routes/mirror", backendRoute("mirror.r.test", startMirror(t)))
	n.mustPut("routes/allowed", routeJSON(map[string]any{
		"host": "mirror.r.test", "path": "/friends", "allow": []string{"203.0.113.0/24"}, "respond": map[string]any{"body": "welcome"}}))
	lines := make(chan string, 1)
	n.mustPut("routes/told", routeJSON(map[string]any{"host": "told.r.test", "backend": map[string]any{
		"targets": []string{startRaw(t, func(c net.Conn) {
			line, _ := bufio.NewReader(c).ReadString('\n')
			lines <- line
		})}, "proxy_protocol": "v1"}}))
	from := func(client, serverName string) *tls.Conn {
		c := n.dialTCP()
		fmt.Fprintf(c, "PROXY TCP4 %s 127.0.0.1 4711 443\r\n", client)
		secured := tls.Client(c, &tls.Config{RootCAs: n.roots(), ServerName: serverName})
		if err := secured.HandshakeContext(within(t)); err != nil {
			t.Fatalf("handshake behind a PROXY header: %v", err)
		}
		return secured
	}
	_, body := roundTrip(t, from("203.0.113.7", "mirror.r.test"), "GET / HTTP/1.1\r\nHost: mirror.r.test\r\n\r\n")
	if got := parseSeen(t, body).Header; got.Get("X-Forwarded-For") != "203.0.113.7" || got.Get("X-Real-Ip") != "203.0.113.7" {
		t.Errorf("the backend got %v, want the client that the PROXY header names", got)
	}
	for client, want := range map[string]int{"203.0.113.7": 200, "198.51.100.7": 403} {
		resp, _ := roundTrip(t, from(client, "mirror.r.test"), "GET /friends HTTP/1.1\r\nHost: mirror.r.test\r\n\r\n")
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", client, resp.StatusCode, want)
		}
	}
	// The http listener trusts nobody: there the header is bad HTTP, and a
	// request without one is served.
	clear := func(text string) int {
		resp, _ := roundTrip(t, dial(t, n.HTTP), text)
		return resp.StatusCode
	}
	if got := clear("GET / HTTP/1.1\r\nHost: mirror.r.test\r\n\r\n"); got != 301 {
		t.Errorf("without a PROXY header on a listener that trusts nobody: status %d, want 301", got)
	}
	if got := clear("PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\nGET / HTTP/1.1\r\nHost: mirror.r.test\r\n\r\n"); got != 400 {
		t.Errorf("with a PROXY header on a listener that trusts nobody: status %d, want 400", got)
	}
	roundTrip(t, from("203.0.113.7", "told.r.test"), "GET / HTTP/1.1\r\nHost: told.r.test\r\n\r\n")
	if got := await(t, lines, "the PROXY header at the backend"); !strings.HasPrefix(got, "PROXY TCP4 203.0.113.7 ") || !strings.Contains(got, " 4711 ") {
		t.Errorf("the backend was told %q", got)
	}
}

func TestResponseHeaders(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	const head = "HTTP/1.1 200 OK\r\nConnection: X-Named, keep-alive\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\n" +
		"Proxy-Authenticate: Basic\r\nServer: inner\r\nX-Powered-By: inner\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Outer: 1\r\n" +
		"Alt-Svc: h3=\":1\"\r\nContent-Length: 2\r\n\r\nok"
	backend := startRaw(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(c, head)
		}
	})
	edits := map[string]any{
		"set": map[string]string{"X-Env": "${id}", "Server": "edge"}, "remove": []string{"x-powered-by"},
	}
	n.mustPut("routes/raw", backendRoute("raw.r.test", backend))
	n.mustPut("routes/edited", routeJSON(map[string]any{"host": `~^(?<id>[a-z]+)\.edit\.test$`, "backend": backend, "response_headers": edits}))
	n.mustPut("routes/own", routeJSON(map[string]any{
		"host": `~^(?<id>[a-z]+)\.own\.test$`, "respond": map[string]any{"body": "ok"}, "response_headers": edits}))

	eachProto(t, n, func(t *testing.T, c *client) {
		resp, body := c.get("raw.r.test", "/")
		if body != "ok" {
			t.Errorf("body %q", body)
		}
		for _, name := range []string{"X-Named", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate"} {
			if values, there := resp.Header[name]; there {
				t.Errorf("%s: %q reached the client", name, values)
			}
		}
		for name, want := range map[string][]string{"Server": {"inner"}, "X-Outer": {"1"}, "Set-Cookie": {"a=1", "b=2"}, "Content-Length": {"2"}} {
			if diff := cmp.Diff(want, resp.Header[name]); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		for _, host := range []string{"abc.edit.test", "abc.own.test"} {
			resp, _ := c.get(host, "/")
			for name, want := range map[string]string{"X-Env": "abc", "Server": "edge", "X-Powered-By": ""} {
				if got := strings.Join(resp.Header.Values(name), "|"); got != want {
					t.Errorf("%s: %s: %q, want %q", host, name, got, want)
				}
			}
		}
	})
}

// HTTP/3 is announced on every answer to whoever came otherwise, at the node's
// own port, whatever the backend says of itself.
func TestAltSvc(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	hints := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Alt-Svc", `h3=":1"; ma=60`)
		io.WriteString(w, "ok")
	}))
	n.mustPut("routes/hints", backendRoute("hints.r.test", hints))
	n.mustPut("routes/own", respondRoute("own.r.test", "ok"))
	n.mustPut("routes/moved", routeJSON(map[string]any{"host": "moved.r.test", "redirect": "https://x.test/"}))
	n.mustPut("routes/dead", backendRoute("dead.r.test", loopback(n.port(0))))
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			c := newClient(t, n, proto)
			for _, host := range []string{"hints.r.test", "own.r.test", "moved.r.test", "dead.r.test", "nobody.test"} {
				resp, _ := c.get(host, "/")
				values := resp.Header.Values("Alt-Svc")
				if want := fmt.Sprintf(`h3=":%d"`, n.HTTPS); len(values) != 1 || !strings.HasPrefix(values[0], want) {
					t.Errorf("%s: Alt-Svc: %q, want %s", host, values, want)
				}
			}
		})
	}
	if resp, _ := n.clearRequest("GET", "own.r.test", "/"); resp.Header.Get("Alt-Svc") != "" {
		t.Errorf("in clear text: Alt-Svc: %q, want none", resp.Header.Get("Alt-Svc"))
	}
}

// Informational responses pass at once and in order; they do not disturb the
// final head.
func TestInformationalResponses(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	sent := make(chan struct{})
	backend := startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 2 {
			w.Header().Set("Link", fmt.Sprintf("</%d.css>; rel=preload", i))
			w.WriteHeader(http.StatusEarlyHints)
			select {
			case <-sent: // the client has it
			case <-r.Context().Done():
				return
			}
		}
		w.Header().Set("Link", "</final.css>; rel=preload")
		w.Header().Set("X-Final", "1")
		io.WriteString(w, "ok")
	}))
	n.mustPut("routes/hints", backendRoute("hints.r.test", backend))
	eachProto(t, n, func(t *testing.T, c *client) {
		var mu sync.Mutex
		var links []string
		ctx := within(t)
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code != http.StatusEarlyHints {
				return nil
			}
			mu.Lock()
			links = append(links, header.Get("Link"))
			mu.Unlock()
			select {
			case sent <- struct{}{}:
			case <-ctx.Done():
			}
			return nil
		}}
		resp, body := c.mustDo(c.request(httptrace.WithClientTrace(ctx, trace), http.MethodGet, "hints.r.test", "/", nil))
		if body != "ok" || resp.StatusCode != 200 || resp.Header.Get("X-Final") != "1" {
			t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
		}
		if got := resp.Header.Values("Link"); !slices.Equal(got, []string{"</final.css>; rel=preload"}) {
			t.Errorf("Link of the final head: %q", got)
		}
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"</0.css>; rel=preload", "</1.css>; rel=preload"}; !slices.Equal(links, want) {
			t.Errorf("hints %q, want %q", links, want)
		}
	})
}

// A connection serves only hosts that its certificate is for (RFC 9110 section
// 15.5.20): another tenant's name in Host does not get past the TLS name.
func TestMisdirectedRequest(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.mustPut("routes/a", respondRoute("a.r.test", "a"))
	n.mustPut("routes/b", respondRoute("b.r.test", "b"))
	eachProto(t, n, func(t *testing.T, c *client) {
		if _, body := c.get("a.r.test", "/"); body != "a" {
			t.Fatalf("body %q, want the route's", body)
		}
		req := c.request(within(t), http.MethodGet, "a.r.test", "/", nil)
		req.Host = fmt.Sprintf("b.r.test:%d", n.HTTPS)
		if resp, body := c.mustDo(req); resp.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%d %q, want 421", resp.StatusCode, body)
		}
		// Over HTTP/1.1 the answer sends the client to another connection; those of
		// HTTP/2 and HTTP/3 have other exchanges.
		most := int64(1)
		if c.proto == "h1" {
			most = 2
		}
		if _, body := c.get("a.r.test", "/"); body != "a" || c.dials.Load() > most {
			t.Errorf("body %q after that on %d connections, want the route's on %d", body, c.dials.Load(), most)
		}
	})
}
