package history

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/etcd"
)

// Whoever may put keys must not be able to switch off the memory of what they do
// next, by keys and notes of any size, or by keys where the history is.
func TestRecorderOutlivesOddKeys(t *testing.T) {
	for name, ops := range map[string][]clientv3.Op{
		"a note": {clientv3.OpPut("/sluice/edits/last", strings.Repeat("x", 700<<10)), clientv3.OpPut("/sluice/routes/a", "1"),
			clientv3.OpPut("/sluice/routes/b", "1"), clientv3.OpPut("/sluice/routes/c", "1")},
		"a key":          {clientv3.OpPut("/sluice/prots/"+strings.Repeat("<", 400<<10), "1")},
		"a binary key":   {clientv3.OpPut("/sluice/prots/"+strings.Repeat("\x01", 400<<10), "1")},
		"among batches":  {clientv3.OpPut("/sluice/history/changes/zzz", "garbage"), clientv3.OpPut("/sluice/routes/a", "1")},
		"beside its own": {clientv3.OpPut("/sluice/history/recorded2", "garbage"), clientv3.OpPut("/sluice/routes/a", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t)
			r := c.recorder()
			c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
				state, err := r.begin(ctx, term, 0)
				if err != nil {
					return err
				}
				if _, err := c.raw.Txn(ctx).Then(ops...).Commit(); err != nil {
					return err
				}
				for i := range 2 {
					rev := c.put(t, "routes/after", fmt.Sprint(i))
					if err := r.record(ctx, term, state); err != nil {
						return err
					}
					log, err := Read(ctx, c.Client, 0)
					if err != nil {
						return err
					}
					if last := log.Changes[len(log.Changes)-1]; last.Rev != rev || state.To < rev {
						t.Errorf("the last change is %.200v, want one at revision %d", last, rev)
					}
					if _, err := Newest(ctx, c.Client); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// The whole prefix is deleted, and with it the history: etcd itself remembers.
func TestKeysAtAfterTheHistoryIsDeleted(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	var before int64
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		c.put(t, "routes/a", "1")
		before = c.put(t, "ports/tcp/1", "2")
		return r.record(ctx, term, state)
	})
	if _, err := c.raw.Delete(t.Context(), "/sluice/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	again := func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		c.put(t, "routes/b", "1")
		return r.record(ctx, term, state)
	}
	c.asLeader(t, again)
	then, err := KeysAt(t.Context(), c.Client, before, "routes/")
	if err != nil || len(then.Values) != 1 || then.Values["routes/a"] != "1" {
		t.Errorf("the routes at revision %d: %v, %v", before, then, err)
	}
	now := c.put(t, "elsewhere", "1")
	c.asLeader(t, again)
	if _, err := c.raw.Compact(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	var old *TooOldError
	if _, err := KeysAt(t.Context(), c.Client, before, ""); !errors.As(err, &old) {
		t.Errorf("when etcd has forgotten as well: %v", err)
	}
}

// What somebody writes over the leader's note of how far the history goes keeps
// nobody from asking, and is written anew.
func TestNoteOfTheHistoryIsOverwritten(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		c.put(t, "routes/a", "1")
		return r.record(ctx, term, state)
	})
	c.put(t, status, "garbage")
	before := c.put(t, "routes/b", "2")
	c.put(t, "routes/b", "3")
	look := func(whose string) {
		t.Helper()
		if then, err := KeysAt(t.Context(), c.Client, before, ""); err != nil || then.Values["routes/b"] != "2" || then.Values["routes/a"] != "1" {
			t.Errorf("%s: the keys at revision %d: %v, %v", whose, before, then, err)
		}
		if newest, err := Newest(t.Context(), c.Client); err != nil || newest != before+1 {
			t.Errorf("%s: the newest change: %d, %v, want %d", whose, newest, err, before+1)
		}
	}
	look("by etcd's memory")
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.resume(ctx, term)
		if err != nil {
			return err
		}
		before = c.put(t, "routes/b", "2")
		c.put(t, "routes/b", "4")
		return r.record(ctx, term, state)
	})
	if state, err := readRecorded(t.Context(), c.Client); err != nil || state.To <= before {
		t.Errorf("it is not written anew: %+v, %v", state, err)
	}
	look("by the history")
}

// Parts of the history that somebody deleted are missed, rather than taken for
// nothing having happened, and do not count when it is trimmed.
func TestPartsOfTheHistoryAreDeletedByHand(t *testing.T) {
	for _, some := range []bool{false, true} {
		c := startCluster(t)
		r := New(Config{Client: c.Client, Node: "a", Keep: time.Hour, Bytes: 2000, Logger: slog.New(slog.DiscardHandler)})
		c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
			state, err := r.begin(ctx, term, 0)
			if err != nil {
				return err
			}
			var revs []int64
			record := func(value string) {
				revs = append(revs, c.put(t, "routes/a", value))
				c.put(t, "routes/b", value)
				if err := r.record(ctx, term, state); err != nil {
					t.Fatal(err)
				}
			}
			for range 10 {
				record("v")
			}
			kvs, err := c.ReadRange(ctx, batches, "", 100)
			if err != nil || len(kvs) != 10 {
				t.Fatalf("%d batches, error %v", len(kvs), err)
			}
			gone := kvs
			if some {
				gone = kvs[3:5]
			}
			for _, kv := range gone {
				if _, err := c.raw.Delete(ctx, "/sluice/"+kv.Key); err != nil {
					return err
				}
			}
			if some {
				if then, err := KeysAt(ctx, c.Client, revs[6], ""); err != nil || len(then.Values) != 2 {
					t.Errorf("of what is still there: %v, %v", then, err)
				}
			}
			if _, err := c.raw.Compact(ctx, revs[9]); err != nil {
				return err
			}
			var old *TooOldError
			if then, err := KeysAt(ctx, c.Client, revs[0], ""); !errors.As(err, &old) {
				t.Errorf("of what is gone: %v, %v", then, err)
			}
			for range 3 {
				record("w")
				if err := r.trim(ctx, term, state); err != nil {
					return err
				}
			}
			kvs, err = c.ReadRange(ctx, batches, "", 100)
			if err != nil || len(kvs) < 3 {
				t.Errorf("%d batches are left, error %v, of %d bytes", len(kvs), err, state.Bytes)
			}
			return nil
		})
	}
}

// Keys and values that are no UTF-8 are what they were.
func TestHistoryOfBinaryKeys(t *testing.T) {
	c := startCluster(t)
	r := c.recorder()
	c.asLeader(t, func(ctx context.Context, term *etcd.Term) error {
		state, err := r.begin(ctx, term, 0)
		if err != nil {
			return err
		}
		const value = "Gr\xfc\xdfe"
		c.put(t, "pools/\xff", value)
		rev := c.put(t, "routes/a", value)
		c.put(t, "pools/\xfe", "later")
		c.put(t, "pools/\xff", "other")
		c.put(t, "routes/a", "other")
		if err := r.record(ctx, term, state); err != nil {
			return err
		}
		got, err := KeysAt(ctx, c.Client, rev, "")
		if err != nil {
			return err
		}
		if want := map[string]string{"pools/\xff": value, "routes/a": value}; !maps.Equal(got.Values, want) {
			t.Errorf("at revision %d there was %q, want %q", rev, got.Values, want)
		}
		return nil
	})
}
