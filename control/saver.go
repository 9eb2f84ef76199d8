package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// saver writes the state to disk some time after it changed: edits come in
// bursts, and a state that is a second old serves as well.
type saver struct {
	path    string // "": nowhere
	collect func() state
	log     *slog.Logger
	changed chan struct{} // holds one

	mu sync.Mutex // guards the following field, and the files
	// last is what the file at path holds or is soon to hold, as far as this
	// process knows; zero where it knows of none.
	last stateHeader
}

// saveDelay is how long a change may wait before it is on disk.
const saveDelay = time.Second

func (s *saver) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// run saves until ctx ends, and whatever is unsaved then.
func (s *saver) run(ctx context.Context) {
	if s.path == "" {
		return
	}
	for {
		select {
		case <-ctx.Done():
			select {
			case <-s.changed:
				s.save()
			default:
			}
			return
		case <-s.changed:
		}
		wait := time.NewTimer(saveDelay)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		s.save()
	}
}

// expect is told what is in force after a full load, which is soon to be saved.
func (s *saver) expect(now stateHeader) {
	if s.path == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if why := s.last.stepBack(now); why != "" {
		s.keepAside(now, why)
		s.last = now
	}
}

func (s *saver) save() {
	now := s.collect()
	s.mu.Lock()
	defer s.mu.Unlock()
	if why := s.last.stepBack(now.header()); why != "" {
		s.keepAside(now.header(), why)
	}
	if err := writeState(s.path, now); err != nil {
		s.log.Error("cannot save the last good state; after a restart without etcd the node would serve an older one", "file", s.path, "err", err)
		return
	}
	s.last = now.header()
}

// prevSuffix is what the name of a state that was stepped back from ends in.
const prevSuffix = ".prev"

const (
	// A state that has lost more than half of so many keys or more is one that
	// somebody may want back.
	manyKeys = 4
	// prevMemory is how long a kept state is not replaced by a smaller one: who
	// empties etcd twice wants what was there before the first time.
	prevMemory = 7 * 24 * time.Hour
)

// stepBack says in words why is, which is to replace h, may be a mistake: etcd
// was emptied, or restored from an old backup, or another one. "" where nothing
// speaks for that.
func (h stateHeader) stepBack(is stateHeader) string {
	switch {
	case h.Version == 0: // there was none
		return ""
	case h.Cluster != "" && is.Cluster != "" && h.Cluster != is.Cluster:
		return "etcd is another cluster than before"
	case is.Rev < h.Rev:
		return "etcd has gone back in time, as after restoring an old backup"
	case h.Keys >= manyKeys && is.Keys < h.Keys/2:
		return "most keys are gone from etcd"
	}
	return ""
}

// keepAside keeps the file that now is to replace, and says how to get back.
// s.mu is held.
func (s *saver) keepAside(now stateHeader, why string) {
	prev := s.path + prevSuffix
	kept, err := s.keep(prev)
	if err != nil {
		s.log.Error("cannot keep the state of before aside", "file", prev, "err", err)
		return
	}
	if !kept {
		return
	}
	s.log.Error(fmt.Sprintf("%s. The node follows etcd, and keeps the state of before in %s. If this was not meant, restore etcd from its backup, "+
		"or put the keys back: \"sluice state %s | sh\" does it with etcdctl", why, prev, prev),
		"keys_before", s.last.Keys, "rev_before", s.last.Rev, "keys", now.Keys, "rev", now.Rev)
}

// keep makes the file at path known as prev, too, unless what prev holds is
// worth more.
func (s *saver) keep(prev string) (kept bool, err error) {
	if info, err := os.Stat(prev); err == nil && time.Since(info.ModTime()) < prevMemory {
		if older, err := readState(prev); err == nil && len(older.entries) > s.last.Keys {
			return false, nil
		}
	}
	if _, err := readState(s.path); err != nil {
		return false, err // it was damaged before, and is worth nothing
	}
	tmp := prev + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Link(s.path, tmp); err != nil {
		return false, err
	}
	now := time.Now() // when it was kept, rather than written
	return true, errors.Join(os.Chtimes(tmp, now, now), os.Rename(tmp, prev))
}
