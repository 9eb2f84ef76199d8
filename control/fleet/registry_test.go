package fleet_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

func card(node, text string) etcd.KV { return etcd.KV{Key: "members/" + node, Value: []byte(text)} }

func put(key, text string) etcd.Change { return etcd.Change{Key: key, Value: []byte(text)} }

func gone(key string) etcd.Change { return etcd.Change{Key: key, Deleted: true} }

func TestMembersAreWhatEtcdHas(t *testing.T) {
	r := fleet.NewRegistry()
	expect := func(when string, wantComplete bool, want ...fleet.Member) {
		t.Helper()
		got, complete := r.Members()
		if complete != wantComplete {
			t.Errorf("%s: complete %t, want %t", when, complete, wantComplete)
		}
		same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	four, six := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")
	a := fleet.Member{Node: "a", Addresses: []netip.Addr{four, six}, Region: "hk", Weight: 3, State: fleet.Ready, Healthy: true}
	b := fleet.Member{Node: "b", Addresses: []netip.Addr{four}, Weight: 1, State: fleet.Joining, Why: "it is joining"}
	expect("before the load", false)
	r.Change(1, []etcd.Change{put("members/b", `{"state":"joining","addresses":["203.0.113.7"]}`)})
	expect("a change before the load", false, b)
	r.Load(2, []etcd.KV{
		card("a", `{"state":"ready","addresses":["203.0.113.7","2001:db8::7"],"region":"hk","weight":3,"of a later version":1}`),
		card("b", `{"state":"joining","addresses":["203.0.113.7"],"weight":-1}`),
		card("c", `{"state":`), card("d", `{}`), {Key: "envs/a", Value: []byte(`{"state":"ready"}`)},
	})
	expect("after the load", true, a, b)

	drained := a
	drained.State, drained.Healthy, drained.Why = fleet.Draining, false, "it is drained: new disk"
	r.Change(3, []etcd.Change{put("drain/a", `{"reason":"new disk"}`)})
	expect("drained", true, drained, b)
	drained.Why = "it is drained"
	r.Change(4, []etcd.Change{put("drain/a", `whatever it is`)})
	expect("drained without a reason", true, drained, b)
	r.Change(5, []etcd.Change{gone("drain/a"), gone("members/b")})
	expect("taken back", true, a)
	r.Load(6, nil)
	expect("after an empty load", true)
}

func TestChangesAreTold(t *testing.T) {
	r := fleet.NewRegistry()
	told := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	before := r.Changed()
	r.Change(1, []etcd.Change{put("envs/a", `{}`), gone("tokens/a")})
	if told(before) {
		t.Error("told of keys that are others'")
	}
	r.Load(2, nil)
	if !told(before) {
		t.Error("not told of a load")
	}
	for _, c := range []etcd.Change{put("members/a", `{"state":"ready"}`), put("drain/a", `{}`), gone("drain/a"), gone("members/a")} {
		before := r.Changed()
		r.Change(3, []etcd.Change{c})
		if !told(before) {
			t.Errorf("not told of %s", c.Key)
		}
	}
}
