package upstream

import (
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

// budgetWindow is how many seconds of requests count for how many may be sent
// again now.
const budgetWindow = 10

// budget bounds how much the load of a backend grows by requests that are sent
// again. It takes no lock: where a second ends while requests begin, a few may
// not be counted.
type budget struct {
	seconds [budgetWindow]budgetSecond
}

type budgetSecond struct {
	at           atomic.Int64 // which second
	asked, again atomic.Int64
}

// second returns the count for the second that now is in.
func (b *budget) second(now int64) *budgetSecond {
	s := &b.seconds[now%budgetWindow]
	if at := s.at.Load(); at != now && s.at.CompareAndSwap(at, now) {
		s.asked.Store(0)
		s.again.Store(0)
	}
	return s
}

// ask counts a request.
func (b *budget) ask(now time.Time) { b.second(now.Unix()).asked.Add(1) }

// allow reports whether one more request may be sent again, and counts it then.
func (b *budget) allow(now time.Time, rule router.Retry) bool {
	rule = rule.WithDefaults()
	second := now.Unix()
	mine := b.second(second)
	mine.again.Add(1)
	asked, again := int64(0), int64(0)
	for i := range b.seconds {
		if s := &b.seconds[i]; second-s.at.Load() < budgetWindow {
			asked += s.asked.Load()
			again += s.again.Load()
		}
	}
	if again > max(asked*int64(rule.Budget)/100, int64(rule.MinPerSecond)*budgetWindow) {
		mine.again.Add(-1)
		return false
	}
	return true
}

// Ask counts a request for the budget of its backend's retries.
func (a *Attempt) Ask(now time.Time) {
	if a.backend.Retry != nil {
		a.dialer.groups.of(a.backend).budget.ask(now)
	}
}

// MayRetry reports whether the budget of the backend's retries has room for one,
// and takes it. A backend without Retry has none.
func (a *Attempt) MayRetry(now time.Time) bool {
	return a.backend.Retry != nil && a.dialer.groups.of(a.backend).budget.allow(now, *a.backend.Retry)
}

// Tried reports whether every target has had its turn.
func (a *Attempt) Tried() bool { return a.begun == len(a.backend.Targets) }

// Again has the attempt begin anew with all targets, once each was tried. What
// failed meanwhile comes last.
func (a *Attempt) Again() {
	if a.begun < len(a.backend.Targets) || a.over {
		return
	}
	a.lease.Done()
	a.begun, a.step, a.stuck, a.zone = 0, atNone, 0, anyZone
	a.lay()
}
