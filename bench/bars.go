package main

import (
	"cmp"
	"math"
	"slices"
)

// limits are what sluice's ratios to another contender may be at most; 0: no limit.
type limits struct {
	Cost float64 `json:"cost,omitempty"`
	P99  float64 `json:"p99,omitempty"`
	To   string  `json:"to,omitempty"` // the contender; "": the row's reference
}

// judged is the contender that bars are for.
const judged = "sluice"

// bar is something that sluice has to achieve, and whether it did.
type bar struct {
	what     string
	limit    string
	measured string
	met      bool
}

// bars judges everything that was measured and has a limit.
func (r *result) bars() []bar {
	var all []bar
	for _, row := range r.Rows {
		all = append(all, row.bars(r.Contenders)...)
	}
	for _, f := range r.findings() {
		all = append(all, f.bars()...)
	}
	return all
}

func (r rowResult) bars(contenders []string) []bar {
	var all []bar
	for _, limit := range r.Limits {
		to := cmp.Or(limit.To, r.Reference, reference)
		if slices.Contains(contenders, to) {
			all = append(all, r.barsTo(to, limit, contenders)...)
		}
	}
	return all
}

// barsTo are those of one limit.
func (r rowResult) barsTo(to string, limit limits, contenders []string) []bar {
	var all []bar
	for _, l := range r.lines(contenders, to) {
		if l.contender != judged {
			continue
		}
		whole := len(r.failures(contenders)) == 0
		if limit.Cost > 0 {
			all = append(all, atMost(r.Title+": CPU", limit.Cost, to, l.ratio, whole))
		}
		if limit.P99 > 0 {
			all = append(all, atMost(r.Title+": p99 latency", limit.P99, to, l.ratio99, whole))
		}
	}
	return all
}

// atMost is the bar that a ratio's median, as it is printed, is not above
// limit. Where the row is not whole the bar is missed whatever it says.
func atMost(what string, limit float64, to string, ratio spread, whole bool) bar {
	printed := math.Round(ratio.median*100) / 100 // NaN is above every limit
	return bar{what, "≤ " + times(limit) + " " + to, ratioText(ratio), whole && printed <= limit}
}

// barTable is Markdown: each bar and whether it is met; "" without any.
func (r *result) barTable() string {
	all := r.bars()
	if len(all) == 0 {
		return ""
	}
	cells := [][]string{{"bar", "limit", "measured", "met"}}
	for _, b := range all {
		met := "**no**"
		if b.met {
			met = "yes"
		}
		cells = append(cells, []string{b.what, b.limit, b.measured, met})
	}
	return "\n" + align(cells)
}
