// Package api is the node's admin address: metrics, health, readiness, profiles
// and the live flows, for operators and their monitoring. It has no
// authentication and belongs on loopback or a private network; guard.go says
// what keeps strangers from acting through it.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Readiness is the answer of /readyz.
type Readiness struct {
	// Ready is whether the node serves what etcd wants: the first full load is
	// applied and the node is not draining.
	Ready bool `json:"ready"`
	// Source is where the table in force came from: etcd, disk or none.
	Source string `json:"source"`
	// Rev is the etcd revision in force.
	Rev int64 `json:"rev"`
	// Fingerprint is the same on nodes that have the same values in force.
	Fingerprint string `json:"fingerprint,omitempty"`
	// PortsMode says how mapped ports are opened: bind or steer.
	PortsMode string `json:"ports_mode,omitempty"`
	// Detail says in words what is missing.
	Detail string `json:"detail,omitempty"`
}

// Config wires a Server. All fields but API and Name are needed.
type Config struct {
	Readiness func() Readiness
	Gatherer  prometheus.Gatherer
	Live      Live
	// API answers what lies below /api/; nil: nothing does.
	API http.Handler
	// Name is the host that the admin address is configured with, where it is
	// a name: requests may ask for it besides IP addresses and localhost.
	Name   string
	Logger *slog.Logger
}

// Server answers on the admin address.
type Server struct {
	http *http.Server
	live Live
	name string
	log  *slog.Logger
}

// New wires a Server; nothing runs yet.
func New(cfg Config) *Server {
	s := &Server{live: cfg.Live, name: strings.ToLower(cfg.Name), log: cfg.Logger}
	s.http = &http.Server{
		Handler:           s.routes(cfg),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

func (s *Server) routes(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /flows", s.guarded(answering(s.listFlows)))
	mux.Handle("DELETE /flows", s.acting(answering(s.cutFlows)))
	mux.Handle("GET /explain", s.guarded(answering(s.explain)))
	mux.Handle("GET /mappings", s.guarded(answering(s.listMappings)))
	mux.Handle("GET /metrics/mappings", s.guarded(answering(s.showMappingMetrics)))
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	if cfg.API != nil {
		mux.Handle("/api/", cfg.API)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := cfg.Readiness()
		w.Header().Set("Content-Type", "application/json")
		if !r.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(r) // an error here means that the client is gone
	})
	for path, show := range map[string]http.HandlerFunc{"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace} {
		mux.Handle("/debug/pprof/"+path, s.guarded(show))
	}
	return mux
}

// Serve answers on ln, which it owns, until ctx ends. It returns nil after that
// and an error if ln fails; either way no handler runs any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	// Profiles and scrapes get a moment; nobody else is kept waiting.
	return ServeUntil(ctx, s.http, ln, time.Second)
}

// ServeUntil has server answer on ln, which it owns, until ctx ends, and gives
// requests that are under way then so long. It returns nil after that and an error
// if ln fails.
func ServeUntil(ctx context.Context, server *http.Server, ln net.Listener, grace time.Duration) error {
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		ending, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		if server.Shutdown(ending) != nil {
			server.Close()
		}
	})()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}
