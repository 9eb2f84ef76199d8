package dns01

import (
	"context"
	"time"
)

// ForTest has s take the servers that DNS names to be at port, and give each of
// them limit for an answer.
func (s *Solver) ForTest(port string, limit time.Duration) *Solver {
	s.ask.port, s.ask.limit = port, limit
	return s
}

// Presented returns how many records have not been cleaned up.
func (s *Solver) Presented() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.presented)
}

// Sweep deletes what is too old, as Run does.
func (s *Solver) Sweep(ctx context.Context) { s.sweep(ctx, notes, func(note) bool { return false }) }

// SilentAfter is how many unanswered looks make a server silent.
const SilentAfter = silentAfter
