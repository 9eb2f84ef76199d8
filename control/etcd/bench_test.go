package etcd_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

// arrivals is a handler that tells when each change came.
type arrivals struct {
	loaded  chan struct{}
	changed chan time.Time
}

func (a *arrivals) Load(int64, []etcd.KV) { close(a.loaded) }

func (a *arrivals) Change(_ int64, changes []etcd.Change) {
	now := time.Now()
	for range changes {
		a.changed <- now
	}
}

// fill puts n mappings.
func fill(b *testing.B, op *clientv3.Client, n int) {
	b.Helper()
	for from := 0; from < n; from += 100 {
		var ops []clientv3.Op
		for i := from; i < min(from+100, n); i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/sluice/ports/tcp/%d", i), `{"backend":"10.0.3.17:22","env":"6hiflzwte2xnkroq","service":"ssh"}`))
		}
		if _, err := op.Txn(b.Context()).Then(ops...).Commit(); err != nil {
			b.Fatal(err)
		}
	}
}

func reportQuantiles(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	for _, q := range []float64{50, 99} {
		b.ReportMetric(float64(took[int(float64(len(took)-1)*q/100)].Microseconds())/1000, fmt.Sprintf("p%v-%s-ms", q, name))
	}
}

// BenchmarkEdit measures a single edit, disk and all, with 40,000 mappings
// present: until put has returned, and until the handler has the change.
func BenchmarkEdit(b *testing.B) {
	srv := start(b, etcd.ServerConfig{Dir: b.TempDir(), ListenClient: "127.0.0.1:0"})
	op := raw(b, srv.Endpoint())
	fill(b, op, 40_000)
	a := &arrivals{loaded: make(chan struct{}), changed: make(chan time.Time, 1)}
	c := dial(b, srv.Endpoint())
	goRun(b, func(ctx context.Context) error { return c.Watch(ctx, a) })
	<-a.loaded
	var written, seen []time.Duration
	for i := 0; b.Loop(); i++ {
		begin := time.Now()
		put(b, op, "/sluice/ports/tcp/20022", fmt.Sprint(i))
		written = append(written, time.Since(begin))
		seen = append(seen, (<-a.changed).Sub(begin))
	}
	reportQuantiles(b, "put", written)
	reportQuantiles(b, "seen", seen)
}

// BenchmarkVerdict measures from Set until another client sees the verdict.
func BenchmarkVerdict(b *testing.B) {
	srv := start(b, etcd.ServerConfig{Dir: b.TempDir(), ListenClient: "127.0.0.1:0"})
	op := raw(b, srv.Endpoint())
	s := newSession(b, dial(b, srv.Endpoint()), "edge-1", "a")
	goRun(b, s.Run)
	s.SetRecord(record("a", "ready"))
	v := s.Verdicts()
	v.Set("ports/tcp/1", "")
	ch := op.Watch(b.Context(), "/sluice/verdicts/", clientv3.WithPrefix(), clientv3.WithRev(1))
	<-ch
	var took []time.Duration
	within := time.NewTicker(10 * time.Millisecond) // the rate at which none waits
	defer within.Stop()
	for i := 0; b.Loop(); i++ {
		<-within.C
		begin := time.Now()
		v.Set("ports/tcp/1", fmt.Sprint(i))
		<-ch
		took = append(took, time.Since(begin))
	}
	reportQuantiles(b, "verdict", took)
}

// BenchmarkLoad measures a full load of 40,000 mappings, up to the handler.
func BenchmarkLoad(b *testing.B) {
	srv := start(b, etcd.ServerConfig{Dir: b.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	fill(b, raw(b, srv.Endpoint()), 40_000)
	c := dial(b, srv.Endpoint())
	b.ReportAllocs()
	for b.Loop() {
		a := &arrivals{loaded: make(chan struct{})}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- c.Watch(ctx, a) }()
		<-a.loaded
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
