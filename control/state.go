package control

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strconv"
)

// StateEntry is the value in force of one key.
type StateEntry struct {
	Key   string `json:"key"` // below the prefix
	Value string `json:"value"`
	Rev   int64  `json:"rev"` // etcd revision of the value
	// Held is the revision at which the key was deleted, where that is held back,
	// else 0.
	Held int64 `json:"held,omitempty"`
}

// State is what a state file holds.
type State struct {
	Rev     int64        // of etcd, that the entries are as of
	Cluster string       // ID of the etcd cluster that Rev is of, "" where it is not known
	Entries []StateEntry // in the order of keys
	// Dropped is how many bytes at the end of the file were left out, because
	// they were not written whole, as when power failed, or are damaged.
	Dropped int64
	// Damaged says that those bytes were written whole once: Rev is not the
	// revision that the file was saved as of last.
	Damaged bool
}

// stateHeader describes a state without holding it; the zero value is none.
type stateHeader struct {
	known   bool
	rev     int64
	cluster string
	keys    int
	meant   int // deletions that somebody said were meant, since the process began
}

func (s State) header() stateHeader {
	return stateHeader{known: true, rev: s.Rev, cluster: s.Cluster, keys: len(s.Entries)}
}

// stateChange is what became of one key since it was saved.
type stateChange struct {
	StateEntry
	gone bool
}

// SaveTrouble says why the state could not be saved, nil if it was.
func (c *Controller) SaveTrouble() error { return c.saver.trouble() }

// header describes what is in force.
func (c *Controller) header() stateHeader {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.headerLocked()
}

func (c *Controller) headerLocked() stateHeader {
	h := stateHeader{true, c.rev, c.cluster(), c.good, c.guard.meant}
	if c.restored != 0 {
		h.rev, h.cluster = c.restored, c.lineage
	}
	for key := range c.lacking {
		if e := c.entries[key]; e.goodRev == 0 && e.kept.rev != 0 {
			h.keys++
		}
	}
	return h
}

// cluster returns the ID of the etcd cluster, "" where it is not known.
func (c *Controller) cluster() string {
	if c.cfg.Cluster == nil {
		return ""
	}
	if id := c.cfg.Cluster(); id != 0 {
		return strconv.FormatUint(id, 16)
	}
	return ""
}

// noteUnsaved has the next save look at key. c.mu is held.
func (c *Controller) noteUnsaved(key string) {
	if c.unsaved != nil {
		c.unsaved[key] = struct{}{}
	}
}

// takeUnsaved returns what has changed in force since it was last called, or
// since takeKeys was.
func (c *Controller) takeUnsaved() (stateHeader, []stateChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changes := make([]stateChange, 0, len(c.unsaved))
	for key := range c.unsaved {
		changes = append(changes, c.inForce(key))
	}
	clear(c.unsaved)
	return c.headerLocked(), changes
}

// takeKeys returns all keys, and has changes noted from now on.
func (c *Controller) takeKeys() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsaved = map[string]struct{}{}
	keys := make([]string, 0, len(c.entries))
	return slices.AppendSeq(keys, maps.Keys(c.entries))
}

// appendInForce appends to changes what is in force of keys.
func (c *Controller) appendInForce(changes []stateChange, keys []string) []stateChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		changes = append(changes, c.inForce(key))
	}
	return changes
}

func (c *Controller) inForce(key string) stateChange {
	e := c.entries[key]
	switch {
	case e == nil:
	case e.goodRev != 0:
		return stateChange{StateEntry{key, e.good, e.goodRev, e.heldRev}, false}
	case e.kept.rev != 0:
		return stateChange{StateEntry{key, e.kept.value, e.kept.rev, e.heldRev}, false}
	}
	return stateChange{StateEntry{Key: key}, true}
}

// olderState returns what to serve where the file at path is damaged: the newest
// of what is whole. That is s, the begin of the file, unless there is none
// (damage), the file before it, or the state that was kept aside.
func (c *Controller) olderState(path string, s State, damage error) (State, error) {
	best, from := s, path
	for _, name := range []string{path + beforeSuffix, path + prevSuffix} {
		if older, err := ReadState(name); err == nil && (from == path && damage != nil || older.Rev > best.Rev) {
			best, from = older, name
		}
	}
	if from == path && damage != nil {
		c.cfg.Logger.Error("cannot use the last good state on disk; serving nothing until etcd answers", "err", damage)
		return s, damage
	}
	c.cfg.Logger.Error("the last good state on disk is damaged; serving an older one until etcd answers", "damaged", path, "err", damage,
		"file", from, "rev", best.Rev, "keys", len(best.Entries))
	return best, nil
}

// restore puts what was in force of a key in force again. What the node refuses
// by now, for what it lacks at the moment or for what its file says, is kept until
// it refuses it no more or another value is in force: it is in etcd all the same,
// and on disk for the next start.
func (c *Controller) restore(was StateEntry) {
	c.put(was.Key, was.Value, was.Rev)
	e := c.entries[was.Key]
	if e.goodRev == 0 && !c.atOdds[was.Key] { // of those, decide tells
		e.kept, c.lacking[was.Key] = lastGood{was.Value, was.Rev}, true
	}
	if was.Held != 0 && (e.goodRev != 0 || e.kept.rev != 0) {
		c.hold(was.Key, was.Held)
	}
}

// Restore puts the last good state on disk in force, and reports whether there
// is one. It is called before Run. A file that cannot be used is reported, and
// the one before it used, if there is one; without any the node waits for etcd.
func (c *Controller) Restore() bool {
	path := c.cfg.StateFile
	if path == "" {
		return false
	}
	s, err := ReadState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	c.saver.sound = err == nil && !s.Damaged
	if err != nil || s.Damaged {
		if s, err = c.olderState(path, s, err); err != nil {
			return false
		}
	} else if s.Dropped > 0 {
		c.cfg.Logger.Warn("the last changes of the state on disk were not written whole; serving what was before them until etcd answers",
			"file", path, "rev", s.Rev, "bytes_left_out", s.Dropped)
	}
	c.mu.Lock()
	c.lineage = s.Cluster
	for _, e := range s.Entries {
		c.restore(e)
	}
	c.settle(nil)
	c.saver.last = s.header() // not before: it holds nothing back that is news
	table := c.builder.Table(s.Rev)
	domains := slices.Collect(maps.Values(c.domains))
	routed := c.takeRouted()
	c.dirty = dirtiness{}
	c.mu.Unlock()
	c.cfg.Applier.Apply(table)
	c.mu.Lock()
	c.restored, c.shown = s.Rev, c.fingerprint
	c.metrics.fingerprint.Set(float64(c.shown))
	c.mu.Unlock()
	if c.cfg.Domains != nil {
		c.cfg.Domains(domains)
	}
	if len(routed) > 0 {
		c.cfg.Routes(routed)
	}
	c.cfg.Logger.Info("serving the last good state from disk until etcd answers", "rev", s.Rev, "keys", len(s.Entries))
	return true
}
