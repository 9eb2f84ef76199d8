package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

// goWatchWith has two handlers on one watch.
func goWatchWith(t *testing.T, c *etcd.Client, m, aside *mirror) (stop func()) {
	t.Helper()
	return goRun(t, func(ctx context.Context) error {
		return c.WatchWith(ctx, m, etcd.Aside{Folders: []string{"acme/attempts/", "acme/certificates/"}, Handler: aside})
	})
}

func TestAsideLoadsAndFollows(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	put(t, op, "/sluice/ports/tcp/1", "a mapping")
	put(t, op, "/sluice/acme/certificates/1", "before")
	put(t, op, "/sluice/acme/users/1", "for nobody")
	m, aside := newMirror(t), newMirror(t)
	goWatchWith(t, dial(t, srv.Endpoint()), m, aside)
	m.awaitKey("ports/tcp/1", "a mapping")
	aside.awaitKey("acme/certificates/1", "before")
	for i := range 20 {
		put(t, op, "/sluice/acme/certificates/1", fmt.Sprint("a", i))
		put(t, op, "/sluice/acme/attempts/1", fmt.Sprint("b", i))
		put(t, op, "/sluice/acme/limits/1", "for nobody")
	}
	del(t, op, "/sluice/acme/certificates/1")
	m.awaitRev(put(t, op, "/sluice/ports/tcp/1", "another"))
	aside.await("the deletion", func() bool { return len(aside.keys) == 1 })
	aside.awaitKey("acme/attempts/1", "b19")
	if diff := cmp.Diff(map[string]string{"ports/tcp/1": "another"}, m.snapshot()); diff != "" {
		t.Errorf("the watch itself has (-want +got):\n%s", diff)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loads != 1 || aside.loads != 1 || len(m.batches) != 1 {
		t.Errorf("%d and %d loads, %d batches; want 1 of each: what is aside is nothing to the watch itself", m.loads, aside.loads, len(m.batches))
	}
}

// Each write is made between the load of the watch itself, whose revision the
// load of what is aside has too, and anything else.
func TestAsideMissesNothingAfterTheLoad(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	for i := range 200 {
		put(t, op, fmt.Sprintf("/sluice/acme/certificates/%d", i), "old")
	}
	m := &writingMirror{mirror: newMirror(t), write: func() {
		for i := range 100 {
			put(t, op, fmt.Sprintf("/sluice/acme/certificates/%d", i), "new")
			del(t, op, fmt.Sprintf("/sluice/acme/certificates/%d", 100+i))
		}
	}}
	aside := newMirror(t)
	c := dial(t, srv.Endpoint())
	goRun(t, func(ctx context.Context) error {
		return c.WatchWith(ctx, m, etcd.Aside{Folders: []string{"acme/certificates/"}, Handler: aside})
	})
	want := map[string]string{}
	for i := range 100 {
		want[fmt.Sprintf("acme/certificates/%d", i)] = "new"
	}
	aside.await("all that was written", func() bool { return cmp.Equal(aside.keys, want) })
	if aside.loads != 1 {
		t.Errorf("loaded %d times, want once", aside.loads)
	}
}

// The files of a certificate are one transaction.
func TestAsideKeepsTransactionsTogether(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	m, aside := newMirror(t), newMirror(t)
	goWatchWith(t, dial(t, srv.Endpoint()), m, aside)
	aside.await("the load", func() bool { return aside.loads == 1 })
	for i := range 50 {
		var ops []clientv3.Op
		for _, suffix := range []string{"crt", "json", "key"} {
			ops = append(ops, clientv3.OpPut("/sluice/acme/certificates/ca/x/x."+suffix, fmt.Sprint(i)))
		}
		if _, err := op.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	aside.awaitKey("acme/certificates/ca/x/x.key", "49")
	aside.mu.Lock()
	defer aside.mu.Unlock()
	for _, batch := range aside.batches {
		if len(batch)%3 != 0 || batch[len(batch)-1].ModRev != batch[len(batch)-3].ModRev {
			t.Fatalf("a transaction came in parts: %v", batch)
		}
	}
}

func TestAsideReloadsAfterCompaction(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	p := newProxy(t, srv.Endpoint())
	put(t, op, "/sluice/acme/certificates/1", "stays")
	put(t, op, "/sluice/acme/certificates/2", "goes")
	m, aside := newMirror(t), newMirror(t)
	goWatchWith(t, dial(t, p.endpoint()), m, aside)
	aside.awaitKey("acme/certificates/2", "goes")
	p.cut()
	del(t, op, "/sluice/acme/certificates/2")
	rev := put(t, op, "/sluice/acme/certificates/3", "comes")
	if _, err := op.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	p.heal()
	aside.await("a second load", func() bool { return aside.loads == 2 })
	want := map[string]string{"acme/certificates/1": "stays", "acme/certificates/3": "comes"}
	if diff := cmp.Diff(want, aside.snapshot()); diff != "" {
		t.Errorf("after compaction (-want +got):\n%s", diff)
	}
	put(t, op, "/sluice/acme/certificates/4", "follows")
	aside.awaitKey("acme/certificates/4", "follows")
}

// A lock ends for both sides when its holder is cut off.
func TestLockOfANodeThatIsCutOff(t *testing.T) {
	srv := startFast(t)
	p := newProxy(t, srv.Endpoint())
	holder, other := dial(t, p.endpoint()), dial(t, srv.Endpoint())
	holder.SetPace(time.Second, time.Minute, 5*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := etcd.LockConfig{Key: "acme/locks/x", Holder: "edge-1", TTL: 2 * time.Second}
	lost, err := holder.Lock(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	try := cfg
	try.Try = true
	if _, err := other.Lock(ctx, try); !errors.Is(err, etcd.ErrLocked) {
		t.Errorf("a lock that is held is free: %v", err)
	}
	p.cut()
	got, err := other.Lock(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.heal()
	write := []etcd.Write{{Key: "acme/a", Value: "stale"}}
	for {
		_, ok, err := holder.Transact(ctx, []etcd.Guard{lost.Guard()}, write)
		if err != nil && ctx.Err() == nil {
			continue // the connection is not back yet
		}
		if ok || err != nil {
			t.Errorf("a write under a lost lock: %v, %v", ok, err)
		}
		break
	}
	if _, ok, err := other.Transact(ctx, []etcd.Guard{got.Guard()}, []etcd.Write{{Key: "acme/a", Value: "good"}}); !ok || err != nil {
		t.Errorf("a write under a lock: %v, %v", ok, err)
	}
	if kv, err := other.ReadKey(ctx, "acme/a"); err != nil || kv == nil || string(kv.Value) != "good" {
		t.Errorf("ReadKey = %+v, %v", kv, err)
	}
	for _, lock := range []*etcd.Lock{lost, got} {
		if err := lock.Release(ctx); err != nil {
			t.Error(err)
		}
	}
	if keys, err := other.ListKeys(ctx, "acme/locks/"); err != nil || len(keys) != 0 {
		t.Errorf("locks are left: %v, %v", keys, err)
	}
}

// A key without a lease that somebody put, or put back with a copy of all keys, is
// no lock and no leader: it would stand for ever.
func TestKeysWithoutALeaseHoldNothing(t *testing.T) {
	srv := startFast(t)
	op, c := raw(t, srv.Endpoint()), dial(t, srv.Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := etcd.LockConfig{Key: "acme/locks/x", Holder: "edge-1", TTL: 10 * time.Second, Try: true}
	put(t, op, "/sluice/"+cfg.Key, "copied")
	first, err := c.Lock(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	// Over one that is held as well, whether somebody waits already or not.
	waited := make(chan error, 1)
	go func() {
		second, err := c.Lock(ctx, etcd.LockConfig{Key: cfg.Key, Holder: "edge-2", TTL: cfg.TTL})
		if err == nil {
			err = second.Release(ctx)
		}
		waited <- err
	}()
	put(t, op, "/sluice/"+cfg.Key, "copied again")
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if _, ok, err := c.Transact(ctx, []etcd.Guard{first.Guard()}, []etcd.Write{{Key: "acme/a", Value: "stale"}}); ok || err != nil {
		t.Errorf("a write under a lock that was overwritten: %v, %v", ok, err)
	}
	if err := first.Release(ctx); err != nil {
		t.Error(err)
	}

	put(t, op, "/sluice/leaders/thing", "copied")
	if err := c.Lead(ctx, "thing", "edge-1", func(context.Context, *etcd.Term) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	if t.Context().Err() != nil || ctx.Err() != context.Canceled {
		t.Errorf("nobody led: %v", ctx.Err())
	}
}
