package etcd_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

func put(t testing.TB, c *clientv3.Client, key, value string) int64 {
	t.Helper()
	resp, err := c.Put(t.Context(), key, value)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return resp.Header.Revision
}

func del(t testing.TB, c *clientv3.Client, key string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	resp, err := c.Delete(t.Context(), key, opts...)
	if err != nil {
		t.Fatalf("delete %s: %v", key, err)
	}
	return resp.Header.Revision
}

func TestWatchLoadsAndFollows(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	put(t, op, "/sluice/ports/tcp/20022", "127.0.0.1:22")
	put(t, op, "/sluice/verdicts/edge-1/ports/tcp/20022", "applied")
	put(t, op, "/sluicegate/ports/tcp/1", "another prefix")
	put(t, op, "/sluice", "not below the prefix")
	loaded := put(t, op, "/sluice/zones/x", "after the last unwatched subtree")

	m := newMirror(t)
	goWatch(t, dial(t, srv.Endpoint()), m)
	m.awaitRev(loaded)
	want := map[string]string{"ports/tcp/20022": "127.0.0.1:22", "zones/x": "after the last unwatched subtree"}
	if diff := cmp.Diff(want, m.snapshot()); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}

	put(t, op, "/sluice/routes/a", `{"host":"a.x-gpu.com"}`)
	put(t, op, "/sluice/domains/*.ssh.x-gpu.com", "{}")
	put(t, op, "/sluice/names/ssh.x-gpu.com", "{}")
	put(t, op, "/sluice/prots/tcp/1", "a typing error")
	put(t, op, "/sluice/aaa", "before the first unwatched subtree")
	del(t, op, "/sluice/ports/tcp/20022")
	rev := put(t, op, "/sluice/ports/tcp/20022", "127.0.0.1:2222")
	m.awaitRev(rev)
	want = map[string]string{
		"ports/tcp/20022": "127.0.0.1:2222", "zones/x": "after the last unwatched subtree",
		"routes/a": `{"host":"a.x-gpu.com"}`, "domains/*.ssh.x-gpu.com": "{}", "names/ssh.x-gpu.com": "{}",
		"prots/tcp/1": "a typing error", "aaa": "before the first unwatched subtree",
	}
	if diff := cmp.Diff(want, m.snapshot()); diff != "" {
		t.Errorf("followed (-want +got):\n%s", diff)
	}
	del(t, op, "/sluice/", clientv3.WithPrefix())
	m.await("an empty prefix", func() bool { return len(m.keys) == 0 })
	if m.loads != 1 {
		t.Errorf("loaded %d times, want once", m.loads)
	}
}

// What nodes write about themselves must wake nobody.
func TestWatchIsDeafToUnwatchedSubtrees(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	m := newMirror(t)
	c := dial(t, srv.Endpoint())
	c.SetPace(5*time.Millisecond, time.Minute, time.Minute) // heartbeats name the new revisions
	goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 1 })
	for _, subtree := range []string{"acme", "allocations", "envs", "history", "nodes", "verdicts"} {
		for i := range 20 {
			put(t, op, fmt.Sprintf("/sluice/%s/%d", subtree, i), "x")
		}
	}
	rev := put(t, op, "/sluice/ports/tcp/20022", "127.0.0.1:22")
	m.awaitRev(rev)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.batches) != 1 || len(m.batches[0]) != 1 {
		t.Errorf("got batches %v, want one change", m.batches)
	}
}

// A transaction over mappings and routes is seen whole or not at all.
func TestWatchKeepsTransactionsTogether(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	m := newMirror(t)
	goWatch(t, dial(t, srv.Endpoint()), m)
	m.await("the load", func() bool { return m.loads == 1 })
	for i := range 50 {
		v := fmt.Sprint(i)
		if _, err := op.Txn(t.Context()).Then(
			clientv3.OpPut("/sluice/routes/a", v), clientv3.OpPut("/sluice/ports/tcp/20022", v), clientv3.OpPut("/sluice/pools/ssh", v),
		).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	m.awaitKey("ports/tcp/20022", "49")
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.batches {
		if len(b)%3 != 0 {
			t.Errorf("a batch of %d changes splits a transaction of 3", len(b))
		}
	}
}

// Each write is made while the handler is inside Load, which is after the load
// and before the watch.
func TestWatchMissesNothingBetweenLoadAndWatch(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	put(t, op, "/sluice/ports/tcp/1", "old")
	m := &writingMirror{mirror: newMirror(t), write: func() {
		put(t, op, "/sluice/ports/tcp/1", "new")
		put(t, op, "/sluice/routes/a", "{}")
		del(t, op, "/sluice/routes/a")
	}}
	c := dial(t, srv.Endpoint())
	goRun(t, func(ctx context.Context) error { return c.Watch(ctx, m) })
	m.awaitKey("ports/tcp/1", "new")
	m.await("the route's end", func() bool { return m.mods["routes/a"] == m.mods["ports/tcp/1"]+2 })
	if m.loads != 1 {
		t.Errorf("loaded %d times, want once", m.loads)
	}
}

type writingMirror struct {
	*mirror
	write func()
}

func (m *writingMirror) Load(rev int64, kvs []etcd.KV) {
	m.mirror.Load(rev, kvs)
	m.write()
}

func TestWatchCoalescesWhatQueuedUp(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	m := newMirror(t)
	goWatch(t, dial(t, srv.Endpoint()), m)
	m.await("the load", func() bool { return m.loads == 1 })
	block := make(chan struct{})
	m.mu.Lock()
	m.block = block
	m.mu.Unlock()
	const n = 500
	for i := range n {
		put(t, op, "/sluice/ports/tcp/20022", fmt.Sprint(i))
		if i%2 == 0 {
			del(t, op, "/sluice/ports/tcp/20022")
		}
	}
	m.mu.Lock()
	m.block = nil
	m.mu.Unlock()
	close(block)
	m.awaitKey("ports/tcp/20022", fmt.Sprint(n-1))
	m.mu.Lock()
	defer m.mu.Unlock()
	total := 0
	for _, b := range m.batches {
		total += len(b)
	}
	if total != n+n/2 || len(m.batches) > 10 {
		t.Errorf("%d changes in %d batches, want all %d in a few", total, len(m.batches), n+n/2)
	}
}

// One transaction's events are more than one message of etcd may hold.
func TestWatchTakesLargeBatches(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	m := newMirror(t)
	goWatch(t, dial(t, srv.Endpoint()), m)
	m.await("the load", func() bool { return m.loads == 1 })
	large := strings.Repeat("x", 100<<10)
	for i := range 40 {
		put(t, op, fmt.Sprintf("/sluice/routes/%d", i), large)
	}
	m.await("40 large values", func() bool { return len(m.keys) == 40 })
	// 4 MB of deletions cannot be; but 4 MB of load can.
	again := newMirror(t)
	goWatch(t, dial(t, srv.Endpoint()), again)
	again.await("40 large values", func() bool { return len(again.keys) == 40 })

	// A watcher that is behind gets all of it as one response, which comes in
	// fragments where it is too large.
	for n, whole := range []int{64 << 20, 1 << 20} {
		p := newProxy(t, srv.Endpoint())
		behind := newMirror(t)
		c := dial(t, p.endpoint())
		c.TakeWhole(whole)
		goWatch(t, c, behind)
		behind.await("the load", func() bool { return behind.loads == 1 })
		p.cut()
		larger := large + strings.Repeat("y", 1+n)
		for i := range 40 {
			put(t, op, fmt.Sprintf("/sluice/routes/%d", i), larger)
		}
		p.heal()
		behind.await("40 larger values", func() bool {
			sum := 0
			for _, v := range behind.keys {
				sum += len(v)
			}
			return sum == 40*len(larger)
		})
		if behind.loads != 1 {
			t.Errorf("loaded %d times, want the watch to resume", behind.loads)
		}
	}
}

// What was missed of a load of many keys comes with all that was there before.
func TestChangesSinceALoadOfMany(t *testing.T) {
	srv := startFast(t)
	op, c := raw(t, srv.Endpoint()), dial(t, srv.Endpoint())
	const n = 40_000
	var since, last int64
	for round := range 2 {
		for i := 0; i < n; {
			var ops []clientv3.Op
			for ; len(ops) < 100; i++ {
				ops = append(ops, clientv3.OpPut(fmt.Sprintf("/sluice/ports/tcp/%d", i), fmt.Sprint(round)))
			}
			resp, err := op.Txn(t.Context()).Then(ops...).Commit()
			if err != nil {
				t.Fatal(err)
			}
			if last = resp.Header.Revision; round == 0 && i == n {
				since = last
			}
		}
	}
	past, until, now, err := c.ChangesSince(t.Context(), since)
	if err != nil || len(past) != n || until < last || now < last {
		t.Fatalf("%d changes until %d, now %d, error %v; want %d until %d", len(past), until, now, err, n, last)
	}
	for i, p := range past {
		if want := fmt.Sprintf("ports/tcp/%d", i); p.Key != want || string(p.Before) != "0" || string(p.Value) != "1" {
			t.Fatalf("change %d is of %s, from %q to %q; want of %s", i, p.Key, p.Before, p.Value, want)
		}
	}
}

func TestLoadIsPaged(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	const n = 12_345
	for from := 0; from < n; from += 100 {
		var ops []clientv3.Op
		for i := from; i < min(from+100, n); i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/sluice/ports/tcp/%d", i), "127.0.0.1:22"))
		}
		if _, err := op.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	m := newMirror(t)
	goWatch(t, dial(t, srv.Endpoint()), m)
	m.await("the load", func() bool { return m.loads == 1 })
	if got := len(m.snapshot()); got != n {
		t.Errorf("loaded %d keys, want %d", got, n)
	}
}

func TestWatchSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	cfg := etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
	srv := start(t, cfg)
	m := newMirror(t)
	c := dial(t, srv.Endpoint())
	goWatch(t, c, m)
	op := raw(t, srv.Endpoint())
	put(t, op, "/sluice/ports/tcp/20022", "before")
	m.awaitKey("ports/tcp/20022", "before")
	cfg.ListenClient = strings.TrimPrefix(srv.Endpoint(), "http://")
	for i := range 2 {
		op.Close()
		if err := srv.Close(); err != nil {
			t.Fatal(err)
		}
		srv = start(t, cfg)
		op = raw(t, srv.Endpoint())
		// Written before the watch can be back.
		want := fmt.Sprintf("after restart %d", i+1)
		put(t, op, "/sluice/ports/tcp/20022", want)
		m.awaitKey("ports/tcp/20022", want)
	}
	if got := c.State(); !got.Connected || got.Err != nil {
		t.Errorf("state %+v, want connected", got)
	}
}

func TestWatchReloadsAfterCompaction(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	p := newProxy(t, srv.Endpoint())
	put(t, op, "/sluice/ports/tcp/1", "stays")
	put(t, op, "/sluice/ports/tcp/2", "goes")
	m := newMirror(t)
	goWatch(t, dial(t, p.endpoint()), m)
	m.awaitKey("ports/tcp/2", "goes")
	p.cut()
	del(t, op, "/sluice/ports/tcp/2")
	put(t, op, "/sluice/ports/tcp/3", "comes")
	rev := put(t, op, "/sluice/ports/tcp/4", "comes")
	if _, err := op.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	p.heal()
	m.await("a second load", func() bool { return m.loads == 2 })
	want := map[string]string{"ports/tcp/1": "stays", "ports/tcp/3": "comes", "ports/tcp/4": "comes"}
	if diff := cmp.Diff(want, m.snapshot()); diff != "" {
		t.Errorf("after compaction (-want +got):\n%s", diff)
	}
	put(t, op, "/sluice/ports/tcp/5", "follows")
	m.awaitKey("ports/tcp/5", "follows")
}

// A peer that keeps the connection and says nothing looks like a quiet one.
func TestWatchNoticesAFrozenPeer(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	p := newProxy(t, srv.Endpoint())
	m := newMirror(t)
	c := dial(t, p.endpoint())
	c.SetPace(10*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond)
	goWatch(t, c, m)
	put(t, op, "/sluice/ports/tcp/1", "a")
	m.awaitKey("ports/tcp/1", "a")
	p.freeze()
	put(t, op, "/sluice/ports/tcp/1", "b")
	awaitState(t, c, "frozen", func(s etcd.State) bool {
		return !s.Connected && s.Err != nil && strings.Contains(s.Err.Error(), "gone silent")
	})
	p.thaw()
	m.awaitKey("ports/tcp/1", "b")
	m.await("a second load", func() bool { return m.loads >= 2 })
	awaitState(t, c, "connected", func(s etcd.State) bool { return s.Connected && s.Err == nil })
}

// A handler that takes its time is not etcd's silence.
func TestWatchBearsASlowHandler(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	c := dial(t, srv.Endpoint())
	c.SetPace(20*time.Millisecond, 2*time.Second, patience)
	m := newMirror(t)
	goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 1 })
	for i := range 2 {
		block := make(chan struct{})
		m.mu.Lock()
		m.block = block
		m.mu.Unlock()
		put(t, op, "/sluice/ports/tcp/1", fmt.Sprint(i))
		put(t, op, "/sluice/routes/1", fmt.Sprint(i))
		<-time.After(2500 * time.Millisecond) // of work
		m.mu.Lock()
		m.block = nil
		m.mu.Unlock()
		close(block)
		m.awaitRev(put(t, op, "/sluice/ports/tcp/2", fmt.Sprint(i)))
	}
	if m.loads != 1 {
		t.Errorf("loaded %d times, want once", m.loads)
	}
}

// awaitState polls what has no channel to wait on.
func awaitState(t *testing.T, c *etcd.Client, what string, cond func(etcd.State) bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond(c.State()) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("state never became %s: %+v", what, c.State())
		}
	}
}

// An edge starts without etcd, and finds it when it comes.
func TestWatchWaitsForEtcd(t *testing.T) {
	dir := t.TempDir()
	cfg := etcd.ServerConfig{Dir: dir, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
	srv := start(t, cfg)
	rev := put(t, raw(t, srv.Endpoint()), "/sluice/ports/tcp/1", "a")
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	m := newMirror(t)
	c := dial(t, srv.Endpoint())
	c.SetPace(10*time.Millisecond, time.Second, 200*time.Millisecond)
	goWatch(t, c, m)
	awaitState(t, c, "lost", func(s etcd.State) bool { return s.Err != nil })
	if err := c.State().Err; !strings.Contains(err.Error(), "no connection to etcd") || !strings.Contains(err.Error(), srv.Endpoint()) {
		t.Errorf("error %q, want it to say that there is no connection, and to where", err)
	}
	cfg.ListenClient = strings.TrimPrefix(srv.Endpoint(), "http://")
	start(t, cfg)
	m.awaitRev(rev)
	m.awaitKey("ports/tcp/1", "a")
}

func TestWatchRunsOnce(t *testing.T) {
	srv := startFast(t)
	c := dial(t, srv.Endpoint())
	m := newMirror(t)
	stop := goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 1 })
	if err := c.Watch(t.Context(), newMirror(t)); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("second Watch: %v, want an error", err)
	}
	stop()
	goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 2 })
}

// Another etcd answers at the same address, which is further on: what the watch
// would bring says nothing of what else is different.
func TestWatchLoadsFromAnotherCluster(t *testing.T) {
	cfg := etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
	srv := start(t, cfg)
	op := raw(t, srv.Endpoint())
	for i := range 100 {
		put(t, op, fmt.Sprintf("/sluice/ports/tcp/%d", i%10), "old")
	}
	p := newProxy(t, srv.Endpoint())
	m := newMirror(t)
	c := dial(t, p.endpoint())
	goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 1 && len(m.keys) == 10 })
	before := c.State().Cluster
	p.cut()
	op.Close()
	cfg.Dir, cfg.ListenClient = t.TempDir(), strings.TrimPrefix(srv.Endpoint(), "http://")
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	op = raw(t, start(t, cfg).Endpoint())
	put(t, op, "/sluice/ports/tcp/99", "new")
	for i := range 200 {
		put(t, op, "/sluice/ports/tcp/1", fmt.Sprint("new", i))
	}
	p.heal()
	m.awaitKey("ports/tcp/1", "new199")
	m.await("what the other has", func() bool { return m.loads == 2 && len(m.keys) == 2 && m.keys["ports/tcp/99"] == "new" })
	if now := c.State().Cluster; now == before {
		t.Errorf("both clusters have the ID %x", now)
	}
}
