package envs_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// No id makes an environment answer in the place of another one, or of what
// somebody put by hand.
func TestNamesOfOthers(t *testing.T) {
	r := newRig(t)
	r.put("pools/inner", `{"backend_port":80,"route":{"host":"${inner}--${env}.x.com"}}`)
	r.put("pools/plain", `{"backend_port":80,"route":{"host":"${env}.x.com"}}`)
	r.put("pools/suffixed", `{"backend_port":80,"route":{"host":"${env}-lab.x.com"}}`)
	r.put("pools/shared", `{"backend_port":80,"route":{"host":"apps.x.com","path":"/${env}"}}`)
	r.put("routes/www", `{"host":["www.x.com","w.x.com"],"path":"/docs","backend":"10.0.0.1:80"}`)
	r.put("routes/rest", `{"host":"*.x.com","backend":"10.0.0.1:80"}`)
	r.put("routes/apps", `{"host":"apps.x.com","path":"/status","backend":"10.0.0.1:80"}`)
	n := r.node()
	r.settle(n, "pools/inner", "pools/plain", "pools/suffixed", "pools/shared", "routes/www", "routes/rest", "routes/apps")
	inner := func(id, ports string) envs.Spec {
		s := spec(id, "inner")
		allowed, err := router.ParsePorts(ports)
		if err != nil {
			t.Fatal(err)
		}
		s.Services["inner"] = envs.ServiceSpec{InnerPorts: allowed}
		return s
	}
	for _, s := range []envs.Spec{
		inner("abc", "8000,9000-9009"), spec("abc-lab", "plain"), spec("9000--d", "plain"), spec("one", "plain", "shared"), spec("two", "shared"),
		inner("d", "8000"), spec("8001--abc", "plain"), // of a port that abc does not allow
	} {
		if _, err := n.Create(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s.ID, err)
		}
	}
	before := r.keys("")
	for _, tc := range []struct {
		spec      envs.Spec
		host, key string
	}{
		{spec("8000--abc", "plain"), "8000--abc.x.com", "routes/env.abc.inner"},
		{spec("9005--abc", "plain"), "9005--abc.x.com", "routes/env.abc.inner"},
		{spec("abc", "plain"), "", ""}, // exists
		{spec("www", "plain"), "www.x.com", "routes/www"},
		{spec("w", "plain"), "w.x.com", "routes/www"},
		{spec("apps", "plain"), "apps.x.com", "routes/apps"},
		{spec("status", "shared"), "apps.x.com", "routes/apps"},
	} {
		_, err := n.Create(t.Context(), tc.spec)
		var taken *envs.HostError
		if tc.host == "" {
			if !errors.As(err, new(*envs.ExistsError)) {
				t.Errorf("%s: %v", tc.spec.ID, err)
			}
		} else if !errors.As(err, &taken) || taken.Key != tc.key || taken.Host != tc.host || taken.Service != slices.Collect(maps.Keys(tc.spec.Services))[0] || envs.Reason(err) != "taken" {
			t.Errorf("%s: %v, want that %s is of %s", tc.spec.ID, err, tc.host, tc.key)
		}
	}
	// The other way round: what is there already keeps its name.
	if _, err := n.Create(t.Context(), spec("abc-lab-lab", "plain")); err != nil {
		t.Error(err)
	}
	_, err := n.Create(t.Context(), spec("abc-lab", "suffixed"))
	if !errors.As(err, new(*envs.ExistsError)) {
		t.Error(err)
	}
	_, err = n.Patch(t.Context(), "abc-lab", envs.Patch{Services: map[string]*envs.ServiceSpec{"suffixed": {}}})
	if want := "services.suffixed: routes/env.abc-lab-lab.plain, of the environment abc-lab-lab, answers at abc-lab-lab.x.com already"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	allowed := router.Ports{{First: 8000, Last: 9000}}
	_, err = n.Patch(t.Context(), "d", envs.Patch{Services: map[string]*envs.ServiceSpec{"inner": {InnerPorts: allowed}}})
	if want := "services.inner: routes/env.9000--d.plain, of the environment 9000--d, answers at 9000--d.x.com already"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	for _, id := range []string{"abc-lab-lab"} {
		if _, err := n.Delete(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
	}
	after := r.keys("")
	for _, m := range []map[string]string{before, after} {
		delete(m, "edits/last")
		delete(m, "removals/meant")
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("what was refused left something: %s", diff)
	}
	// One that somebody has put in the name of an environment.
	r.put("routes/env.evil.plain", `{"host":"one.x.com","backend":"10.0.0.1:80","env":"evil"}`)
	r.settle(n, "routes/env.evil.plain")
	if found := n.findings(t); !cmp.Equal(found, []string{"shared routes/env.one.plain: answers at one.x.com/, as routes/env.evil.plain does"}) {
		t.Errorf("audit: %q", found)
	}
}

// meeting is a store of one node of two: the first change of each waits for that of
// the other.
type meeting struct {
	envs.Store
	both *sync.WaitGroup
	once sync.Once
}

func (m *meeting) Commit(ctx context.Context, edits []etcd.Edit, note string) (int64, error) {
	m.once.Do(func() { m.both.Done(); m.both.Wait() })
	return m.Store.Commit(ctx, edits, note)
}

// Of two environments that are to answer at the same name, and that two nodes make
// at once, neither knowing of the other, one comes to be. The other one is told whose
// the name is.
func TestNamesAtOnce(t *testing.T) {
	r := newRig(t)
	for service, route := range map[string]string{
		"inner": `"${inner}--${env}.x.com"`, "plain": `"${env}.x.com"`, "suffixed": `"${env}-lab.x.com"`, "named": `"${env}-${username}.y.com"`, "shared": `"apps.x.com","path":"/${env}"`, "below": `"apps.x.com","path":"/a-${env}"`,
	} {
		r.put("pools/"+service, `{"backend_port":80,"route":{"host":`+route+`}}`)
	}
	one := func(id, service string, s envs.ServiceSpec) envs.Spec {
		return envs.Spec{ID: id, Backend: "10.0.3.17", Services: map[string]envs.ServiceSpec{service: s}}
	}
	inner := func(ports string) envs.ServiceSpec {
		allowed, err := router.ParsePorts(ports)
		if err != nil {
			t.Fatal(err)
		}
		return envs.ServiceSpec{InnerPorts: allowed}
	}
	plain := envs.ServiceSpec{}
	for _, tc := range []struct{ a, b envs.Spec }{
		{one("a1", "suffixed", plain), one("a1-lab", "plain", plain)},
		{one("8000--b", "plain", plain), one("b", "inner", inner("3000,8000-8999"))},
		{one("c", "named", envs.ServiceSpec{Username: "c-c"}), one("c-c", "named", envs.ServiceSpec{Username: "c"})},
		{one("a-d", "shared", plain), one("d", "below", plain)},
	} {
		both := new(sync.WaitGroup)
		both.Add(2)
		var errs [2]error
		var creating sync.WaitGroup
		specs := []envs.Spec{tc.a, tc.b}
		for i, spec := range specs {
			n := r.node(func(c *envs.Config) { c.Store = &meeting{Store: c.Store, both: both} })
			creating.Go(func() { _, errs[i] = n.Create(t.Context(), spec) })
		}
		creating.Wait()
		lost := slices.IndexFunc(errs[:], func(err error) bool { return err != nil })
		if lost < 0 || errs[1-lost] != nil {
			t.Errorf("%s and %s: %v", tc.a.ID, tc.b.ID, errs)
			continue
		}
		var taken *envs.HostError
		if got := specs[lost]; !errors.As(errs[lost], &taken) || taken.Env != specs[1-lost].ID || !slices.Contains(slices.Collect(maps.Keys(got.Services)), taken.Service) {
			t.Errorf("%s and %s: %v", tc.a.ID, tc.b.ID, errs[lost])
		}
		if _, err := r.node().Delete(t.Context(), specs[1-lost].ID, 0); err != nil {
			t.Error(err)
		}
	}
	if found := r.node().findings(t); len(found) > 0 {
		t.Errorf("audit: %q", found)
	}
}

// A node that has not heard of a pool yet makes nothing at the name that an
// environment has by it.
func TestNameOfAPoolUnheardOf(t *testing.T) {
	r := newRig(t)
	r.put("pools/plain", `{"backend_port":80,"route":{"host":"${env}.x.com"}}`)
	n := r.node()
	r.settle(n, "pools/plain")
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{r.endpoint}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	reg := envs.NewRegistry()
	read := func(ctx context.Context) error { _, err := reg.Read(ctx, client); return err }
	if err := read(t.Context()); err != nil {
		t.Fatal(err)
	}
	behind := envs.New(envs.Config{Store: client, Registry: reg, Refresh: read, Now: r.clock.Now})
	r.put("pools/suffixed", `{"backend_port":80,"route":{"host":"${env}-lab.x.com"}}`)
	r.settle(n, "pools/suffixed")
	if _, err := n.Create(t.Context(), spec("a", "suffixed")); err != nil {
		t.Fatal(err)
	}
	_, err = behind.Create(t.Context(), spec("a-lab", "plain"))
	if taken := (*envs.HostError)(nil); !errors.As(err, &taken) || taken.Env != "a" || taken.Host != "a-lab.x.com" {
		t.Errorf("%v", err)
	}
}

// Nobody gets anything of a pool that nodes refuse.
func TestPoolsThatNodesRefuse(t *testing.T) {
	r := newRig(t)
	n := r.node()
	r.put("pools/ssh2", `{"ports":"20003-20009","backend_port":2222}`)
	r.put("pools/far", `{"ports":"32767-32768","backend_port":22}`)
	r.settle(n, "pools/ssh2", "pools/far")
	for service, want := range map[string]string{
		"ssh2": `services.ssh2: the pool "ssh2" is not in force, ports: 20003-20009 overlaps 20000-20003 of the pool ssh; give each port to one pool; mend pools/ssh2`,
		"far":  `services.far: the pool "far" is not in force, ports: port 32768 lies outside the node's ports (20000-32767); mend pools/far`,
	} {
		if _, err := n.Create(t.Context(), spec("a", service)); err == nil || err.Error() != want || envs.Reason(err) != "invalid" {
			t.Errorf("%s: %v", service, err)
		}
	}
	if found := n.findings(t); len(found) != 2 || !strings.HasPrefix(found[0], "refused pools/far: is not in force: ports: port 32768") {
		t.Errorf("audit: %q", found)
	}
	if stats := n.reg.Stats(r.clock.Now()); stats["ssh2"].Size != 0 || stats["ssh"].Size != 4 {
		t.Errorf("stats: %v", stats)
	}
	// Once the other one shrinks, it is in force.
	r.put("pools/ssh", `{"ports":"20000-20002","backend_port":22}`)
	r.settle(n, "pools/ssh")
	if e, err := n.Create(t.Context(), spec("a", "ssh2")); err != nil || e.Services["ssh2"].Port != 20003 {
		t.Errorf("%+v, %v", e, err)
	}
}
