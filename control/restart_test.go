package control_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
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

// What is held back is so after a restart, for as long as nobody has said what
// was meant, whether etcd is there or not.
func TestHeldDeletionsSurviveRestarts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	start := func() *node {
		n := newNodeWith(t, func(cfg *control.Config) { cfg.StateFile, cfg.Guard = file, testGuard })
		n.Restore()
		return n
	}
	n := start()
	n.Load(1, mappings(0, 100))
	for i := range 45 { // one by one; those past the thirtieth are too many
		n.Change(int64(2+i), deletions(int64(2+i), i, 1))
	}
	n.wantInForce(t, 70, 15)
	n.save(t, file)
	for range 2 { // once without etcd
		n = start()
		n.wantInForce(t, 70, 15)
		n.save(t, file)
	}
	n.Load(50, mappings(45, 55))
	n.wantInForce(t, 70, 15)
	if v := n.verdicts[portKey(31)]; !strings.Contains(v, "deletion at revision 33 ") {
		t.Errorf("the verdict is %q", v)
	}
	n.Change(51, []etcd.Change{put(portKey(30), "10.0.0.9:22", 51)}) // called off
	n.wantInForce(t, 70, 14)
	n.save(t, file)

	// Confirmed while the node was down.
	n = start()
	n.wantInForce(t, 70, 14)
	n.Load(60, append(mappings(45, 55), etcd.KV{Key: portKey(30), Value: []byte("10.0.0.9:22"), ModRev: 51}, etcd.KV{Key: control.ConfirmedKey, ModRev: 55}))
	n.wantInForce(t, 56, 0)
	n.save(t, file)
	wantState(t, file, 57)
	start().wantInForce(t, 56, 0)
}

// Names are told with the first load, whether or not they changed since the state
// was saved, and not before: what is on disk may be old.
func TestNamesAreToldOnceEtcdHasSpoken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	name := etcd.KV{Key: "names/edge.x.test", Value: []byte(`{"ttl":30}`), ModRev: 2}
	for _, start := range []string{"first", "second"} {
		var told [][]*router.PublishedName
		n := newNodeWith(t, func(cfg *control.Config) {
			cfg.StateFile = file
			cfg.Names = func(all []*router.PublishedName) { told = append(told, all) }
		})
		n.Restore()
		if len(told) > 0 {
			t.Errorf("%s start: told %v before etcd has spoken", start, told)
		}
		n.Load(2, []etcd.KV{name})
		if len(told) != 1 || len(told[0]) != 1 || told[0][0].Name != "edge.x.test" || told[0][0].TTL != 30 || told[0][0].Rev != 2 {
			t.Errorf("%s start: told %v, want the one name once", start, told)
		}
		n.Change(3, []etcd.Change{put("domains/a.test", "{}", 3)})
		if len(told) != 1 {
			t.Errorf("%s start: told again without a change", start)
		}
		n.save(t, file)
	}
}

// fileNode lacks the file of a backend with a client certificate while missing
// says so.
func fileNode(t *testing.T, state string, missing *atomic.Bool) *node {
	return newNodeWith(t, func(cfg *control.Config) {
		cfg.StateFile = state
		cfg.Backend = func(b *router.Backend) error {
			if b.TLS != nil && missing.Load() {
				return &router.FieldError{Path: "tls.client", Msg: "there is no such file"}
			}
			return nil
		}
	})
}

func routeWithFile(path string, rev int64) etcd.KV {
	return etcd.KV{Key: "routes/a", Value: fmt.Appendf(nil, `{"host":"a.test","path":%q,"backend":{"targets":["10.0.0.7:443"],"tls":{"client":"c"}}}`, path), ModRev: rev}
}

func (n *node) wantRoutes(t *testing.T, want int) {
	t.Helper()
	if _, got := n.table().Len(); got != want {
		t.Errorf("%d routes are in force, want %d", got, want)
	}
}

// A file that is missing at a start costs a route only while it is missing, etcd
// or not, and not its last good value on disk.
func TestFileMissingAtARestart(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	var missing atomic.Bool
	n := fileNode(t, state, &missing)
	n.Load(5, []etcd.KV{routeWithFile("/", 2)})
	n.save(t, state)
	missing.Store(true)

	synctest.Test(t, func(t *testing.T) {
		n := fileNode(t, state, &missing)
		if !n.Restore() {
			t.Fatal("nothing was restored")
		}
		n.wantRoutes(t, 0)
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { n.Run(ctx) })
		time.Sleep(time.Minute)
		synctest.Wait()
		n.wantRoutes(t, 0)
		missing.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		n.wantRoutes(t, 1)
		if source, rev := n.Status(); source != "disk" || rev != 5 || len(n.verdicts) != 0 {
			t.Errorf("in force is revision %d from %s, with %d verdicts", rev, source, len(n.verdicts))
		}
		stop()
		run.Wait()
	})
	if s, err := control.ReadState(state); err != nil || s.Rev != 5 || len(s.Entries) != 1 {
		t.Errorf("on disk: %+v, %v", s, err)
	}

	missing.Store(true)
	for range 2 {
		n = fileNode(t, state, &missing)
		n.Restore()
		n.Load(6, []etcd.KV{routeWithFile("/", 2)})
		n.wantRoutes(t, 0)
		n.save(t, state)
		wantState(t, state, 1)
		wantState(t, state+".prev", -1)
	}

	// Another value is put, which is no good; the last good one comes back.
	synctest.Test(t, func(t *testing.T) {
		n := fileNode(t, state, &missing)
		n.Restore()
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { n.Run(ctx) })
		defer run.Wait()
		defer stop()
		n.Load(7, []etcd.KV{{Key: "routes/a", Value: []byte("nonsense"), ModRev: 7}})
		n.wantRoutes(t, 0)
		missing.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		n.wantRoutes(t, 1)
		if v := control.ParseVerdict(n.Verdict("routes/a")); v.State != control.Refused || v.Rev != 2 {
			t.Errorf("the verdict is %q", v.Text)
		}
	})

	// It is deleted meanwhile.
	missing.Store(true)
	n = fileNode(t, state, &missing)
	n.Restore()
	n.Load(8, nil)
	n.save(t, state)
	wantState(t, state, 0)
}

// Ports that the node's file does not allow any more are refused, and not gone: no
// alarm, and they are served from disk once the file allows them again.
func TestNarrowerPortsAtARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	life(t, file, 7, 100, 10)
	var log bytes.Buffer
	start := func(allowed string) *node {
		ports, err := router.ParsePorts(allowed)
		if err != nil {
			t.Fatal(err)
		}
		n := newNodeWith(t, func(cfg *control.Config) {
			cfg.StateFile, cfg.Ports, cfg.Cluster = file, ports, func() uint64 { return 7 }
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		n.Restore()
		return n
	}
	for range 2 {
		n := start("20000-20001")
		n.wantInForce(t, 2, 0)
		n.Load(120, keysOf(10))
		n.wantInForce(t, 2, 0)
		if v := control.ParseVerdict(n.Verdict("ports/tcp/20005")); v.State != control.Refused || !strings.Contains(v.Text, "widen ports") {
			t.Errorf("the verdict is %q", v.Text)
		}
		n.save(t, file)
		wantState(t, file, 10)
		wantState(t, file+".prev", -1)
	}
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("it says\n%s", &log)
	}
	start("20000-20999").wantInForce(t, 10, 0) // etcd is away
	n := start("20000-20001")
	n.Load(130, keysOf(3)) // that is another matter
	n.save(t, file)
	wantState(t, file, 3)
	wantState(t, file+".prev", 10)
	if !strings.Contains(log.String(), "most keys are gone from etcd") {
		t.Errorf("it says\n%s\nand not that keys are gone", &log)
	}
}
