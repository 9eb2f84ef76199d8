package control_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

const someRoute = `{"host": "a.x-gpu.com", "backend": "10.0.0.7:80"}`

// What becomes of a route and of its certificates comes from two sides. A verdict
// has what is amiss, whichever of them says so.
func TestStatesOfARoute(t *testing.T) {
	n := newNode(t, "")
	n.Load(3, []etcd.KV{{Key: "routes/a", Value: []byte(someRoute), ModRev: 3}})
	for _, step := range []struct {
		say  func(key string, degraded bool, text string)
		bad  bool
		text string
		want string
	}{
		{n.SetCertificate, false, "certificate *.x-gpu.com", "applied@3: certificate *.x-gpu.com"},
		{n.SetState, true, "backend_unresolved: a", "degraded: backend_unresolved: a (applied@3)"},
		{n.SetCertificate, true, "no_certificate: b", "degraded: backend_unresolved: a; no_certificate: b (applied@3)"},
		{n.SetState, false, "", "degraded: no_certificate: b (applied@3)"},
		{n.SetState, false, "fine", "degraded: no_certificate: b (applied@3)"},
		{n.SetCertificate, false, "c", "applied@3: fine; c"},
		{n.SetCertificate, false, "", "applied@3: fine"},
	} {
		step.say("routes/a", step.bad, step.text)
		n.wantVerdict(t, "routes/a", step.want)
	}
}

// What is amiss with a pool is said as soon as it is in force, and once that is
// mended.
func TestStateOfAPool(t *testing.T) {
	n := newNodeWith(t, func(cfg *control.Config) {
		cfg.Pool = func(p *portpool.Pool) string {
			if p.Ports.Contains(20001) {
				return ""
			}
			return "ports_outside: 20001"
		}
	})
	value := func(ports string) string { return `{"ports":"` + ports + `","backend_port":22}` }
	n.Load(1, nil)
	n.Change(2, []etcd.Change{put("pools/ssh", value("20000-20009"), 2)})
	n.wantVerdict(t, "pools/ssh", "applied@2")
	n.Change(3, []etcd.Change{put("pools/ssh", value("20002-20009"), 3)})
	n.wantVerdict(t, "pools/ssh", "degraded: ports_outside: 20001 (applied@3)")
	n.SetState("pools/ssh", false, "")
	n.wantVerdict(t, "pools/ssh", "applied@3")
	n.Change(4, []etcd.Change{put("pools/ssh", value("20003-20009"), 4)})
	n.wantVerdict(t, "pools/ssh", "degraded: ports_outside: 20001 (applied@4)")
	n.Change(5, []etcd.Change{put("pools/ssh", value("20001-20009"), 5)})
	n.wantVerdict(t, "pools/ssh", "applied@5")
}

// Routes is told of what came and went, once, after it is in force.
func TestRoutesAreTold(t *testing.T) {
	var told []string
	var n *node
	n = newNodeWith(t, func(cfg *control.Config) {
		cfg.StateFile = t.TempDir() + "/state"
		cfg.Routes = func(routes map[string]*router.Route) {
			var all []string
			for _, name := range slices.Sorted(maps.Keys(routes)) {
				r := routes[name]
				if r == nil {
					all = append(all, "-"+name)
					continue
				}
				if got, _ := n.table().Match(&router.Request{Host: "a.x-gpu.com", Port: 443, Path: "/"}); got != r {
					t.Errorf("told of %v while the table has %v", r, got)
				}
				all = append(all, name)
				n.SetCertificate("routes/"+name, true, "no_certificate")
			}
			told = append(told, strings.Join(all, " "))
		}
	})
	want := func(want ...string) {
		t.Helper()
		if !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
		told = nil
	}
	n.Load(3, []etcd.KV{{Key: "routes/a", Value: []byte(someRoute), ModRev: 3}, {Key: "routes/b", Value: []byte(`{}`), ModRev: 3}})
	want("a")
	n.wantVerdict(t, "routes/a", "degraded: no_certificate (applied@3)")
	n.Change(4, []etcd.Change{put("ports/tcp/20022", "127.0.0.1:22", 4), put("routes/a", `{"host": 7}`, 4)})
	want()
	n.Change(6, []etcd.Change{del("routes/a", 5), put("routes/a", someRoute, 6), del("routes/b", 6)})
	want("a")
	n.wantVerdict(t, "routes/a", "degraded: no_certificate (applied@6)")
	n.Change(7, []etcd.Change{del("routes/a", 7)})
	want("-a")
}
