package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/etcd"
)

// Made is what became of a plan.
type Made struct {
	Committed int64    `json:"committed,omitempty"` // revision of the last transaction; 0: there was none
	Done      int      `json:"done"`                // changes made
	Answers   []Answer `json:"answers,omitempty"`   // what the live nodes made of them
}

// Make commits a plan and waits so long, 0 being not at all, for what the nodes
// say of its changes, and of what was as wanted already: of that only where it is
// amiss. An error that comes after changes were made is returned with what is
// known; a *NobodyError where no node is there to act on them.
func (s *Store) Make(ctx context.Context, p *Plan, wait time.Duration) (m Made, err error) {
	rev, done, err := s.Commit(ctx, p)
	if m.Done = done; done > 0 {
		m.Committed = rev
	}
	switch {
	case err != nil && done == 0 && errors.As(err, new(*etcd.ConflictError)):
		err = fmt.Errorf("nothing was written: %w", err)
	case err != nil && done > 0:
		err = fmt.Errorf("the first %d of %d changes were made, up to %s: %w", done, len(p.Changes), p.Changes[done-1].Key, err)
	}
	if err != nil || wait == 0 {
		return m, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if p.acted > 0 {
		m.Answers, err = s.Await(ctx, p.acted, changedKeys(p.Changes))
		if err == nil && len(m.Answers) == 0 {
			err = s.SomeoneLives(ctx)
		}
	}
	// What was as wanted already may be so to nobody's use.
	if kept, since := p.Kept(); err == nil && len(kept) > 0 {
		var said []Answer
		said, err = s.Await(ctx, since, kept)
		m.Answers = append(m.Answers, slices.DeleteFunc(said, func(a Answer) bool { return a.Verdict.State == control.Applied })...)
	}
	return m, err
}

func changedKeys(changes []Change) []string {
	var keys []string
	for _, c := range changes {
		if etcd.IsWatched(c.Key) { // of others nodes say nothing
			keys = append(keys, c.Key)
		}
	}
	return keys
}

// IsWhole reports whether Commit writes the plan in one transaction.
func (p *Plan) IsWhole() bool {
	return len(p.Changes) == 0 || len(p.Changes) < etcd.MaxEdits && len(firstBatch(p.Changes)) == len(p.Changes)
}
