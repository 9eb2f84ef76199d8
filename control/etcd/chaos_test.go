package etcd_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Whatever happens to the network and to etcd's memory, the mirror ends with
// what etcd has, and has been told everything in order on the way.
func TestWatchUnderChaos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	p := newProxy(t, srv.Endpoint())
	c := dial(t, p.endpoint())
	c.SetPace(10*time.Millisecond, 150*time.Millisecond, 100*time.Millisecond)
	m := newMirror(t)
	goWatch(t, c, m)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var rev int64
	for ctx.Err() == nil {
		switch rnd.IntN(60) {
		case 0:
			p.cut()
			p.heal()
		case 1:
			p.cut()
		case 2:
			p.freeze()
		case 3:
			if _, err := op.Compact(t.Context(), rev); err != nil && !strings.Contains(err.Error(), "compacted") {
				t.Fatal(err)
			}
		case 4, 5, 6, 7:
			p.heal()
			p.thaw()
		default:
			rev = edit(t, op, rnd)
		}
	}
	p.heal()
	p.thaw()
	rev = put(t, op, "/sluice/ports/tcp/0", "the end")
	m.awaitRev(rev)
	want := keysUnder(t, op, "/sluice/")
	for key := range want {
		if strings.HasPrefix(key, "verdicts/") {
			delete(want, key)
		}
	}
	if diff := cmp.Diff(want, m.snapshot()); diff != "" {
		t.Errorf("seed %d: mirror differs (-want +got):\n%s", seed, diff)
	}
	t.Logf("%d loads, %d batches up to revision %d", m.loads, len(m.batches), rev)
}

// edit changes a key or a few and returns the revision of that.
func edit(t *testing.T, op *clientv3.Client, rnd *rand.Rand) int64 {
	t.Helper()
	key := func() string {
		subtrees := []string{"ports/tcp", "ports/udp", "routes", "domains", "names", "pools", "verdicts/edge-1", "prots/tcp"}
		return fmt.Sprintf("/sluice/%s/%d", subtrees[rnd.IntN(len(subtrees))], rnd.IntN(10))
	}
	value := fmt.Sprint(rnd.Uint32())
	switch rnd.IntN(4) {
	case 0:
		return del(t, op, key())
	case 1:
		ops := map[string]clientv3.Op{}
		for range 5 {
			k := key()
			ops[k] = clientv3.OpPut(k, value)
		}
		txn := make([]clientv3.Op, 0, len(ops))
		for _, o := range ops {
			txn = append(txn, o)
		}
		resp, err := op.Txn(t.Context()).Then(txn...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	return put(t, op, key(), value)
}

// Edits as fast as etcd takes them, for as long as two heartbeats may stay
// unanswered: the watch must keep up, and not take the load for a freeze.
func TestWatchKeepsUpWithABurst(t *testing.T) {
	srv := startFast(t)
	op := raw(t, srv.Endpoint())
	c := dial(t, srv.Endpoint())
	c.SetPace(50*time.Millisecond, 2*time.Second, patience)
	m := newMirror(t)
	goWatch(t, c, m)
	m.await("the load", func() bool { return m.loads == 1 })
	var rev int64
	begin := time.Now()
	n := 0
	for ; time.Since(begin) < 4*time.Second; n++ {
		rev = put(t, op, fmt.Sprintf("/sluice/ports/tcp/%d", n%1000), fmt.Sprint(n))
	}
	m.awaitRev(rev)
	if m.loads != 1 {
		t.Errorf("loaded %d times, want the watch to last", m.loads)
	}
	t.Logf("%d edits in %v", n, time.Since(begin))
}
