package main

import (
	"cmp"
	"math"
	"slices"
)

// percentiles returns, for each p of ps, the least value that at least p per
// cent of the values do not exceed (the nearest rank). It sorts values, of
// which there must be one at least.
func percentiles[T cmp.Ordered](values []T, ps ...float64) []T {
	slices.Sort(values)
	out := make([]T, len(ps))
	for i, p := range ps {
		rank := int(math.Ceil(p / 100 * float64(len(values))))
		out[i] = values[min(max(rank, 1), len(values))-1]
	}
	return out
}

// median returns the middle value, or the mean of the two in the middle; NaN of
// no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// spread is a median and what it is the middle of.
type spread struct{ median, min, max float64 }

// spreadOf returns NaN of no values.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	return spread{median(values), slices.Min(values), slices.Max(values)}
}
