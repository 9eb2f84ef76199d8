package api_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/control/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a Server whose readiness the test sets, until the test ends.
func serve(t *testing.T, readiness *atomic.Pointer[api.Readiness]) (url string) {
	t.Helper()
	return serveWith(t, api.Config{Readiness: func() api.Readiness { return *readiness.Load() }, Live: &plane{}})
}

// serveWith runs a Server, with a registry and a logger that it needs, until the
// test ends.
func serveWith(t *testing.T, cfg api.Config) (url string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_test_gauge", Help: "A test's."}))
	cfg.Gatherer, cfg.Logger = registry, slog.New(slog.DiscardHandler)
	s := api.New(cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + ln.Addr().String()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	return do(t, http.MethodGet, url, nil)
}

func read(t *testing.T, req *http.Request) (status int, body string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestReadinessFollowsTheNode(t *testing.T) {
	var readiness atomic.Pointer[api.Readiness]
	readiness.Store(&api.Readiness{Source: "disk", Rev: 7, Detail: "waiting for the first full load from etcd"})
	url := serve(t, &readiness)
	status, body := get(t, url+"/readyz")
	var got api.Readiness
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != 503 || got != *readiness.Load() {
		t.Errorf("not ready: %d %s, %v", status, body, err)
	}
	readiness.Store(&api.Readiness{Ready: true, Source: "etcd", Rev: 9})
	if status, body := get(t, url+"/readyz"); status != 200 || strings.Contains(body, "detail") {
		t.Errorf("ready: %d %s", status, body)
	}
}

func TestWhatTheAdminAddressAnswers(t *testing.T) {
	var readiness atomic.Pointer[api.Readiness]
	readiness.Store(&api.Readiness{})
	url := serve(t, &readiness)
	for path, want := range map[string]string{
		"/healthz":                  "ok\n",
		"/metrics":                  "sluice_test_gauge 0",
		"/debug/pprof/":             "goroutine",
		"/debug/pprof/heap?debug=1": "heap profile",
	} {
		if status, body := get(t, url+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, want 200 and %q in the body", path, status, want)
		}
	}
	if status, _ := get(t, url+"/elsewhere"); status != 404 {
		t.Errorf("/elsewhere: %d, want 404", status)
	}
}
