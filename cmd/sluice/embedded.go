package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/control/etcd"
)

// How long to wait before a failed embedded etcd is started again, doubling up
// to the maximum.
const (
	etcdRetryMin = time.Second
	etcdRetryMax = time.Minute
)

// embedded is the etcd of a node that has no other. Its failures are not the
// node's: what is in force stays so.
type embedded struct {
	cfg  etcd.ServerConfig
	log  *slog.Logger
	seed func(context.Context) error // called when it runs
	up   prometheus.Gauge
	gone prometheus.Gauge

	mu     sync.Mutex // guards the following fields
	server *etcd.Server
	err    error // why it does not run
}

func newEmbedded(cfg etcd.ServerConfig, seed func(context.Context) error, r prometheus.Registerer) *embedded {
	e := &embedded{cfg: cfg, log: cfg.Logger, seed: seed, err: errors.New("it is being started")}
	e.up = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluice_etcd_embedded_up", Help: "1 while the embedded etcd runs, else 0. Not there on nodes without one."})
	e.gone = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluice_etcd_member_removed", Help: "1 once the cluster has removed this node's member, which then can only join anew, else 0. Not there on nodes without an embedded etcd."})
	r.MustRegister(e.up, e.gone)
	return e
}

// endpoint is the server's URL, whether it runs or not.
func (e *embedded) endpoint() string { return "http://" + e.cfg.ListenClient }

// trouble says why it does not run, nil while it does.
func (e *embedded) trouble() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// start starts the server and returns once it answers.
func (e *embedded) start(ctx context.Context) error {
	server, err := etcd.StartServer(ctx, e.cfg)
	e.mu.Lock()
	e.server, e.err = server, err
	e.mu.Unlock()
	if err != nil {
		return err
	}
	e.up.Set(1)
	e.gone.Set(0)
	return nil
}

// run keeps the server running until ctx ends. It returns nil.
func (e *embedded) run(ctx context.Context) error {
	pause := etcdRetryMin
	for {
		began := time.Now()
		err := e.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > etcdRetryMax {
			pause = etcdRetryMin
		}
		if errors.Is(err, etcd.ErrRemoved) {
			e.gone.Set(1)
		}
		if errors.Is(err, etcd.ErrStuck) {
			e.log.Error("the embedded etcd does not run, and only a restart of the node can start it again", "err", err, "help", e.help(err))
			e.fail(fmt.Errorf("%w; only a restart of the node can start it again: %s", err, e.help(err)))
			<-ctx.Done()
			return nil
		}
		e.log.Error("the embedded etcd does not run; trying again", "err", err, "again_in", pause, "help", e.help(err))
		if wait(ctx, pause) != nil {
			return nil
		}
		pause = min(2*pause, etcdRetryMax)
	}
}

// fail has trouble say err.
func (e *embedded) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

// help says what an operator should know and can do about err.
func (e *embedded) help(err error) string {
	switch {
	case errors.Is(err, etcd.ErrRemoved):
		return "What is in force stays so, and nobody's edits reach this node"
	case errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error()):
		return fmt.Sprintf("What is in force stays so; edits have no effect. Make room on the disk of %s: nothing that etcd has acknowledged is lost", e.cfg.Dir)
	}
	if e.cfg.Cluster != nil {
		return fmt.Sprintf("What is in force stays so; edits have no effect here until it runs and reaches most of its cluster. If its data is damaged, "+
			"move %s away, have another node run \"sluice etcd replace %s\", set etcd.cluster.joining, and start again", e.cfg.Dir, e.cfg.Name)
	}
	return fmt.Sprintf("What is in force stays so, and edits have no effect. If its data is damaged, make it anew: "+
		"\"sluice state %s > keys.sh\", stop the node, move %s away, start the node, \"sh keys.sh\"",
		filepath.Join(filepath.Dir(e.cfg.Dir), "state"), e.cfg.Dir)
}

// startAlone is start for a node that has no state on disk to serve meanwhile.
// Its failure is the node's, so the error says what would help.
func (e *embedded) startAlone(ctx context.Context) error {
	err := e.start(ctx)
	if err == nil {
		return e.seed(ctx)
	}
	if ctx.Err() != nil || errors.Is(err, syscall.EADDRINUSE) {
		return err // its data is not the reason
	}
	state := filepath.Join(filepath.Dir(e.cfg.Dir), "state")
	return fmt.Errorf("%w. There is no usable %s to serve instead. If etcd's data is damaged, put back a copy of that file or of %s; "+
		"without one, move %s away, start the node, and put the keys again", err, state, e.cfg.Dir, e.cfg.Dir)
}

// serve starts the server, if it does not run, and returns when it has failed
// and is closed, or when ctx ends.
func (e *embedded) serve(ctx context.Context) error {
	e.mu.Lock()
	server := e.server
	e.mu.Unlock()
	if server == nil {
		if err := e.start(ctx); err != nil {
			return err
		}
		e.log.Info("the embedded etcd runs", "endpoint", e.endpoint())
		if err := e.seed(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("the embedded etcd runs without the demo's key", "err", err)
		}
		return e.serve(ctx)
	}
	err := server.Wait(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("it has stopped by itself")
	}
	e.up.Set(0)
	e.mu.Lock()
	e.server, e.err = nil, err
	e.mu.Unlock()
	return errors.Join(err, server.Close())
}

// close stops the server, if it runs.
func (e *embedded) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return nil
	}
	return e.server.Close()
}
