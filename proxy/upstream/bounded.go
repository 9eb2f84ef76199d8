package upstream

import (
	"sync"
	"sync/atomic"
)

// bounded is a map of about max entries at most, and never more than twice as
// many. Reading takes no lock, so that it can stand on the way of every flow.
// Its keys may come from clients, as captures of a host pattern do, hence the
// bound.
type bounded[K comparable, V any] struct {
	max     int
	dead    func(V) bool // reports that a value is of no use any more
	entries sync.Map     // K to V
	count   atomic.Int64
	sweep   sync.Mutex // held by whoever makes room
}

// empty may err by what is being stored this moment.
func (b *bounded[K, V]) empty() bool { return b.count.Load() == 0 }

func (b *bounded[K, V]) load(k K) (v V, ok bool) {
	if x, found := b.entries.Load(k); found {
		return x.(V), true
	}
	return v, false
}

func (b *bounded[K, V]) store(k K, v V) {
	if _, known := b.entries.Swap(k, v); known {
		return
	}
	switch n := b.count.Add(1); {
	case n <= int64(b.max):
		return
	case n < int64(2*b.max):
		if !b.sweep.TryLock() {
			return // somebody makes room already
		}
	default:
		b.sweep.Lock() // which is not fast enough
	}
	defer b.sweep.Unlock()
	b.makeRoomLocked()
}

func (b *bounded[K, V]) delete(k K) {
	if _, known := b.entries.LoadAndDelete(k); known {
		b.count.Add(-1)
	}
}

// makeRoomLocked removes dead entries, and where that is not enough as many
// others, whichever come first, as make an eighth of the room free: a flood of
// keys then pays for one full pass per max/8 of them.
func (b *bounded[K, V]) makeRoomLocked() {
	if b.count.Load() <= int64(b.max) {
		return // somebody has made it meanwhile
	}
	b.entries.Range(func(k, v any) bool {
		if b.dead(v.(V)) {
			b.delete(k.(K))
		}
		return true
	})
	target := int64(b.max - b.max/8)
	b.entries.Range(func(k, _ any) bool {
		if b.count.Load() <= target {
			return false
		}
		b.delete(k.(K))
		return true
	})
}
