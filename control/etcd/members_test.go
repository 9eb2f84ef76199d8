package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/control/etcd"
)

// peerURLs returns a URL for the peers of each of n members, m1 and on.
func peerURLs(t *testing.T, n int) map[string]string {
	t.Helper()
	urls := map[string]string{}
	for i := range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		urls[fmt.Sprintf("m%d", i+1)] = "http://" + ln.Addr().String()
	}
	return urls
}

func memberConfig(t *testing.T, name string, peers map[string]string) etcd.ServerConfig {
	return etcd.ServerConfig{Dir: t.TempDir(), Name: name, ListenClient: "127.0.0.1:0", UnsafeNoFsync: true, Logger: slog.New(slog.DiscardHandler),
		Cluster: &etcd.Cluster{Peers: peers}}
}

// startMembers starts the members of a cluster.
func startMembers(t *testing.T, peers map[string]string) (map[string]*etcd.Server, map[string]etcd.ServerConfig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Etcd leaves connections of its members to their time limits.
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		var left error
		for range 40 { // each of which waits for a while
			if left = goleak.Find(before); left == nil {
				return
			}
		}
		t.Error(left)
	})
	var mu sync.Mutex
	var starting sync.WaitGroup
	servers, configs := map[string]*etcd.Server{}, map[string]etcd.ServerConfig{}
	for name := range peers {
		cfg := memberConfig(t, name, peers)
		configs[name] = cfg
		starting.Go(func() {
			srv, err := etcd.StartServer(ctx, cfg)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			servers[name] = srv
		})
	}
	starting.Wait()
	t.Cleanup(func() {
		for _, srv := range servers { // one by one, since each hands over what it leads
			if err := srv.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return servers, configs
}

// awaitMembers waits until the members are as cond has them.
func awaitMembers(t *testing.T, c *etcd.Client, what string, cond func(*etcd.Membership) bool) *etcd.Membership {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		all, err := c.Members(t.Context(), nil)
		if err == nil && cond(all) {
			return all
		}
		select {
		case <-limit:
			t.Fatalf("never saw %s: %+v, %v", what, all, err)
		case <-tick.C:
		}
	}
}

func allUp(all *etcd.Membership) bool {
	return all.Leader != "" && !slices.ContainsFunc(all.Members, func(m etcd.Member) bool {
		return m.State != etcd.MemberLeads && m.State != etcd.MemberFollows
	})
}

// others returns the names of the members but for some.
func others(servers map[string]*etcd.Server, but ...string) (names []string) {
	for name := range servers {
		if !slices.Contains(but, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// wantRefusal has a replacement refused, and the members as they were.
func wantRefusal(t *testing.T, c *etcd.Client, r etcd.Replacement, words string) {
	t.Helper()
	before, err := c.Members(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ReplaceMember(t.Context(), r); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("replacing %+v: %v, want a refusal that says %q", r, err, words)
	}
	after, err := c.Members(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b etcd.Member) bool { return a.ID == b.ID }
	if !slices.EqualFunc(before.Members, after.Members, same) {
		t.Errorf("the refusal left %+v, want %+v", after.Members, before.Members)
	}
}

// TestReplaceMember replaces the healthy leader, which takes a word, and finds
// that nothing more can be taken away until it is back.
func TestReplaceMember(t *testing.T) {
	peers := peerURLs(t, 3)
	servers, configs := startMembers(t, peers)
	leader := awaitMembers(t, dial(t, servers["m1"].Endpoint()), "three members", allUp).Leader
	rest := others(servers, leader)
	c := dial(t, servers[rest[0]].Endpoint())
	awaitMembers(t, c, "three members at another", allUp)

	wantRefusal(t, c, etcd.Replacement{Name: leader}, "is up")
	wantRefusal(t, c, etcd.Replacement{Name: "m9", Healthy: true}, "there is no member")
	wantRefusal(t, c, etcd.Replacement{Name: rest[0], Healthy: true}, "the very member")
	gone := servers[leader]
	delete(servers, leader)
	for range 2 { // what is done is no error
		if err := c.ReplaceMember(t.Context(), etcd.Replacement{Name: leader, URL: peers[leader], Healthy: true}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := gone.Wait(ctx); !errors.Is(err, etcd.ErrRemoved) || !strings.Contains(err.Error(), "etcd.cluster.joining") {
		t.Errorf("the member that was removed says %v, want ErrRemoved and what to do", err)
	}
	if err := gone.Close(); err != nil {
		t.Error(err)
	}
	// Nor does it start again with what it has.
	if srv, err := etcd.StartServer(ctx, configs[leader]); !errors.Is(err, etcd.ErrRemoved) {
		t.Errorf("started again it says %v, want ErrRemoved", err)
		if err == nil {
			srv.Close()
		}
	}
	wantRefusal(t, c, etcd.Replacement{Name: rest[1], Healthy: true}, "2 of 3 members have to be up")

	cfg := memberConfig(t, leader, peers)
	cfg.Cluster.Joining = true
	start(t, cfg)
	awaitMembers(t, c, "all three again", allUp)
}

// TestReplaceMemberFromHalfWay has one that was removed already added, and none
// taken away while another one is down.
func TestReplaceMemberFromHalfWay(t *testing.T) {
	peers := peerURLs(t, 3)
	servers, _ := startMembers(t, peers)
	c := dial(t, servers["m1"].Endpoint())
	awaitMembers(t, c, "three members", allUp)
	if err := servers["m3"].Close(); err != nil {
		t.Fatal(err)
	}
	delete(servers, "m3")
	all := awaitMembers(t, c, "that m3 is down, and who leads", func(all *etcd.Membership) bool {
		return all.Leader != "" && all.Members[2].State == etcd.MemberSilent
	})
	if m := all.Members[2]; m.Name != "m3" || m.Detail == "" {
		t.Errorf("the member that is down is %+v, want the reason with it", m)
	}
	wantRefusal(t, c, etcd.Replacement{Name: "m2", Healthy: true}, "no answer from m3")

	id, err := raw(t, servers["m1"].Endpoint()).MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range id.Members {
		if m.Name == "m3" {
			if _, err := raw(t, servers["m1"].Endpoint()).MemberRemove(t.Context(), m.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantRefusal(t, c, etcd.Replacement{Name: "m3"}, "not known where")
	if err := c.ReplaceMember(t.Context(), etcd.Replacement{Name: "m3", URL: peers["m3"]}); err != nil {
		t.Fatal(err)
	}
	cfg := memberConfig(t, "m3", peers)
	cfg.Cluster.Joining = true
	start(t, cfg)
	awaitMembers(t, c, "all three again", allUp)
}

// TestMembersWithoutMajority has one that is left alone say so.
func TestMembersWithoutMajority(t *testing.T) {
	servers, _ := startMembers(t, peerURLs(t, 3))
	c := dial(t, servers["m1"].Endpoint())
	awaitMembers(t, c, "three members", allUp)
	for _, name := range []string{"m2", "m3"} {
		if err := servers[name].Close(); err != nil {
			t.Fatal(err)
		}
		delete(servers, name)
	}
	awaitMembers(t, c, "that none leads", func(all *etcd.Membership) bool { return all.Leader == "" && len(all.Members) == 3 })
	wantRefusal(t, c, etcd.Replacement{Name: "m2", Healthy: true}, "no member leads")
}
