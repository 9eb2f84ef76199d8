package http_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/router"
)

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s host=%s body=%s", r.Method, r.RequestURI, r.Host, body)
}

func TestRoutes(t *testing.T) {
	addr := backend(t, echo)
	_, port, _ := net.SplitHostPort(addr)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"exact":    `{"host":"app.x.test","backend":"` + addr + `"}`,
			"strip":    `{"host":"app.x.test","path":"/code","strip_prefix":true,"backend":"` + addr + `"}`,
			"post":     `{"host":"app.x.test","path":"/only","methods":["POST"],"respond":{"status":201,"body":"made\n"}}`,
			"canary":   `{"host":"app.x.test","path":"/only","headers":{"x-canary":"1"},"respond":{"body":"canary\n"}}`,
			"captures": `{"host":"~^p(?<p>[a-z0-9-]+)\\.remotegpu\\.com$","backend":"127.0.0.1:${p}"}`,
			"respond":  `{"host":"~^env-(?<id>[a-z0-9-]+)\\.remotegpu\\.com$","respond":{"status":418,"body":"${id} from ${client_ip} at ${host}\n","headers":{"X-Env":"${id}"}}}`,
			"empty":    `{"host":"empty.x.test","respond":{"status":204}}`,
			"redirect": `{"host":"old.x.test","redirect":{"to":"https://new.x.test${uri}","status":307}}`,
			"allowed":  `{"host":"in.x.test","allow":["127.0.0.0/8"],"respond":{"body":"in\n"}}`,
			"denied":   `{"host":"out.x.test","deny":["127.0.0.0/8"],"respond":{"body":"out\n"}}`,
			"foreign":  `{"host":"far.x.test","allow":["10.0.0.0/8"],"respond":{"body":"far\n"}}`,
		})
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			method, host, target, canary, body string
			status                             int
			want                               string
		}{
			{"GET", "app.x.test", "/", "", "", 200, "GET / host=app.x.test body="},
			{"PUT", "app.x.test", "/up?q=1", "", "content", 200, "PUT /up?q=1 host=app.x.test body=content"},
			{"GET", "app.x.test", "/a%2fb/./../c//d;x=1?x=1;y=2&z=%20", "", "", 200,
				"GET /a%2fb/./../c//d;x=1?x=1;y=2&z=%20 host=app.x.test body="},
			{"GET", "app.x.test", "//double?", "", "", 200, "GET //double? host=app.x.test body="},
			{"GET", "app.x.test", "/code/a%2Fb?x", "", "", 200, "GET /a%2Fb?x host=app.x.test body="},
			{"GET", "app.x.test", "/code", "", "", 200, "GET / host=app.x.test body="},
			{"GET", "app.x.test", "/x/../code/tree/", "", "", 200, "GET /tree/ host=app.x.test body="},
			{"GET", "app.x.test", "/codex", "", "", 200, "GET /codex host=app.x.test body="},
			{"POST", "app.x.test", "/only", "", "x", 201, "made\n"},
			{"POST", "app.x.test", "/only", "1", "x", 200, "canary\n"},
			{"HEAD", "app.x.test", "/only", "1", "", 200, ""},
			{"DELETE", "p" + port + ".remotegpu.com", "/c", "", "", 200, "DELETE /c host=p" + port + ".remotegpu.com body="},
			{"GET", "p99999.remotegpu.com", "/", "", "", 400, "the request leads to no backend: a part of its host is not a plain name or port\n"},
			{"GET", "env-abc.remotegpu.com", "/", "", "", 418, "abc from 127.0.0.1 at env-abc.remotegpu.com\n"},
			{"GET", "empty.x.test", "/", "", "", 204, ""},
			{"POST", "old.x.test", "/a?b", "", "", 307, ""},
			{"GET", "in.x.test", "/", "", "", 200, "in\n"},
			{"GET", "out.x.test", "/", "", "", 403, "this address may not come here\n"},
			{"GET", "far.x.test", "/", "", "", 403, "this address may not come here\n"},
		} {
			var body io.Reader
			if tc.body != "" {
				body = strings.NewReader(tc.body)
			}
			req := p.request(tc.method, tc.host, tc.target, body)
			if tc.canary != "" {
				req.Header.Set("X-Canary", tc.canary)
			}
			resp := p.send(t, req)
			if got := readAll(t, resp.Body); resp.StatusCode != tc.status || got != tc.want {
				t.Errorf("%s %s%s: %d %q, want %d %q", tc.method, tc.host, tc.target, resp.StatusCode, got, tc.status, tc.want)
			}
			if got := resp.Header.Get("Location"); tc.status == 307 && got != "https://new.x.test/a?b" {
				t.Errorf("Location: %q", got)
			}
			if tc.status == 418 && (resp.Header.Get("X-Env") != "abc" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain")) {
				t.Errorf("respond: headers %v", resp.Header)
			}
		}
	})
}

func TestNoRoute(t *testing.T) {
	r := newRig(t, map[string]string{"tls": `{"host":"app.x.test","ports":"8443","respond":{"body":"tls\n"}}`,
		"clear": `{"host":"both.x.test","path":"/.well-known","respond":{"body":"clear\n"}}`})
	for _, p := range r.peers() {
		if p.scheme == "https" {
			if resp, body := p.get(t, "else.x.test", "/"); resp.StatusCode != 404 || body != "no route answers for this host and path\n" {
				t.Errorf("%s: %d %q", p.name, resp.StatusCode, body)
			}
			continue
		}
		for _, tc := range []struct {
			method, host, target string
			status               int
			location             string
		}{
			{"GET", "app.x.test", "/a%2f?b=;c", 301, "https://app.x.test:8443/a%2f?b=;c"},
			{"HEAD", "APP.x.test:8080", "/", 301, "https://app.x.test:8443/"},
			{"POST", "app.x.test", "/", 308, "https://app.x.test:8443/"},
			{"GET", "[::1]:8080", "/", 301, "https://[::1]:8443/"},
			{"GET", "both.x.test", "/.well-known/x", 200, ""},
		} {
			req := p.request(tc.method, tc.host, tc.target, nil)
			resp := p.send(t, req)
			if got := resp.Header.Get("Location"); resp.StatusCode != tc.status || got != tc.location {
				t.Errorf("%s %s%s: %d to %q, want %d to %q", tc.method, tc.host, tc.target, resp.StatusCode, got, tc.status, tc.location)
			}
		}
	}
}

func TestRedirectToDefaultPortOrNowhere(t *testing.T) {
	for port, want := range map[int]string{443: "301 https://app.x.test/x", 0: "404 "} {
		r := newRig(t, nil, func(cfg *proxyhttp.Config, _ *rig) { cfg.HTTPSPort = port })
		resp, _ := r.h1Clear().get(t, "app.x.test", "/x")
		if got := fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Location")); got != want {
			t.Errorf("with HTTPS port %d: %s, want %s", port, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"all": `{"host":"*","respond":{"status":500}}`})
	}, func(t *testing.T, p *peer) {
		resp, body := p.get(t, "nobody.x.test", "/health-proxy")
		if resp.StatusCode != 200 || body != "ok\n" || resp.Header.Get("Cache-Control") != "no-store" ||
			!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
	})
}

// exchange1 sends raw bytes over a new connection and returns the response.
func exchange1(t *testing.T, c net.Conn, request string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (r *rig) dialClear() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.clear.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func (r *rig) dialTLS(serverName string, protocols ...string) *tls.Conn {
	r.t.Helper()
	c, err := tls.Dial("tcp", r.secure.Addr().String(), &tls.Config{RootCAs: r.roots, ServerName: serverName, NextProtos: protocols})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func TestHostIsChecked(t *testing.T) {
	r := newRig(t, map[string]string{"all": `{"host":"*","backend":"` + backend(t, echo) + `"}`})
	for _, tc := range []struct {
		request string
		status  int
		body    string
	}{
		{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: user@a.x.test\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: a.x.test:80:80\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: a.x.test:http\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: \r\n\r\n", 400, ""},
		{"GET / HTTP/1.1\r\n\r\n", 400, ""},
		{"GET / HTTP/1.0\r\n\r\n", 400, ""},
		{"GET /a#b HTTP/1.1\r\nHost: a.x.test\r\n\r\n", 400, ""},
		{"CONNECT a.x.test:443 HTTP/1.1\r\nHost: a.x.test:443\r\n\r\n", 501, ""},
		{"PRI * HTTP/2.0\r\n\r\n", 505, ""},
		{"GET /health-proxy HTTP/1.0\r\n\r\n", 200, "ok\n"},
		{"GET / HTTP/1.0\r\nHost: A.x.test:81\r\n\r\n", 200, "GET / host=A.x.test:81 body="},
		{"GET http://b.x.test/abs?q HTTP/1.1\r\nHost: a.x.test\r\n\r\n", 200, "GET /abs?q host=b.x.test body="},
		{"OPTIONS * HTTP/1.1\r\nHost: a.x.test\r\n\r\n", 200, ""},
		{"GET /\"|^{} HTTP/1.1\r\nHost: a.x.test\r\n\r\n", 200, "GET /\"|^{} host=a.x.test body="},
	} {
		resp := exchange1(t, r.dialClear(), tc.request)
		body := readAll(t, resp.Body)
		if resp.StatusCode != tc.status || tc.body != "" && body != tc.body {
			t.Errorf("%q: %d %q, want %d %q", tc.request, resp.StatusCode, body, tc.status, tc.body)
		}
	}
}

func TestHostAgainstCertificate(t *testing.T) {
	routes := map[string]string{"all": `{"host":"*","respond":{"body":"here\n"}}`}
	for _, proto := range []string{"h1", "h2", "h3"} {
		t.Run(proto, func(t *testing.T) {
			r := newRig(t, routes)
			p := map[string]*peer{"h1": r.h1TLS(), "h2": r.h2(), "h3": r.h3()}[proto]
			for _, tc := range []struct {
				host   string
				status int
			}{
				{"a.x.test", 200}, {"b.x.test", 200}, {"B.X.TEST:8443", 200}, {"x.test", 200}, {"127.0.0.1", 200},
				{"c.b.x.test", 421}, {"elsewhere.example.com", 421}, {"10.0.0.1", 421},
			} {
				for range 2 {
					req := p.request("GET", "a.x.test", "/", nil)
					req.Host = tc.host
					if resp := p.send(t, req); resp.StatusCode != tc.status {
						t.Errorf("%s over a connection for a.x.test: %d, want %d", tc.host, resp.StatusCode, tc.status)
					} else {
						readAll(t, resp.Body)
					}
				}
			}
		})
	}
}

func TestHostOfResumedConnection(t *testing.T) {
	r := newRig(t, map[string]string{"all": `{"host":"*","respond":{"body":"here\n"}}`})
	cfg := &tls.Config{RootCAs: r.roots, ServerName: "a.x.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i := range 2 {
		c, err := tls.Dial("tcp", r.secure.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			host   string
			status int
		}{{"b.x.test", 200}, {"elsewhere.example.com", 421}} { // the second ends the connection
			resp := exchange1(t, c, "GET / HTTP/1.1\r\nHost: "+tc.host+"\r\n\r\n")
			readAll(t, resp.Body)
			if resp.StatusCode != tc.status || resp.Close != (tc.status == 421) {
				t.Errorf("connection %d, resumed %v, %s: %d, close %v, want %d", i, c.ConnectionState().DidResume, tc.host, resp.StatusCode, resp.Close, tc.status)
			}
		}
		if c.ConnectionState().DidResume != (i == 1) {
			t.Errorf("connection %d: resumed %v", i, c.ConnectionState().DidResume)
		}
		c.Close()
	}
}

func TestConnectionWithoutServerName(t *testing.T) {
	r := newRig(t, map[string]string{"all": `{"host":"*","respond":{"body":"here\n"}}`})
	c, err := tls.Dial("tcp", r.secure.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if resp := exchange1(t, c, "GET / HTTP/1.1\r\nHost: elsewhere.example.com\r\n\r\n"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestMappingTakesEveryRequest(t *testing.T) {
	addr := backend(t, echo)
	m, err := router.ParseMapping(router.TCP, clearPort, []byte(`{"http":"`+addr+`","env":"e1","service":"jupyter"}`))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, map[string]string{"all": `{"host":"*","respond":{"status":500}}`}, func(_ *proxyhttp.Config, r *rig) {
		r.info = func(info *proxyhttp.ConnInfo) { info.Mapping = m }
	})
	for _, p := range []*peer{r.h1Clear(), r.h1TLS(), r.h2()} {
		for _, target := range []string{"/lab?x", "/health-proxy"} {
			resp, body := p.get(t, "any.x.test", target)
			if want := "GET " + target + " host=any.x.test body="; resp.StatusCode != 200 || body != want {
				t.Errorf("%s: %d %q, want %q", p.name, resp.StatusCode, body, want)
			}
		}
	}
	if record := r.log.wait(t, "/lab"); record["env"] != "e1" || record["service"] != "jupyter" || record["backend"] != addr {
		t.Errorf("log record %v", record)
	}
}

func TestTableIsLoadedPerExchange(t *testing.T) {
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"it": `{"host":"app.x.test","respond":{"body":"old\n"}}`})
	}, func(t *testing.T, p *peer) {
		if _, body := p.get(t, "app.x.test", "/"); body != "old\n" {
			t.Errorf("before: %q", body)
		}
		p.rig.setRoutes(map[string]string{"it": `{"host":"app.x.test","respond":{"body":"new\n"}}`})
		if _, body := p.get(t, "app.x.test", "/"); body != "new\n" {
			t.Errorf("after: %q", body)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	var good proxyhttp.Config
	newRig(t, nil, func(cfg *proxyhttp.Config, _ *rig) { good = *cfg })
	good.Registerer = nil
	for what, edit := range map[string]func(*proxyhttp.Config){
		"Table":          func(c *proxyhttp.Config) { c.Table = nil },
		"Dialer":         func(c *proxyhttp.Config) { c.Dialer = nil },
		"Logger":         func(c *proxyhttp.Config) { c.Logger = nil },
		"GetCertificate": func(c *proxyhttp.Config) { c.TLS = &tls.Config{} },
		"GetConfigForClient": func(c *proxyhttp.Config) {
			c.TLS = c.TLS.Clone()
			c.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }
		},
	} {
		cfg := good
		edit(&cfg)
		if _, err := proxyhttp.New(cfg); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("without a proper %s: %v", what, err)
		}
	}
	good.TLS = nil
	s, err := proxyhttp.New(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ServeQUIC(context.Background(), nil, 1); err == nil {
		t.Error("ServeQUIC without TLS: no error")
	}
	client, server := net.Pipe()
	defer client.Close()
	s.ServeConn(server, proxyhttp.ConnInfo{TLS: true})
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("ServeConn with TLS and no configuration left the connection open: %v", err)
	}
	s.Shutdown(context.Background())
}
