package main

import (
	"math"
	"slices"
	"testing"
)

func TestPercentiles(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	for _, tt := range []struct {
		values []int
		ps     []float64
		want   []int
	}{
		{[]int{7}, []float64{0, 50, 99, 100}, []int{7, 7, 7, 7}},
		{[]int{3, 1, 2}, []float64{50, 99}, []int{2, 3}},
		{[]int{4, 3, 2, 1}, []float64{25, 50, 51}, []int{1, 2, 3}},
		{hundred, []float64{50, 99, 100}, []int{50, 99, 100}},
	} {
		if got := percentiles(slices.Clone(tt.values), tt.ps...); !slices.Equal(got, tt.want) {
			t.Errorf("percentiles(%v, %v) = %v, want %v", tt.values, tt.ps, got, tt.want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{5}, 5},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		before := slices.Clone(tt.values)
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.values, got, tt.want)
		}
		if !slices.Equal(before, tt.values) {
			t.Errorf("median reordered %v to %v", before, tt.values)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %v, want NaN", got)
	}
	if got := spreadOf([]float64{3, 1, 2}); got != (spread{2, 1, 3}) {
		t.Errorf("spreadOf = %v, want {2 1 3}", got)
	}
}
