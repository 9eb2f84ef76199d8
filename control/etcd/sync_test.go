package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

// TestSync wants what was written before it was called to have been passed on
// once it returns, to both handlers, whatever spans it was written to.
func TestSync(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	c := dial(t, srv.Endpoint())
	m, aside := newMirror(t), newMirror(t)
	goRun(t, func(ctx context.Context) error {
		return c.WatchWith(ctx, m, etcd.Aside{Folders: []string{"allocations/", "envs/"}, Handler: aside})
	})
	for i := range 200 {
		keys := []string{"ports/tcp/1", "routes/a", "domains/a", "allocations/tcp/1", "envs/a", "history/a"}
		ops := make([]clientv3.Op, 0, len(keys))
		for _, key := range keys[i%3:] {
			ops = append(ops, clientv3.OpPut("/sluice/"+key, fmt.Sprint(i)))
		}
		if _, err := op.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
		if err := c.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		now, besides := m.snapshot(), aside.snapshot()
		for _, key := range keys[i%3:] {
			if got := now[key] + besides[key]; key != "history/a" && got != fmt.Sprint(i) {
				t.Fatalf("after Sync %s is %q, written was %d", key, got, i)
			}
		}
	}
}

// Without a watch there is nobody to wait for; the caller's time ends it.
func TestSyncEndsWithItsContext(t *testing.T) {
	srv := startFast(t)
	c := dial(t, srv.Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sync without a watch: %v", err)
	}
}
