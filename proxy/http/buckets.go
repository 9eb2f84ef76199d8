package http

import (
	"sync"
	"sync/atomic"
)

const (
	bucketSets = 1 << 13
	bucketWays = 8
)

// buckets are the token buckets of rate limits, in a table whose size is fixed:
// 1.6 MB, made when the first one is needed. A bucket is found in the set that
// its tag names, under the set's own lock.
//
// A bucket that is full again says nothing and makes room. Where a set has none,
// the one that is nearest to full does, whose loss lets its owner have the
// least. So whoever floods the table with new owners forgets others that hardly
// asked, and can neither have an owner refused nor free one that was.
type buckets struct {
	sets atomic.Pointer[[bucketSets]bucketSet]
	make sync.Mutex // held while sets is made
}

type bucketSet struct {
	mu   sync.Mutex // guards ways
	ways [bucketWays]bucket
}

// bucket counts as a time: that at which it will be full. A request moves that by
// the time that one takes of the limit (GCRA).
type bucket struct {
	tag  uint64
	full int64 // when it is full, in nanoseconds
	size int64 // how long it takes from empty to full
}

// used returns how much of b is used, in 1/1024ths.
func (b *bucket) used(now int64) int64 {
	if b.full <= now || b.size < 1024 {
		return 0
	}
	return (b.full - now) / (b.size / 1024)
}

func (b *buckets) table() *[bucketSets]bucketSet {
	if t := b.sets.Load(); t != nil {
		return t
	}
	b.make.Lock()
	defer b.make.Unlock()
	if b.sets.Load() == nil {
		b.sets.Store(new([bucketSets]bucketSet))
	}
	return b.sets.Load()
}

// take takes a request that fills every nanoseconds out of the bucket of tag,
// which takes full nanoseconds to fill. Where it has no such place it takes
// nothing, and returns how long it will be until it has.
func (b *buckets) take(tag uint64, now, every, full int64) (wait int64) {
	set := &b.table()[tag%bucketSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	at := set.find(tag)
	if at == nil {
		at = set.leastUsed(now)
		*at = bucket{tag: tag}
	}
	begin := max(at.full, now)
	if wait = begin + every - now - full; wait > 0 {
		return wait
	}
	at.full, at.size = begin+every, full
	return 0
}

// giveBack undoes a take.
func (b *buckets) giveBack(tag uint64, every int64) {
	set := &b.table()[tag%bucketSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	if at := set.find(tag); at != nil {
		at.full -= every
	}
}

func (s *bucketSet) find(tag uint64) *bucket {
	for i := range s.ways {
		if s.ways[i].tag == tag {
			return &s.ways[i]
		}
	}
	return nil
}

func (s *bucketSet) leastUsed(now int64) *bucket {
	least := &s.ways[0]
	for i := range s.ways[1:] {
		if w := &s.ways[1+i]; w.used(now) < least.used(now) {
			least = w
		}
	}
	return least
}

const slotShards = 64

// slots count what goes on at a time. What nothing goes on of takes no memory.
type slots struct {
	shards [slotShards]slotShard
}

type slotShard struct {
	mu    sync.Mutex // guards going
	going map[uint64]int
	_     [48]byte // keeps the locks out of each other's cache lines
}

// enter counts one more for tag, unless there are limit of them.
func (s *slots) enter(tag uint64, limit int) bool {
	shard := &s.shards[tag%slotShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	n := shard.going[tag]
	if n >= limit {
		return false
	}
	if shard.going == nil {
		shard.going = map[uint64]int{}
	}
	shard.going[tag] = n + 1
	return true
}

// leave counts one less.
func (s *slots) leave(tag uint64) {
	shard := &s.shards[tag%slotShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if n := shard.going[tag]; n > 1 {
		shard.going[tag] = n - 1
	} else {
		delete(shard.going, tag)
	}
}
