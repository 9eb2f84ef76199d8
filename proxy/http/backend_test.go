package http_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// TestBackendFailures checks what client and log are told of each.
func TestBackendFailures(t *testing.T) {
	dead := deadAddr(t)
	answers := func(response string) string {
		return rawBackend(t, func(c *net.TCPConn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, response)
			}
		})
	}
	silent := rawBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	plainOnly := backend(t, echo)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"dead":    `{"host":"dead.x.test","backend":"` + dead + `"}`,
			"unknown": `{"host":"unknown.x.test","backend":"no-such-host.invalid:80"}`,
			"hangup":  `{"host":"hangup.x.test","backend":"` + answers("") + `"}`,
			"garbage": `{"host":"garbage.x.test","backend":"` + answers("SSH-2.0-OpenSSH_9.2\r\n") + `"}`,
			"bighead": `{"host":"bighead.x.test","backend":"` + answers("HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 300<<10)+"\r\n\r\n") + `"}`,
			"slow":    `{"host":"slow.x.test","backend":"` + silent + `","timeouts":{"first_byte":"50ms"}}`,
			"tls":     `{"host":"tls.x.test","backend":"https://` + plainOnly + `"}`,
			"switch":  `{"host":"switch.x.test","backend":"` + answers("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n") + `"}`,
		})
	}, func(t *testing.T, p *peer) {
		for name, want := range map[string]string{
			"dead": "502 backend_refused", "unknown": "502 backend_unresolved", "hangup": "502 backend_reset",
			"garbage": "502 backend_malformed", "bighead": "502 backend_malformed", "slow": "504 backend_slow",
			"tls": "502 backend_tls", "switch": "502 backend_malformed",
		} {
			resp, body := p.get(t, name+".x.test", "/"+name)
			record := p.rig.log.wait(t, "/"+name)
			if got := fmt.Sprint(resp.StatusCode, " ", record["end"]); got != want {
				t.Errorf("%s: %s (%v), want %s", name, got, record["err"], want)
			}
			if strings.Contains(body, "127.0.0.1") || strings.Contains(body, "no-such-host") || !strings.HasSuffix(body, "\n") || len(body) > 100 {
				t.Errorf("%s: the client was told %q", name, body)
			}
			if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: header %v", name, resp.Header)
			}
			if record["err"] == "" || record["route"] != name {
				t.Errorf("%s: log record %v", name, record)
			}
		}
	})
}

// TestConnectTimeout dials an address whose backlog is full.
func TestConnectTimeout(t *testing.T) {
	full := fullBacklog(t)
	r := newRig(t, map[string]string{"full": `{"host":"app.x.test","backend":"` + full + `","timeouts":{"connect":"50ms"}}`})
	resp, _ := r.h2().get(t, "app.x.test", "/")
	if record := r.log.wait(t, "/"); resp.StatusCode != 504 || record["end"] != "backend_timeout" {
		t.Errorf("%d, log record %v", resp.StatusCode, record)
	}
}

func TestNextTarget(t *testing.T) {
	dead, live := deadAddr(t), backend(t, echo)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":["` + dead + `","` + live + `"]}`})
	}, func(t *testing.T, p *peer) {
		for range 4 {
			resp := p.send(t, p.request("POST", "app.x.test", "/", strings.NewReader("content")))
			if body := readAll(t, resp.Body); resp.StatusCode != 200 || body != "POST / host=app.x.test body=content" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		}
		if record := p.rig.log.wait(t, "/"); record["backend"] != live || record["end"] != "done" {
			t.Errorf("log record %v", record)
		}
	})
}

// TestConnectionsAreReused counts the backend's connections, and checks that
// one which the backend closed meanwhile costs no request.
func TestConnectionsAreReused(t *testing.T) {
	var conns atomic.Int32
	b := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	b.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	b.Start()
	defer b.Close()
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + b.Listener.Addr().String() + `"}`})
	for _, p := range []*peer{r.h1Clear(), r.h1TLS(), r.h2(), r.h3()} {
		for range 3 {
			p.get(t, "app.x.test", "/")
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other, want 1", n)
	}
	b.CloseClientConnections()
	if resp, body := r.h2().get(t, "app.x.test", "/"); resp.StatusCode != 200 {
		t.Errorf("after the backend closed its connection: %d %q", resp.StatusCode, body)
	}
}

// TestNoSecondTry checks that a request a backend has read is not sent again.
func TestNoSecondTry(t *testing.T) {
	var seen atomic.Int32
	addr := rawBackend(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if req.URL.Path == "/warm" {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				continue
			}
			seen.Add(1)
			return
		}
	})
	r := toBackend(t, addr)(t)
	p := r.h2()
	p.get(t, "app.x.test", "/warm")
	resp := p.send(t, p.request("POST", "app.x.test", "/", strings.NewReader("pay")))
	if n := seen.Load(); resp.StatusCode != 502 || n != 1 {
		t.Errorf("%d, and the backend saw the request %d times", resp.StatusCode, n)
	}
}

// TestProxyHeader checks that each client's address reaches the backend, and
// that no client travels on another's connection.
func TestProxyHeader(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			type connKey struct{}
			b := &http.Server{
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h := r.Context().Value(connKey{}).(*proxyproto.Conn).ProxyHeader()
					tlvs, _ := h.TLVs()
					fmt.Fprintf(w, "v%d %s via %s %d", h.Version, r.RemoteAddr, h.DestinationAddr, len(tlvs))
				}),
				ConnContext: func(ctx context.Context, c net.Conn) context.Context {
					return context.WithValue(ctx, connKey{}, c)
				},
			}
			var serving sync.WaitGroup
			serving.Go(func() { b.Serve(&proxyproto.Listener{Listener: ln}) })
			t.Cleanup(func() { b.Close(); serving.Wait() })

			var local sync.Map // client address by connection is what the rig was told
			r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + ln.Addr().String() + `"],"proxy_protocol":"` + version + `"}}`},
				func(_ *proxyhttp.Config, r *rig) {
					r.info = func(info *proxyhttp.ConnInfo) {
						local.Store(info.Client.String(), true)
						info.TLVs = "\x05\x00\x02id"
					}
				})
			seen := map[string]string{}
			for _, p := range append(r.peers(), r.h2(), r.h1TLS()) {
				for range 2 {
					_, body := p.get(t, "app.x.test", "/")
					client := strings.Fields(body)[1]
					if _, told := local.Load(client); !told && p.proto != "h3" {
						t.Errorf("%s: %q, which is no client's address", p.name, body)
					}
					if who := seen[client]; who != "" && who != fmt.Sprintf("%p", p) {
						t.Errorf("%s: %q is another client's address", p.name, body)
					}
					seen[client] = fmt.Sprintf("%p", p)
					// HTTP/3 came without such a header.
					if has := strings.HasSuffix(body, " 1"); has != (version == "v2" && p.proto != "h3") {
						t.Errorf("%s: %q: with what else the client's header said: %v", p.name, body, has)
					}
					if !strings.HasPrefix(body, version) {
						t.Errorf("%q, want version %s", body, version)
					}
				}
			}
			if len(seen) != 6 {
				t.Errorf("the backend saw clients %v, want 6 of them", seen)
			}
		})
	}
}

// TestBackendTLS checks SNI, verification and ALPN towards backends.
func TestBackendTLS(t *testing.T) {
	getCertificate, roots := authority(t, "inner.example.com", "app.x.test")
	b := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s sni=%s", r.Proto, r.TLS.ServerName)
	}))
	b.TLS = &tls.Config{GetCertificate: getCertificate}
	b.EnableHTTP2 = true
	b.Config.ErrorLog = discardLog
	b.StartTLS()
	b.TLS.Certificates = nil
	defer b.Close()
	addr := b.Listener.Addr().String()
	port := netip.MustParseAddrPort(addr).Port()
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"host":     `{"host":"app.x.test","backend":"https://` + addr + `"}`,
			"named":    `{"host":"named.x.test","backend":{"targets":["` + addr + `"],"tls":{"server_name":"inner.example.com"}}}`,
			"byname":   fmt.Sprintf(`{"host":"byname.x.test","backend":"https://localhost:%d"}`, port),
			"wrong":    `{"host":"wrong.x.test","backend":"https://` + addr + `"}`,
			"insecure": `{"host":"insecure.x.test","backend":{"targets":["` + addr + `"],"tls":{"insecure_skip_verify":true}}}`,
		}, func(cfg *proxyhttp.Config, _ *rig) { cfg.UpstreamRoots = roots })
	}, func(t *testing.T, p *peer) {
		for host, want := range map[string]string{
			"app":      "200 HTTP/2.0 sni=app.x.test",
			"named":    "200 HTTP/2.0 sni=inner.example.com",
			"byname":   "502 the backend cannot be reached\n",
			"wrong":    "502 the backend cannot be reached\n",
			"insecure": "200 HTTP/2.0 sni=insecure.x.test",
		} {
			resp, body := p.get(t, host+".x.test", "/"+host)
			if got := fmt.Sprint(resp.StatusCode, " ", body); got != want {
				t.Errorf("%s: %q, want %q", host, got, want)
			}
			if resp.StatusCode == 502 {
				if record := p.rig.log.wait(t, "/"+host); record["end"] != "backend_tls" {
					t.Errorf("%s: log record %v", host, record)
				}
			}
		}
	})
}

// rpc is a backend in the manner of gRPC: HTTP/2 only, messages both ways,
// status in the trailer, or in the only head where there are no messages.
func rpc(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
		w.Header().Set("Grpc-Status", "13")
		return
	}
	if r.URL.Path == "/only-trailers" {
		w.Header().Set("Grpc-Status", "5")
		return
	}
	w.(http.Flusher).Flush()
	buf := make([]byte, 1024)
	for {
		n, err := r.Body.Read(buf)
		w.Write(buf[:n])
		w.(http.Flusher).Flush()
		if err != nil {
			break
		}
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
}

func TestRPC(t *testing.T) {
	getCertificate, roots := authority(t, "app.x.test")
	secure := httptest.NewUnstartedServer(http.HandlerFunc(rpc))
	secure.TLS = &tls.Config{GetCertificate: getCertificate}
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	clear := httptest.NewUnstartedServer(http.HandlerFunc(rpc))
	clear.Config.Protocols = &h2c
	clear.Start()
	defer clear.Close()
	for name, target := range map[string]string{
		"h2c": `{"targets":["` + clear.Listener.Addr().String() + `"],"h2c":true}`,
		"tls": `"https://` + secure.Listener.Addr().String() + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			overAll(t, func(t *testing.T) *rig {
				return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":` + target + `}`},
					func(cfg *proxyhttp.Config, _ *rig) { cfg.UpstreamRoots = roots })
			}, testRPC)
		})
	}
}

func testRPC(t *testing.T, p *peer) {
	in, out := io.Pipe()
	defer out.Close()
	req := p.request("POST", "app.x.test", "/pkg.Service/Talk", in)
	req.Header.Set("Te", "trailers")
	req.Header.Set("Content-Type", "application/grpc")
	resp := p.send(t, req)
	for i := range 3 {
		message := fmt.Sprintf("message %d", i)
		io.WriteString(out, message)
		got := make([]byte, len(message))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != message {
			t.Fatalf("%q, %v, want %q", got, err, message)
		}
	}
	out.Close()
	readAll(t, resp.Body)
	if resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "fine" {
		t.Errorf("trailer %v", resp.Trailer)
	}
	req = p.request("POST", "app.x.test", "/only-trailers", strings.NewReader("message"))
	req.Header.Set("Te", "trailers")
	if resp := p.send(t, req); readAll(t, resp.Body) != "" || resp.Header.Get("Grpc-Status") != "5" {
		t.Errorf("trailers only: %v", resp.Header)
	}
}
