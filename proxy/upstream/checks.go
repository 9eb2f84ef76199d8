package upstream

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

// maxChecking bounds how many checks run at a time. With targets that do not
// answer, two seconds each, that many keep up with some hundred a second.
const maxChecking = 256

// checks connects to the targets of backends that want it, asks those that are to
// answer, and knows which are down. Targets that several backends check alike are checked once. A check that
// is not running is a timer; those that are due wait in a queue for one of a few
// goroutines, which end when it is empty.
type checks struct {
	dialer *Dialer
	live   sync.Map     // checkKey to *check, for flows
	downs  atomic.Int64 // how many of them are down
	// changed is told of targets that go down or come back; nil: nobody is.
	changed func()

	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex // guards the following fields, and those of each check
	all     map[checkKey]*check
	byEP    map[Endpoint][]*check
	due     []*check
	working int
	closed  bool
}

// checkKey is what makes two checks the same one.
type checkKey struct {
	ep     Endpoint
	health router.Health // with its defaults
	asking Asking
}

// check is the checking of one target.
type check struct {
	checkKey
	down atomic.Bool

	ctx    context.Context // ends when nobody wants the check any more
	cancel context.CancelFunc

	// Guarded by checks.mu.
	users  int
	timer  *time.Timer
	passed bool // once at least
	streak int  // of results that speak against what is thought
	since  time.Time
	last   time.Time
	err    error
}

func newChecks(d *Dialer) *checks {
	s := &checks{dialer: d, all: map[checkKey]*check{}, byEP: map[Endpoint][]*check{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// SetChecked has the targets of the backends in came checked from now on, and
// those in gone, which were in came before, no more. Backends without Health
// count for nothing. What is known of a target is kept if it is in both. It does
// not wait for any check, and does nothing once the Dialer is closed.
func (d *Dialer) SetChecked(came, gone []*router.Backend) {
	s := d.checks
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, b := range came {
		s.each(b, s.add)
	}
	for _, b := range gone {
		s.each(b, s.drop)
	}
}

func (s *checks) each(b *router.Backend, f func(checkKey)) {
	if b.Health == nil {
		return
	}
	for i := range b.Targets {
		host, port, err := b.Targets[i].Address.Expand(&router.Vars{})
		if err == nil { // which holds for what router lets pass
			f(checkKey{EndpointOf(b, i, host, port), b.Health.WithDefaults(), AskingOf(b, host)})
		}
	}
}

// add needs s.mu.
func (s *checks) add(key checkKey) {
	if c := s.all[key]; c != nil {
		c.users++
		return
	}
	c := &check{checkKey: key, users: 1, since: time.Now()}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	if alike := s.byEP[key.ep]; len(alike) > 0 { // its settings were edited
		c.passed, c.since, c.last, c.err = alike[0].passed, alike[0].since, alike[0].last, alike[0].err
		s.set(c, alike[0].down.Load())
	}
	s.all[key] = c
	s.byEP[key.ep] = append(s.byEP[key.ep], c)
	s.live.Store(key, c)
	s.dialer.metrics.checked(c.down.Load(), 1)
	// Anywhere in the interval, so that a table full of them is no volley.
	c.timer = time.AfterFunc(rand.N(key.health.Interval), func() { s.enqueue(c) })
}

// drop needs s.mu.
func (s *checks) drop(key checkKey) {
	c := s.all[key]
	if c == nil {
		return
	}
	if c.users--; c.users > 0 {
		return
	}
	c.timer.Stop()
	c.cancel()
	delete(s.all, key)
	s.live.Delete(key)
	if alike := slices.DeleteFunc(s.byEP[key.ep], func(other *check) bool { return other == c }); len(alike) > 0 {
		s.byEP[key.ep] = alike
	} else {
		delete(s.byEP, key.ep)
	}
	s.dialer.metrics.checked(c.down.Load(), -1)
	s.set(c, false)
}

// set notes whether c is down, and counts it. It needs s.mu.
func (s *checks) set(c *check, down bool) {
	if c.down.Swap(down) != down {
		if down {
			s.downs.Add(1)
		} else {
			s.downs.Add(-1)
		}
		if s.changed != nil {
			s.changed()
		}
	}
}

// isDown reports whether checks say that ep, of the backend b, is down. It takes
// no lock.
func (s *checks) isDown(ep Endpoint, b *router.Backend) bool {
	if b.Health == nil || s.downs.Load() == 0 {
		return false
	}
	c, ok := s.live.Load(checkKey{ep, b.Health.WithDefaults(), AskingOf(b, ep.Host)})
	return ok && c.(*check).down.Load()
}

// AllDown says that checks find every target of b down, and of one of them why;
// nil where some target is up, or not known to be down.
func (d *Dialer) AllDown(b *router.Backend) error {
	s := d.checks
	if b.Health == nil || s.downs.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var first *check
	targets, down := 0, 0
	s.each(b, func(key checkKey) {
		targets++
		if c := s.all[key]; c != nil && c.down.Load() {
			down++
			if first == nil {
				first = c
			}
		}
	})
	if down == 0 || down < len(b.Targets) || down < targets {
		return nil
	}
	if targets == 1 {
		return fmt.Errorf("%v fails its checks: %w", first.ep, first.err)
	}
	return fmt.Errorf("all %d targets fail their checks, and are used all the same; %v: %w", targets, first.ep, first.err)
}

// enqueue has c run as soon as it is its turn.
func (s *checks) enqueue(c *check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || c.users == 0 {
		return
	}
	s.due = append(s.due, c)
	if s.working < maxChecking {
		s.working++
		s.workers.Go(s.work)
	}
}

// work runs what is due until nothing is.
func (s *checks) work() {
	for {
		s.mu.Lock()
		if s.closed || len(s.due) == 0 {
			s.working--
			s.mu.Unlock()
			return
		}
		c := s.due[0]
		s.due[0] = nil
		if s.due = s.due[1:]; len(s.due) == 0 {
			s.due = nil // what it grew to is not kept
		}
		s.mu.Unlock()
		if c.ctx.Err() == nil {
			err, blames := s.try(c)
			s.note(c, err, blames)
		}
	}
}

// try connects to the target once, and asks it where that is wanted. blames is false where a failure is not the
// target's.
func (s *checks) try(c *check) (err error, blames bool) {
	began := time.Now()
	a := Attempt{dialer: s.dialer, Timeout: c.health.Timeout, quiet: true}
	a.begin(c.ep)
	conn, err := a.dial(c.ctx)
	if err != nil {
		return err, a.outcome.blamesBackend()
	}
	if c.health.Path != "" {
		bounded, cancel := context.WithDeadline(c.ctx, began.Add(c.health.Timeout))
		defer cancel()
		err := c.ask(bounded, s.dialer, conn)
		return err, c.ctx.Err() == nil
	}
	// With a reset: it leaves nothing behind, neither here nor there.
	_ = conn.SetLinger(0)
	conn.Close()
	return nil, false
}

// note takes the result of a check and arranges for the next.
func (s *checks) note(c *check, err error, blames bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || c.users == 0 {
		return
	}
	interval := c.health.Interval
	c.timer.Reset(interval - interval/10 + rand.N(interval/5)) // never in step
	if err != nil && !blames {
		return
	}
	s.dialer.metrics.check(err == nil)
	c.last, c.err = time.Now(), err
	was := c.down.Load()
	limit := c.health.Fall
	switch {
	case was:
		limit = c.health.Rise
	case !c.passed:
		limit = 1 // that it is up was never more than a hope
	}
	c.passed = c.passed || err == nil
	if was == (err != nil) {
		c.streak = 0
		return
	}
	if c.streak++; c.streak < limit {
		return
	}
	c.streak, c.since = 0, c.last
	s.dialer.metrics.checked(was, -1)
	s.set(c, !was)
	s.dialer.metrics.checked(!was, 1)
	if was {
		s.dialer.log.Info("a target is up again", "upstream", c.ep.String())
	} else {
		s.dialer.log.LogAttrs(context.Background(), slog.LevelWarn, "a target is down", slog.String("upstream", c.ep.String()), slog.String("err", err.Error()))
	}
}

// close ends all checks and waits for them.
func (s *checks) close() {
	s.mu.Lock()
	s.closed = true
	for _, c := range s.all {
		c.timer.Stop()
	}
	s.mu.Unlock()
	s.cancel()
	s.workers.Wait()
}

// TargetHealth is what checks know of a target.
type TargetHealth struct {
	Endpoint Endpoint
	Health   router.Health // how it is checked, with the defaults filled in
	Asking   Asking
	Up       bool
	Since    time.Time // when that began; of a target that was never down, when it was first to be checked
	Checked  time.Time // the last time; zero: not yet
	Err      error     // of the last check; nil if it passed, or there was none
}

// Health returns what is known of all targets that are checked, in the order of
// their addresses.
func (d *Dialer) Health() []TargetHealth {
	s := d.checks
	s.mu.Lock()
	list := make([]TargetHealth, 0, len(s.all))
	for _, c := range s.all {
		list = append(list, TargetHealth{
			Endpoint: c.ep, Health: c.health, Asking: c.asking, Up: !c.down.Load(), Since: c.since, Checked: c.last, Err: c.err,
		})
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b TargetHealth) int {
		return cmp.Or(cmp.Compare(a.Endpoint.Host, b.Endpoint.Host), cmp.Compare(a.Endpoint.Port, b.Endpoint.Port),
			cmp.Compare(a.Health.Interval, b.Health.Interval), cmp.Compare(a.Health.Timeout, b.Health.Timeout),
			cmp.Compare(a.Health.Path, b.Health.Path))
	})
	return list
}
