package control

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/control/wire"
)

// Verdict is what a node did with a key, as ParseVerdict reads it. The zero value
// is that of a key without one.
type Verdict = wire.Verdict

// The states of a Verdict.
const (
	Applied  = "applied"
	Refused  = "refused"
	Degraded = "degraded"
	Held     = "held"    // deleted, which is held back
	Removed  = "removed" // of a key that is gone: nodes write no such verdict
)

// verdict says what the node did with the key, as people read it in etcd.
func (e *entry) verdict() string {
	text, degraded := e.said()
	switch {
	case e.heldRev != 0:
		return e.heldVerdict()
	case e.refused != "" && e.goodRev == 0:
		return "refused: " + e.refused + " (nothing is in force)"
	case e.refused != "":
		return fmt.Sprintf("refused: %s (last good @%d stays in force)", e.refused, e.goodRev)
	case degraded:
		return fmt.Sprintf("degraded: %s (applied@%d)", text, e.goodRev)
	case text != "":
		return fmt.Sprintf("applied@%d: %s", e.goodRev, text)
	}
	return fmt.Sprintf("applied@%d", e.goodRev)
}

// AppliedAt is the verdict of a node on a key of which it says nothing by itself,
// but that it has applied revisions beyond rev, which is that of the key's value:
// there are more keys than it writes verdicts of, and this one fares well.
func AppliedAt(rev int64) Verdict {
	return Verdict{State: Applied, Rev: rev, Text: fmt.Sprintf("applied@%d", rev)}
}

// ParseVerdict reads what a node wrote under verdicts/.
func ParseVerdict(text string) Verdict {
	v := Verdict{Text: text}
	if rest, ok := strings.CutPrefix(text, "applied@"); ok {
		number, _, _ := strings.Cut(rest, ":")
		if rev, err := strconv.ParseInt(number, 10, 64); err == nil {
			v.State, v.Rev = Applied, rev
		}
		return v
	}
	state, _, ok := strings.Cut(text, ": ")
	if !ok || state != Refused && state != Degraded && state != Held {
		return v
	}
	v.State = state
	mark := "(applied@"
	if state == Refused {
		mark = "(last good @"
	}
	if at := strings.LastIndex(text, mark); at >= 0 {
		number, _, _ := strings.Cut(strings.TrimSuffix(text[at+len(mark):], ")"), " ")
		v.Rev, _ = strconv.ParseInt(number, 10, 64)
	}
	return v
}
