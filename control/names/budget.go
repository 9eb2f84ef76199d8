package names

import (
	"math"
	"time"
)

// burst is how many changes of a name may follow each other at once.
const burst = 5

// Budget bounds the changes of a name: burst of them in a row, and one more for
// each interval. The zero value is a full one.
type Budget struct {
	Spent float64   `json:"spent"` // at the time At
	At    time.Time `json:"at"`
}

// left returns how many changes may be made. A clock that is behind the one that
// wrote b has it stay as it is.
func (b Budget) left(interval time.Duration, now time.Time) float64 {
	return burst - b.spent(interval, now)
}

func (b Budget) spent(interval time.Duration, now time.Time) float64 {
	since := max(now.Sub(b.At), 0)
	return max(0, min(b.Spent, burst)-float64(since)/float64(interval))
}

// Spend returns b after a change.
func (b Budget) Spend(interval time.Duration, now time.Time) Budget {
	return Budget{Spent: min(burst, b.spent(interval, now)+1), At: now}
}

// wait returns how long it takes until n changes may be made.
func (b Budget) wait(n float64, interval time.Duration, now time.Time) time.Duration {
	missing := n - b.left(interval, now)
	if missing <= 0 {
		return 0
	}
	// Rounded up, so that whoever waits finds it there.
	return time.Duration(math.Ceil(missing*float64(interval))) + time.Millisecond
}
