package history

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/control/etcd"
)

// TestHistoryAfterEtcdWasSetBack has etcd's disk be set back to an earlier copy
// under a living leader, which that copy knows: whatever is changed afterwards is
// recorded, also where it has revisions that were recorded before.
func TestHistoryAfterEtcdWasSetBack(t *testing.T) {
	dir, backup := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	addr := "127.0.0.1:0" // once chosen, the same again
	up := func(dir string) *etcd.Server {
		s, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: dir, ListenClient: addr, UnsafeNoFsync: true})
		if err != nil {
			t.Fatal(err)
		}
		addr = strings.TrimPrefix(s.Endpoint(), "http://")
		return s
	}
	down := func(s *etcd.Server) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	server := up(dir)
	c := clusterAt(t, server.Endpoint())
	r := c.recorder()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	recorded := func(rev int64) {
		r.Poke()
		c.awaitRecorded(t, rev)
	}
	recorded(1)
	recorded(c.put(t, "routes/a", "1"))
	down(server)
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	server = up(dir)
	var last int64
	for i := range 30 {
		last = c.put(t, "routes/lost", fmt.Sprint(i))
	}
	recorded(last)
	down(server)
	server = up(backup)
	defer down(server)
	first := c.put(t, "routes/real0", "x")
	if first >= last {
		t.Fatalf("after it was set back, etcd is at revision %d, and was at %d", first, last)
	}
	for i := range 60 {
		last = c.put(t, fmt.Sprintf("routes/real%d", i+1), "x")
	}
	recorded(last)
	log, err := Read(t.Context(), c.Client, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, ch := range log.Changes {
		if strings.HasPrefix(ch.Key, "routes/real") {
			n++
		}
	}
	if n != 61 && log.From < first {
		t.Errorf("the history from %d to %d (gap: %v) has %d of 61 changes", log.From, log.To, log.Gap, n)
	}
}
