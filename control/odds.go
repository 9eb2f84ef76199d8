package control

import (
	"cmp"
	"maps"
	"slices"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// oddsError refuses a value for what the values of other keys are: it may be
// good once one of those has changed.
type oddsError struct{ error }

func (e *oddsError) Unwrap() error { return e.error }

// settle decides anew between values that cannot all be in force, where this
// batch may have made a difference, and appends the keys whose verdict may be
// another one to touched. It ends what a revision changed. c.mu is held.
func (c *Controller) settle(touched []string) []string {
	touched, c.revived = append(touched, c.revived...), nil
	if c.contested || c.freed && len(c.atOdds) > 0 {
		touched = c.decide(touched)
	}
	c.contested, c.freed = false, false
	clear(c.overtaken)
	return touched
}

// contender is a value that others may stand against: of a pool, or of a mapping
// that leads to a port of this node.
type contender struct {
	key     string
	entry   *entry
	rev     int64 // of the value
	pool    *portpool.Pool
	mapping *router.Mapping // where it is not a pool's
	why     error           // it cannot be in force
	// overtaken is the value, where another one of the key is in force.
	overtaken string
}

// lastGood is a value that was in force, and its revision.
type lastGood struct {
	value string
	rev   int64
}

// newContender makes one of a value of key, whose revision is rev.
func newContender(key string, e *entry, value string, rev int64) contender {
	one := contender{key: key, entry: e, rev: rev}
	// Others may stand against it, but it was found good by itself: no error.
	if k, _ := router.ParseKey(key); k.Kind == router.KindPool {
		one.pool, _ = portpool.Parse(k.Name, []byte(value))
	} else if one.mapping, _ = router.ParseMapping(k.Proto, k.Port, []byte(value)); one.mapping != nil {
		one.mapping.Rev = rev
	}
	return one
}

// decide has those contenders in force that are to be, whichever are now. What
// etcd has comes first, that of the older revision before that of the younger
// one, and then what this node remembers: the last good values of refused ones
// and those whose deletion is held back. So the nodes of a cluster agree on which
// of etcd's values are in force, however they came to know of them, and an edit
// does not put a healthy value of another key out of force that is older.
//
// It need not be asked where a value was put that stands against none: then all
// the others are decided upon as they were before.
func (c *Controller) decide(touched []string) []string {
	present, remembered := c.takeContenders()
	byAge := func(a, b contender) int { return cmp.Or(cmp.Compare(a.rev, b.rev), cmp.Compare(a.key, b.key)) }
	slices.SortFunc(present, byAge)
	slices.SortFunc(remembered, byAge)
	f := field{c: c, won: map[string]bool{}, pools: map[string]*portpool.Pool{}, mappings: map[portOf]*router.Mapping{}}
	for i := range present {
		f.enter(&present[i])
	}
	for i := range remembered {
		if !f.won[remembered[i].key] {
			f.enter(&remembered[i])
		}
	}
	for _, r := range remembered {
		if !f.won[r.key] && r.overtaken == "" {
			c.evict(r.key, r.entry)
			touched = append(touched, r.key)
		}
	}
	for _, p := range present {
		if c.conclude(p) {
			touched = append(touched, p.key)
		}
	}
	for _, r := range remembered {
		if r.overtaken != "" && r.entry.goodRev == 0 && r.why == nil {
			c.bringBack(r)
		}
	}
	return touched
}

// takeContenders returns the contenders among the values that etcd has, and those
// among the others that are in force.
func (c *Controller) takeContenders() (present, remembered []contender) {
	for key := range c.contenders {
		e := c.entries[key]
		one := contender{key: key, entry: e, rev: e.goodRev}
		if k, _ := router.ParseKey(key); k.Kind == router.KindPool {
			one.pool = c.pools[k.Name]
		} else {
			one.mapping = c.builder.Mapping(k.Proto, k.Port)
		}
		if e.refused == "" && e.heldRev == 0 {
			present = append(present, one)
			if was, ok := c.overtaken[key]; ok {
				old := newContender(key, e, was.value, was.rev)
				old.overtaken = was.value
				remembered = append(remembered, old)
			}
		} else {
			remembered = append(remembered, one)
		}
	}
	for key := range c.atOdds {
		e := c.entries[key]
		present = append(present, newContender(key, e, e.value, e.rev))
	}
	return present, remembered
}

type portOf struct {
	proto router.Proto
	port  int
}

// field has the contenders that are to be in force as far as that is decided.
type field struct {
	c        *Controller
	won      map[string]bool // keys
	pools    map[string]*portpool.Pool
	mappings map[portOf]*router.Mapping
}

// enter takes a contender in, or says in it why it cannot be.
func (f *field) enter(one *contender) {
	if one.pool != nil {
		if one.why = checkApart(one.pool, f.pools); one.why == nil {
			f.pools[one.pool.Service] = one.pool
		}
	} else {
		m := one.mapping
		at := func(proto router.Proto, port int) *router.Mapping { return f.mappings[portOf{proto, port}] }
		if one.why = f.c.checkLoop(m, at); one.why == nil {
			f.mappings[portOf{m.Proto, m.Port}] = m
		}
	}
	f.won[one.key] = one.why == nil
}

// conclude does what was decided on a value that etcd has, and reports whether
// that is news.
func (c *Controller) conclude(p contender) (news bool) {
	e := p.entry
	inForce := e.refused == ""
	switch {
	case p.why == nil && inForce:
		return false
	case p.why == nil:
		if p.pool != nil {
			c.setPool(p.key, p.pool)
		} else {
			c.setMapping(p.key, p.mapping)
		}
		delete(c.atOdds, p.key)
		c.took(p.key, e)
		c.cfg.Logger.Info("accepted a value that another key's value could have stood against", "key", p.key, "rev", e.rev)
		return true
	}
	why := p.why.Error()
	if inForce {
		c.evict(p.key, e)
	}
	c.atOdds[p.key] = true
	if e.refused == why {
		return false
	}
	c.setRefused(e, why)
	c.cfg.Logger.Warn("refused a value for what another key's is", "key", p.key, "rev", e.rev, "err", p.why, "last_good_rev", e.goodRev)
	return true
}

// bringBack has the last good value of a key in force again.
func (c *Controller) bringBack(r contender) {
	if r.pool != nil {
		c.setPool(r.key, r.pool)
	} else {
		c.setMapping(r.key, r.mapping)
	}
	c.tookOld(r.key, r.entry, lastGood{r.overtaken, r.rev})
}

// evict takes the value of key out of force, in which it cannot stay beside
// others.
func (c *Controller) evict(key string, e *entry) {
	if e.heldRev != 0 {
		c.remove(key)
		return
	}
	c.guard.left(key)
	c.takeOut(key, e)
	e.good, e.goodRev, e.states = "", 0, states{}
}

// checkApart refuses a pool with ports that one of the others has.
func checkApart(p *portpool.Pool, others map[string]*portpool.Pool) error {
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if err := p.CheckApart(others[name]); err != nil {
			return &oddsError{err}
		}
	}
	return nil
}

// checkLoop refuses a mapping that would lead back to itself, by itself or
// through others, of which at gives that of a port.
func (c *Controller) checkLoop(m *router.Mapping, at func(router.Proto, int) *router.Mapping) error {
	if c.cfg.Own == nil {
		return nil
	}
	chains := router.Chains{Own: c.cfg.Own, Mapping: at}
	loop := chains.Loop(m)
	switch {
	case loop == nil:
		return nil
	case len(loop.Ports) == 2: // to itself: no other key matters
		return loop
	}
	return &oddsError{loop}
}

// canLoop reports whether m could be a part of a loop.
func (c *Controller) canLoop(m *router.Mapping) bool {
	return c.cfg.Own != nil && (router.Chains{Own: c.cfg.Own}).LeadsHere(m, c.cfg.Ports)
}

// noteLeaving has settle look at what stood against the value of key that is in
// force and leaves it.
func (c *Controller) noteLeaving(key string) {
	if _, ok := c.contenders[key]; ok {
		delete(c.contenders, key)
		c.freed = true
	}
}

// noteYielding has settle look at what stood against the value of key in force,
// which is not etcd's any more.
func (c *Controller) noteYielding(key string) {
	if _, ok := c.contenders[key]; ok {
		c.freed = true
	}
}
