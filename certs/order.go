package certs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"
)

// plan works out when a certificate is to be obtained or renewed. m.mu is held.
func (m *Manager) plan(d *domain, now time.Time) {
	d.due, d.ask = time.Time{}, time.Time{}
	if !d.wanted() || d.refused != nil {
		return
	}
	issued, imported := d.holding(now)
	switch {
	case issued != nil:
		d.due, d.ask = renewal(issued)
	case imported != nil: // one of our own has its place when it ends
		d.due, _ = renewal(imported)
	default:
		if d.missing.IsZero() {
			d.missing = now
		}
		d.due = d.missing
		return
	}
	d.missing = time.Time{}
}

// holding returns the best certificates of authorities and of operators that hold.
// m.mu is held.
func (d *domain) holding(now time.Time) (issued, imported *Stored) {
	for _, s := range d.stored {
		switch {
		case s.Gone || !holds(s, now):
		case s.Issuer == Imported:
			imported = s
		case issued == nil || better(s, issued, now):
			issued = s
		}
	}
	return issued, imported
}

// next returns when the attempt for d is due that this node would make, were
// it first in turn, and whether it only asks for the authority's wishes; zero:
// there is none. m.mu is held.
func (d *domain) next() (at time.Time, asking bool) {
	if d.due.IsZero() || d.work != nil {
		return time.Time{}, false
	}
	at = d.due
	if !d.ask.IsZero() && d.ask.Before(at) {
		at, asking = d.ask, true
	}
	if d.attempt.Wish >= d.wish() { // else somebody has asked for it again since
		at = latest(at, d.attempt.Next)
	}
	return latest(at, d.own.Next), asking
}

// idle reports whether there is nothing to be done now, whatever an attempt came to
// before. m.mu is held.
func (d *domain) idle(now time.Time) bool {
	return d.due.After(now) && (d.ask.IsZero() || d.ask.After(now))
}

// wish returns the revision of what asks for a certificate.
func (d *domain) wish() int64 {
	if d.entry == nil {
		return 0
	}
	return d.entry.Rev
}

func latest(times ...time.Time) (last time.Time) {
	for _, t := range times {
		if t.After(last) {
			last = t
		}
	}
	return last
}

// schedule has d looked at when something is due. m.mu is held.
func (m *Manager) schedule(d *domain, now time.Time) {
	var wake time.Time
	soonest := func(t time.Time) {
		if !t.IsZero() && (wake.IsZero() || t.Before(wake)) {
			wake = t
		}
	}
	future := func(t time.Time) {
		if t.After(now) {
			soonest(t)
		}
	}
	if at, _ := d.next(); !at.IsZero() {
		soonest(latest(at, d.held))
	}
	for _, s := range d.stored {
		future(s.Certificate.Leaf.NotBefore)
		future(s.Certificate.Leaf.NotAfter)
		if d.wanted() {
			soonAt, urgentAt := stagesOf(s)
			future(soonAt)
			future(urgentAt)
		}
	}
	if d.wanted() && d.best != nil && m.stageOf(d, now) != calm {
		soonest(now.Add(m.cfg.CheckEvery)) // what is left, in words
	}
	if d.work == nil && m.cleanable(d, now) {
		soonest(latest(now, d.held))
	}
	if at := d.leftAt(now); d.work == nil && !at.IsZero() {
		soonest(latest(at, d.held))
	}
	m.queue.set(d, wake)
}

// attempt makes certmagic do what the certificate needs now. The libraries below
// parse what strangers send; a panic of theirs becomes a failed attempt.
func (c *crew) attempt(ctx context.Context, t *turn) (err error) {
	limit := attemptLimit + c.m.cfg.PropagationDelay + max(0, c.m.cfg.PropagationTimeout)
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, turnKey{}, t), limit)
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			c.m.log.Error("panic while obtaining a certificate", "domain", t.name, "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic while obtaining it: %v", v)
		}
	}()
	return c.by.obtain(ctx, t)
}

// attemptLimit bounds an attempt, apart from the propagation of its record: the
// wait for another node's lock, the authority's own validation and issuance.
const attemptLimit = 15 * time.Minute

// shareLimit bounds telling others what an attempt came to, and withdrawLimit
// taking it back, for which a node that stops waits.
const (
	shareLimit    = 10 * time.Second
	withdrawLimit = 2 * time.Second
)

// order takes this node's turn for a name, or leaves it to others for a while.
func (c *crew) order(ctx context.Context, t *turn) {
	m := c.m
	rank := m.roster.rank(ctx, m.cfg.Node, t.name, t.failures)
	step := m.cfg.TurnEvery
	if t.asking {
		step = time.Hour // nothing is lost by a wish that is heard later
	}
	if begin := t.base.Add(time.Duration(rank) * step); time.Now().Before(begin) {
		c.ended(t, func(d *domain, _ time.Time) { d.held = begin })
		return
	}
	if m.cfg.Store.Lacking(t.name) != nil {
		c.lacks(t)
		return
	}
	err := c.attempt(ctx, t)
	if ctx.Err() != nil { // let go, or stopping; whatever it came to is no news
		t.withdraw(ctx)
		c.ended(t, func(*domain, time.Time) {})
		return
	}
	var held *heldError
	if errors.As(err, &held) {
		c.ended(t, func(d *domain, _ time.Time) { d.attempt = held.by })
		return
	}
	if err != nil && m.cfg.Store.Lacking(t.name) != nil { // as this node knows by now
		t.withdraw(ctx)
		c.lacks(t)
		return
	}
	m.metrics.attempt(err)
	sharing, cancel := context.WithTimeout(context.WithoutCancel(ctx), shareLimit)
	defer cancel()
	if err != nil {
		c.failed(sharing, t, err)
		return
	}
	if t.known.rev != 0 || t.failures > 0 {
		t.forget(sharing)
	}
	c.ended(t, func(d *domain, now time.Time) {
		d.own = attempt{}
		if t.known.rev >= d.attempt.rev {
			d.attempt = t.known
		}
		// The shelf is about to have it; nothing that is not due is done before.
		d.held = now.Add(jitter(m.cfg.CheckEvery))
	})
}

// lackingFor is how long a node that lacks the cluster's key leaves a name to the
// others before it looks again whether it has the key.
const lackingFor = 10 * time.Second

// lacks has a node without the key stand by: what it cannot do is no failure of
// the name's, and the other nodes do it.
func (c *crew) lacks(t *turn) {
	c.ended(t, func(d *domain, now time.Time) { d.held = now.Add(lackingFor) })
}

// forget takes back what is shared of failures: there is a certificate.
func (t *turn) forget(ctx context.Context) {
	known, err := t.m.readAttempt(ctx, t.key)
	if err == nil && known.rev != 0 {
		known, err = t.m.writeAttempt(ctx, t.key, known, attempt{})
	}
	if err != nil && !errors.Is(err, ErrSwapped) {
		t.m.log.Warn("cannot tell other nodes that an attempt succeeded", "domain", t.name, "err", err)
		return
	}
	t.known = attempt{rev: known.rev}
}

// withdraw takes back that an attempt is under way.
func (t *turn) withdraw(ctx context.Context) {
	if t.began.IsZero() || t.failed {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawLimit)
	defer cancel()
	is := t.known
	if is.Ended = time.Now(); is.Failures == 0 {
		is = attempt{}
	}
	if _, err := t.m.writeAttempt(ctx, t.key, t.known, is); err != nil {
		t.m.log.Debug("cannot take back that an attempt is under way", "domain", t.name, "err", err)
	}
}

// failed notes a failure and when the next attempt begins.
func (c *crew) failed(ctx context.Context, t *turn, err error) {
	if !t.failed { // on the way to the lock, or from there
		if known, readErr := c.m.readAttempt(ctx, t.key); readErr == nil {
			t.known = known
		}
		t.fail(ctx, err)
	}
	c.m.log.Warn("certificate not obtained", "domain", t.name, "provider", t.provider,
		"failures", t.known.Failures, "next", t.known.Next, "err", err)
	c.ended(t, func(d *domain, _ time.Time) {
		if t.known.rev == 0 {
			d.own = t.known
			return
		}
		d.own, d.attempt = attempt{}, t.known
	})
}

// backoff returns the pause after the n-th failure in a row, and whether this
// one counts as one: a limit that the authority sets says for itself when it ends.
func (m *Manager) backoff(n int, err error) (pause time.Duration, counts bool) {
	if limit, ok := errors.AsType[*LimitError](err); ok {
		wait := max(m.cfg.RetryMin, time.Until(limit.Until))
		return wait + time.Duration(rand.Int64N(int64(wait)/10+1)), false // not before it makes sense
	}
	d := m.cfg.RetryMin
	for ; n > 1 && d < m.cfg.RetryMax; n-- {
		d *= 2
	}
	return jitter(min(d, m.cfg.RetryMax)), true
}

// jitter returns d less up to a tenth, so that names do not move in step.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}
