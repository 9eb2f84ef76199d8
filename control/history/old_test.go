package history

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/remotegpu/sluice/control/etcd"
)

// startDebianEtcd returns a cluster whose etcd is Debian's, which may be one that
// answers questions for progress too early.
func startDebianEtcd(t *testing.T) *cluster {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	url := "http://" + addr
	cmd := exec.Command("etcd", "--data-dir", t.TempDir(), "--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{addr}, Prefix: "/sluice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return &cluster{Client: client, raw: raw}
}

// What is said to be all changes up to a revision is all of them, also by an
// etcd that says of a watch which is catching up that it has.
func TestOldEtcdLosesNoChanges(t *testing.T) {
	c := startDebianEtcd(t)
	first := c.put(t, "routes/begin", "")
	editing, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var mu sync.Mutex
	var made []string // "revision key"
	var editors sync.WaitGroup
	for i := range 4 {
		editors.Go(func() {
			for n := 0; editing.Err() == nil; n++ {
				key := fmt.Sprintf("%s/%d-%d", []string{"ports", "envs", "edits", "odd"}[i], i, n%50)
				rev := c.put(t, key, strings.Repeat("x", 100))
				mu.Lock()
				made = append(made, fmt.Sprint(rev, " ", key))
				mu.Unlock()
			}
		})
	}
	var got []string
	since, looks := first, 0
	look := func() {
		past, until, _, err := c.ChangesSince(t.Context(), since)
		if err != nil {
			t.Error(err)
		}
		for _, p := range past {
			got = append(got, fmt.Sprint(p.ModRev, " ", p.Key))
		}
		since = until
		looks++
	}
	for editing.Err() == nil {
		look()
	}
	editors.Wait()
	look()
	order := func(a, b string) int {
		var x, y int64
		fmt.Sscan(a, &x)
		fmt.Sscan(b, &y)
		return int(x - y)
	}
	slices.SortFunc(made, order)
	slices.SortFunc(got, order)
	if diff := cmp.Diff(made, got); diff != "" {
		t.Errorf("of %d changes, in %d looks, %d were told (-made +told):\n%.2000s", len(made), looks, len(got), diff)
	}
}
