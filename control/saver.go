package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// saver writes the state to disk some time after it changed: edits come in
// bursts, and a state that is a second old serves as well. It appends what has
// changed, so that its work follows the edits and not the keys that there are,
// and now and then writes the file anew. Nobody waits for it.
type saver struct {
	path    string // "": nowhere
	source  stateSource
	log     *slog.Logger
	changed chan struct{} // holds one
	urgent  chan struct{} // holds one: something is to be saved without delay
	asked   chan saveAsked
	off     bool // of run: another process has the file

	mu sync.Mutex // guards the following fields, and is not held while files are written
	// last is what the file at path holds or is soon to hold, as far as this
	// process knows; zero where it knows of none.
	last   stateHeader
	steps  []step // back, to be looked after before anything is written
	failed error  // of the last save

	// The rest belongs to save. size is the file's as this process left it, sum
	// its checksum, and whole what of it was written at once; 0: the process has
	// written none that it can append to.
	size, whole int64
	sum         uint32
	// sound says that the file is whole, as far as this process knows.
	sound bool
}

// stateSource is what the saver saves: a Controller.
type stateSource interface {
	takeUnsaved() (stateHeader, []stateChange)
	takeKeys() []string
	appendInForce(changes []stateChange, keys []string) []stateChange
}

// step is one from a state to another.
type step struct {
	from, to stateHeader
	why      string // it may be a mistake
	meant    bool   // it is none: somebody said so
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
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			select {
			case <-s.changed:
				s.save()
			case <-s.urgent:
				s.save()
			default:
				if s.trouble() != nil {
					s.save()
				}
			}
			return
		case ask := <-s.asked:
			s.answer(ask)
			continue
		case <-again.C:
			s.saveOr(again)
			continue
		case <-s.urgent:
			s.saveOr(again)
			continue
		case <-s.changed:
		}
		wait := time.NewTimer(saveDelay)
		select {
		case <-wait.C:
		case <-s.urgent:
		case ask := <-s.asked:
			s.answer(ask)
		case <-ctx.Done():
		}
		wait.Stop()
		s.saveOr(again)
	}
}

// saveAgain is how long after a save that failed the next one is made, without
// anything being changed: a disk that was full has room again.
const saveAgain = 5 * time.Second

// saveOr saves, or has again fire.
func (s *saver) saveOr(again *time.Timer) {
	again.Stop()
	s.save()
	if s.trouble() != nil {
		again.Reset(saveAgain)
	}
}

// trouble says why the state could not be saved last, nil if it was.
func (s *saver) trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// expect is told what is in force after a full load, which is soon to be saved:
// at once where it is a step back, since that is to be said.
func (s *saver) expect(now stateHeader) {
	if s.path == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isBack(now) {
		s.last = now
		select {
		case s.urgent <- struct{}{}:
		default:
		}
	}
}

// keepLast has the state as it was last saved kept aside before it is replaced:
// deletions are held back, and some of what belongs to them may have been applied.
func (s *saver) keepLast() {
	if s.path == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.known {
		return
	}
	s.steps = append(s.steps, step{from: s.last, why: heldBack})
	select {
	case s.urgent <- struct{}{}:
	default:
	}
}

// isBack notes a step back to now. s.mu is held.
func (s *saver) isBack(now stateHeader) bool {
	why := s.last.stepBack(now)
	if why != "" {
		gone := max(0, s.last.keys-now.keys)
		meant := why == mostGone && now.meant-s.last.meant >= gone
		s.steps = append(s.steps, step{s.last, now, why, meant})
	}
	return why != ""
}

// saveAsked is somebody who waits for a save, after which, with leave, nothing is
// saved any more before somebody asks again.
type saveAsked struct {
	leave bool
	done  chan error
}

// answer does what somebody asks for.
func (s *saver) answer(ask saveAsked) {
	s.off = false
	s.save()
	s.off = ask.leave
	ask.done <- s.trouble()
}

func (s *saver) save() {
	if s.off {
		return
	}
	now, changes := s.source.takeUnsaved()
	s.mu.Lock()
	s.isBack(now)
	s.last = now
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()
	for _, st := range steps {
		s.keepAside(st)
		s.size = 0 // the file that is kept is not to be appended to
	}
	var err error
	if !s.canAppend() || s.append(now, changes) != nil {
		err = s.rewrite()
	}
	s.mu.Lock()
	before := s.failed
	s.failed = err
	s.mu.Unlock()
	if err != nil {
		s.size = 0
	}
	switch {
	case err != nil && before == nil:
		s.log.Error("cannot save the last good state; after a restart without etcd the node would serve an older one. Trying on", "file", s.path, "err", err)
	case err == nil && before != nil:
		s.log.Info("the last good state is saved again", "file", s.path)
	}
}

// minRewrite is below how many appended bytes a file is not worth writing anew.
const minRewrite = 256 << 10

// canAppend reports whether the file is this process's, and not mostly made of
// what was overtaken since.
func (s *saver) canAppend() bool {
	return s.size > 0 && s.size-s.whole <= max(s.whole, minRewrite)
}

// append adds changes to the file.
func (s *saver) append(now stateHeader, changes []stateChange) (err error) {
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || info.Size() != s.size {
		return errors.Join(err, errors.New("the state file is not as it was left"))
	}
	w := stateWriter{to: bufio.NewWriter(f), sum: s.sum, size: s.size}
	for _, ch := range changes {
		w.change(ch)
	}
	w.asOf(now)
	if err := errors.Join(w.flush(), f.Sync()); err != nil {
		return err
	}
	s.size, s.sum = w.size, w.sum
	return nil
}

// rewriteStep is how many keys are read from the source at a time, which can
// take no edits meanwhile.
const rewriteStep = 256

// rewrite writes the file anew. Edits go on meanwhile; those that came too late
// for the place of their key follow at the end.
func (s *saver) rewrite() error {
	w := stateWriter{}
	if s.sound {
		if err := s.keepBefore(); err != nil {
			s.log.Warn("cannot keep the file of the state that is written anew", "file", s.path+beforeSuffix, "err", err)
		}
	}
	err := writeFileAtomically(s.path, func(f io.Writer) error {
		w.to = bufio.NewWriterSize(f, 64<<10)
		w.begin()
		keys := s.source.takeKeys()
		slices.Sort(keys)
		var changes []stateChange
		for step := range slices.Chunk(keys, rewriteStep) {
			changes = s.source.appendInForce(changes[:0], step)
			for _, ch := range changes {
				if !ch.gone {
					w.change(ch)
				}
			}
		}
		now, changes := s.source.takeUnsaved()
		for _, ch := range changes {
			w.change(ch)
		}
		w.asOf(now)
		return w.flush()
	})
	if err == nil {
		s.size, s.whole, s.sum, s.sound = w.size, w.size, w.sum, true
	}
	return err
}

// beforeSuffix is what the name of the file ends in that the present one took the
// place of.
const beforeSuffix = ".before"

// keepBefore keeps the file that is about to be written anew, for the case that
// what is written is damaged later.
func (s *saver) keepBefore() error { return link(s.path, s.path+beforeSuffix) }

// link makes the file at path known as name, in the place of what was there.
func link(path, name string) error {
	tmp := name + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(path, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, name)
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
	case !h.known: // there was none
		return ""
	case h.cluster != "" && is.cluster != "" && h.cluster != is.cluster:
		return "etcd is another cluster than before"
	case is.rev < h.rev:
		return "etcd has gone back in time, as after restoring an old backup"
	case h.keys >= manyKeys && is.keys < h.keys/2:
		return mostGone
	}
	return ""
}

// mostGone is the one step back that people take by intent, and say so.
const mostGone = "most keys are gone from etcd"

// heldBack is no step at all as yet.
const heldBack = "deletions are held back"

// keepAside keeps the file that is to be replaced, and says how to get back.
func (s *saver) keepAside(st step) {
	prev := s.path + prevSuffix
	kept, err := s.keep(prev)
	if err != nil {
		s.log.Error("cannot keep the state of before aside", "file", prev, "err", err)
		return
	}
	if !kept {
		return
	}
	if st.why == heldBack {
		s.log.Info(fmt.Sprintf("%s; the state of before is kept in %s, and \"sluice state %s | sh\" puts its keys back", st.why, prev, prev),
			"keys_before", st.from.keys, "rev_before", st.from.rev)
		return
	}
	if st.meant {
		s.log.Info(fmt.Sprintf("%s, as was meant or confirmed; the state of before is kept in %s, and \"sluice state %s | sh\" puts its keys back", st.why, prev, prev),
			"keys_before", st.from.keys, "rev_before", st.from.rev, "keys", st.to.keys, "rev", st.to.rev)
		return
	}
	s.log.Error(fmt.Sprintf("%s. The node follows etcd, and keeps the state of before in %s. If this was not meant, restore etcd from its backup, "+
		"or put the keys back: \"sluice state %s | sh\" does it with etcdctl", st.why, prev, prev),
		"keys_before", st.from.keys, "rev_before", st.from.rev, "keys", st.to.keys, "rev", st.to.rev)
}

// keep makes the file at path known as prev, too, unless what prev holds is
// worth more.
func (s *saver) keep(prev string) (kept bool, err error) {
	is, err := ReadState(s.path)
	if err != nil {
		return false, err // it was damaged before, and is worth nothing
	}
	if info, err := os.Stat(prev); err == nil && time.Since(info.ModTime()) < prevMemory {
		if older, err := ReadState(prev); err == nil && len(older.Entries) > len(is.Entries) {
			return false, nil
		}
	}
	now := time.Now() // when it was kept, rather than written
	return true, errors.Join(link(s.path, prev), os.Chtimes(prev, now, now))
}
