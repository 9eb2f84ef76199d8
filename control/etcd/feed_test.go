package etcd

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func newTestFeed(deliver func(arrival)) *feed {
	return &feed{spans: make([]span, 2), deliver: deliver, next: []int64{10, 10}, part: make([]*etcdserverpb.WatchResponse, 2)}
}

func answer(id, rev int64, more bool, mods ...int64) *etcdserverpb.WatchResponse {
	r := &etcdserverpb.WatchResponse{WatchId: id, Header: &etcdserverpb.ResponseHeader{Revision: rev}, Fragment: more}
	for _, m := range mods {
		r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{ModRevision: m}})
	}
	return r
}

// TestFeedPutsFragmentsTogether looks at what is delivered, and from where
// another stream would go on: a revision in fragments counts once it is whole, and the answer to
// a question, which old servers give early, does not.
func TestFeedPutsFragmentsTogether(t *testing.T) {
	var got []arrival
	f := newTestFeed(func(a arrival) { got = append(got, a) })
	for i, step := range []struct {
		resp     *etcdserverpb.WatchResponse
		arrivals int
		events   int // of the last one
		next     [2]int64
	}{
		{answer(1, 12, true, 12, 12), 0, 0, [2]int64{10, 10}},
		{answer(1, 12, true, 12), 0, 0, [2]int64{10, 10}},
		{answer(1, 12, false, 12, 12), 1, 5, [2]int64{13, 10}},
		{answer(2, 14, false, 14), 2, 1, [2]int64{13, 15}},
		{answer(2, 15, false), 3, 0, [2]int64{13, 16}},
		{answer(-1, 20, false), 4, 0, [2]int64{13, 16}},
		{answer(9, 30, false, 30), 4, 0, [2]int64{13, 16}},
	} {
		if err := f.take(step.resp); err != nil {
			t.Fatal(err)
		}
		if len(got) != step.arrivals || [2]int64(f.next) != step.next {
			t.Fatalf("step %d: %d arrivals, next %v, want %d, %v", i, len(got), f.next, step.arrivals, step.next)
		}
		if n := len(got); n > 0 && len(got[n-1].events) != step.events {
			t.Errorf("step %d: %d events, want %d", i, len(got[n-1].events), step.events)
		}
	}
}

func TestFeedSaysWhyItWasRefused(t *testing.T) {
	for _, tc := range []struct {
		resp   *etcdserverpb.WatchResponse
		want   error
		reason string
	}{
		{&etcdserverpb.WatchResponse{Canceled: true, CompactRevision: 7}, rpctypes.ErrCompacted, "compacted"},
		{&etcdserverpb.WatchResponse{Canceled: true, Created: true, CancelReason: "rpc error: code = PermissionDenied desc = etcdserver: permission denied"}, rpctypes.ErrPermissionDenied, "auth"},
		{&etcdserverpb.WatchResponse{Canceled: true, CancelReason: "etcdserver: no leader"}, rpctypes.ErrNoLeader, "no_leader"},
		{&etcdserverpb.WatchResponse{Canceled: true}, nil, "error"},
	} {
		err := newTestFeed(nil).take(tc.resp)
		if err == nil || isPassing(err) {
			t.Errorf("%v: the feed goes on after %v", tc.resp, err)
			continue
		}
		if err = rpctypes.Error(err); tc.want != nil && !errors.Is(err, tc.want) || lossReason(err) != tc.reason {
			t.Errorf("%v: %v, for the reason %s, want %s", tc.resp, err, lossReason(err), tc.reason)
		}
	}
}

// TestThrottle counts the transactions of a second, of a bubble's time.
func TestThrottle(t *testing.T) {
	for _, tc := range []struct {
		full          bool
		once, inTotal int // at once, and within a second
	}{{false, 3, 23}, {true, 30, 230}} {
		synctest.Test(t, func(t *testing.T) {
			var budget throttle
			began, once, total := time.Now(), 0, 0
			for budget.wait(t.Context(), tc.full) && time.Since(began) <= time.Second {
				total++
				if time.Since(began) == 0 {
					once++
				}
			}
			if once != tc.once || total != tc.inTotal {
				t.Errorf("full %v: %d transactions at once and %d in a second, want %d and %d", tc.full, once, total, tc.once, tc.inTotal)
			}
		})
	}
}

// TestFeedKnowsWhoAnswersEarly has etcd answer the question of a probe before it
// says that the watcher behind it exists, and after.
func TestFeedKnowsWhoAnswersEarly(t *testing.T) {
	created := answer(watchID(2), 12, false)
	created.Created = true
	question := answer(-1, 12, false)
	told := 0
	f := newTestFeed(func(arrival) { told++ })
	f.exact = true
	if err := f.take(question); err != nil || told != 0 {
		t.Errorf("an answer that may be early: error %v, told %d times, want neither", err, told)
	}
	if err := f.take(created); !errors.Is(err, errEarly) {
		t.Errorf("the answer came first: %v, want errEarly", err)
	}
	f = newTestFeed(func(arrival) { told++ })
	f.exact = true
	for _, resp := range []*etcdserverpb.WatchResponse{created, question} {
		if err := f.take(resp); err != nil {
			t.Errorf("the answer came last: %v", err)
		}
	}
	if told != 1 {
		t.Errorf("told %d times, want once", told)
	}
}
