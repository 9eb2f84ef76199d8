package control_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// node is a Controller with recording neighbours. Its Watch is driven by the
// test itself.
type node struct {
	*control.Controller
	mu       sync.Mutex
	verdicts map[string]string
	tables   []*router.Table
	domains  []*router.Domain
	onApply  func(*router.Table)
}

func (n *node) Set(key, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.verdicts[key] = text
}

func (n *node) Delete(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.verdicts, key)
}

func (n *node) Apply(t *router.Table) {
	n.tables = append(n.tables, t)
	if n.onApply != nil {
		n.onApply(t)
	}
}

func (n *node) table() *router.Table { return n.tables[len(n.tables)-1] }

func newNode(t *testing.T, stateFile string) *node {
	t.Helper()
	return newNodeWith(t, func(cfg *control.Config) { cfg.StateFile = stateFile })
}

func newNodeWith(t *testing.T, edit func(*control.Config)) *node {
	t.Helper()
	n := &node{verdicts: map[string]string{}}
	ports, err := router.ParsePorts("20000-20999")
	if err != nil {
		t.Fatal(err)
	}
	cfg := control.Config{
		Watch:    func(ctx context.Context, _ control.Handler) error { <-ctx.Done(); return nil },
		Applier:  n,
		Verdicts: n,
		Domains:  func(ds []*router.Domain) { n.domains = ds },
		Ports:    ports, Own: netip.Addr.IsLoopback,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	edit(&cfg)
	if n.Controller, err = control.New(cfg); err != nil {
		t.Fatal(err)
	}
	return n
}

func put(key, value string, rev int64) etcd.Change {
	return etcd.Change{Key: key, Value: []byte(value), ModRev: rev}
}

func TestBadValueLeavesTheLastGoodOne(t *testing.T) {
	n := newNode(t, "")
	n.Load(1, nil)
	n.Change(2, []etcd.Change{put("ports/tcp/20022", "127.0.0.1:22", 2), put("ports/tcp/20023", "127.0.0.1:23", 2)})
	n.Change(3, []etcd.Change{put("ports/tcp/20022", "nonsense", 3), put("ports/tcp/20023", "127.0.0.1:24", 3)})

	want := map[string]string{
		"ports/tcp/20022": `refused: backend.targets[0].address: "nonsense" is not an address; write host:port, such as 10.0.0.7:22, web-3:8080 or [2001:db8::1]:22 (last good @2 stays in force)`,
		"ports/tcp/20023": "applied@3",
	}
	if diff := cmp.Diff(want, n.verdicts); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
	for port, backend := range map[int]string{20022: "127.0.0.1:22", 20023: "127.0.0.1:24"} {
		if got := n.table().Mapping(router.TCP, port).Backend.Targets[0].Address.String(); got != backend {
			t.Errorf("port %d goes to %s, want %s", port, got, backend)
		}
	}

	n.Change(4, []etcd.Change{{Key: "ports/tcp/20022", Deleted: true, ModRev: 4}})
	if _, there := n.verdicts["ports/tcp/20022"]; there || n.table().Mapping(router.TCP, 20022) != nil {
		t.Errorf("after the delete: verdict %q, mapping %v", n.verdicts["ports/tcp/20022"], n.table().Mapping(router.TCP, 20022))
	}
}

func TestEveryKindOfKeyGetsItsVerdict(t *testing.T) {
	n := newNode(t, "")
	n.Load(9, []etcd.KV{
		{Key: "routes/www", Value: []byte(`{"host":"www.x-gpu.com","respond":{}}`), ModRev: 3},
		{Key: "domains/*.x-gpu.com", Value: []byte(`{}`), ModRev: 4},
		{Key: "pools/ssh", Value: []byte(`{"ports":"20000-20499","backend_port":22}`), ModRev: 5},
		{Key: "pools/jupyter", Value: []byte(`{"ports":"20499-20999","backend_port":8888}`), ModRev: 6},
		{Key: "prots/tcp/20022", Value: []byte(`a:1`), ModRev: 7},
		{Key: "ports/tcp/19999", Value: []byte(`a:1`), ModRev: 8},
	})
	for key, want := range map[string]string{
		"routes/www":          "applied@3",
		"domains/*.x-gpu.com": "applied@4",
		"prots/tcp/20022":     `did you mean "ports"? (nothing is in force)`,
		"ports/tcp/19999":     "port 19999 lies outside this node's ports (20000-20999)",
		"pools/jupyter":       "overlaps 20000-20499 of the pool ssh",
	} {
		if !strings.Contains(n.verdicts[key], want) {
			t.Errorf("verdict of %s: %q, want %q in it", key, n.verdicts[key], want)
		}
	}
	if len(n.domains) != 1 || n.domains[0].Name != "*.x-gpu.com" {
		t.Errorf("domains: %v", n.domains)
	}
}

func TestStateReportedWithinApplyReachesTheVerdict(t *testing.T) {
	n := newNode(t, "")
	n.onApply = func(*router.Table) {
		n.SetState("ports/tcp/20022", true, "port_busy: :20022 is in use by sshd (pid 1)")
	}
	n.Load(5, []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("a:1"), ModRev: 5}})
	if got, want := n.verdicts["ports/tcp/20022"], "degraded: port_busy: :20022 is in use by sshd (pid 1) (applied@5)"; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
	n.SetState("ports/tcp/20022", false, "")
	if got := n.verdicts["ports/tcp/20022"]; got != "applied@5" {
		t.Errorf("verdict %q after the port was opened", got)
	}
}

// TestVerdictIsThatInEtcd asks for what was written, at each step of a key.
func TestVerdictIsThatInEtcd(t *testing.T) {
	n := newNode(t, "")
	const key = "ports/tcp/20022"
	for i, step := range []func(){
		func() {},
		func() { n.Load(5, []etcd.KV{{Key: key, Value: []byte("a:1"), ModRev: 5}}) },
		func() { n.SetState(key, true, "expired: expires_at has passed") },
		func() { n.Change(6, []etcd.Change{{Key: key, Value: []byte("nonsense"), ModRev: 6}}) },
		func() { n.Change(7, []etcd.Change{{Key: key, ModRev: 7, Deleted: true}}) },
	} {
		step()
		if got, want := n.Verdict(key), n.verdicts[key]; got != want || (i > 0 && i < 4) == (got == "") {
			t.Errorf("step %d: the verdict is %q, in etcd %q", i, got, want)
		}
	}
}

func TestStatusSaysWhatIsInForce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	n := newNode(t, file)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for i, step := range []struct {
		do     func() error
		source string
		rev    int64
	}{
		{func() error {
			n.Load(3, []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("a:1"), ModRev: 3}})
			return nil
		}, "etcd", 3},
		{func() error { n.Change(4, []etcd.Change{put("ports/tcp/20022", "a:2", 4)}); return n.Run(ctx) }, "etcd", 4},
		{func() error { n = newNode(t, file); return nil }, "none", 0},
		{func() error { n.Restore(); return n.Run(ctx) }, "disk", 4},
	} {
		was, wasRev := n.Status()
		n.onApply = func(*router.Table) {
			if source, rev := n.Status(); source != was || rev != wasRev {
				t.Errorf("step %d: while the table was being applied the status was %s@%d, want still %s@%d", i, source, rev, was, wasRev)
			}
		}
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if source, rev := n.Status(); source != step.source || rev != step.rev {
			t.Errorf("step %d: the status is %s@%d, want %s@%d", i, source, rev, step.source, step.rev)
		}
	}
}

func TestReloadTouchesOnlyWhatDiffers(t *testing.T) {
	n := newNode(t, "")
	kvs := []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("a:1"), ModRev: 2}, {Key: "ports/tcp/20023", Value: []byte("a:1"), ModRev: 3}}
	n.Load(3, kvs)
	before := n.table()
	n.Load(7, kvs)
	if n.table() != before {
		t.Errorf("a reload without a difference applied a new table")
	}
	n.Load(9, kvs[:1])
	n.table().DiffMappings(before, func(was, is *router.Mapping) {
		if was == nil || was.Port != 20023 || is != nil {
			t.Errorf("the reload changed %v to %v", was, is)
		}
	})
	if n.table() == before {
		t.Errorf("a key that is gone in the reload is still in force")
	}
}

func TestStateOnDiskServesWithoutEtcd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, file)
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { n.Run(ctx) })
		n.Load(3, []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("good:1"), ModRev: 2}, {Key: "routes/r", Value: []byte(`{"host":"a.b","respond":{}}`), ModRev: 3}})
		n.Change(4, []etcd.Change{put("ports/tcp/20022", "bad", 4)})
		time.Sleep(2 * time.Second) // of the bubble's time: the saver has had its delay
		synctest.Wait()
		stop()
		run.Wait()
	})

	n := newNode(t, file)
	if !n.Restore() {
		t.Fatal("the state on disk was not restored")
	}
	m := n.table().Mapping(router.TCP, 20022)
	if m == nil || m.Backend.Targets[0].Address.String() != "good:1" {
		t.Fatalf("restored %v, want the last good value", m)
	}
	if len(n.verdicts) != 0 {
		t.Errorf("verdicts were written before etcd said anything: %v", n.verdicts)
	}
	// The bad value is still there when etcd answers, and the good one stays.
	n.Load(5, []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("bad"), ModRev: 4}, {Key: "routes/r", Value: []byte(`{"host":"a.b","respond":{}}`), ModRev: 3}})
	if got := n.verdicts["ports/tcp/20022"]; !strings.HasSuffix(got, "(last good @2 stays in force)") {
		t.Errorf("verdict %q", got)
	}
	if got := n.verdicts["routes/r"]; got != "applied@3" {
		t.Errorf("verdict of an untouched key after a start from disk: %q", got)
	}
}

func TestDamagedStateIsNotUsed(t *testing.T) {
	good := filepath.Join(t.TempDir(), "state")
	n := newNode(t, good)
	ctx, stop := context.WithCancel(t.Context())
	n.Load(3, []etcd.KV{{Key: "ports/tcp/20022", Value: []byte("good:1"), ModRev: 2}})
	stop()
	if err := n.Run(ctx); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{
		"torn":    text[:len(text)/2],
		"flipped": bytes.Replace(text, []byte("good"), []byte("evil"), 1),
		"newer":   bytes.Replace(text, []byte(`"version":3`), []byte(`"version":9`), 1),
		"empty":   nil,
	} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		n := newNode(t, file)
		if n.Restore() || len(n.tables) != 0 {
			t.Errorf("%s: a damaged state was put in force", name)
		}
	}
}
