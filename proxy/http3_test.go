package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/remotegpu/sluice/proxy"
)

// TestHTTP3OfListeners has listeners announce what they serve: HTTP/3 at their own
// port, at another by which clients reach it, or none, whose UDP port stays free.
func TestHTTP3OfListeners(t *testing.T) {
	certificate, roots := selfSigned(t)
	for name, tc := range map[string]struct {
		listener proxy.Listener
		altSvc   string // with %d for the listener's port
	}{
		"as it comes":  {proxy.Listener{}, `h3=":%d"; ma=86400`},
		"another port": {proxy.Listener{HTTP3Port: 443}, `h3=":443"; ma=86400`},
		"none":         {proxy.Listener{NoHTTP3: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			tc.listener.Address = fmt.Sprintf("127.0.0.1:%d", port)
			e := newEdge(t, func(cfg *proxy.Config) {
				cfg.HTTPS = []proxy.Listener{tc.listener}
				cfg.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }}
			})
			if err := e.Listen(t.Context()); err != nil {
				t.Fatal(err)
			}
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "ssh.example.com"}}}
			defer client.CloseIdleConnections()
			resp, err := client.Get("https://" + tc.listener.Address + "/health-proxy")
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			want := tc.altSvc
			if name == "as it comes" {
				want = fmt.Sprintf(want, port)
			}
			if got := resp.Header.Get("Alt-Svc"); got != want {
				t.Errorf("Alt-Svc: %q, want %q", got, want)
			}
			pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
			if (err == nil) != tc.listener.NoHTTP3 {
				t.Errorf("opening the UDP port: %v", err)
			}
			if err == nil {
				pc.Close()
			}
		})
	}
}
