package etcd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/etcd"
)

// TestWatchKnowsAnotherEtcd has a node cut off while etcd becomes another one: it
// must not go on from its revision, which means something else there.
func TestWatchKnowsAnotherEtcd(t *testing.T) {
	for _, tc := range []struct {
		name    string
		copied  bool // the disk is set back to an earlier copy, so that the cluster's ID stays
		further int  // edits before the node is back; it knows of 50 that are gone
	}{
		{"another cluster, not as far", false, 1},
		{"another cluster, further on", false, 200},
		{"a copy, not as far", true, 1},
		{"a copy, further on", true, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := etcd.ServerConfig{Dir: filepath.Join(t.TempDir(), "a"), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
			srv := start(t, cfg)
			op := raw(t, srv.Endpoint())
			for i := range 10 {
				put(t, op, fmt.Sprintf("/sluice/ports/tcp/%d", i), "old")
			}
			other := cfg
			other.Dir = filepath.Join(t.TempDir(), "b")
			if tc.copied {
				srv = restartFrom(t, srv, cfg, other.Dir)
				op = raw(t, srv.Endpoint())
			}
			proxy := newProxy(t, srv.Endpoint())
			m := newMirror(t)
			m.another = true
			c := dial(t, proxy.endpoint())
			goWatch(t, c, m)
			var rev int64
			for i := range 50 {
				rev = put(t, op, "/sluice/routes/lost", fmt.Sprint(i))
			}
			m.awaitRev(rev)

			proxy.cut()
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
			srv = start(t, other)
			op = raw(t, srv.Endpoint())
			want := map[string]string{"ports/tcp/99": "new", "ports/tcp/1": fmt.Sprint(tc.further - 1)}
			if tc.copied {
				for i := range 10 {
					if key := fmt.Sprintf("ports/tcp/%d", i); i != 1 {
						want[key] = "old"
					}
				}
			}
			put(t, op, "/sluice/ports/tcp/99", "new")
			for i := range tc.further {
				put(t, op, "/sluice/ports/tcp/1", fmt.Sprint(i))
			}
			proxy.redirect(srv.Endpoint())
			proxy.heal()
			m.await("the keys of the other etcd", func() bool { return cmp.Equal(m.keys, want) })
			rev = put(t, op, "/sluice/ports/tcp/99", "newer")
			m.await("what came then", func() bool { return m.keys["ports/tcp/99"] == "newer" && m.rev == rev })
			if m.loads != 2 {
				t.Errorf("%d loads, want 2", m.loads)
			}
		})
	}
}

// restartFrom closes srv, copies its data and starts it again.
func restartFrom(t *testing.T, srv *etcd.Server, cfg etcd.ServerConfig, backup string) *etcd.Server {
	t.Helper()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(backup, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(backup, "LOCK")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return start(t, cfg)
}

// TestVerdictsAfterEtcdWasSetBack has the lease and the record of a node live on
// in a copy that knows older verdicts than were written.
func TestVerdictsAfterEtcdWasSetBack(t *testing.T) {
	cfg := etcd.ServerConfig{Dir: filepath.Join(t.TempDir(), "a"), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true}
	srv := start(t, cfg)
	cfg.ListenClient = strings.TrimPrefix(srv.Endpoint(), "http://")
	c := dial(t, srv.Endpoint())
	s, err := c.NewSession(etcd.SessionConfig{Node: "edge-1", Instance: "a"}) // of 10 s, longer than the restarts take
	if err != nil {
		t.Fatal(err)
	}
	goRun(t, s.Run)
	s.SetRecord(record("a", "ready"))
	v := s.Verdicts()
	v.Set("ports/tcp/1", "applied@1")
	is := func(want map[string]string) func(map[string]string) bool {
		return func(got map[string]string) bool { return cmp.Equal(got, want) }
	}
	awaitKeys(t, raw(t, srv.Endpoint()), "/sluice/verdicts/edge-1/", "the first verdict", is(map[string]string{"ports/tcp/1": "applied@1"}))
	backup := filepath.Join(t.TempDir(), "b")
	srv = restartFrom(t, srv, cfg, backup)
	v.Set("ports/tcp/1", "refused: no")
	v.Set("ports/tcp/2", "applied@2")
	s.SetRecord(record("a", "later"))
	want := is(map[string]string{"ports/tcp/1": "refused: no", "ports/tcp/2": "applied@2"})
	op := raw(t, srv.Endpoint())
	awaitKeys(t, op, "/sluice/verdicts/edge-1/", "both verdicts", want)
	awaitKeys(t, op, "/sluice/nodes/", "the record", is(map[string]string{"edge-1": record("a", "later")}))
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = backup
	srv = start(t, cfg)
	awaitKeys(t, raw(t, srv.Endpoint()), "/sluice/verdicts/edge-1/", "all verdicts after it was set back", want)
}
