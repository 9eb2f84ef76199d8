package portpool

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// maxProposed is how many ranges Propose names.
const maxProposed = 4

// Propose adds to an error about the ports of a pool which ports there are for
// it: those of ranges, which nodes open, that no other pool has. value is what
// was asked for, as below pools/. Other errors are returned as they are.
func Propose(err error, value []byte, ranges router.Ports, others []*Pool) error {
	var fe *router.FieldError
	if !errors.As(err, &fe) || fe.Path != "ports" {
		return err
	}
	text := proposal(wanted(value), freeOf(ranges, others), ranges)
	if ranges.Contains(1) && ranges.Size() == router.MaxPort { // whoever asks has no node's file
		text += ", as far as other pools go; the nodes' file says which they open"
	}
	return &router.FieldError{Path: fe.Path, Msg: fe.Msg + "; " + text}
}

// proposal says which of free to take where so many ports are wanted.
func proposal(want int, free, ranges router.Ports) string {
	if len(free) == 0 {
		return fmt.Sprintf("of the nodes' ports (%v) other pools have each one", ranges)
	}
	for _, r := range free {
		if want > 0 && r.Size() >= want {
			return fmt.Sprintf("%v are free, as many as that", router.PortRange{First: r.First, Last: r.First + want - 1})
		}
	}
	bySize := slices.Clone(free)
	slices.SortStableFunc(bySize, func(a, b router.PortRange) int { return b.Size() - a.Size() })
	named := bySize[:min(len(bySize), maxProposed)]
	slices.SortFunc(named, func(a, b router.PortRange) int { return a.First - b.First })
	more := ""
	if len(named) < len(free) {
		more = " and some more"
	}
	return fmt.Sprintf("%v%s are free, %d ports in all", named, more, free.Size())
}

// unprivileged is the first port that any program may listen on: none below is
// proposed.
const unprivileged = 1024

// freeOf returns those of ranges that no pool has.
func freeOf(ranges router.Ports, pools []*Pool) (free router.Ports) {
	var taken bitmap
	for port := range unprivileged {
		taken.set(port, true)
	}
	for _, p := range pools {
		for _, r := range p.Ports {
			for port := r.First; port <= r.Last; port++ {
				taken.set(port, true)
			}
		}
	}
	for _, r := range ranges {
		for port := taken.firstClear(r.First, r.Last); port <= r.Last; {
			last := port
			for last < r.Last && !taken.has(last+1) {
				last++
			}
			free = append(free, router.PortRange{First: port, Last: last})
			port = taken.firstClear(last+1, r.Last)
		}
	}
	return free
}

// wanted returns how many ports a value asks for, be they ports or not; 0 where
// that cannot be said.
func wanted(value []byte) (n int) {
	var v struct {
		Ports string `json:"ports"`
	}
	if json.Unmarshal(value, &v) != nil {
		return 0
	}
	for part := range strings.SplitSeq(v.Ports, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(strings.TrimSpace(from), 10, 31)
		last := first
		if isRange && err == nil {
			last, err = strconv.ParseUint(strings.TrimSpace(to), 10, 31)
		}
		if err != nil || last < first {
			return 0
		}
		n += int(last - first + 1)
	}
	return n
}
