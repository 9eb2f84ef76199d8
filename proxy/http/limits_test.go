package http_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/net/http2"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// TestSlowClientsAreLetGo checks the time limits before a first exchange and
// between exchanges.
func TestSlowClientsAreLetGo(t *testing.T) {
	limited := func(l proxyhttp.Limits) *rig {
		return newRig(t, map[string]string{"it": `{"host":"app.x.test","respond":{"body":"hi"}}`},
			func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits = l })
	}
	hello := limited(proxyhttp.Limits{Handshake: 50 * time.Millisecond})
	r := limited(proxyhttp.Limits{Head: 50 * time.Millisecond, Idle: 50 * time.Millisecond})
	for name, c := range map[string]net.Conn{
		"no hello":          hello.dialSecure(),
		"half a hello":      said(t, hello.dialSecure(), "\x16\x03\x01\x02\x00\x01"),
		"nothing said":      r.dialClear(),
		"head unfinished":   said(t, r.dialClear(), "GET / HTTP/1.1\r\nHost: app.x.test\r\nX-"),
		"after an exchange": said(t, r.dialClear(), "GET / HTTP/1.1\r\nHost: app.x.test\r\n\r\n"),
		"tls, nothing said": r.dialTLS("app.x.test"),
		"h2, preface":       said(t, r.dialTLS("app.x.test", "h2"), http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
	} {
		c.SetReadDeadline(time.Now().Add(patience))
		said, err := io.ReadAll(c)
		if isTimeout(err) {
			t.Errorf("%s: the connection is still open", name)
		}
		if late := strings.HasPrefix(string(said), "HTTP/1.1 408 "); late != (name == "head unfinished") {
			t.Errorf("%s: %q", name, said)
		}
	}
}

// dialSecure connects to the TLS listener and says nothing.
func (r *rig) dialSecure() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.secure.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func said(t *testing.T, c net.Conn, text string) net.Conn {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

func isTimeout(err error) bool {
	network, ok := err.(net.Error)
	return ok && network.Timeout()
}

func TestHeadIsBounded(t *testing.T) {
	overAll(t, toBackend(t, backend(t, echo)), func(t *testing.T, p *peer) {
		req := p.request("GET", "app.x.test", "/", nil)
		req.Header.Set("X-Fits", strings.Repeat("x", 32<<10))
		if resp := p.send(t, req); resp.StatusCode != 200 {
			t.Errorf("32 KiB: %d", resp.StatusCode)
		}
		req = p.request("GET", "app.x.test", "/", nil)
		req.Header.Set("X-Large", strings.Repeat("x", 128<<10))
		if resp, err := p.Do(req); err == nil {
			if resp.Body.Close(); resp.StatusCode != 431 {
				t.Errorf("128 KiB: %d", resp.StatusCode)
			}
		}
	})
}

// TestStreamsAreBounded reads the limit off the SETTINGS of HTTP/2.
func TestStreamsAreBounded(t *testing.T) {
	r := newRig(t, nil, func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.Streams = 7 })
	c := r.dialTLS("app.x.test", "h2")
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	framer.WriteSettings()
	f, err := framer.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := f.(*http2.SettingsFrame).Value(http2.SettingMaxConcurrentStreams); !ok || n != 7 {
		t.Errorf("SETTINGS_MAX_CONCURRENT_STREAMS %d, %v, want 7", n, ok)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	r := newRig(t, nil, func(cfg *proxyhttp.Config, _ *rig) { cfg.TLS.MinVersion = tls.VersionTLS13 })
	_, err := tls.Dial("tcp", r.secure.Addr().String(), &tls.Config{RootCAs: r.roots, ServerName: "app.x.test", MaxVersion: tls.VersionTLS12})
	if err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestAccessLog(t *testing.T) {
	addr := backend(t, echo)
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app": `{"host":"~^env-(?<id>[a-z]+)\\.remotegpu\\.com$","backend":"` + addr + `","service":"jupyter"}`,
			"own": `{"host":"own.x.test","respond":{"body":"hi"},"env":"fixed"}`,
		})
	}, func(t *testing.T, p *peer) {
		req := p.request("POST", "env-abc.remotegpu.com", "/lab%2f?token=secret", strings.NewReader("0123456789"))
		req.Header.Set("Authorization", "Bearer secret")
		body := readAll(t, p.send(t, req).Body)
		record := p.rig.log.wait(t, "/lab%2f")
		port, listener := float64(tlsPort), fmt.Sprintf("https/%d", tlsPort)
		if p.scheme == "http" {
			port, listener = clearPort, fmt.Sprintf("http/%d", clearPort)
		}
		for key, want := range map[string]any{
			"msg": "request", "listener": listener, "port": port, "proto": p.proto, "method": "POST", "host": "env-abc.remotegpu.com", "status": 200.0,
			"bytes_up": 10.0, "bytes_down": float64(len(body)), "route": "app", "env": "abc", "service": "jupyter",
			"backend": addr, "end": "done",
		} {
			if record[key] != want {
				t.Errorf("%s: %v, want %v", key, record[key], want)
			}
		}
		duration, ttfb := record["duration"].(float64), record["ttfb"].(float64)
		if ttfb <= 0 || duration < ttfb || duration > patience.Seconds() {
			t.Errorf("duration %v, ttfb %v", duration, ttfb)
		}
		if client := record["client"].(string); !strings.HasPrefix(client, "127.0.0.1:") {
			t.Errorf("client %q", client)
		}
		for key, value := range record {
			if text, ok := value.(string); ok && strings.Contains(text, "secret") {
				t.Errorf("%s tells a secret: %q", key, text)
			}
		}
		p.get(t, "own.x.test", "/own")
		if record := p.rig.log.wait(t, "/own"); record["env"] != "fixed" || record["backend"] != "" || record["bytes_down"] != 2.0 {
			t.Errorf("log record %v", record)
		}
	})
}

func TestMetrics(t *testing.T) {
	arrived, proceed := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-proceed
	})
	r := newRig(t, map[string]string{
		"app":  `{"host":"app.x.test","backend":"` + addr + `"}`,
		"made": `{"host":"made.x.test","respond":{"status":201}}`,
	})
	var clients sync.WaitGroup
	for _, p := range r.peers() {
		p.get(t, "made.x.test", "/")
		clients.Go(func() {
			if resp, err := p.Do(p.request("GET", "app.x.test", "/", nil)); err == nil {
				resp.Body.Close()
			}
		})
		soon(t, "the request", arrived)
	}
	expect := func(family string, want map[string]float64) {
		t.Helper()
		var got map[string]float64
		defer func() {
			if t.Failed() {
				t.Logf("%s: %v, want %v", family, got, want)
			}
		}()
		eventually(t, family, func() bool {
			got = r.metric(family)
			return maps.Equal(got, want)
		})
	}
	expect("sluice_http_active_exchanges", map[string]float64{"": 4})
	close(proceed)
	clients.Wait()
	expect("sluice_http_active_exchanges", map[string]float64{"": 0})
	expect("sluice_http_requests_total", map[string]float64{
		"2xx h1 app": 2, "2xx h1 made": 2, "2xx h2 app": 1, "2xx h2 made": 1, "2xx h3 app": 1, "2xx h3 made": 1,
	})
	expect("sluice_http_request_seconds", map[string]float64{"h1": 4, "h2": 2, "h3": 2})
	expect("sluice_http_first_byte_seconds", map[string]float64{"h1": 4, "h2": 2, "h3": 2})
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	r.stop()
	expect("sluice_http_active_connections", map[string]float64{"h1": 0, "h2": 0, "h3": 0})
}

// metric returns the values of a metric by its labels' values; of a histogram,
// how much it observed.
func (r *rig) metric(name string) map[string]float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, pair := range m.GetLabel() { // sorted by name
				labels = append(labels, pair.GetValue())
			}
			values[strings.Join(labels, " ")] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// TestClearTextToTLS asks in clear text where TLS is spoken, and is told so. What
// is no request gets no answer.
func TestClearTextToTLS(t *testing.T) {
	r := toBackend(t, backend(t, echo))(t)
	for text, answered := range map[string]bool{
		"GET / HTTP/1.1\r\nHost: app.x.test\r\n\r\n":                           true,
		"POST /a HTTP/1.1\r\nHost: app.x.test\r\nContent-Length: 3\r\n\r\nabc": true,
		"DELETE /a HTTP/1.0\r\n\r\n":                                           true,
		"EHLO x.test\r\n":                                                      false,
	} {
		c, err := net.Dial("tcp", r.secure.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, text)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		switch {
		case err == nil != answered:
			t.Errorf("%q: %v, %v", text, resp, err)
		case answered:
			if body := readAll(t, resp.Body); resp.StatusCode != 400 || !resp.Close || !strings.Contains(body, "https://") {
				t.Errorf("%q: %d %q", text, resp.StatusCode, body)
			}
		}
	}
}
