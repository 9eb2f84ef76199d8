package main

import (
	"context"
	"fmt"
	"slices"
)

// halfTries are how often it is measured what the reference can do at most.
const halfTries = 3

// halfLoad finds out how many requests a second the row's reference, or the
// first contender without it, answers at most, and returns the row with half of
// that as every contender's constant rate.
func (b *bench) halfLoad(ctx context.Context, r row, edges []*edge) (row, float64, error) {
	able := slices.DeleteFunc(slices.Clone(edges), func(e *edge) bool { return !r.takes(e) })
	if len(able) == 0 {
		return r, 0, nil // nobody will be measured
	}
	most := able[0]
	for _, e := range able {
		if e.name == r.referenceOr(reference) {
			most = e
		}
	}
	load := *r.half
	var rates []float64
	for range halfTries {
		s, err := load.measure(ctx, most, b.options.phases)
		if err != nil {
			return r, 0, fmt.Errorf("find the rate of %s: what %s can do: %w", r.name, most.name, err)
		}
		rates = append(rates, s.Rate)
	}
	load.rate = median(rates) / 2
	fmt.Fprintf(b.out, "%-9s half of what %s can do: %s %s\n", r.name, most.name, figure(load.rate), r.rate)
	r.measure = load.measure
	return r, load.rate, nil
}
