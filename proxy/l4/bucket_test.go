package l4

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestBucketPacesAllWhoShareIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []int64{100, 64_000, 10_000_000, 2_000_000_000} {
			var b bucket
			b.setRate(rate)
			const seconds, flows = 10, 5
			ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
			var mu sync.Mutex
			moved := 0
			var running sync.WaitGroup
			for range flows {
				running.Go(func() {
					for ctx.Err() == nil {
						n := b.chunk(bufferSize)
						mu.Lock()
						moved += n
						mu.Unlock()
						b.pace(ctx, n)
					}
				})
			}
			running.Wait()
			cancel()
			want := float64(rate) * seconds
			if got := float64(moved); got < want*0.95 || got > want*1.15 {
				t.Errorf("%d bytes per second: %.0f bytes in %d seconds, want about %.0f", rate, got, seconds, want)
			}
		}
	})
}

func TestBucketWithoutLimit(t *testing.T) {
	var b bucket
	if wait := b.spend(1 << 40); wait != 0 || b.limited() || b.chunk(5) != 5 || !b.allow(1<<40) {
		t.Errorf("the zero value limits something")
	}
}

func TestTokens(t *testing.T) {
	now := time.Now()
	var tk tokens
	taken := 0
	for i := range 1000 { // ten seconds
		if tk.take(5, now.Add(time.Duration(i)*10*time.Millisecond)) {
			taken++
		}
	}
	if taken < 5+48 || taken > 5+50 {
		t.Errorf("%d events in ten seconds at 5 per second with a burst of 5, want 54", taken)
	}
}
