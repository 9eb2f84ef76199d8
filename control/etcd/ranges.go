package etcd

import (
	clientv3 "go.etcd.io/etcd/client/v3"
)

// unwatched lists, in key order, the subtrees below the prefix that a data
// plane has no use for. All else is watched, so that a mistyped key is seen.
var unwatched = [...]string{"acme/", "allocations/", "envs/", "history/", "nodes/", "verdicts/"}

// span is a range of keys: from <= key < end.
type span struct{ from, end string }

// watched returns the spans that are left of prefix, which ends with a slash,
// without the unwatched subtrees.
func watched(prefix string) []span {
	spans := make([]span, 0, len(unwatched)+1)
	from := prefix
	for _, subtree := range unwatched {
		spans = append(spans, span{from, prefix + subtree})
		from = clientv3.GetPrefixRangeEnd(prefix + subtree)
	}
	return append(spans, span{from, clientv3.GetPrefixRangeEnd(prefix)})
}
