package envs

import (
	"math/rand/v2"
	"sync"
	"time"
)

// rivals says how many free places a choice of ports passes over. Nodes that
// choose at the same time, each the lowest port that it knows to be free, choose
// the same ones, and all but one of them in vain. Whoever has just lost to
// another chooses among some of the lowest from then on, the more of them the
// more often that happens, until nobody has come in between for a while. The zero
// value has met nobody: ports are the pool's lowest then.
type rivals struct {
	mu     sync.Mutex
	window int       // choices pass over fewer places than this
	at     time.Time // when it was last made larger, or smaller
}

const (
	// firstWindow and lastWindow bound how far choices spread. With as many as
	// lastWindow, of three nodes that have eight requests under way every
	// hundredth meets another.
	firstWindow, lastWindow = 16, 512
	// calmAfter is how long nobody must have come in between for the window to
	// be halved.
	calmAfter = 2 * time.Second
)

// met notes that another's change came first.
func (r *rivals) met(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm(now)
	r.window, r.at = min(max(firstWindow, 2*r.window), lastWindow), now
}

// skip returns how many free places the next choice passes over.
func (r *rivals) skip(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm(now)
	if r.window == 0 {
		return 0
	}
	return rand.IntN(r.window)
}

// calm makes the window smaller for the time that has passed. r.mu is held.
func (r *rivals) calm(now time.Time) {
	if now.Before(r.at) { // the clock was set back
		r.at = now
	}
	for r.window > 0 && now.Sub(r.at) >= calmAfter {
		r.at = r.at.Add(calmAfter)
		if r.window /= 2; r.window < firstWindow {
			r.window = 0
		}
	}
}
