package fleet

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// The times of a judge.
const (
	// backAfter is how long votes have to be for a subject that was out before it
	// is in again. Voters have waited before, each for itself.
	backAfter = time.Second
	// ghostFor is how long a node is remembered whose record is gone.
	ghostFor = time.Minute
)

// situation is what is known of nodes at one moment. None of it is modified.
type situation struct {
	nodes    []string         // whose records are there, in order; a new slice for each change
	subjects []string         // addresses of those that are ready, in order
	views    map[string]*View // by node; of nodes that are not there too
	// gone says when the records of those went that are not there any more, by
	// node.
	gone map[string]time.Time
}

// judge says which subjects are out by the votes of those who watch them. Who is
// out or in depends on what was said before: one that is neither out nor in for
// sure stays what it is.
type judge struct {
	out  map[string]*sentence // by subject
	wary bool                 // more of a family would be out than is believed

	nodes    []string            // of the last decision
	watchers map[string][]string // of each, as far as asked for
}

// watch returns who watches a node.
func (j *judge) watch(node string, nodes []string) []string {
	if j.watchers == nil || !slices.Equal(nodes, j.nodes) {
		j.nodes, j.watchers = nodes, map[string][]string{}
	}
	if j.watchers[node] == nil {
		j.watchers[node] = watchersOf(node, nodes)
	}
	return j.watchers[node]
}

// sentence is why a subject is out.
type sentence struct {
	why   string
	since time.Time // zero, or since when its votes would have it in
}

// decide brings who is out up to date, and returns when to decide anew if nothing
// changes until then; zero: there is no need to.
//
// A subject goes out when more than half of those who watch its node, and two at
// least, say that it is down; whoever sees nobody has no vote, and counts among the
// others. So one node's broken view, and a node that was cut off, put nobody out,
// and of two nodes neither can put the other out: its lease does. A subject comes
// back when more than half say that it is up, or nobody that it is down: whoever
// sees nobody keeps it out only where nobody says that it is up. No more than half
// of the IPv4 addresses, and of the IPv6 addresses, are out at a time: where votes
// would have it so, what is wrong is the way of checking, or the network between,
// and nobody else of that family goes out.
func (j *judge) decide(now time.Time, s *situation) (next time.Time) {
	if j.out == nil {
		j.out = map[string]*sentence{}
	}
	due := map[string]string{} // those that are to go out, and why
	for _, subject := range s.subjects {
		watchers := j.watch(nodeOf(subject), s.nodes)
		up, down, said, why := tally(subject, watchers, s.views)
		need := max(len(watchers)/2+1, 2) // nobody decides alone
		was := j.out[subject]
		switch {
		case was == nil && down >= need:
			due[subject] = fmt.Sprintf("%d of the %d nodes that watch it cannot reach it: %s", down, len(watchers), why)
		case was == nil:
		case up < need && said:
			was.since = time.Time{}
		case was.since.IsZero():
			was.since = now
			next = earliest(next, now.Add(backAfter))
		case now.Sub(was.since) >= backAfter:
			delete(j.out, subject)
		default:
			next = earliest(next, was.since.Add(backAfter))
		}
	}
	maps.DeleteFunc(j.out, func(subject string, _ *sentence) bool {
		_, there := slices.BinarySearch(s.subjects, subject)
		return !there
	})
	j.wary = false
	for _, six := range []bool{false, true} {
		j.condemn(s.subjects, due, six)
	}
	return next
}

// condemn puts those of one family out that are due, unless that were too many.
func (j *judge) condemn(subjects []string, due map[string]string, six bool) {
	all, out, condemned := 0, 0, 0
	for _, subject := range subjects {
		if isSix(subject) != six {
			continue
		}
		all++
		if j.out[subject] != nil {
			out++
		}
		if due[subject] != "" {
			condemned++
		}
	}
	if condemned > 0 && out+condemned > all/2 {
		j.wary = true
		return
	}
	for subject, why := range due {
		if isSix(subject) == six {
			j.out[subject] = &sentence{why: why}
		}
	}
}

// earliest returns the earlier of two times, of which zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// tally counts what watchers say of a subject. said reports whether any of them
// says that it is down, be it one that sees nobody where no other says that it is
// up; why is what the first one says.
func tally(subject string, watchers []string, views map[string]*View) (up, down int, said bool, why string) {
	for _, w := range watchers {
		v := views[w]
		if v == nil {
			continue
		}
		switch v.vote(subject) {
		case 1:
			up++
		case -1:
			if v.blind() {
				said = true
				continue
			}
			if down++; why == "" {
				why = v.Down[subject]
			}
		}
	}
	return up, down, down > 0 || said && up == 0, why
}

// doubtful reports whether so many records went at once that etcd rather than the
// nodes may be the reason: two or more, and more than half of all, within
// ghostFor. Those that somebody still sees stay in meanwhile.
func (s *situation) doubtful() bool {
	return len(s.gone) >= 2 && len(s.gone) > len(s.nodes)
}

// seen reports whether any node says that it can reach a subject.
func (s *situation) seen(subject string) bool {
	for _, v := range s.views {
		if v.vote(subject) == 1 {
			return true
		}
	}
	return false
}
