package swarm_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/fleet/swarm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits; nothing asserts how long one took.
const patience = time.Minute

// TestSwarm has nodes of twenty die and hang, and come back. bench does the same, and
// more, with two hundred.
func TestSwarm(t *testing.T) {
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s, err := swarm.Start(swarm.HostOf(server.Endpoint()), 20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expect := func(when string, want func(i int) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		took, err := s.Await(ctx, want)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		t.Logf("%s: %v", when, took.Round(time.Millisecond))
	}
	all := func(int) bool { return true }
	expect("all know each other", all)
	s.Kill(3)
	s.Hang(7, true)
	expect("one is killed, one hangs", func(i int) bool { return i != 3 && i != 7 })
	if err := s.Revive(3); err != nil {
		t.Fatal(err)
	}
	s.Hang(7, false)
	expect("they are back", all)
}
