package certs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Run obtains and renews certificates until ctx ends, then calls off what is
// under way and returns nil. Every goroutine that it started has ended by then,
// which can take as long as one operation of a DNS provider: a record that was
// added is deleted first. It can be called once.
//
// Certificates stay available from GetCertificate after Run has returned.
func (m *Manager) Run(ctx context.Context) error {
	if !m.running.CompareAndSwap(false, true) {
		return errors.New("certificates: Run was called before")
	}
	src, err := newSource(m.cfg, m.cfg.Store, m.metrics)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	defer src.close()
	src.survey(ctx)
	var proving sync.WaitGroup
	defer proving.Wait()
	proving.Go(func() { src.proof.Run(ctx) })
	return m.runWith(ctx, orders{src})
}

// obtainer obtains and renews certificates.
type obtainer interface {
	// obtain does what a certificate needs now: it is one attempt.
	obtain(ctx context.Context, t *turn) error
	// setNames tells which names there are to be obtained, and by which
	// providers.
	setNames(providers map[string]string)
}

// orders is the source as an obtainer.
type orders struct{ src *source }

func (o orders) obtain(ctx context.Context, t *turn) error {
	_, err := o.src.manage(ctx, order{name: t.name, provider: t.provider, issuer: t.issuer, staple: t.staple, failures: t.failures})
	return err
}

func (o orders) setNames(providers map[string]string) { o.src.proof.SetNames(providers) }

// runWith is Run with another way to obtain certificates.
func (m *Manager) runWith(ctx context.Context, by obtainer) error {
	defer m.cfg.Store.WatchShared("attempts/", m.attemptChanged)()
	defer m.cfg.Store.WatchStored(m.storedChanged)()
	m.catchUp()
	c := &crew{m: m, by: by, free: attemptsAtOnce}
	defer c.all.Wait()
	c.all.Go(func() { m.runStaples(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c.tellNames()
		timer.Reset(c.startDue(ctx))
		for m.tell() && ctx.Err() == nil {
		}
		select {
		case <-ctx.Done():
			return nil // the works' contexts are ctx's children
		case <-m.poke:
		case <-timer.C:
		}
	}
}

// catchUp takes up what changed on the shelf, and of attempts, before anybody
// watched.
func (m *Manager) catchUp() {
	names := m.cfg.Store.StoredNames()
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	m.mu.Lock()
	for name := range m.names {
		if !there[name] {
			names = append(names, name)
		}
	}
	keys := slices.Collect(maps.Keys(m.shared))
	m.mu.Unlock()
	m.takeStored(names)
	for _, key := range keys {
		m.attemptChanged(key)
	}
}

// crew is what is under way in one Run.
type crew struct {
	m   *Manager
	by  obtainer
	all sync.WaitGroup

	// Guarded by m.mu.
	free int       // how many more may be under way
	line []*domain // due, and waiting for one of these
}

// attemptsAtOnce bounds how many attempts are under way. Most of the time they
// wait, for records to propagate and for the authority.
const attemptsAtOnce = 64

// tellNames tells which names are to be obtained, if there are others than before.
func (c *crew) tellNames() {
	m := c.m
	m.mu.Lock()
	var providers map[string]string
	if m.others {
		m.others = false
		providers = map[string]string{}
		for name, d := range m.names {
			if d.wanted() && d.refused == nil {
				providers[name] = d.provider
			}
		}
	}
	m.mu.Unlock()
	if providers != nil {
		c.by.setNames(providers)
	}
}

// work is an attempt, or a cleaning, under way.
type work struct{ cancel context.CancelFunc }

// startDue starts what is due, and returns how long nothing else will be.
func (c *crew) startDue(ctx context.Context) time.Duration {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for c.free > 0 && len(c.line) > 0 {
		d := c.line[0]
		c.line = c.line[1:]
		d.inLine = false
		c.look(ctx, d, now)
	}
	for {
		d := m.queue.first()
		if d == nil {
			m.publish()
			return time.Hour
		}
		if left := d.wake.Sub(now); left > 0 {
			m.publish()
			return left
		}
		m.queue.remove(d)
		c.look(ctx, d, now)
	}
}

// look sees to what d needs now. m.mu is held.
func (c *crew) look(ctx context.Context, d *domain, now time.Time) {
	m := c.m
	m.refresh(d, now)
	if d.work != nil || now.Before(d.held) || m.names[d.name] != d {
		return
	}
	at, asking := d.next()
	ordering := !at.IsZero() && !now.Before(at)
	left := d.leftAt(now)
	tidying := !left.IsZero() && !now.Before(left)
	if !ordering && !tidying && !m.cleanable(d, now) {
		return
	}
	if c.free == 0 {
		if !d.inLine {
			d.inLine = true
			c.line = append(c.line, d)
		}
		m.queue.remove(d)
		return
	}
	c.free--
	t := &turn{
		m: m, d: d, name: d.name, key: d.key, provider: d.provider, issuer: d.issuer, staple: d.entry != nil && d.entry.MustStaple, gen: d.gen, wish: d.wish(), base: at, asking: asking,
		failures: d.attempt.Failures, known: attempt{Failures: d.own.Failures},
	}
	do := c.order
	switch {
	case ordering:
	case tidying:
		do, t.base = c.tidy, left
	default:
		do, t.base = c.clean, d.best.Certificate.Leaf.NotAfter
	}
	ctx, cancel := context.WithCancel(ctx)
	d.work = &work{cancel}
	m.schedule(d, now)
	c.all.Go(func() {
		defer cancel()
		do(ctx, t)
	})
}

// ended notes what a work came to, and has the next one begin.
func (c *crew) ended(t *turn, note func(d *domain, now time.Time)) {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	c.free++
	t.d.work = nil
	now := time.Now()
	if t.d.gen == t.gen { // else it is another wish now
		note(t.d, now)
	}
	m.refresh(t.d, now)
	m.finish()
}
