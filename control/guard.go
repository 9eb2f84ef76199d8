package control

import (
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// Guard says when deletions are held back: they are more likely a mistake than
// meant. The zero value holds nothing back.
type Guard struct {
	// Percent of the mappings, or of the routes, that may go within Window.
	// 0 and 100: all.
	Percent int
	// Least is how many have to go for it to be a matter for the guard.
	Least  int
	Window time.Duration
}

// Keys by which people say that deletions are meant, below the prefix. Their
// values are notes for people. They are watched in one span with mappings and
// routes, so that what one transaction does to both arrives together.
const (
	// MeantKey, put in the transaction that deletes, has its deletions applied.
	MeantKey = "removals/meant"
	// ConfirmedKey has all deletions applied that are held back so far.
	ConfirmedKey = "removals/confirmed"
)

// guarded are the kinds of keys that the guard counts, each by itself.
var guarded = []router.Kind{router.KindMapping, router.KindRoute}

// guard counts deletions and knows those that it holds back.
type guard struct {
	Guard
	now    func() time.Time
	counts map[router.Kind]*tally
	// held are the keys whose deletion is held back, and at the revisions of which
	// these were deleted; others of them are held back as well.
	held   map[string]struct{}
	heldAt map[int64]bool
	// loose are keys that went of late and that nobody counts. They come by
	// another watcher than those that are counted, and so maybe earlier.
	loose []looseKey
	told  time.Time // when it was last said that some are
	// meant counts the keys that went because somebody said so.
	meant int
}

// tally counts the keys of one kind.
type tally struct {
	inForce int
	gone    map[string]time.Time // keys deleted within the window and not put again
	order   []goneKey            // of gone, the oldest first; some may have been put again
}

type goneKey struct {
	key string
	at  time.Time
}

// looseKey is a deleted key, what it had in force, and when it went.
type looseKey struct {
	etcd.KV
	goneRev int64
	at      time.Time
}

func newGuard(g Guard) *guard {
	s := &guard{Guard: g, now: time.Now, counts: map[router.Kind]*tally{}, held: map[string]struct{}{}, heldAt: map[int64]bool{}}
	for _, kind := range guarded {
		s.counts[kind] = &tally{gone: map[string]time.Time{}}
	}
	return s
}

// came notes that a key without a value in force has got one.
func (g *guard) came(key string) {
	if t := g.counts[kindOf(key)]; t != nil {
		t.inForce++
		delete(t.gone, key)
	}
}

// left notes that a key's value was taken out of force though nobody deleted it.
func (g *guard) left(key string) {
	if t := g.counts[kindOf(key)]; t != nil {
		t.inForce--
	}
}

// went notes that a key's value was taken out of force.
func (g *guard) went(key string) {
	t := g.counts[kindOf(key)]
	if t == nil {
		return
	}
	t.inForce--
	if g.off() {
		return
	}
	now := g.now()
	t.forget(now.Add(-g.Window))
	t.gone[key] = now
	t.order = append(t.order, goneKey{key, now})
}

func (g *guard) off() bool { return g.Percent <= 0 || g.Percent >= 100 }

// forget leaves out what went before a time.
func (t *tally) forget(before time.Time) {
	n := 0
	for n < len(t.order) && t.order[n].at.Before(before) {
		if o := t.order[n]; t.gone[o.key].Equal(o.at) {
			delete(t.gone, o.key)
		}
		n++
	}
	t.order = t.order[n:]
	if len(t.order) == 0 {
		t.order = nil // and with it the memory of a great many
	}
}

// exceeds reports whether n more deletions of a kind are too many.
func (g *guard) exceeds(kind router.Kind, n int) bool {
	t := g.counts[kind]
	if t == nil {
		return false // not guarded
	}
	t.forget(g.now().Add(-g.Window))
	gone := len(t.gone) + n
	return gone >= g.Least && gone*100 > g.Percent*(t.inForce+len(t.gone))
}

// removeAll takes deleted keys out of force, unless the guard holds them back:
// all of them where there are too many of one kind, since whoever deletes a
// prefix by mistake deletes keys of every kind. They were deleted at revision
// rev; meant says that somebody said so. c.mu is held.
func (c *Controller) removeAll(keys []string, rev int64, meant bool) {
	hold := false
	if meant {
		c.guard.meant += len(keys)
	} else if !c.guard.off() {
		hold = c.guard.heldAt[rev] || c.guard.over(keys, c.entries)
	}
	for _, key := range keys {
		e := c.entries[key]
		if hold && e != nil && (e.goodRev != 0 || e.kept.rev != 0) {
			c.hold(key, rev)
			continue
		}
		if e != nil && !meant {
			c.guard.noteLoose(key, e, rev)
		}
		c.remove(key)
	}
	if hold {
		c.holdLoose(rev)
	}
	c.tellHeld()
}

// over reports whether too many of a kind are among keys.
func (g *guard) over(keys []string, entries map[string]*entry) bool {
	n := map[router.Kind]int{}
	for _, key := range keys {
		if e := entries[key]; e != nil && e.goodRev != 0 {
			n[kindOf(key)]++
		}
	}
	for kind, n := range n {
		if g.exceeds(kind, n) {
			return true
		}
	}
	return false
}

// noteLoose remembers a key that is about to go, where it is not counted.
func (g *guard) noteLoose(key string, e *entry, rev int64) {
	now := g.now()
	for len(g.loose) > 0 && now.Sub(g.loose[0].at) > g.Window {
		g.loose = g.loose[1:]
	}
	if !g.off() && g.counts[kindOf(key)] == nil && e.goodRev != 0 {
		g.loose = append(g.loose, looseKey{etcd.KV{Key: key, Value: []byte(e.good), ModRev: e.goodRev}, rev, now})
	}
}

// holdLoose brings back what has gone already of a revision whose deletions are
// held back.
func (c *Controller) holdLoose(rev int64) {
	c.guard.loose = slices.DeleteFunc(c.guard.loose, func(l looseKey) bool {
		if l.goneRev != rev {
			return false
		}
		if c.entries[l.Key] == nil { // nobody has put it since
			c.put(l.Key, string(l.Value), l.ModRev)
			if e := c.entries[l.Key]; e.goodRev != 0 {
				c.hold(l.Key, rev)
				c.revived = append(c.revived, l.Key)
			} else {
				c.remove(l.Key)
			}
		}
		return true
	})
}

func kindOf(key string) router.Kind {
	k, err := router.ParseKey(key)
	if err != nil {
		return router.KindUnknown
	}
	return k.Kind
}

// hold leaves a deleted key's value in force.
func (c *Controller) hold(key string, rev int64) {
	e := c.entries[key]
	if e.heldRev == 0 {
		if len(c.guard.held) == 0 {
			c.saver.keepLast()
		}
		e.heldRev = rev
		c.noteUnsaved(key)
		// What it was to be is gone, as far as etcd knows.
		delete(c.atOdds, key)
		if e.kept.rev == 0 {
			delete(c.lacking, key)
		}
		c.noteYielding(key)
		c.guard.held[key], c.guard.heldAt[rev] = struct{}{}, true
		c.metrics.held.Set(float64(len(c.guard.held)))
	}
}

// unhold notes that a key is no longer deleted against the guard.
func (c *Controller) unhold(key string, e *entry) {
	if e.heldRev != 0 {
		e.heldRev = 0
		c.noteUnsaved(key)
		delete(c.guard.held, key)
		if len(c.guard.held) == 0 {
			clear(c.guard.heldAt)
		}
		c.metrics.held.Set(float64(len(c.guard.held)))
	}
}

// confirm applies the deletions that are held back and were made up to revision
// rev, and returns their keys. Of keys that a load found missing nobody knows
// when they were deleted, which may have been after somebody confirmed others:
// they count as deleted at the revision of the load.
func (c *Controller) confirm(rev int64) (keys []string) {
	for key := range c.guard.held {
		if c.entries[key].heldRev <= rev {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		c.unhold(key, c.entries[key])
		c.remove(key)
	}
	c.guard.meant += len(keys)
	if len(keys) > 0 {
		c.cfg.Logger.Info("applied deletions that were held back: they were confirmed", "keys", len(keys), "confirmed_at_rev", rev)
	}
	return keys
}

// tellHeld says that deletions are held back, now and every minute that they are.
func (c *Controller) tellHeld() {
	if now := c.guard.now(); len(c.guard.held) > 0 && now.Sub(c.guard.told) >= time.Minute {
		c.guard.told = now
		c.cfg.Logger.Error("deletions are held back, since so many at once are more likely a mistake than meant: what was deleted stays in force; "+
			"`sluice confirm` applies them, and putting the keys again (`sluice rollback`) calls them off",
			"keys", len(c.guard.held), "percent", c.guard.Percent, "window", c.guard.Window)
	}
}

// Held returns how many deletions are held back.
func (c *Controller) Held() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.guard.held)
}

// heldVerdict is what people read of a key whose deletion is held back.
func (e *entry) heldVerdict() string {
	return fmt.Sprintf("held: its deletion at revision %d was one of a great many and is held back; `sluice confirm` applies it, "+
		"putting the key again calls it off (applied@%d stays in force)", e.heldRev, e.goodRev)
}

// meant reports whether one of the changes of a revision says that its deletions
// are meant.
func meant(changes []etcd.Change) bool {
	for _, ch := range changes {
		if (ch.Key == MeantKey || ch.Key == ConfirmedKey) && !ch.Deleted {
			return true
		}
	}
	return false
}

// goBack has held deletions be of revision rev, which etcd has gone back to, or
// is at since it is another one: what was confirmed there before is not these.
func (c *Controller) goBack(rev int64) {
	for key := range c.guard.held {
		c.entries[key].heldRev = rev
		c.noteUnsaved(key)
	}
	clear(c.guard.heldAt)
	if len(c.guard.held) > 0 {
		c.guard.heldAt[rev] = true
	}
}
