package keys

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/router"
)

// Now returns the keys that begin with prefix, as people want them to be, with
// their values.
func (s *Store) Now(ctx context.Context, prefix string) (map[string]string, error) {
	kvs, _, err := s.Client.ReadRecorded(ctx, 0)
	now := map[string]string{}
	for _, kv := range kvs {
		if strings.HasPrefix(kv.Key, prefix) && !history.IsNote(kv.Key) {
			now[kv.Key] = string(kv.Value)
		}
	}
	return now, err
}

// Difference returns what turns the keys before into those after.
func Difference(before, after map[string]string) []Change {
	var changes []Change
	for key, was := range before {
		is, there := after[key]
		switch {
		case !there:
			changes = append(changes, Change{Key: key, Before: &was})
		case is != was:
			changes = append(changes, Change{Key: key, Before: &was, After: &is})
		}
	}
	for key, is := range after {
		if _, there := before[key]; !there {
			changes = append(changes, Change{Key: key, After: &is})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return router.CompareKeys(a.Key, b.Key) })
	return changes
}

// WishesFor returns the wishes that turn the keys there are into those wanted;
// others are removed or left alone.
func WishesFor(now, wanted map[string]string, remove bool) []Wish {
	var wishes []Wish
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		if value, there := now[key]; !there || value != wanted[key] {
			wishes = append(wishes, Wish{Key: key, Value: wanted[key]})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if _, stays := wanted[key]; !stays && remove {
			wishes = append(wishes, Wish{Key: key, Delete: true})
		}
	}
	return wishes
}

// Back returns what makes the keys that begin with prefix again what they were at
// revision to, as far as a rollback goes. unknown are those whose values then were
// too large for the history: they stay as they are, or as absent as they are. The
// errors are those of history.KeysAt.
func (s *Store) Back(ctx context.Context, to int64, prefix string) (wishes []Wish, unknown []string, err error) {
	was, err := history.KeysAt(ctx, s.Client, to, "") // all: it is the others that say whose a key is
	if err != nil {
		return nil, nil, err
	}
	now, err := s.Now(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	for _, key := range was.Unknown {
		delete(now, key)
	}
	undoable(now, was.Values)
	for _, m := range []map[string]string{now, was.Values} {
		maps.DeleteFunc(m, func(key, _ string) bool { return !strings.HasPrefix(key, prefix) })
	}
	return WishesFor(now, was.Values, true), was.Unknown, nil
}

// undoable leaves, of keys of two times, those that a rollback is about. It takes
// away what belongs to environments: their records and allocations, the mappings of
// ports that an environment holds or held, and their routes. What they have changes
// together, in transactions of its own; a mapping of long ago would lead to whoever
// had the port then. Who may (tokens) and which nodes are drained is not undone
// along with what was done either.
func undoable(now, then map[string]string) {
	apart := func(key string) bool {
		folder, rest, _ := strings.Cut(key, "/")
		switch folder {
		case "allocations", "drain", "envs", "tokens":
			return true
		case "routes":
			return strings.HasPrefix(rest, "env.")
		case "ports":
			_, held := now["allocations/"+rest]
			_, was := then["allocations/"+rest]
			return held || was
		}
		return false
	}
	var all []string
	for _, m := range []map[string]string{now, then} {
		for key := range m {
			if apart(key) {
				all = append(all, key)
			}
		}
	}
	for _, key := range all {
		delete(now, key)
		delete(then, key)
	}
}
