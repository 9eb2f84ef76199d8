package http

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestBucketsAgainstAModel compares buckets with a count of what each let
// through.
func TestBucketsAgainstAModel(t *testing.T) {
	const every, full = int64(time.Second), int64(5 * time.Second)
	var b buckets
	random := rand.New(rand.NewPCG(1, 2))
	type owner struct {
		tokens float64
		at     int64
	}
	owners := map[uint64]*owner{}
	for now := int64(1); now < int64(10*time.Minute); now += random.Int64N(int64(200 * time.Millisecond)) {
		tag := 1 + random.Uint64N(10)
		o := owners[tag]
		if o == nil {
			o = &owner{tokens: 5, at: now}
			owners[tag] = o
		}
		o.tokens = min(5, o.tokens+float64(now-o.at)/float64(every))
		o.at = now
		wait := b.take(tag, now, every, full)
		if near := o.tokens - 1; near > 1e-6 && wait > 0 || near < -1e-6 && wait <= 0 {
			t.Fatalf("%v: %v tokens, and a wait of %v", time.Duration(now), o.tokens, time.Duration(wait))
		}
		if wait <= 0 {
			o.tokens--
		} else if missing := (1 - o.tokens) * float64(every); float64(wait) > missing+1000 || float64(wait) < missing-1000 {
			t.Fatalf("a wait of %v for %v tokens", time.Duration(wait), o.tokens)
		}
	}
}

// TestFloodsForgetNobodyWhoWasRefused fills the table many times over with
// owners that ask once.
func TestFloodsForgetNobodyWhoWasRefused(t *testing.T) {
	const every, full = int64(time.Minute), int64(5 * time.Minute)
	var b buckets
	random := rand.New(rand.NewPCG(3, 4))
	const abuser = 12345
	for range 5 {
		if wait := b.take(abuser, 1, every, full); wait > 0 {
			t.Fatal("refused too soon")
		}
	}
	for range 20 * bucketSets * bucketWays {
		if wait := b.take(random.Uint64(), 2, every, full); wait > 0 {
			t.Fatal("somebody who asks for the first time was refused")
		}
	}
	if wait := b.take(abuser, 3, every, full); wait <= 0 {
		t.Error("a flood of others has made a used up bucket full")
	}
}

func TestSlots(t *testing.T) {
	var s slots
	for i, want := range []bool{true, true, false} {
		if got := s.enter(7, 2); got != want {
			t.Errorf("enter %d: %v", i, got)
		}
	}
	if !s.enter(7+slotShards, 1) {
		t.Error("another tag of the shard has no place")
	}
	s.leave(7)
	if !s.enter(7, 2) || s.enter(7, 2) {
		t.Error("a place that was left is not one")
	}
	s.leave(7)
	s.leave(7)
	s.leave(7 + slotShards)
	for i := range s.shards {
		if len(s.shards[i].going) > 0 {
			t.Errorf("shard %d holds %v", i, s.shards[i].going)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	var all buckets
	b.RunParallel(func(pb *testing.PB) {
		tag := rand.Uint64()
		for now := int64(1); pb.Next(); now++ {
			all.take(tag, now, 1, 1000)
		}
	})
}
