package http_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// reflectFields answers with the request's header as JSON.
func reflectFields(w http.ResponseWriter, r *http.Request) {
	h := r.Header.Clone()
	h.Set("Host", r.Host)
	json.NewEncoder(w).Encode(h)
}

func fieldsOf(t *testing.T, body string) http.Header {
	t.Helper()
	h := http.Header{}
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return h
}

func TestRequestFields(t *testing.T) {
	addr := backend(t, reflectFields)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`})
	}, func(t *testing.T, p *peer) {
		req := p.request("GET", "app.x.test", "/", nil)
		req.Host = "App.x.test:8443"
		for name, value := range map[string]string{
			"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil.example.com",
			"X-Forwarded-Port": "1", "X-Forwarded-User": "root", "X-Real-Ip": "6.6.6.6", "Forwarded": "for=6.6.6.6",
			"X_Forwarded_For": "6.6.6.6", "X-Real_ip": "6.6.6.6", "Proxy-Authorization": "Basic x",
			"Accept-Encoding": "br", "Cookie": "a=1; b=2", "X-Kept": "kept",
		} {
			req.Header.Set(name, value)
		}
		req.Header["X-Twice"] = []string{"1", "2"}
		scheme, port := "https", fmt.Sprint(tlsPort)
		if p.scheme == "http" {
			scheme, port = "http", fmt.Sprint(clearPort)
		}
		if p.isH1() {
			req.Header.Set("Connection", "x-private, keep-alive")
			req.Header.Set("X-Private", "hop")
			req.Header.Set("Keep-Alive", "timeout=5")
			req.Header.Set("Te", "gzip, trailers")
			req.Header.Set("Upgrade", "h2c")
		} else {
			req.Header.Set("Te", "trailers")
		}
		req.Header.Set("User-Agent", "")
		got := fieldsOf(t, readAll(t, p.send(t, req).Body))
		want := http.Header{
			"Host": {"App.x.test:8443"}, "X-Forwarded-For": {"127.0.0.1"}, "X-Real-Ip": {"127.0.0.1"},
			"X-Forwarded-Proto": {scheme}, "X-Forwarded-Host": {"App.x.test:8443"}, "X-Forwarded-Port": {port},
			"Forwarded": {`for=127.0.0.1;host="App.x.test:8443";proto=` + scheme}, "Te": {"trailers"},
			"Accept-Encoding": {"br"}, "Cookie": {"a=1; b=2"}, "X-Kept": {"kept"}, "X-Twice": {"1", "2"},
		}
		if p.proto == "h3" {
			delete(got, "User-Agent") // quic-go's client names itself all the same
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the backend's header (-want +got):\n%s", diff)
		}
	})
}

func TestClientOfTrustedProxy(t *testing.T) {
	addr := backend(t, reflectFields)
	r := newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`}, func(_ *proxyhttp.Config, r *rig) {
		r.info = func(info *proxyhttp.ConnInfo) { info.Client = netip.MustParseAddrPort("[2001:db8::7]:7") }
	})
	_, body := r.h2().get(t, "app.x.test", "/")
	got := fieldsOf(t, body)
	if got.Get("X-Forwarded-For") != "2001:db8::7" || got.Get("Forwarded") != `for="[2001:db8::7]";host=app.x.test;proto=https` {
		t.Errorf("%v", got)
	}
}

func TestRouteEditsFields(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Powered-By", "inner")
		w.Header().Set("Server", "backend")
		reflectFields(w, r)
	})
	overAll(t, func(t *testing.T) *rig {
		edits := `"request_headers":{"set":{"Host":"inner.example.com","X-Env":"${id}","X-Uri":"${uri}","X-Forwarded-For":"1.1.1.1"},"remove":["x-drop"]},
			"response_headers":{"set":{"X-Out":"${host}","Server":"edge"},"remove":["x-powered-by"]}`
		return newRig(t, map[string]string{
			"edit": `{"host":"~^(?<id>[a-z]+)\\.x\\.test$","backend":"` + addr + `",` + edits + `}`,
			"own":  `{"host":"own.x.test","respond":{"body":"x"},"response_headers":{"set":{"X-Out":"own"}}}`,
			"addr": `{"host":"addr.x.test","backend":"` + addr + `","request_headers":{"remove":["Host"]}}`,
		})
	}, func(t *testing.T, p *peer) {
		req := p.request("GET", "app.x.test", "/a?b=1", nil)
		req.Header.Set("X-Drop", "1")
		req.Header.Set("X-Env", "forged")
		resp := p.send(t, req)
		got := fieldsOf(t, readAll(t, resp.Body))
		for name, want := range map[string]string{"Host": "inner.example.com", "X-Env": "app", "X-Uri": "/a?b=1", "X-Forwarded-For": "1.1.1.1", "X-Drop": ""} {
			if got.Get(name) != want {
				t.Errorf("request %s: %q, want %q", name, got.Get(name), want)
			}
		}
		for name, want := range map[string]string{"X-Out": "app.x.test", "Server": "edge", "X-Powered-By": ""} {
			if resp.Header.Get(name) != want {
				t.Errorf("response %s: %q, want %q", name, resp.Header.Get(name), want)
			}
		}
		if resp, _ := p.get(t, "own.x.test", "/"); resp.Header.Get("X-Out") != "own" {
			t.Errorf("respond: %v", resp.Header)
		}
		_, body := p.get(t, "addr.x.test", "/")
		if host := fieldsOf(t, body).Get("Host"); host != addr {
			t.Errorf("Host without Host: %q, want %q", host, addr)
		}
	})
}

func TestResponseFields(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Connection", "X-Private")
		h.Set("X-Private", "hop")
		h.Set("Keep-Alive", "timeout=5")
		h.Set("Proxy-Authenticate", "Basic")
		h.Set("Alt-Svc", `h3=":1"`)
		h["Set-Cookie"] = []string{"a=1", "b=2"}
		h["Content-Type"] = nil
		io.WriteString(w, "<html>")
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`})
	}, func(t *testing.T, p *peer) {
		resp, body := p.get(t, "app.x.test", "/")
		got := resp.Header
		got.Del("Date")
		want := http.Header{"Set-Cookie": {"a=1", "b=2"}, "Content-Length": {"6"}}
		if p.scheme == "https" && p.proto != "h3" {
			want.Set("Alt-Svc", `h3=":8443"; ma=86400`)
		}
		if diff := cmp.Diff(want, got); diff != "" || body != "<html>" {
			t.Errorf("body %q, header (-want +got):\n%s", body, diff)
		}
	})
}

// TestEarlyHints has a backend send 103 and checks that it arrives before the
// response, and that Alt-Svc is still announced after it.
func TestEarlyHints(t *testing.T) {
	proceed := make(chan struct{}, 4)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Link", "</b.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		select {
		case <-proceed:
		case <-r.Context().Done():
		}
		w.Header().Del("Link")
		io.WriteString(w, "page")
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`})
	}, func(t *testing.T, p *peer) {
		var links []string
		req := p.request("GET", "app.x.test", "/", nil)
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
				links = append(links, fmt.Sprint(status, " ", h.Get("Link")))
				if len(links) == 2 {
					proceed <- struct{}{}
				}
				return nil
			},
		}))
		resp := p.send(t, req)
		if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "page" || resp.Header.Get("Link") != "" {
			t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
		if want := []string{"103 </a.css>; rel=preload", "103 </b.css>; rel=preload"}; !slices.Equal(links, want) {
			t.Errorf("hints %q, want %q", links, want)
		}
		announced := resp.Header.Get("Alt-Svc") != ""
		if want := p.scheme == "https" && p.proto != "h3"; announced != want {
			t.Errorf("Alt-Svc announced: %v, want %v", announced, want)
		}
	})
}

func TestHTTP10ClientGetsNoHints(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "page")
	})
	r := newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`})
	resp := exchange1(t, r.dialClear(), "GET / HTTP/1.0\r\nHost: app.x.test\r\n\r\n")
	if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "page" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

// TestHeadAndEmptyResponses checks responses that have no body whatever their
// fields say.
func TestHeadAndEmptyResponses(t *testing.T) {
	addr := rawBackend(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			switch req.URL.Path {
			case "/sized":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
			case "/chunked":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			case "/304":
				io.WriteString(c, "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\n")
			case "/204":
				io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			}
		}
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`})
	}, func(t *testing.T, p *peer) {
		for range 2 {
			for _, tc := range []struct {
				method, target string
				status         int
				length         string
			}{{"HEAD", "/sized", 200, "12345"}, {"HEAD", "/chunked", 200, ""}, {"GET", "/204", 204, ""}} {
				resp := p.send(t, p.request(tc.method, "app.x.test", tc.target, nil))
				if body := readAll(t, resp.Body); body != "" || resp.StatusCode != tc.status || resp.Header.Get("Content-Length") != tc.length {
					t.Errorf("%s %s: %d %q %v", tc.method, tc.target, resp.StatusCode, body, resp.Header)
				}
			}
			resp, body := p.get(t, "app.x.test", "/304")
			if resp.StatusCode != 304 || body != "" || resp.Header.Get("Etag") != `"x"` {
				t.Errorf("304: %d %q %v", resp.StatusCode, body, resp.Header)
			}
		}
	})
}

func TestTrailers(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s with %s", body, r.Trailer.Get("X-Check"))
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
	})
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"plain": `{"host":"app.x.test","backend":"` + addr + `"}`})
	}, func(t *testing.T, p *peer) {
		req := p.request("POST", "app.x.test", "/", struct{ io.Reader }{strings.NewReader("body")})
		req.Trailer = http.Header{"X-Check": {"7"}, "X-Forwarded-For": {"6.6.6.6"}}
		resp := p.send(t, req)
		if body := readAll(t, resp.Body); body != "body with 7" {
			t.Errorf("body %q", body)
		}
		if resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
			t.Errorf("trailer %v", resp.Trailer)
		}
	})
}

// TestFieldCount has as many fields pass as may, both ways and by every version,
// and refuses more.
func TestFieldCount(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.RawQuery)
		for i := range n {
			w.Header().Add("Set-Cookie", fmt.Sprint("c", i, "=v"))
		}
		fmt.Fprint(w, len(r.Header["X"]))
	})
	overAll(t, toBackend(t, addr), func(t *testing.T, p *peer) {
		for _, n := range []int{300, 950} {
			req := p.request("GET", "app.x.test", fmt.Sprint("/?", n), nil)
			for range n {
				req.Header.Add("X", "y")
			}
			resp := p.send(t, req)
			if got := readAll(t, resp.Body); got != fmt.Sprint(n) || len(resp.Header["Set-Cookie"]) != n {
				t.Errorf("%d: %d, %s fields there, %d back", n, resp.StatusCode, got, len(resp.Header["Set-Cookie"]))
			}
		}
		if resp, _ := p.get(t, "app.x.test", "/?1001"); resp.StatusCode != 502 {
			t.Errorf("too many fields of a response: %d", resp.StatusCode)
		}
		req := p.request("GET", "app.x.test", "/", nil)
		for range 1001 {
			req.Header.Add("X", "y")
		}
		if resp := p.send(t, req); resp.StatusCode != 431 {
			t.Errorf("too many fields of a request: %d", resp.StatusCode)
		}
	})
}
