package control_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
)

// keysOf returns n mappings as etcd would have them.
func keysOf(n int) (kvs []etcd.KV) {
	for i := range n {
		kvs = append(kvs, etcd.KV{Key: fmt.Sprintf("ports/tcp/%d", 20000+i), Value: []byte("a:1"), ModRev: int64(i + 1)})
	}
	return kvs
}

// life is one life of a node that keeps its state in file: it restores, loads n
// keys at revision rev of a cluster, and ends. It returns what it said.
func life(t *testing.T, file string, cluster uint64, rev int64, n int) (said string) {
	t.Helper()
	var log bytes.Buffer
	node := newNodeWith(t, func(cfg *control.Config) {
		cfg.StateFile, cfg.Cluster = file, func() uint64 { return cluster }
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	node.Restore()
	node.Load(rev, keysOf(n))
	if err := node.Run(ended(t)); err != nil {
		t.Fatal(err)
	}
	return log.String()
}

// wantState checks how many keys a state file holds; -1: there is none.
func wantState(t *testing.T, file string, keys int) {
	t.Helper()
	s, err := control.ReadState(file)
	if keys < 0 {
		if !os.IsNotExist(err) {
			t.Errorf("there is %s with %d keys", file, len(s.Entries))
		}
		return
	}
	if err != nil || len(s.Entries) != keys {
		t.Errorf("%s holds %d keys, %v, want %d", file, len(s.Entries), err, keys)
	}
}

func TestAStepBackKeepsTheStateOfBefore(t *testing.T) {
	for _, tc := range []struct {
		name    string
		cluster uint64
		rev     int64
		keys    int
		want    string // in the log; "": nothing is kept
	}{
		{"forward", 7, 120, 9, ""},
		{"no change", 7, 100, 10, ""},
		{"a cluster that is not known", 0, 120, 10, ""},
		{"emptied", 7, 120, 0, "most keys are gone from etcd"},
		{"nearly emptied", 7, 120, 4, "most keys are gone from etcd"},
		{"an old backup", 7, 99, 10, "etcd has gone back in time"},
		{"another cluster", 8, 120, 10, "etcd is another cluster"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state")
			life(t, file, 7, 100, 10)
			wantState(t, file+".prev", -1)
			said := life(t, file, tc.cluster, tc.rev, tc.keys)
			wantState(t, file, tc.keys)
			if tc.want == "" {
				wantState(t, file+".prev", -1)
				return
			}
			wantState(t, file+".prev", 10)
			if !strings.Contains(said, tc.want) || !strings.Contains(said, "sluice state "+file+".prev | sh") {
				t.Errorf("it says\n%s\nwant %q and how to get back", said, tc.want)
			}
		})
	}
}

// TestTheWorthierStateIsKept empties etcd twice, with some keys put in between.
func TestTheWorthierStateIsKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	life(t, file, 7, 100, 100)
	life(t, file, 7, 101, 0)
	life(t, file, 7, 110, 10)
	life(t, file, 7, 120, 0)
	wantState(t, file+".prev", 100)
	// When nobody has wanted it for long, the next one takes its place.
	long := time.Now().Add(-8 * 24 * time.Hour)
	if err := os.Chtimes(file+".prev", long, long); err != nil {
		t.Fatal(err)
	}
	life(t, file, 7, 130, 10)
	life(t, file, 7, 140, 0)
	wantState(t, file+".prev", 10)
}

// TestADamagedStateFallsBack damages the state of a node that has an older one.
func TestADamagedStateFallsBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	life(t, file, 7, 100, 10)
	life(t, file, 7, 101, 1)
	if err := os.Truncate(file, 30); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, file)
	if !n.Restore() {
		t.Fatal("nothing was restored")
	}
	if mappings, _ := n.table().Len(); mappings != 10 {
		t.Errorf("%d mappings are in force, want the 10 of before", mappings)
	}
	// What is damaged does not take the place of what is not.
	life(t, file, 7, 102, 2)
	wantState(t, file, 2)
	wantState(t, file+".prev", 10)
}

// TestAStepBackIsSaidAtOnce loads an emptied etcd while edits wait to be saved:
// nobody waits for their delay to learn of it.
func TestAStepBackIsSaidAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	life(t, file, 7, 100, 10)
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, file)
		n.Restore()
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { n.Run(ctx) })
		n.Load(100, keysOf(10))
		synctest.Wait() // the saver has begun its delay
		n.Load(101, nil)
		synctest.Wait() // and none of the bubble's time has passed
		wantState(t, file+".prev", 10)
		stop()
		run.Wait()
	})
	wantState(t, file, 0)
	wantState(t, file+".prev", 10)
}

// TestAMeantStepBackIsNoError takes most keys away and says that it is meant.
func TestAMeantStepBackIsNoError(t *testing.T) {
	for _, said := range []string{"", control.MeantKey, control.ConfirmedKey} {
		file := filepath.Join(t.TempDir(), "state")
		life(t, file, 7, 100, 10)
		var log bytes.Buffer
		n := newNodeWith(t, func(cfg *control.Config) {
			cfg.StateFile, cfg.Cluster = file, func() uint64 { return 7 }
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		n.Restore()
		n.Load(100, keysOf(10))
		var changes []etcd.Change
		for _, kv := range keysOf(9) {
			changes = append(changes, etcd.Change{Key: kv.Key, Deleted: true, ModRev: 101})
		}
		if said != "" {
			changes = append(changes, put(said, "", 101))
		}
		n.Change(101, changes)
		if err := n.Run(ended(t)); err != nil {
			t.Fatal(err)
		}
		wantState(t, file+".prev", 10)
		if got, want := strings.Contains(log.String(), "level=ERROR"), said == ""; got != want || !strings.Contains(log.String(), "most keys are gone from etcd") {
			t.Errorf("with %q it says\n%s", said, log.String())
		}
	}
}

// A disk that was full has room again, and nobody edits anything.
func TestASaveThatFailedIsMadeAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	file := filepath.Join(dir, "state")
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, file)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		n.Load(5, keysOf(3))
		time.Sleep(2 * time.Second) // of the bubble
		synctest.Wait()
		if n.SaveTrouble() == nil {
			t.Error("a directory that is not there is no trouble")
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		wantState(t, file, 3)
		if err := n.SaveTrouble(); err != nil {
			t.Errorf("the trouble is over, and it says %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
