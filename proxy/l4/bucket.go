package l4

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A limited flow moves a 16th of a second's worth at a time, so that flows
	// that share a bucket take turns; never more than a buffer.
	chunksPerSecond = 16
	// Waiting shorter than minNap would wake up for less than a buffer's worth
	// on fast limits; what comes in meanwhile is spent without waiting.
	minNap = 5 * time.Millisecond
	// Waiting longer than maxNap would miss that the limit was raised.
	maxNap = 500 * time.Millisecond
	// saveUp is how much unused bandwidth is kept for a burst.
	saveUp = 50 * time.Millisecond
)

// bucket bounds bytes per second over all flows that share it. Bytes are spent
// first and waited for afterwards: the level may fall below zero, and whoever
// sees that sleeps until it is back. The zero value knows no limit. It is safe
// for use by many goroutines.
type bucket struct {
	rate atomic.Int64 // bytes per second; 0: no limit

	mu    sync.Mutex // guards the following fields
	level float64    // bytes
	asOf  time.Time
}

// setRate changes the limit for whatever is spent from now on.
func (b *bucket) setRate(rate int64) { b.rate.Store(rate) }

// limited reports whether there is a limit at the moment.
func (b *bucket) limited() bool { return b.rate.Load() > 0 }

// chunk returns how many bytes, of at most max, to move before spend is called.
func (b *bucket) chunk(max int) int {
	rate := b.rate.Load()
	if rate <= 0 || rate/chunksPerSecond >= int64(max) {
		return max
	}
	return int(rate/chunksPerSecond) + 1
}

// spend takes n bytes and returns how long to wait before moving more.
func (b *bucket) spend(n int) time.Duration {
	rate := float64(b.rate.Load())
	if rate <= 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill(rate, time.Now())
	b.level -= float64(n)
	if b.level >= 0 {
		return 0
	}
	return min(max(time.Duration(-b.level/rate*float64(time.Second)), minNap), maxNap)
}

// allow takes n bytes if the level is above zero, and reports whether it did:
// for datagrams, which are dropped rather than kept waiting.
func (b *bucket) allow(n int) bool {
	rate := float64(b.rate.Load())
	if rate <= 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill(rate, time.Now())
	if b.level <= 0 {
		return false
	}
	b.level -= float64(n)
	return true
}

func (b *bucket) refill(rate float64, now time.Time) {
	most := rate * saveUp.Seconds()
	if b.asOf.IsZero() {
		b.level = most
	} else {
		b.level = min(b.level+rate*now.Sub(b.asOf).Seconds(), most)
	}
	b.asOf = now
}

// pace spends n bytes and sleeps until more may be moved, or ctx ends.
func (b *bucket) pace(ctx context.Context, n int) {
	if !b.limited() {
		return
	}
	for wait := b.spend(n); wait > 0; wait = b.spend(0) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// tokens bounds events per second, with a burst of one second's worth. The
// zero value is full.
type tokens struct {
	spent float64 // tokens missing
	asOf  time.Time
}

// take takes a token if there is one.
func (t *tokens) take(perSecond int, now time.Time) bool {
	rate := float64(perSecond)
	t.spent = max(t.spent-rate*now.Sub(t.asOf).Seconds(), 0)
	t.asOf = now
	if t.spent+1 > rate {
		return false
	}
	t.spent++
	return true
}
