package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

// record is a node's record as far as this package knows it.
func record(instance, state string) string {
	return fmt.Sprintf(`{"instance":%q,"state":%q}`, instance, state)
}

func newSession(t testing.TB, c *etcd.Client, node, instance string) *etcd.Session {
	t.Helper()
	// The shortest TTL that a server grants.
	s, err := c.NewSession(etcd.SessionConfig{Node: node, Instance: instance, TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keysUnder reads keys and values below a prefix.
func keysUnder(t testing.TB, c *clientv3.Client, prefix string) map[string]string {
	t.Helper()
	resp, err := c.Get(t.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]string, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		keys[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return keys
}

// awaitKeys waits until what lies below the prefix satisfies cond.
func awaitKeys(t testing.TB, c *clientv3.Client, prefix, what string, cond func(map[string]string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		resp, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		got := keysUnder(t, c, prefix)
		if cond(got) {
			return
		}
		// Wait for any change after what was just read.
		wctx, stop := context.WithCancel(ctx)
		_, ok := <-c.Watch(wctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
		stop()
		if !ok || ctx.Err() != nil {
			t.Fatalf("never saw %s below %s; there is %d keys: %.300v", what, prefix, len(got), got)
		}
	}
}

func awaitExactly(t testing.TB, c *clientv3.Client, prefix string, want map[string]string) {
	t.Helper()
	awaitKeys(t, c, prefix, fmt.Sprint(want), func(got map[string]string) bool { return cmp.Equal(got, want) })
}

func TestSessionWritesAndRemoves(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	v := s.Verdicts()
	v.Set("ports/tcp/20022", "applied")
	v.Set("ports/tcp/99999", "refused: no such port")
	v.Set("ports/tcp/3", "applied")
	v.Delete("ports/tcp/3")
	stop := goRun(t, s.Run)
	s.SetRecord(record("a", "joining"))
	awaitExactly(t, op, "/sluice/", map[string]string{
		"nodes/edge-1":                    record("a", "joining"),
		"verdicts/edge-1/ports/tcp/20022": "applied",
		"verdicts/edge-1/ports/tcp/99999": "refused: no such port",
	})
	s.SetRecord(record("a", "ready"))
	v.Delete("ports/tcp/99999")
	v.Set("ports/tcp/20022", "degraded: backend_down")
	v.Set("routes/long", strings.Repeat("é", 2000))
	awaitExactly(t, op, "/sluice/", map[string]string{
		"nodes/edge-1":                    record("a", "ready"),
		"verdicts/edge-1/ports/tcp/20022": "degraded: backend_down",
		"verdicts/edge-1/routes/long":     strings.Repeat("é", 512) + "...",
	})
	stop()
	if got := keysUnder(t, op, "/sluice/"); len(got) != 0 {
		t.Errorf("after the session's end there is %v, want nothing", got)
	}
}

// An unchanged verdict costs no write, and of many changes the last is written.
func TestVerdictsWriteChangesOnly(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	v := s.Verdicts()
	v.Set("ports/tcp/1", "applied")
	v.Set("ports/tcp/2", "0")
	awaitKeys(t, op, "/sluice/verdicts/", "two verdicts", func(m map[string]string) bool { return len(m) == 2 })
	before := keysUnder(t, op, "/sluice/nodes/")
	for i := range 10_000 {
		v.Set("ports/tcp/1", "applied")
		v.Set("ports/tcp/2", fmt.Sprint(i))
	}
	awaitKeys(t, op, "/sluice/verdicts/edge-1/ports/tcp/2", "the last value", func(m map[string]string) bool { return m[""] == "9999" })
	one, err := op.Get(t.Context(), "/sluice/verdicts/edge-1/ports/tcp/1")
	if err != nil {
		t.Fatal(err)
	}
	two, err := op.Get(t.Context(), "/sluice/verdicts/edge-1/ports/tcp/2")
	if err != nil {
		t.Fatal(err)
	}
	if got := one.Kvs[0].Version; got != 1 {
		t.Errorf("an unchanged verdict was written %d times, want once", got)
	}
	if got := two.Kvs[0].Version; got > 100 {
		t.Errorf("a verdict that changed 10,000 times in a moment was written %d times, want a few", got)
	}
	if diff := cmp.Diff(before, keysUnder(t, op, "/sluice/nodes/")); diff != "" {
		t.Errorf("record changed (-before +after):\n%s", diff)
	}
}

// A record is written while however many verdicts wait, and all of them go with
// the session.
func TestManyVerdictsAtTheStart(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	v := s.Verdicts()
	const n = 10_000
	for i := range n {
		v.Set(fmt.Sprintf("ports/tcp/%d", i), fmt.Sprintf("refused: no (last good @%d stays in force)", i))
	}
	stop := goRun(t, s.Run)
	s.SetRecord(record("a", "joining"))
	count := func() int64 {
		resp, err := op.Get(t.Context(), "/sluice/verdicts/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		return resp.Count
	}
	for i := 0; count() < n; i++ {
		state := fmt.Sprint(i)
		s.SetRecord(record("a", state))
		awaitExactly(t, op, "/sluice/nodes/", map[string]string{"edge-1": record("a", state)})
	}
	stop()
	if got := count(); got != 0 {
		t.Errorf("%d verdicts left after the end, want none", got)
	}
}

// leaseOf returns the lease that a key is under.
func leaseOf(t *testing.T, c *clientv3.Client, key string) clientv3.LeaseID {
	t.Helper()
	resp, err := c.Get(t.Context(), key)
	if err != nil || len(resp.Kvs) == 0 {
		t.Fatalf("get %s: %v, %v", key, resp, err)
	}
	return clientv3.LeaseID(resp.Kvs[0].Lease)
}

func TestSessionRewritesAfterALostLease(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	v := s.Verdicts()
	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	v.Set("ports/tcp/1", "applied")
	v.Set("ports/tcp/2", "applied")
	want := map[string]string{
		"nodes/edge-1": record("a", "ready"), "verdicts/edge-1/ports/tcp/1": "applied", "verdicts/edge-1/ports/tcp/2": "applied",
	}
	awaitExactly(t, op, "/sluice/", want)
	for range 3 {
		old := leaseOf(t, op, "/sluice/nodes/edge-1")
		if _, err := op.Revoke(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		awaitExactly(t, op, "/sluice/", want)
		if leaseOf(t, op, "/sluice/nodes/edge-1") == old {
			t.Error("the keys are under the revoked lease")
		}
	}
}

func TestSessionReturnsAfterAWipe(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	s.Verdicts().Set("ports/tcp/1", "applied")
	want := map[string]string{"nodes/edge-1": record("a", "ready"), "verdicts/edge-1/ports/tcp/1": "applied"}
	awaitExactly(t, op, "/sluice/", want)
	del(t, op, "/sluice/", clientv3.WithPrefix())
	awaitExactly(t, op, "/sluice/", want)
}

// The network is away for longer than the lease lasts.
func TestSessionReturnsAfterAPartition(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	p := newProxy(t, srv.Endpoint())
	c := dial(t, p.endpoint())
	c.SetPace(time.Second, time.Minute, time.Second)
	s := newSession(t, c, "edge-1", "a")
	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	v := s.Verdicts()
	v.Set("ports/tcp/1", "applied")
	awaitKeys(t, op, "/sluice/", "record and verdict", func(m map[string]string) bool { return len(m) == 2 })
	p.cut()
	v.Set("ports/tcp/1", "degraded: backend_down")
	awaitKeys(t, op, "/sluice/", "the lease's end", func(m map[string]string) bool { return len(m) == 0 })
	p.heal()
	awaitExactly(t, op, "/sluice/", map[string]string{
		"nodes/edge-1": record("a", "ready"), "verdicts/edge-1/ports/tcp/1": "degraded: backend_down",
	})
}

func TestSessionSurvivesARestartOfEtcd(t *testing.T) {
	cfg := etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
	srv := start(t, cfg)
	s := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	goRun(t, s.Run)
	s.SetRecord(record("a", "joining"))
	op := raw(t, srv.Endpoint())
	awaitExactly(t, op, "/sluice/", map[string]string{"nodes/edge-1": record("a", "joining")})
	op.Close()
	cfg.ListenClient = strings.TrimPrefix(srv.Endpoint(), "http://")
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	s.SetRecord(record("a", "ready"))
	s.Verdicts().Set("ports/tcp/1", "applied")
	start(t, cfg)
	op = raw(t, srv.Endpoint())
	awaitExactly(t, op, "/sluice/", map[string]string{"nodes/edge-1": record("a", "ready"), "verdicts/edge-1/ports/tcp/1": "applied"})
}

func TestSessionRefusesATakenName(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	first := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	stop := goRun(t, first.Run)
	first.SetRecord(record("a", "ready"))
	awaitKeys(t, op, "/sluice/nodes/", "the first", func(m map[string]string) bool { return len(m) == 1 })

	second := newSession(t, dial(t, srv.Endpoint()), "edge-1", "b")
	second.SetRecord(record("b", "joining"))
	second.Verdicts().Set("ports/tcp/1", "applied")
	err := second.Run(t.Context())
	var taken *etcd.NameTakenError
	if !errors.As(err, &taken) || !strings.Contains(err.Error(), `"edge-1"`) || !strings.Contains(err.Error(), `whose record is {"state":"ready"}`) {
		t.Errorf("second node of one name: %v, want a NameTakenError with the first's record, but for its instance", err)
	}
	awaitExactly(t, op, "/sluice/", map[string]string{"nodes/edge-1": record("a", "ready")})

	// Once the first is gone, the name is free.
	third := newSession(t, dial(t, srv.Endpoint()), "edge-1", "b")
	third.SetRecord(record("b", "joining"))
	goRun(t, third.Run)
	stop()
	awaitExactly(t, op, "/sluice/", map[string]string{"nodes/edge-1": record("b", "joining")})
}

// A node that has served for long, with etcd away, finds its name taken.
func TestSessionWaitsForItsName(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	first := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	stop := goRun(t, first.Run)
	first.SetRecord(record("a", "ready"))
	awaitExactly(t, op, "/sluice/", map[string]string{"nodes/edge-1": record("a", "ready")})

	c := dial(t, srv.Endpoint())
	c.EndYouth()
	second := newSession(t, c, "edge-1", "b")
	second.SetRecord(record("b", "ready"))
	second.Verdicts().Set("ports/tcp/1", "applied")
	goRun(t, second.Run)
	awaitConflict(t, second)
	var taken *etcd.NameTakenError
	if err := second.Conflict(); !errors.As(err, &taken) {
		t.Errorf("the conflict is %v, want a NameTakenError", err)
	}
	stop()
	// The verdict comes after the name.
	awaitExactly(t, op, "/sluice/", map[string]string{"nodes/edge-1": record("b", "ready"), "verdicts/edge-1/ports/tcp/1": "applied"})
	if err := second.Conflict(); err != nil {
		t.Errorf("it has its name and says %v", err)
	}
}

// awaitConflict waits until the session knows that somebody has its name.
func awaitConflict(t *testing.T, s *etcd.Session) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for s.Conflict() == nil {
		select {
		case <-limit.C:
			t.Fatal("it does not know that somebody has its name")
		case <-tick.C:
		}
	}
}

// A node that crashed and is back need not wait for its own lease to end, and
// an old process does not fight the new one, nor end: it is back once that has
// gone.
func TestSessionTakesOverFromItself(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	old := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	old.SetRecord(record("a", "ready"))
	old.Verdicts().Set("ports/tcp/1", "by the old process")
	old.Verdicts().Set("ports/tcp/2", "by the old process")
	goRun(t, old.Run)
	awaitKeys(t, op, "/sluice/", "the old process's keys", func(m map[string]string) bool { return len(m) == 3 })

	next := newSession(t, dial(t, srv.Endpoint()), "edge-1", "a")
	next.SetRecord(record("a", "joining"))
	next.Verdicts().Set("ports/tcp/1", "by the new process")
	stop := goRun(t, next.Run)
	awaitConflict(t, old)
	if err := old.Conflict(); !errors.Is(err, etcd.ErrSuperseded) || next.Conflict() != nil {
		t.Errorf("the old process says %v, the new one %v, want ErrSuperseded and nothing", err, next.Conflict())
	}
	awaitExactly(t, op, "/sluice/", map[string]string{
		"nodes/edge-1": record("a", "joining"), "verdicts/edge-1/ports/tcp/1": "by the new process",
	})
	during, err := op.Get(t.Context(), "/sluice/nodes/edge-1")
	if err != nil {
		t.Fatal(err)
	}
	old.SetRecord(record("a", "busy"))
	old.Verdicts().Set("ports/tcp/3", "by the old process")
	stop()
	awaitExactly(t, op, "/sluice/", map[string]string{
		"nodes/edge-1":                record("a", "busy"),
		"verdicts/edge-1/ports/tcp/1": "by the old process", "verdicts/edge-1/ports/tcp/2": "by the old process", "verdicts/edge-1/ports/tcp/3": "by the old process",
	})
	if old.Conflict() != nil {
		t.Errorf("the old process is alone and says %v", old.Conflict())
	}
	after, err := op.Get(t.Context(), "/sluice/nodes/edge-1")
	if err != nil {
		t.Fatal(err)
	}
	if back := after.Kvs[0].CreateRevision; back <= during.Header.Revision {
		t.Errorf("the old process took the name at revision %d, while the new one had it until after %d", back, during.Header.Revision)
	}
}

func TestNewSessionRefusesInWords(t *testing.T) {
	c := dial(t, "http://127.0.0.1:2379")
	for _, test := range []struct {
		cfg  etcd.SessionConfig
		want string
	}{
		{etcd.SessionConfig{Node: "", Instance: "a"}, "node name"},
		{etcd.SessionConfig{Node: "a/b", Instance: "a"}, `"a/b"`},
		{etcd.SessionConfig{Node: strings.Repeat("a", 129), Instance: "a"}, "at most 128"},
		{etcd.SessionConfig{Node: "edge-1"}, "no instance"},
		{etcd.SessionConfig{Node: "edge-1", Instance: "a", TTL: 1500 * time.Millisecond}, "whole seconds"},
	} {
		_, err := c.NewSession(test.cfg)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("NewSession(%+v): %v, want an error that says %q", test.cfg, err, test.want)
		}
	}
}
