package etcd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/control/etcd"
)

func TestDialRefusesInWords(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  etcd.Config
		want string
	}{
		{"no prefix", etcd.Config{Endpoints: []string{"http://127.0.0.1:2379"}}, "such as /sluice"},
		{"root prefix", etcd.Config{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "/"}, "such as /sluice"},
		{"relative prefix", etcd.Config{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "sluice"}, `"sluice"`},
		{"no endpoints", etcd.Config{Prefix: "/sluice"}, "at least one"},
		{"a scheme", etcd.Config{Prefix: "/sluice", Endpoints: []string{"ftp://127.0.0.1:2379"}}, "ftp://127.0.0.1:2379"},
		{"no port", etcd.Config{Prefix: "/sluice", Endpoints: []string{"https://10.0.0.1"}}, "host:port"},
		{"a login", etcd.Config{Prefix: "/sluice", Endpoints: []string{"http://edge:hunter2@127.0.0.1:2379"}}, "give them apart"},
		{"half a login", etcd.Config{Prefix: "/sluice", Endpoints: []string{"10.0.0.1:2379"}, Username: "edge"}, "only one of them"},
		{"a password in clear", etcd.Config{Prefix: "/sluice", Endpoints: []string{"http://127.0.0.1:2379", "http://10.0.0.1:2379"}, Username: "edge", Password: "x"}, `"http://10.0.0.1:2379" is without TLS`},
		{"one without a scheme", etcd.Config{Prefix: "/sluice", Endpoints: []string{"10.0.0.1:2379"}, Username: "edge", Password: "x"}, `"10.0.0.1:2379" is without TLS`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := etcd.Dial(test.cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Dial: %v, want an error that says %q", err, test.want)
			} else if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("Dial: %v tells the password", err)
			}
		})
	}
}

func TestDialTakesPasswordsInPrivate(t *testing.T) {
	for _, ep := range []string{"https://10.0.0.1:2379", "http://localhost:2379", "http://[::1]:2379", "127.0.0.2:2379"} {
		c, err := etcd.Dial(etcd.Config{Prefix: "/sluice", Endpoints: []string{ep}, Username: "edge", Password: "x"})
		if err != nil {
			t.Errorf("%s: %v", ep, err)
			continue
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	c, err := etcd.Dial(etcd.Config{Prefix: "/sluice", Endpoints: []string{"10.0.0.1:2379"}, Username: "edge", Password: "x", TLS: &tls.Config{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestClosedClientSaysSo(t *testing.T) {
	c := dial(t, "http://127.0.0.1:2379")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.SetPace(time.Second, time.Second, time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Watch(ctx, newMirror(t)) }()
	awaitState(t, c, "lost", func(s etcd.State) bool { return s.Err != nil && strings.Contains(s.Err.Error(), "closed") })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch: %v, want nil after its context ended", err)
	}
}

func TestMetrics(t *testing.T) {
	srv := startFast(t)
	reg := prometheus.NewRegistry()
	cfg := etcd.Config{Endpoints: []string{srv.Endpoint()}, Prefix: "/sluice/", Registerer: reg}
	c, err := etcd.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	op := raw(t, srv.Endpoint())
	m := newMirror(t)
	stop := goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 1 })
	m.awaitRev(put(t, op, "/sluice/ports/tcp/1", "a"))
	awaitState(t, c, "delivered", func(s etcd.State) bool { return s.Revision == 2 })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"sluice_etcd_connected": 1, "sluice_etcd_loads_total": 1, "sluice_etcd_changes_total": 1,
		"sluice_etcd_change_batches_total": 1, "sluice_etcd_delivered_revision": 2, "sluice_etcd_seen_revision": 2,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	stop()
	if c.State().Connected {
		t.Error("connected after Watch has returned")
	}
	if _, err := etcd.Dial(cfg); err == nil || !strings.Contains(err.Error(), "register etcd metrics") {
		t.Errorf("a second client on one registry: %v, want an error", err)
	}
}

// enableAuth makes the server ask for passwords, with a user edge who may use
// /sluice/ only.
func enableAuth(t *testing.T, op *clientv3.Client) {
	t.Helper()
	_, err1 := op.RoleAdd(t.Context(), "edge")
	_, err2 := op.RoleGrantPermission(t.Context(), "edge", "/sluice/", clientv3.GetPrefixRangeEnd("/sluice/"), clientv3.PermissionType(clientv3.PermReadWrite))
	_, err3 := op.UserAdd(t.Context(), "edge", "pass")
	_, err4 := op.UserGrantRole(t.Context(), "edge", "edge")
	_, err5 := op.UserAdd(t.Context(), "root", "rootpass")
	_, err6 := op.UserGrantRole(t.Context(), "root", "root")
	_, err7 := op.AuthEnable(t.Context())
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7); err != nil {
		t.Fatal(err)
	}
}

// The least privilege that a node needs is its prefix. With a password, even
// making the connection needs etcd, and so must wait for it.
func TestPasswordLogin(t *testing.T) {
	dir := t.TempDir()
	endpoint, stop := startForeign(t, dir, "127.0.0.1:0")
	op := raw(t, endpoint)
	enableAuth(t, op)
	op.Close()
	stop()

	login := func(user, password, prefix string) *etcd.Client {
		c, err := etcd.Dial(etcd.Config{Endpoints: []string{endpoint}, Prefix: prefix, Username: user, Password: password})
		if err != nil {
			t.Fatal(err)
		}
		c.SetPace(100*time.Millisecond, 5*time.Second, 5*time.Second)
		t.Cleanup(func() { c.Close() })
		return c
	}
	m := newMirror(t)
	right := login("edge", "pass", "/sluice")
	stopWatch := goWatch(t, right, m)
	startForeign(t, dir, strings.TrimPrefix(endpoint, "http://"))
	m.await("the load", func() bool { return m.loads == 1 })

	s := newSession(t, right, "edge-1", "a")
	stopSession := goRun(t, s.Run)
	// Clients end before the server, which else waits for them.
	t.Cleanup(func() { stopSession(); stopWatch(); right.Close() })
	s.SetRecord(record("a", "ready"))
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Username: "root", Password: "rootpass", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	awaitExactly(t, root, "/sluice/", map[string]string{"nodes/edge-1": record("a", "ready")})
	put(t, root, "/sluice/ports/tcp/1", "a")
	m.awaitKey("ports/tcp/1", "a")

	for _, wrong := range []*etcd.Client{login("edge", "guess", "/sluice"), login("edge", "pass", "/other")} {
		goWatch(t, wrong, newMirror(t))
		awaitState(t, wrong, "refused", func(s etcd.State) bool {
			return s.Err != nil && (strings.Contains(s.Err.Error(), "authentication failed") || strings.Contains(s.Err.Error(), "permission denied"))
		})
	}
}

// TestCommitIfNothingCame has a change made only if no key of a range was put after a
// revision, and the error name the one that was.
func TestCommitIfNothingCame(t *testing.T) {
	c := dial(t, startFast(t).Endpoint())
	put := func(key string) int64 {
		t.Helper()
		rev, err := c.Commit(t.Context(), []etcd.Edit{{Key: key, Value: []byte("{}"), Blind: true}}, "test")
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	known := put("routes/b")
	commit := func(since int64) error {
		_, err := c.Commit(t.Context(), []etcd.Edit{
			{Key: "routes/a", End: "routes/c", Check: true, Since: since}, {Key: "routes/none", End: "routes/none0", Check: true}, {Key: "ports/tcp/20000", Value: []byte("10.0.0.1:22"), Blind: true},
		}, "test")
		return err
	}
	if err := commit(known); err != nil {
		t.Error(err)
	}
	put("routes/c") // not in the range
	if err := commit(known); err != nil {
		t.Error(err)
	}
	put("routes/a")
	came := put("routes/bb")
	conflict := (*etcd.ConflictError)(nil)
	if err := commit(known); !errors.As(err, &conflict) || conflict.Key != "routes/bb" || conflict.Rev != came {
		t.Errorf("with routes/bb as of %d: %v, %+v", came, err, conflict)
	}
	if err := commit(came); err != nil {
		t.Error(err)
	}
}

// TestCommitThatWasCutOff has the error of a write whose answer never came say
// that it may have been made, in words of ours.
func TestCommitThatWasCutOff(t *testing.T) {
	p := newProxy(t, startFast(t).Endpoint())
	c := dial(t, p.endpoint())
	edits := []etcd.Edit{{Key: "routes/a", Value: []byte("{}"), Blind: true}}
	if _, err := c.Commit(t.Context(), edits, "test"); err != nil {
		t.Fatal(err)
	}
	p.freeze()
	done := make(chan error, 1)
	go func() {
		_, err := c.Commit(t.Context(), edits, "test")
		done <- err
	}()
	p.cut()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "may or may not have been done") || strings.Contains(err.Error(), "rpc error") {
		t.Errorf("a write that was cut off: %v", err)
	}
	p.thaw()
}
