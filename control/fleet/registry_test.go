package fleet_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet"
)

func card(node, text string) etcd.KV { return etcd.KV{Key: "members/" + node, Value: []byte(text)} }

func put(key, text string) etcd.Change { return etcd.Change{Key: key, Value: []byte(text)} }

func gone(key string) etcd.Change { return etcd.Change{Key: key, Deleted: true} }

func TestMembersAreWhatEtcdHas(t *testing.T) {
	r := fleet.NewRegistry("a")
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
	b.State, b.Why = fleet.Down, "its record in etcd is gone"
	expect("taken back", true, a, b)
	r.Change(6, []etcd.Change{put("members/b", `{"state":"ready"}`)})
	b = fleet.Member{Node: "b", Weight: 1, State: fleet.Ready, Why: "it has no address"}
	expect("back without an address", true, a, b)
}

// Somebody keeps names as long as a node is there, or was a moment ago, that has a
// provider or does not tell.
func TestWhoKeepsNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fleet.NewRegistry("a")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		defer func() { cancel(); <-done }()
		expect := func(when string, want bool) {
			t.Helper()
			synctest.Wait()
			if some, known := r.KeepsNames(); some != want || !known {
				t.Errorf("%s: %t, known %t; want %t", when, some, known, want)
			}
		}
		if _, known := r.KeepsNames(); known {
			t.Error("it is known before the load")
		}
		r.Load(1, []etcd.KV{card("a", `{"state":"ready","names":false}`)})
		expect("one without a provider", false)
		r.Change(2, []etcd.Change{put("members/b", `{"state":"draining","names":true}`)})
		expect("and one with", true)
		changed := r.Changed()
		r.Change(3, []etcd.Change{gone("members/b")})
		<-changed
		changed = r.Changed()
		expect("which has just gone", true)
		<-changed
		expect("which has been gone for a minute", false)
		r.Change(4, []etcd.Change{put("members/c", `{"state":"ready"}`)})
		expect("one of a version that does not tell", true)
	})
}

// Records that go all at once are a matter of etcd as long as somebody sees the
// nodes, and one that goes alone is a node that died.
func TestRecordsThatGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fleet.NewRegistry("a")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		defer func() { cancel(); <-done }()
		healthy := func() (nodes []string) {
			synctest.Wait()
			members, _ := r.Members()
			for _, m := range members {
				if m.Healthy {
					nodes = append(nodes, m.Node)
				}
			}
			return nodes
		}
		expect := func(when string, want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, healthy()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		all := []etcd.KV{}
		for i, node := range []string{"a", "b", "c", "d"} {
			all = append(all, card(node, fmt.Sprintf(`{"state":"ready","addresses":["203.0.113.%d"]}`, i)))
		}
		all = append(all, etcd.KV{Key: "health/d", Value: []byte(`{"up":["a 203.0.113.0","b 203.0.113.1"],"down":{"c 203.0.113.2":"no answer"}}`)})
		r.Load(1, all)
		expect("at first", "a", "b", "c", "d")
		r.Change(2, []etcd.Change{gone("members/b")})
		expect("one went", "a", "c", "d")
		r.Load(3, all)
		expect("it is back", "a", "b", "c", "d")
		r.Load(4, all[3:]) // of three, one is seen by nobody
		expect("three went at once", "a", "b", "d")
		time.Sleep(59 * time.Second)
		expect("for a while", "a", "b", "d")
		time.Sleep(2 * time.Second)
		expect("for good", "d")
		if members, _ := r.Members(); len(members) != 1 {
			t.Errorf("%d members are remembered", len(members))
		}
	})
}

func TestChangesAreTold(t *testing.T) {
	r := fleet.NewRegistry("a")
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
