package certs

import (
	"context"
	"time"
)

// LeavesForTest makes the development CA keep at most max leaves and tell the
// time by now. Call it before any handshake.
func (m *Manager) LeavesForTest(max int, now func() time.Time) {
	m.local.max, m.local.now = max, now
}

// Leaves returns how many leaves the development CA keeps.
func (m *Manager) Leaves() int {
	m.local.mu.Lock()
	defer m.local.mu.Unlock()
	return m.local.recent.Len()
}

// Backoff returns the longest pause after n failures in a row.
func (m *Manager) Backoff(n int, err error) time.Duration {
	pause, _ := m.backoff(n, err)
	return pause
}

// CheckDomain says what keeps a name from having a certificate.
func CheckDomain(name string) error { return checkDomain(name) }

// NewZapCore hands zap's entries to a slog handler.
var NewZapCore = newZapCore

// Limits is what a cluster knows of an authority.
type Limits = limits

// NewLimitsForTest returns the limits of an issuer as one of the nodes has them
// that share values.
func NewLimitsForTest(i Issuer, shared limitValues) *Limits {
	return newLimits(i.withDefaults(), shared)
}

// SetNow makes the node tell the time by now.
func (l *limits) SetNow(now func() time.Time) { l.now = now }

// Survey is what a scrape asks for.
func (l *limits) Survey() (left int, until time.Time) { return l.survey() }

// Take counts an order.
func (l *limits) Take(ctx context.Context, name string, renewal bool) error {
	return l.take(ctx, name, renewal)
}

// Done notes a certificate.
func (l *limits) Done(ctx context.Context, name string) error { return l.done(ctx, name) }

// Refused notes a refusal.
func (l *limits) Refused(ctx context.Context, scope string, until time.Time, why string) error {
	_, err := l.refused(ctx, stop{Scope: scope, Until: until, Why: why})
	return err
}

// Stopped says why there may be no order for name.
func (l *limits) Stopped(ctx context.Context, name string) error {
	if err := l.stopped(ctx, name); err != nil {
		return err
	}
	return nil
}

// ScopeOf returns what an authority's words about a limit for name are about.
func ScopeOf(words, name string) string { return scopeOf(words, name) }

// RunWith is Run with orders in the place of certmagic. In their ctx OnEvent finds
// what it is about.
func (m *Manager) RunWith(ctx context.Context, orders func(ctx context.Context, name string) error) error {
	return m.runWith(ctx, fakeOrders(orders))
}

type fakeOrders func(ctx context.Context, name string) error

func (f fakeOrders) obtain(ctx context.Context, t *turn) error { return f(ctx, t.name) }
func (fakeOrders) setNames(map[string]string)                  {}

// OnEvent is what certmagic tells, with the name's lock held, of what it is about
// to do.
var OnEvent = onEvent

// Renewal returns when to renew a certificate.
func Renewal(s *Stored) (at, ask time.Time) { return renewal(s) }

// TakeStored puts to use what the shelf has of names.
func (m *Manager) TakeStored(names []string) { m.takeStored(names) }

// HoldLocks runs f while every lock of the manager is held.
func (m *Manager) HoldLocks(f func()) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// MustStaple reports whether a certificate asks for a stapled OCSP response.
var MustStaple = mustStaple
