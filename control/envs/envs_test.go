package envs_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

func TestLifeOfAnEnvironment(t *testing.T) {
	r := newRig(t)
	n := r.node()
	s := spec("6hif", "ssh", "jupyter", "rdp", "web")
	s.ExpiresAt = r.clock.Now().Add(time.Hour)
	e, err := n.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"ports/tcp/20000": `{"backend":"10.0.3.17:22","env":"6hif","expires_at":"2026-11-01T13:00:00Z","service":"ssh"}`,
		"ports/tcp/30000": `{"env":"6hif","expires_at":"2026-11-01T13:00:00Z","http":"10.0.3.17:8888","service":"jupyter"}`,
		"ports/tcp/31000": `{"backend":"10.0.3.17:3389","env":"6hif","expires_at":"2026-11-01T13:00:00Z","idle_timeout":"10m","service":"rdp"}`,
		"ports/udp/31000": `{"backend":"10.0.3.17:3389","env":"6hif","expires_at":"2026-11-01T13:00:00Z","idle_timeout":"10m","service":"rdp"}`,
	}
	if diff := cmp.Diff(want, r.keys("ports/")); diff != "" {
		t.Errorf("mappings: %s", diff)
	}
	routes := map[string]string{"routes/env.6hif.web": `{"backend":"10.0.3.17:8080","env":"6hif","host":"env-6hif.remotegpu.com","path":"/web","service":"web","strip_prefix":true}`}
	if diff := cmp.Diff(routes, r.keys("routes/")); diff != "" {
		t.Errorf("routes: %s", diff)
	}
	if got := r.keys("allocations/"); len(got) != 4 || got["allocations/udp/31000"] != `{"env":"6hif","service":"rdp","since":"2026-11-01T12:00:00Z"}` {
		t.Errorf("allocations: %v", got)
	}
	// Asked again, it is the same; asked for something else, it exists.
	again, err := n.Create(t.Context(), s)
	if err != nil || again.Rev != e.Rev {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	for _, other := range []envs.Spec{spec("6hif", "ssh", "jupyter", "rdp", "web"), {ID: "6hif", Backend: "10.0.3.18", ExpiresAt: s.ExpiresAt, Services: s.Services}} {
		if _, err := n.Create(t.Context(), other); !errors.As(err, new(*envs.ExistsError)) {
			t.Errorf("another of the same name: %v", err)
		}
	}

	to := "10.0.3.18"
	never := time.Time{}
	e, err = n.Patch(t.Context(), "6hif", envs.Patch{Rev: e.Rev, Backend: &to, ExpiresAt: &never, Services: map[string]*envs.ServiceSpec{"rdp": nil, "web": {Backend: ":9090"}}})
	if err != nil {
		t.Fatal(err)
	}
	want = map[string]string{
		"ports/tcp/20000": `{"backend":"10.0.3.18:22","env":"6hif","service":"ssh"}`,
		"ports/tcp/30000": `{"env":"6hif","http":"10.0.3.18:8888","service":"jupyter"}`,
	}
	if diff := cmp.Diff(want, r.keys("ports/")); diff != "" {
		t.Errorf("mappings after a move: %s", diff)
	}
	if got := r.keys("routes/")["routes/env.6hif.web"]; !strings.Contains(got, `"backend":"10.0.3.18:9090"`) {
		t.Errorf("route after a move: %v", got)
	}
	if _, err := n.Patch(t.Context(), "6hif", envs.Patch{Rev: e.Rev - 1}); !errors.As(err, new(*envs.StaleError)) {
		t.Errorf("a patch of what is not any more: %v", err)
	}
	if _, err := n.Delete(t.Context(), "6hif", e.Rev); err != nil {
		t.Fatal(err)
	}
	if got := r.keys(""); got["envs/6hif"] != "" || len(r.keys("ports/"))+len(r.keys("routes/")) != 0 || got["removals/meant"] == "" {
		t.Errorf("after the end there is %v", got)
	}
	for key, value := range r.keys("allocations/") {
		a, err := portpool.ParseAllocation([]byte(value))
		if err != nil || a.State(r.clock.Now()) != portpool.Quarantined || a.Env != "6hif" {
			t.Errorf("%s: %s, %v", key, value, err)
		}
	}
	if _, err := n.Delete(t.Context(), "6hif", 0); !errors.As(err, new(*envs.NotFoundError)) {
		t.Errorf("deleted twice: %v", err)
	}
	if found := n.findings(t); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
}

func TestAllOrNothing(t *testing.T) {
	r := newRig(t)
	n := r.node()
	for i, id := range []string{"a", "b", "c", "d"} {
		if _, err := n.Create(t.Context(), spec(id, "ssh")); err != nil {
			t.Fatal(i, err)
		}
	}
	before := r.keys("")
	for _, tc := range []struct {
		name string
		spec envs.Spec
		want string
	}{
		{"exhausted", spec("e", "jupyter", "rdp", "ssh"), "the pool ssh is exhausted: of its 4 ports 4 are held"},
		{"no pool", spec("e", "jupyter", "vnc"), `services.vnc: there is no pool "vnc"`},
		{"no services", spec("e"), "services: give 1 to"},
		{"bad name", spec("E_", "jupyter"), `id: "E_" is not the name of an environment`},
		{"over", envs.Spec{ID: "e", Backend: "10.0.0.1", ExpiresAt: r.clock.Now(), Services: spec("e", "jupyter").Services}, "expires_at: 2026-11-01T12:00:00Z is over"},
		{"no backend", envs.Spec{ID: "e", Services: spec("e", "jupyter").Services}, "services.jupyter.backend: is missing"},
		{"bad backend", envs.Spec{ID: "e", Backend: "10.0.0.1:22:33", Services: spec("e", "jupyter").Services}, "services.jupyter.backend"},
		{"bad mapping", envs.Spec{ID: "e", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"jupyter": {Mapping: []byte(`{"idle_timeot":"5m"}`)}}}, `services.jupyter.mapping.idle_timeot: unknown field; did you mean "idle_timeout"?`},
		{"own mapping", envs.Spec{ID: "e", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"jupyter": {Mapping: []byte(`{"env":"x"}`)}}}, "services.jupyter.mapping.env: is made of the environment"},
		{"secrets", envs.Spec{ID: "e", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"jupyter": {Secrets: map[string]string{"token": "x"}}}}, "services.jupyter.secrets: cannot be kept"},
		{"taken port", envs.Spec{ID: "e", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"jupyter": {}, "ssh": {Port: 20001}}}, "tcp port 20001 is held by ssh of environment b"},
		{"port of none", envs.Spec{ID: "e", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"web": {Port: 20001}}}, "services.web.port: the pool web has no ports"},
		{"too many", envs.Spec{ID: "e", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"rdp": {Span: 32}}}, "services: come to 130 keys"},
	} {
		_, err := n.Create(t.Context(), tc.spec)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	if diff := cmp.Diff(before, r.keys("")); diff != "" {
		t.Errorf("failures left something: %s", diff)
	}
	// And none keeps a port for itself.
	if _, err := n.Create(t.Context(), spec("f", "jupyter", "rdp")); err != nil {
		t.Error(err)
	}
	if s := n.reg.Stats(r.clock.Now())["jupyter"]; s.Held != 1 || s.Available != 3 {
		t.Errorf("of the pool jupyter %+v", s)
	}
}

func TestAllocAndRelease(t *testing.T) {
	r := newRig(t)
	n := r.node()
	first, rev, err := n.Alloc(t.Context(), portpool.Request{Env: "a", Service: "ssh"})
	if err != nil || first.Port != 20000 || rev == 0 {
		t.Fatal(first, rev, err)
	}
	if again, _, err := n.Alloc(t.Context(), portpool.Request{Env: "a", Service: "ssh"}); err != nil || again.Port != 20000 {
		t.Errorf("asked again: %+v, %v", again, err)
	}
	if _, _, err := n.Alloc(t.Context(), portpool.Request{Env: "a", Service: "ssh", Port: 20002}); !errors.As(err, new(*envs.ExistsError)) {
		t.Errorf("asked for another: %v", err)
	}
	r.put("ports/tcp/20001", "10.0.0.1:22")
	if found := n.findings(t); !slices.Contains(found, "unmapped allocations/tcp/20000: is held by ssh of environment a, and has no mapping") {
		t.Errorf("audit: %v", found)
	}
	second, _, err := n.Alloc(t.Context(), portpool.Request{Env: "b", Service: "ssh", Span: 2})
	if err != nil || second.Port != 20002 || second.Span != 2 {
		t.Fatalf("two in a row beside a mapping made by hand: %+v, %v", second, err)
	}
	if _, err := n.Release(t.Context(), "a", "ssh"); err != nil {
		t.Fatal(err)
	}
	if rev, err := n.Release(t.Context(), "a", "ssh"); rev != 0 || err != nil {
		t.Errorf("released twice: %d, %v", rev, err)
	}
	if _, ok := r.keys("envs/")["envs/a"]; ok {
		t.Error("an environment without services is left")
	}
	var exhausted *portpool.ExhaustedError
	_, _, err = n.Alloc(t.Context(), portpool.Request{Env: "c", Service: "ssh"})
	if want := (portpool.Stats{Size: 4, Held: 2, Quarantined: 1, Mapped: 1}); !errors.As(err, &exhausted) || exhausted.Stats != want {
		t.Errorf("while 20000 rests: %v", err)
	}
	r.clock.advance(portpool.DefaultQuarantine)
	if got, _, err := n.Alloc(t.Context(), portpool.Request{Env: "c", Service: "ssh"}); err != nil || got.Port != 20000 {
		t.Errorf("after its rest: %+v, %v", got, err)
	}
}

func TestReserve(t *testing.T) {
	r := newRig(t)
	n := r.node()
	tcp := []router.Proto{router.TCP}
	if _, err := n.Reserve(t.Context(), tcp, router.PortRange{First: 20000, Last: 20002}, "the office VPN"); err != nil {
		t.Fatal(err)
	}
	if s, _, err := n.Alloc(t.Context(), portpool.Request{Env: "a", Service: "ssh"}); err != nil || s.Port != 20003 {
		t.Fatal(s, err)
	}
	if _, err := n.Reserve(t.Context(), tcp, router.PortRange{First: 20003, Last: 20003}, "x"); !errors.As(err, new(*portpool.TakenError)) {
		t.Errorf("a port that is held: %v", err)
	}
	if _, err := n.Unreserve(t.Context(), tcp, router.PortRange{First: 20001, Last: 20001}); err != nil {
		t.Fatal(err)
	}
	if s, _, err := n.Alloc(t.Context(), portpool.Request{Env: "b", Service: "ssh"}); err != nil || s.Port != 20001 {
		t.Error(s, err)
	}
	held, err := n.Ports(t.Context(), "ssh")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, h := range held {
		list = append(list, h.Proto+" "+string(h.State)+" "+h.Env+h.Reserved)
	}
	if want := []string{"tcp reserved the office VPN", "tcp allocated b", "tcp reserved the office VPN", "tcp allocated a"}; !cmp.Equal(list, want) {
		t.Errorf("list %q", list)
	}
}

func TestExpiredEnvironmentsEnd(t *testing.T) {
	r := newRig(t)
	n := r.node()
	s := spec("a", "ssh", "web")
	s.ExpiresAt = r.clock.Now().Add(time.Minute)
	if _, err := n.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Create(t.Context(), spec("b", "ssh")); err != nil {
		t.Fatal(err)
	}
	r.clock.advance(time.Minute - time.Second)
	if err := n.Sweep(t.Context()); err != nil || len(r.keys("envs/")) != 2 {
		t.Fatalf("before its time: %v, %v", err, r.keys("envs/"))
	}
	r.clock.advance(time.Second)
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, p := r.keys("envs/"), r.keys("ports/"); len(e) != 1 || len(p) != 1 || e["envs/b"] == "" {
		t.Errorf("after its time: %v, %v", e, p)
	}
	r.clock.advance(25*time.Hour + portpool.DefaultQuarantine)
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := r.keys("allocations/"); len(a) != 1 {
		t.Errorf("long after: %v", a)
	}
}

func TestAuditTellsWhatDoesNotFit(t *testing.T) {
	r := newRig(t)
	n := r.node()
	if _, err := n.Create(t.Context(), spec("a", "ssh", "jupyter")); err != nil {
		t.Fatal(err)
	}
	if found := n.findings(t); len(found) > 0 {
		t.Fatalf("audit of what is well: %v", found)
	}
	r.put("allocations/tcp/20002", `{"env":"gone","service":"ssh","since":"2026-11-01T12:00:00Z"}`)
	r.put("allocations/tcp/20003", `{"env":"a","service":"ssh","since":"2026-11-01T12:00:00Z"}`)
	r.put("ports/tcp/20001", "10.0.0.1:22")
	r.put("allocations/tcp/31002", `not JSON`)
	r.put("envs/torn", `{"services":{"ssh":{"port":70000}}}`)
	r.del("allocations/tcp/30000")
	r.put("pools/ssh", `{"ports":"20001-20009","backend_port":22}`)
	want := []string{
		"orphaned allocations/tcp/20003: is held by ssh of environment a, which says nothing of it",
		"orphaned allocations/tcp/20002: is held by environment gone, which is gone",
		"stranded allocations/tcp/20000: is held for ssh, outside of its pool (20001-20009)",
		"unheld ports/tcp/20001: is a mapping on a port of the pool ssh that nobody holds",
		"unheld ports/tcp/30000: is a mapping on a port of the pool jupyter that nobody holds",
		"unmapped allocations/tcp/20003: is held by ssh of environment a, and has no mapping",
		"unmapped allocations/tcp/20002: is held by ssh of environment gone, and has no mapping",
		"unowned envs/a: says it has tcp port 30000, and does not hold it",
		"unreadable allocations/tcp/31002: not valid JSON at character 2: invalid character 'o' in literal null (expecting 'u')",
		"unreadable envs/torn: services.ssh.port: 70000 are no ports; they run from 1 to 65535",
	}
	r.settle(n, "allocations/tcp/20002", "allocations/tcp/20003", "ports/tcp/20001", "allocations/tcp/31002", "envs/torn", "allocations/tcp/30000", "pools/ssh")
	if diff := cmp.Diff(want, n.findings(t)); diff != "" {
		t.Error(diff)
	}
	if _, err := n.Create(t.Context(), spec("torn", "rdp")); err == nil || !strings.Contains(err.Error(), "the key envs/torn cannot be read") {
		t.Errorf("an environment in the place of one that cannot be read: %v", err)
	}
	if e, err := n.Create(t.Context(), envs.Spec{ID: "c", Backend: "10.0.0.1", Services: map[string]envs.ServiceSpec{"rdp": {Span: 3}}}); err != nil || e.Services["rdp"].Port != 31003 {
		t.Errorf("beside a port whose allocation cannot be read: %+v, %v", e, err)
	}
}

func TestAccess(t *testing.T) {
	r := newRig(t)
	flip := func(path string, b []byte) ([]byte, error) { // stands for a cipher
		out := []byte(path)
		for _, c := range b {
			out = append(out, ^c)
		}
		return out, nil
	}
	n := r.node(func(c *envs.Config) {
		c.Seal = func(_ context.Context, path string, b []byte) ([]byte, error) { return flip(path, b) }
		c.Open = func(path string, b []byte) ([]byte, error) {
			out, err := flip("", b[len(path):])
			return out, err
		}
	})
	s := spec("6hif", "ssh", "jupyter", "web")
	s.Services["jupyter"] = envs.ServiceSpec{Secrets: map[string]string{"token": "hunter2"}}
	s.Services["ssh"] = envs.ServiceSpec{Username: "ubuntu"}
	if _, err := n.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for key, value := range r.keys("") {
		if strings.Contains(value, "hunter2") {
			t.Errorf("%s has a secret in clear: %s", key, value)
		}
	}
	want := map[string]envs.Access{
		"ssh":     {Host: "6hif.ssh.x-gpu.com", Port: 20000, Username: "ubuntu", Command: "ssh -p 20000 ubuntu@6hif.ssh.x-gpu.com"},
		"jupyter": {Host: "6hif.jupyter.x-gpu.com", Port: 30000, URL: "https://6hif.jupyter.x-gpu.com:30000/?token=hunter2", Secrets: map[string]string{"token": "hunter2"}},
		"web":     {URL: "https://env-6hif.remotegpu.com/web"},
	}
	got, err := n.Access(t.Context(), "6hif", true)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	want["jupyter"] = envs.Access{Host: "6hif.jupyter.x-gpu.com", Port: 30000}
	got, err = n.Access(t.Context(), "6hif", false)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("without secrets: %v: %s", err, diff)
	}
}

// Clients name the port inside, out of those that an environment allows.
func TestInnerPorts(t *testing.T) {
	r := newRig(t)
	r.put("pools/any", `{"backend_port":8000,"route":{"host":"${inner}--env-${env}.remotegpu.com"},"access":{"url":"https://8000--env-${env}.remotegpu.com"}}`)
	n := r.node()
	r.settle(n, "pools/any")
	s := spec("a", "any")
	if _, err := n.Create(t.Context(), s); err == nil || !strings.Contains(err.Error(), "give inner_ports") {
		t.Errorf("without any: %v", err)
	}
	s.Services["any"] = envs.ServiceSpec{InnerPorts: router.Ports{{First: 3000, Last: 3000}, {First: 8000, Last: 8099}}}
	if _, err := n.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	value := r.keys("routes/")["routes/env.a.any"]
	if want := `{"backend":"10.0.3.17:${inner}","env":"a","host":"~^(?\u003cinner\u003e3000|80[0-9][0-9])--env-a\\.remotegpu\\.com$","service":"any"}`; value != want {
		t.Errorf("the route is %s, want %s", value, want)
	}
	if _, err := router.ParseRoute("env.a.any", []byte(value)); err != nil {
		t.Error(err)
	}
	s = spec("b", "web")
	s.Services["web"] = envs.ServiceSpec{InnerPorts: router.Ports{{First: 1, Last: 1}}}
	if _, err := n.Create(t.Context(), s); err == nil || !strings.Contains(err.Error(), "services.web.inner_ports: mean nothing") {
		t.Errorf("where nobody names one: %v", err)
	}
}

// Names of routes tell environments and services apart, and leave others' alone.
func TestRoutesOfTheirOwn(t *testing.T) {
	r := newRig(t)
	r.put("pools/c", `{"backend_port":80,"route":{"host":"${env}.c.x-gpu.com"}}`)
	r.put("pools/b-c", `{"backend_port":80,"route":{"host":"${env}.bc.x-gpu.com"}}`)
	r.put("routes/env.x.web", `{"host":"x.x-gpu.com","backend":"10.0.0.1:80"}`)
	n := r.node()
	r.settle(n, "pools/c", "pools/b-c", "routes/env.x.web")
	for _, s := range []envs.Spec{spec("a", "b-c"), spec("a-b", "c")} {
		if _, err := n.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.keys("routes/"); len(got) != 3 {
		t.Errorf("routes: %v", got)
	}
	if _, err := n.Delete(t.Context(), "a", 0); err != nil || r.keys("routes/")["routes/env.a-b.c"] == "" {
		t.Errorf("after the end of the other: %v, %v", r.keys("routes/"), err)
	}
	before := r.keys("")
	if _, err := n.Create(t.Context(), spec("x", "web")); err == nil || !strings.Contains(err.Error(), "somebody else has put that") {
		t.Errorf("over somebody else's route: %v", err)
	}
	if diff := cmp.Diff(before, r.keys("")); diff != "" {
		t.Error(diff)
	}
}
