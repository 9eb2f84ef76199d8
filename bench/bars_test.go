package main

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBars(t *testing.T) {
	r := exampleResult()
	if got := r.barTable(); got != "" {
		t.Errorf("rows without limits have bars:\n%s", got)
	}
	r.Rows[0].Limits = []limits{{Cost: 1.0, P99: 1.1}}
	r.Rows[1].Limits = []limits{{Cost: 0.3}}
	want := `
| bar                         | limit         |          measured |    met |
| --------------------------- | ------------- | ----------------: | -----: |
| HTTP/1.1 clear: CPU         | ≤ 1.00× nginx | 1.00× (0.50–1.20) |    yes |
| HTTP/1.1 clear: p99 latency | ≤ 1.10× nginx | 1.15× (1.11–1.20) | **no** |
| TCP bulk: CPU               | ≤ 0.30× nginx |             0.25× |    yes |
`
	if diff := cmp.Diff(want, r.barTable()); diff != "" {
		t.Errorf("bars (-want +got):\n%s", diff)
	}
	r.Contenders = []string{"haproxy", "sluice"}
	if got := r.barTable(); got != "" {
		t.Errorf("without nginx there is nothing to compare to:\n%s", got)
	}
}

// A row that failed, or has no ratio, never meets its bar.
func TestBarOfABadRowIsMissed(t *testing.T) {
	r := exampleResult()
	r.Rows[1].Limits = []limits{{Cost: 0.3}}
	r.Rows[1].Rounds = append(r.Rows[1].Rounds, map[string]sample{"sluice": {Error: "refused"}})
	if all := r.bars(); len(all) != 1 || all[0].met {
		t.Errorf("bars = %+v, want one that is missed", all)
	}
	if b := atMost("x", 1, reference, spread{math.NaN(), math.NaN(), math.NaN()}, true); b.met {
		t.Errorf("without a ratio: %+v, want that it is missed", b)
	}
	// What is printed decides: a bar of 1.10× is met by what reads 1.10×.
	if b := atMost("x", 1.1, reference, spread{1.1049, 1.1049, 1.1049}, true); !b.met {
		t.Errorf("1.1049 against 1.1: %+v, want that it is met", b)
	}
}
