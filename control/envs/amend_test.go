package envs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/envs"
)

// An environment moves as a whole, services too whose pool is gone since.
func TestMoveWithoutPool(t *testing.T) {
	r := newRig(t)
	n := r.node()
	s := spec("a", "ssh", "jupyter", "rdp", "web")
	s.Services["rdp"] = envs.ServiceSpec{Span: 2}
	if _, err := n.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	ssh := r.keys("pools/")["pools/ssh"]
	for _, service := range []string{"ssh", "jupyter", "web"} {
		r.del("pools/" + service)
	}
	r.put("pools/rdp", `{"ports":"33000-33009","backend_port":3389}`) // which nodes do not open
	r.put("ports/udp/31001", `{"backend":"10.6.6.6:1"}`)              // put by hand since
	r.settle(n, "pools/ssh", "pools/jupyter", "pools/web", "pools/rdp", "ports/udp/31001")
	to, end := "10.9.9.9", r.clock.Now().Add(time.Hour)
	if _, err := n.Patch(t.Context(), "a", envs.Patch{Backend: &to, ExpiresAt: &end}); err != nil {
		t.Fatal(err)
	}
	const more = `,"env":"a","expires_at":"2026-11-01T13:00:00Z"`
	want := map[string]string{
		"ports/tcp/20000":  `{"backend":"10.9.9.9:22"` + more + `,"service":"ssh"}`,
		"ports/tcp/30000":  `{"env":"a","expires_at":"2026-11-01T13:00:00Z","http":"10.9.9.9:8888","service":"jupyter"}`,
		"ports/tcp/31000":  `{"backend":"10.9.9.9:3389"` + more + `,"idle_timeout":"10m","service":"rdp"}`,
		"ports/tcp/31001":  `{"backend":"10.9.9.9:3390"` + more + `,"idle_timeout":"10m","service":"rdp"}`,
		"ports/udp/31000":  `{"backend":"10.9.9.9:3389"` + more + `,"idle_timeout":"10m","service":"rdp"}`,
		"ports/udp/31001":  `{"backend":"10.6.6.6:1"}`,
		"routes/env.a.web": `{"backend":"10.9.9.9:8080","env":"a","host":"env-a.remotegpu.com","path":"/web","service":"web","strip_prefix":true}`,
	}
	got := r.keys("ports/")
	got["routes/env.a.web"] = r.keys("routes/")["routes/env.a.web"]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	e, err := n.Get(t.Context(), "a")
	if err != nil || e.Services["ssh"].Backend != "10.9.9.9:22" || e.Services["web"].Backend != "10.9.9.9:8080" {
		t.Errorf("the record: %+v, %v", e, err)
	}
	before := r.keys("")
	if _, err := n.Patch(t.Context(), "a", envs.Patch{Services: map[string]*envs.ServiceSpec{"ssh": {Username: "x"}}}); err == nil || !strings.Contains(err.Error(), `services.ssh: there is no pool "ssh"`) {
		t.Errorf("a change that takes the pool: %v", err)
	}
	if diff := cmp.Diff(before, r.keys("")); diff != "" {
		t.Errorf("what was refused left something: %s", diff)
	}
	// Back again, it moves on.
	r.put("pools/ssh", ssh)
	r.settle(n, "pools/ssh")
	to = "10.9.9.10"
	never := time.Time{}
	if _, err := n.Patch(t.Context(), "a", envs.Patch{Backend: &to, ExpiresAt: &never}); err != nil {
		t.Fatal(err)
	}
	if got, want := r.keys("ports/")["ports/tcp/20000"], `{"backend":"10.9.9.10:22","env":"a","service":"ssh"}`; got != want {
		t.Errorf("moved again: %s", got)
	}
	if got, want := r.keys("ports/")["ports/tcp/30000"], `{"env":"a","http":"10.9.9.10:8888","service":"jupyter"}`; got != want {
		t.Errorf("without a pool: %s", got)
	}
}

// How sessions end can be said before an environment does.
func TestDrain(t *testing.T) {
	r := newRig(t)
	n := r.node()
	e, err := n.Create(t.Context(), spec("a", "ssh", "web", "rdp"))
	if err != nil {
		t.Fatal(err)
	}
	since, keys, err := n.Drain(t.Context(), "a", e.Rev, "drain 30s")
	if want := []string{"ports/tcp/31000", "ports/udp/31000", "ports/tcp/20000"}; err != nil || since == 0 || !cmp.Equal(keys, want) {
		t.Fatalf("%d %v %v", since, keys, err)
	}
	for key, value := range r.keys("ports/") {
		if !strings.Contains(value, `"on_delete":"drain 30s"`) || !strings.Contains(value, `"env":"a"`) {
			t.Errorf("%s: %s", key, value)
		}
	}
	if since, keys, err := n.Drain(t.Context(), "a", 0, "drain 30s"); since != 0 || len(keys) != 3 || err != nil {
		t.Errorf("said twice: %d %v %v", since, keys, err)
	}
	for text, want := range map[string]string{"drain": "drain: ", "sooner": "drain: "} {
		if _, _, err := n.Drain(t.Context(), "a", 0, text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := n.Drain(t.Context(), "a", e.Rev+1, "cut"); !errors.As(err, new(*envs.StaleError)) {
		t.Errorf("of what is not any more: %v", err)
	}
	if _, _, err := n.Drain(t.Context(), "b", 0, "cut"); !errors.As(err, new(*envs.NotFoundError)) {
		t.Errorf("of nothing: %v", err)
	}
	// The record is as it was.
	if _, err := n.Delete(t.Context(), "a", e.Rev); err != nil || len(r.keys("ports/")) != 0 {
		t.Errorf("%v, %v", err, r.keys("ports/"))
	}
}

// Ports whose environment is gone, or knows nothing of them, can be given back.
func TestReleaseOrphans(t *testing.T) {
	r := newRig(t)
	n := r.node()
	if _, err := n.Create(t.Context(), spec("a", "ssh", "rdp")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Create(t.Context(), spec("b", "jupyter")); err != nil {
		t.Fatal(err)
	}
	r.del("envs/a")
	r.put("allocations/tcp/20002", `{"env":"b","service":"ssh","since":"2026-11-01T12:00:00Z"}`)
	r.put("ports/tcp/20002", `{"backend":"10.0.0.1:22","env":"a"}`)
	r.settle(n, "envs/a", "allocations/tcp/20002", "ports/tcp/20002")
	for env, service := range map[string]string{"b": "ssh", "a": "rdp"} {
		if rev, err := n.Release(t.Context(), env, service); rev == 0 || err != nil {
			t.Errorf("%s of %s: %d, %v", service, env, rev, err)
		}
	}
	want := []string{
		"orphaned allocations/tcp/20000: is held by environment a, which is gone",
		"unheld ports/tcp/20002: is a mapping on a port of the pool ssh that nobody holds",
	}
	if found := n.findings(t); !cmp.Equal(found, want) {
		t.Errorf("audit: %q", found)
	}
	if rev, err := n.Release(t.Context(), "a", "ssh"); rev == 0 || err != nil {
		t.Errorf("%d, %v", rev, err)
	}
	if rev, err := n.Release(t.Context(), "a", "ssh"); rev != 0 || err != nil {
		t.Errorf("again: %d, %v", rev, err)
	}
	if _, ok := r.keys("envs/")["envs/b"]; !ok {
		t.Error("an environment went with what it knew nothing of")
	}
	if s := n.reg.Stats(r.clock.Now()); s["ssh"].Quarantined != 2 || s["rdp"].Quarantined != 1 {
		t.Errorf("%+v", s)
	}
}

// A mapping that is not its holder's is told.
func TestAuditTellsForeignMappings(t *testing.T) {
	r := newRig(t)
	n := r.node()
	if _, err := n.Create(t.Context(), spec("a", "ssh", "jupyter")); err != nil {
		t.Fatal(err)
	}
	r.put("ports/tcp/20000", "10.66.0.1:22")
	r.put("ports/tcp/30000", `{"http":"10.66.0.1:80","env":"b"}`)
	r.settle(n, "ports/tcp/20000", "ports/tcp/30000")
	want := []string{
		"foreign allocations/tcp/20000: is held by ssh of environment a, and its mapping (ports/tcp/20000) is nobody's: it was put there by hand",
		"foreign allocations/tcp/30000: is held by jupyter of environment a, and its mapping (ports/tcp/30000) is that of environment b",
	}
	if diff := cmp.Diff(want, n.findings(t)); diff != "" {
		t.Error(diff)
	}
}

// While etcd cannot be asked nobody is told that there is no such environment.
func TestNotFoundTakesEtcd(t *testing.T) {
	r := newRig(t)
	down := errors.New("etcd is away")
	n := r.node(func(c *envs.Config) { c.Sync = func(context.Context) error { return down } })
	if _, err := r.node().Create(t.Context(), spec("a", "ssh")); err != nil {
		t.Fatal(err)
	}
	r.settle(n, "envs/a")
	if e, err := n.Get(t.Context(), "a"); err != nil || e.ID != "a" {
		t.Errorf("what is known: %+v, %v", e, err)
	}
	_, got := n.Get(t.Context(), "b")
	_, access := n.Access(t.Context(), "b", true)
	for _, err := range []error{got, access} {
		if !errors.Is(err, down) || errors.As(err, new(*envs.NotFoundError)) {
			t.Errorf("what is not known: %v", err)
		}
	}
}
