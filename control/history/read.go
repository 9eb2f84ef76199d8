package history

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
)

// Log is the history as far as it was asked for.
type Log struct {
	Changes []Change // in their order
	// From and To bound the revisions whose changes are all there: From < rev
	// <= To. Changes may begin earlier.
	From, To int64
	// Gap says that there were changes after To that nobody has recorded and
	// that etcd has forgotten.
	Gap bool
	// Unreadable are keys below the history's that hold no changes: nodes write no
	// such keys.
	Unreadable []string
}

// TooOldError says that the history does not reach back to a revision.
type TooOldError struct{ Rev, From int64 }

func (e *TooOldError) Error() string {
	return fmt.Sprintf("the history reaches back to revision %d, and not to %d; what is older is gone unless there is a snapshot", e.From, e.Rev)
}

// FutureError says that etcd has not come to a revision yet.
type FutureError struct{ Rev, Now int64 }

func (e *FutureError) Error() string {
	return fmt.Sprintf("revision %d lies in the future: etcd is at %d", e.Rev, e.Now)
}

// readPage is how many batches are read at once.
const readPage = 16

// Read returns the changes after revision rev, those that nobody has recorded
// yet included.
func Read(ctx context.Context, c *etcd.Client, rev int64) (*Log, error) {
	log := &Log{}
	// How far the history goes is asked before what it has, and where it begins
	// after that: it is written and trimmed meanwhile.
	state, err := readRecorded(ctx, c)
	if err != nil && !errors.As(err, new(*garbledError)) {
		return nil, err
	}
	var read []batch
	for after := fmt.Sprintf("%016x", max(rev, 0)); ; {
		page, err := c.ReadRange(ctx, batches, after, readPage)
		if err != nil {
			return nil, err
		}
		for _, kv := range page {
			b, changes, err := readBatch(kv)
			if err != nil {
				log.Unreadable = append(log.Unreadable, kv.Key)
				continue
			}
			read = append(read, b)
			log.Changes = append(log.Changes, changes...)
		}
		if len(page) < readPage {
			break
		}
		after = strings.TrimPrefix(page[len(page)-1].Key, batches)
	}
	if state == nil {
		// A cluster whose nodes keep none, or are about to begin anew: etcd's own
		// memory is all that is surely complete.
		state = &recorded{}
	} else {
		now, err := readRecorded(ctx, c)
		if err != nil && !errors.As(err, new(*garbledError)) {
			return nil, err
		}
		if now != nil {
			state.From = max(state.From, now.From)
		}
		state.From = joined(read, rev, state)
	}
	pending, until, _, err := c.ChangesSince(ctx, max(state.To, rev))
	if errors.Is(err, etcd.ErrCompacted) {
		log.Gap, until, err = true, state.To, nil
	}
	if err != nil {
		return nil, err
	}
	log.From, log.To = state.From, until
	log.Changes = append(log.Changes, changesOf(pending, time.Now())...)
	// A batch may begin before rev, and may have been written between the two
	// readings.
	slices.SortStableFunc(log.Changes, func(a, b Change) int { return int(a.Rev - b.Rev) })
	seen := map[string]int64{}
	log.Changes = slices.DeleteFunc(log.Changes, func(ch Change) bool {
		again := seen[ch.Key] == ch.Rev
		seen[ch.Key] = ch.Rev
		return again || ch.Rev <= rev
	})
	return log, nil
}

// Then is what the keys were at a revision.
type Then struct {
	Values map[string]string // by key
	// Unknown are the keys that there were but whose values were too large for
	// the history, in order.
	Unknown []string
}

// KeysAt returns the keys below a folder ("" for all) and their values as they
// were at revision rev, which etcd itself need not remember. It works back from
// what they are now.
func KeysAt(ctx context.Context, c *etcd.Client, rev int64, folder string) (*Then, error) {
	log, err := Read(ctx, c, rev)
	if err != nil {
		return nil, err
	}
	if log.Gap {
		return etcdsMemory(ctx, c, rev, folder, fmt.Errorf("etcd has forgotten changes after revision %d before any node had recorded them; "+
			"wait until a running node has noticed, from when on the history is complete again", log.To))
	}
	if rev > log.To {
		return nil, &FutureError{rev, log.To}
	}
	if rev < log.From {
		return etcdsMemory(ctx, c, rev, folder, &TooOldError{rev, log.From})
	}
	kvs, _, err := c.ReadRecorded(ctx, log.To)
	if err != nil {
		return nil, err
	}
	at := make(map[string]string, len(kvs))
	for _, kv := range kvs {
		if !IsNote(kv.Key) {
			at[kv.Key] = string(kv.Value)
		}
	}
	unknown := map[string]bool{}
	for _, ch := range slices.Backward(log.Changes) {
		if ch.Rev > log.To || IsNote(ch.Key) {
			continue
		}
		delete(at, ch.Key)
		delete(unknown, ch.Key)
		switch {
		case ch.Before == nil:
		case ch.Omitted && *ch.Before == "":
			unknown[ch.Key] = true
		default:
			at[ch.Key] = *ch.Before
		}
	}
	elsewhere := func(key string) bool { return !strings.HasPrefix(key, folder) }
	maps.DeleteFunc(at, func(key, _ string) bool { return elsewhere(key) })
	maps.DeleteFunc(unknown, func(key string, _ bool) bool { return elsewhere(key) })
	return &Then{at, slices.Sorted(maps.Keys(unknown))}, nil
}

// etcdsMemory is KeysAt by what etcd itself remembers, as of a revision of the
// last hour or two: the history may have been deleted with all else. without is
// the error where etcd does not remember.
func etcdsMemory(ctx context.Context, c *etcd.Client, rev int64, folder string, without error) (*Then, error) {
	kvs, _, err := c.ReadRecorded(ctx, rev)
	if errors.Is(err, etcd.ErrCompacted) {
		return nil, without
	}
	if err != nil {
		return nil, err
	}
	then := &Then{Values: map[string]string{}}
	for _, kv := range kvs {
		if strings.HasPrefix(kv.Key, folder) && !IsNote(kv.Key) {
			then.Values[kv.Key] = string(kv.Value)
		}
	}
	return then, nil
}

// IsNote reports whether a key says something of a change, so that going back
// to what it was would make no sense.
func IsNote(key string) bool {
	return key == etcd.NoteKey || strings.HasPrefix(key, "removals/")
}

// Newest returns the revision of the newest change, deletions included, of a key
// that nodes watch, as far as the history goes back; 0 where it knows of none.
func Newest(ctx context.Context, c *etcd.Client) (rev int64, err error) {
	state, err := readRecorded(ctx, c)
	switch {
	case errors.As(err, new(*garbledError)):
		state = &recorded{}
	case err != nil || state == nil:
		return 0, err
	}
	pending, _, _, err := c.ChangesSince(ctx, state.To)
	if err != nil && !errors.Is(err, etcd.ErrCompacted) {
		return 0, err
	}
	for _, p := range pending {
		if etcd.IsWatched(p.Key) {
			rev = p.ModRev
		}
	}
	last, err := c.ReadLast(ctx, batches)
	if err != nil || last == nil || rev != 0 {
		return rev, err
	}
	_, changes, err := readBatch(*last)
	if err != nil {
		return state.To, nil // no key of the history; what is newest may be a little older
	}
	for _, ch := range changes {
		if etcd.IsWatched(ch.Key) {
			rev = ch.Rev
		}
	}
	return rev, nil
}
