package certs

import "time"

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
func (m *Manager) Backoff(n int, err error) time.Duration { return m.backoff(n, err) }

// CheckDomain says what keeps a name from having a certificate.
func CheckDomain(name string) error { return checkDomain(name) }

// NewZapCore hands zap's entries to a slog handler.
var NewZapCore = newZapCore
