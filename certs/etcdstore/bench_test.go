package etcdstore_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/etcdstore"
	"github.com/remotegpu/sluice/control/etcd"
)

// fill stores n certificates, for n0.x.test and so on.
func (n *node) fill(t testing.TB, count int) {
	t.Helper()
	for i := range count {
		name := fmt.Sprintf("n%d.x.test", i)
		chain, key := pair(t, 24*time.Hour, name)
		if err := n.PutStored(t.Context(), &certs.Stored{Issuer: "ca", Name: name, Chain: chain, Key: key, Meta: bytes.Repeat([]byte(" "), 1500)}); err != nil {
			t.Fatal(err)
		}
	}
}

// Benchmark10000 measures what a node does with ten thousand certificates: the
// first load from etcd, the start from disk, and the heap that they take.
func Benchmark10000(b *testing.B) {
	const count = 10_000
	c := startCluster(b)
	c.store(b).fill(b, count)
	dir := b.TempDir()
	for b.Loop() {
		begin := time.Now()
		n := c.running(b, dir)
		n.await(b, "all of them", func() bool { return n.metric(b, "sluice_certs_stored") == count })
		b.ReportMetric(time.Since(begin).Seconds(), "load-s")
		n.stop()
		b.ReportMetric(time.Since(begin).Seconds(), "on-disk-s")
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		begin = time.Now()
		s, err := etcdstore.New(etcdstore.Config{Client: n.client, KeyFile: c.keyFile, Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "start-s")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/count/1000, "KB/certificate")
		if len(s.StoredNames()) != count {
			b.Errorf("%d names", len(s.StoredNames()))
		}
	}
}

// BenchmarkStoredToServed measures from the last of a certificate's three files
// being stored on one node until another node has it, with as many as given.
func BenchmarkStoredToServed(b *testing.B) {
	for _, count := range []int{10, 1000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			c := startCluster(b)
			n := c.running(b, "")
			n.fill(b, count)
			other := c.running(b, "")
			other.await(b, "all of them", func() bool { return other.metric(b, "sluice_certs_stored") == float64(count) })
			served := make(chan time.Time, 100)
			defer other.WatchStored(func([]string) { served <- time.Now() })()
			chain, key := pair(b, time.Hour, "n1.x.test")
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				if err := n.PutStored(b.Context(), &certs.Stored{Issuer: "ca", Name: "n1.x.test", Chain: chain, Key: key}); err != nil {
					b.Fatal(err)
				}
				took = append(took, (<-served).Sub(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkEditBeside measures a single edit of a mapping, until it is seen, on a
// watch alone and on one that has certificates aside.
func BenchmarkEditBeside(b *testing.B) {
	for _, aside := range []bool{false, true} {
		b.Run(fmt.Sprintf("aside=%v", aside), func(b *testing.B) {
			c := startCluster(b)
			n := c.node(b, c.server.Endpoint(), nil)
			n.fill(b, 100)
			seen := &firstOf{loaded: make(chan struct{}), changed: make(chan struct{}, 1)}
			goRun(b, func(ctx context.Context) error {
				if !aside {
					return n.client.Watch(ctx, seen)
				}
				return n.client.WatchWith(ctx, seen, etcd.Aside{Folders: etcdstore.Mirrored, Handler: n.Mirror})
			})
			<-seen.loaded
			for i := 0; b.Loop(); i++ {
				if _, err := c.raw.Put(b.Context(), "/sluice/ports/tcp/20022", fmt.Sprint(i)); err != nil {
					b.Fatal(err)
				}
				<-seen.changed
			}
		})
	}
}

// firstOf tells when a change has come.
type firstOf struct{ loaded, changed chan struct{} }

func (f *firstOf) Load(int64, []etcd.KV) { close(f.loaded) }

func (f *firstOf) Change(_ int64, changes []etcd.Change) {
	if len(changes) > 0 {
		f.changed <- struct{}{}
	}
}
