package etcd

import (
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// unwatched lists, in key order, the subtrees below the prefix that a data
// plane has no use for. All else is watched, so that a mistyped key is seen.
var unwatched = []string{"acme/", "allocations/", "dns/", "drain/", "edits/", "envs/", "health/", "history/", "idempotency/", "leaders/", "members/", "nodes/", "tokens/", "verdicts/"}

// unrecorded lists, in key order, the subtrees whose changes are no wish of
// anybody's: what programs write for each other.
var unrecorded = []string{"acme/", "dns/", "health/", "history/", "idempotency/", "leaders/", "members/", "nodes/", "verdicts/"}

// span is a range of keys: from <= key < end.
type span struct{ from, end string }

// IsWatched reports whether nodes watch a key, below the prefix.
func IsWatched(key string) bool {
	return !slices.ContainsFunc(unwatched, func(subtree string) bool { return strings.HasPrefix(key, subtree) })
}

// isRecorded reports whether the changes of a key, below the prefix, are kept.
func isRecorded(key string) bool {
	return !slices.ContainsFunc(unrecorded, func(subtree string) bool { return strings.HasPrefix(key, subtree) })
}

// watched returns the spans that nodes watch.
func watched(prefix string) []span { return without(prefix, unwatched) }

// recorded returns the spans whose changes are kept.
func recorded(prefix string) []span { return without(prefix, unrecorded) }

// without returns the spans that are left of prefix, which ends with a slash,
// without some subtrees, which are in key order.
func without(prefix string, subtrees []string) []span {
	spans := make([]span, 0, len(subtrees)+1)
	from := prefix
	for _, subtree := range subtrees {
		spans = append(spans, span{from, prefix + subtree})
		from = clientv3.GetPrefixRangeEnd(prefix + subtree)
	}
	return append(spans, span{from, clientv3.GetPrefixRangeEnd(prefix)})
}
