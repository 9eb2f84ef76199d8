package control

import (
	"cmp"
	"maps"
	"slices"

	"github.com/remotegpu/sluice/router"
)

// oddsError refuses a value for what the values of other keys are: it may be
// good once one of those has changed.
type oddsError struct{ error }

func (e *oddsError) Unwrap() error { return e.error }

// settle looks again at the values that other keys' values stood against, if
// one of those has left force since, and appends the keys of those that are now
// accepted to touched. It ends every batch of puts and removals, so that their
// order within the batch does not matter. c.mu is held.
func (c *Controller) settle(touched []string) []string {
	touched, c.revived = append(touched, c.revived...), nil
	for c.freed && len(c.atOdds) > 0 {
		c.freed = false
		// As they came, so that every node decides alike.
		keys := slices.SortedFunc(maps.Keys(c.atOdds), func(a, b string) int {
			return cmp.Or(cmp.Compare(c.entries[a].rev, c.entries[b].rev), cmp.Compare(a, b))
		})
		for _, key := range keys {
			if c.take(key, c.entries[key]) == nil {
				c.cfg.Logger.Info("accepted a value that another key's value had stood against", "key", key, "rev", c.entries[key].rev)
				touched = append(touched, key)
			}
		}
	}
	c.freed = false
	return touched
}

// checkLoop refuses a mapping that would lead back to itself, by itself or
// through other mappings in force.
func (c *Controller) checkLoop(m *router.Mapping) error {
	if c.cfg.Own == nil {
		return nil
	}
	chains := router.Chains{Own: c.cfg.Own, Mapping: c.builder.Mapping}
	loop := chains.Loop(m)
	switch {
	case loop == nil:
		return nil
	case len(loop.Ports) == 2: // to itself: no other key matters
		return loop
	}
	return &oddsError{loop}
}

// noteLeaving has the next settle look at loops again if m, which leaves force,
// could be a part of one.
func (c *Controller) noteLeaving(m *router.Mapping) {
	if m != nil && c.cfg.Own != nil && (router.Chains{Own: c.cfg.Own}).LeadsHere(m) {
		c.freed = true
	}
}
