package certs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// cleanable reports whether something is stored for d that is of no use any
// more: nobody wants the name, and all that was issued for it has expired. What
// an operator imported is theirs to delete. m.mu is held.
func (m *Manager) cleanable(d *domain, now time.Time) bool {
	if !m.listed || d.wanted() {
		return false
	}
	useless := false
	for _, s := range d.stored {
		if s.Issuer == Imported || s.Name != d.name || now.Before(s.Certificate.Leaf.NotAfter) {
			return false
		}
		useless = useless || !s.Gone
	}
	return useless
}

// cleanLimit bounds one cleaning; cleanAgain is when it is tried again.
const (
	cleanLimit = time.Minute
	cleanAgain = time.Hour
)

// clean deletes from storage what is stored for a name that nobody wants. The
// other nodes leave it to the first in turn, and find nothing left.
func (c *crew) clean(ctx context.Context, t *turn) {
	m := c.m
	rank := m.roster.rank(ctx, m.cfg.Node, t.name, 0)
	if begin := t.base.Add(time.Duration(rank) * m.cfg.TurnEvery); time.Now().Before(begin) {
		c.ended(t, func(d *domain, _ time.Time) { d.held = begin })
		return
	}
	ctx, cancel := context.WithTimeout(ctx, cleanLimit)
	defer cancel()
	err := m.deleteExpired(ctx, t.name)
	if err != nil {
		m.log.Warn("cannot delete the expired certificate of a name that is wanted no more", "domain", t.name, "err", err)
	} else {
		m.log.Info("deleted the expired certificate of a name that is wanted no more", "domain", t.name)
		t.forget(ctx) // what its last attempt came to
	}
	c.ended(t, func(d *domain, now time.Time) { d.held = now.Add(jitter(cleanAgain)) })
}

// deleteExpired deletes what is stored for name, under the lock under which
// certmagic stores it, unless somebody has renewed it meanwhile.
func (m *Manager) deleteExpired(ctx context.Context, name string) (err error) {
	lock := "issue_cert_" + name
	if err := m.cfg.Store.Lock(ctx, lock); err != nil {
		return fmt.Errorf("lock it: %w", err)
	}
	defer func() { err = errors.Join(err, m.cfg.Store.Unlock(context.WithoutCancel(ctx), lock)) }()
	for _, s := range m.cfg.Store.Served(name) {
		if s.Gone || s.Issuer == Imported {
			continue
		}
		is, err := LoadStored(ctx, m.cfg.Store, s.Issuer, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && time.Now().Before(is.Certificate.Leaf.NotAfter) {
			continue
		}
		if err := m.cfg.Store.Delete(ctx, FolderOf(s.Issuer, name)); err != nil {
			return fmt.Errorf("delete what %s issued: %w", s.Issuer, err)
		}
		if err := m.deleteCount(ctx, s.Issuer, name); err != nil {
			return fmt.Errorf("delete how often %s issued it: %w", s.Issuer, err)
		}
	}
	return nil
}

// deleteCount deletes what was noted for the limits of an issuer, unless it still
// counts.
func (m *Manager) deleteCount(ctx context.Context, issuer, name string) error {
	key := limitsOf(issuer, name)
	v, err := m.cfg.Store.Get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var full time.Time
	if full.UnmarshalText(v.Data) == nil && time.Now().Before(full) {
		return nil
	}
	if _, err = m.cfg.Store.Swap(ctx, key, v.Rev, nil); errors.Is(err, ErrSwapped) {
		return nil // somebody wants the name again
	}
	return err
}

// tidyAfter is how long a node has to take back what it shared of an attempt that
// succeeded, before others do.
const tidyAfter = time.Minute

// leftAt returns when to delete what is shared of an attempt that is over, the
// zero time if there is none. m.mu is held.
func (d *domain) leftAt(now time.Time) time.Time {
	issued, _ := d.holding(now)
	if !d.wanted() || d.attempt.rev == 0 || issued == nil || !d.attempt.over(issued) && (d.attempt.Ended.IsZero() || !d.idle(now)) {
		return time.Time{}
	}
	return latest(issued.Modified, d.attempt.Ended).Add(tidyAfter)
}

// tidy deletes what a node that died has left of its attempt.
func (c *crew) tidy(ctx context.Context, t *turn) {
	m := c.m
	rank := m.roster.rank(ctx, m.cfg.Node, t.name, 0)
	if begin := t.base.Add(time.Duration(rank) * m.cfg.TurnEvery); time.Now().Before(begin) {
		c.ended(t, func(d *domain, _ time.Time) { d.held = begin })
		return
	}
	ctx, cancel := context.WithTimeout(ctx, shareLimit)
	defer cancel()
	t.forget(ctx)
	c.ended(t, func(d *domain, now time.Time) {
		if t.known.rev > d.attempt.rev {
			d.attempt = t.known
		}
		d.held = now.Add(jitter(m.cfg.CheckEvery))
	})
}
