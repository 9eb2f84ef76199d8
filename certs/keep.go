package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"
)

// keep keeps one certificate until ctx ends: it loads it, obtains it if there
// is none, and renews it when due.
func (c *crew) keep(ctx context.Context, w want) {
	pause := c.load(ctx, w)
	for failures := 0; sleep(ctx, pause); {
		cert, err := c.attempt(ctx, w, failures)
		if ctx.Err() != nil {
			return // the name was let go; whatever it came to is no news
		}
		c.m.metrics.attempt(err)
		if err != nil {
			failures++
			pause = c.m.backoff(failures, err)
			c.m.log.Warn("certificate not obtained", "domain", w.d.name, "provider", w.provider,
				"attempt", failures, "retry_in", pause.Round(time.Second), "err", err)
		} else {
			failures = 0
			pause = jitter(c.m.cfg.CheckEvery)
			if c.publish(w.d, cert) {
				c.m.log.Info("certificate obtained", "domain", w.d.name, "provider", w.provider, "until", cert.Leaf.NotAfter)
			}
		}
		c.settle(w, err, pause)
	}
}

// load puts the stored certificate to use, if there is one, before anything
// waits for the network, and returns how long the first attempt can wait.
func (c *crew) load(ctx context.Context, w want) time.Duration {
	select {
	case c.loads <- struct{}{}:
		defer func() { <-c.loads }()
	case <-ctx.Done():
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, loadLimit) // nobody may keep a place for ever
	defer cancel()
	cert, due, err := c.src.load(ctx, w.order(0))
	if err != nil {
		return 0 // the attempt that follows meets the same error and reports it
	}
	if c.publish(w.d, cert) {
		c.m.log.Info("certificate loaded", "domain", w.d.name, "until", cert.Leaf.NotAfter)
		c.settle(w, nil, 0)
	}
	if due {
		return 0
	}
	return time.Duration(rand.Int64N(int64(c.m.cfg.CheckEvery))) // checks of many names spread out
}

// loadLimit bounds the reading of one certificate.
const loadLimit = 30 * time.Second

// publish makes handshakes use cert and reports whether it is a new one.
func (c *crew) publish(d *domain, cert *tls.Certificate) bool {
	if old := d.cert.Load(); old != nil && old.Leaf.Equal(cert.Leaf) {
		return false
	}
	d.cert.Store(cert)
	return true
}

// settle notes what an attempt came to and tells the owner if that is a change.
// Should the list have changed meanwhile, the status belongs to somebody else.
func (c *crew) settle(w want, err error, pause time.Duration) {
	m := c.m
	m.mu.Lock()
	if m.domains[w.d.name] != w.d || w.d.provider != w.provider || w.d.refused != nil {
		m.mu.Unlock()
		return
	}
	before := *w.d.status.Load()
	if err != nil {
		w.d.fail(w.provider, err, pause)
	} else {
		w.d.begin(w.provider)
	}
	after := *w.d.status.Load()
	m.mu.Unlock()
	if err != nil || before.Err != nil || before.State != after.State || !before.NotAfter.Equal(after.NotAfter) {
		m.cfg.Changed(w.d.name)
	}
}

// attempt makes certmagic do what the certificate needs now, which is most
// often nothing, after so many failures in a row. The libraries below parse what strangers send; a panic of
// theirs becomes a failed attempt.
func (c *crew) attempt(ctx context.Context, w want, failures int) (cert *tls.Certificate, err error) {
	limit := attemptLimit + c.m.cfg.PropagationDelay + max(0, c.m.cfg.PropagationTimeout)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			c.m.log.Error("panic while obtaining a certificate", "domain", w.d.name, "panic", v, "stack", string(debug.Stack()))
			cert, err = nil, fmt.Errorf("panic while obtaining it: %v", v)
		}
	}()
	return c.src.manage(ctx, w.order(failures))
}

// attemptLimit bounds an attempt, apart from the propagation of its record: the
// wait for another node's lock, the authority's own validation and issuance.
const attemptLimit = 15 * time.Minute

// backoff returns the pause after the n-th failure in a row.
func (m *Manager) backoff(n int, err error) time.Duration {
	if limit, ok := errors.AsType[*LimitError](err); ok {
		wait := max(m.cfg.RetryMin, time.Until(limit.Until))
		return wait + time.Duration(rand.Int64N(int64(wait)/10+1)) // not before it makes sense
	}
	d := m.cfg.RetryMin
	for ; n > 1 && d < m.cfg.RetryMax; n-- {
		d *= 2
	}
	return jitter(min(d, m.cfg.RetryMax))
}

// jitter returns d less up to a tenth, so that names do not move in step.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
