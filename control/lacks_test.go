package control_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// TestLackingIsLookedAtAgain has the node lack what a backend needs, and then get
// it: nobody puts the value again.
func TestLackingIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var there atomic.Bool
		var asked atomic.Int32
		n := newNodeWith(t, func(cfg *control.Config) {
			cfg.Backend = func(b *router.Backend) error {
				if asked.Add(1); b.TLS == nil || there.Load() {
					return nil
				}
				return &router.FieldError{Path: "tls.client", Msg: "cannot be read"}
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { n.Run(ctx) })
		defer run.Wait()
		defer stop()
		const route = `{"host":"app.x.test","backend":{"targets":["10.0.0.1:443"],"tls":{"client":"own"}}}`
		n.Load(3, []etcd.KV{{Key: "routes/plain", Value: []byte(`{"host":"b.x.test","backend":"10.0.0.1:80"}`), ModRev: 2}, {Key: "routes/app", Value: []byte(route), ModRev: 3}})
		n.Change(4, []etcd.Change{put("routes/gone", route, 4)})
		n.Change(5, []etcd.Change{{Key: "routes/gone", Deleted: true, ModRev: 5}})
		verdict := func() string {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.verdicts["routes/app"]
		}
		time.Sleep(time.Minute) // of the bubble's time
		synctest.Wait()
		if got := verdict(); !strings.HasPrefix(got, "refused") || !strings.Contains(got, "backend.tls.client: cannot be read") {
			t.Errorf("verdict %q", got)
		}
		there.Store(true)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := verdict(); got != "applied@3" {
			t.Errorf("verdict %q once it is there", got)
		}
		if n.Verdict("routes/gone") != "" {
			t.Error("a deleted key is in force")
		}
		if r, _ := n.table().Match(&router.Request{Host: "app.x.test", Port: 443, Path: "/"}); r == nil {
			t.Error("the route is not in force")
		}
		was := asked.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := asked.Load(); got != was {
			t.Errorf("asked %d times more although nothing is lacking", got-was)
		}
		// It is lacking again, and the value is put once more: the good one stays.
		there.Store(false)
		n.Change(6, []etcd.Change{put("routes/app", route, 6)})
		if got := verdict(); !strings.Contains(got, "last good @3") {
			t.Errorf("verdict %q", got)
		}
		there.Store(true)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := verdict(); got != "applied@6" {
			t.Errorf("verdict %q", got)
		}
	})
}

// TestPasswordFilesAreChecked refuses routes and mappings whose users are in a
// file that the node lacks.
func TestPasswordFilesAreChecked(t *testing.T) {
	n := newNodeWith(t, func(cfg *control.Config) {
		cfg.BasicAuth = func(b *router.BasicAuth) error {
			if b.File == "there" {
				return nil
			}
			return &router.FieldError{Path: "file", Msg: "cannot be read"}
		}
	})
	n.Load(2, nil)
	route := func(file string) string {
		return `{"host":"` + file + `.x.test","respond":{},"basic_auth":{"file":"` + file + `"}}`
	}
	mapping := func(file string) string {
		return `{"http":"10.0.0.1:80","requests":{"basic_auth":{"file":"` + file + `"}}}`
	}
	n.Change(3, []etcd.Change{put("routes/a", route("there"), 3), put("routes/b", route("gone"), 3),
		put("ports/tcp/20022", mapping("there"), 3), put("ports/tcp/20023", mapping("gone"), 3)})
	for key, want := range map[string]string{
		"routes/a": "applied@3", "routes/b": "basic_auth.file: cannot be read",
		"ports/tcp/20022": "applied@3", "ports/tcp/20023": "requests.basic_auth.file: cannot be read",
	} {
		if got := n.Verdict(key); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}
