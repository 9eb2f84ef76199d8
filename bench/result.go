package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// result is all that a run of the bench found; the JSON file is it.
type result struct {
	Time       time.Time          `json:"time"`
	Machine    machine            `json:"machine"`
	Flags      []string           `json:"flags"`
	Contenders []string           `json:"contenders"` // in the order of a round
	Versions   map[string]string  `json:"versions"`   // of contenders and tools
	Warm       float64            `json:"warm_seconds"`
	Main       float64            `json:"main_seconds"`
	Rest       map[string]float64 `json:"cpu_ms_per_second_at_rest,omitempty"`
	Rows       []rowResult        `json:"rows"`
	Live       *liveResult        `json:"live,omitempty"`
}

// rowResult is a row's samples.
type rowResult struct {
	Name   string              `json:"name"`
	Title  string              `json:"title"`
	Cost   string              `json:"cost_unit"`
	Rate   string              `json:"rate_unit"`
	Rounds []map[string]sample `json:"rounds"` // by contender
}

// line is a contender's summary in a row: medians over the rounds.
type line struct {
	contender  string
	rounds     int // that count
	cost, rate float64
	p50, p99   float64 // microseconds; 0: the row has no latency
	ratio      spread  // of cost to the reference's in the same round; NaN without it
}

// lines sums a row up, one line for each contender that has a sample.
func (r rowResult) lines(contenders []string, reference string) []line {
	var all []line
	for _, name := range contenders {
		var cost, rate, p50, p99, ratio []float64
		for _, round := range r.Rounds {
			s, ok := round[name]
			if !ok || s.Error != "" {
				continue
			}
			cost, rate = append(cost, s.Cost), append(rate, s.Rate)
			p50, p99 = append(p50, s.P50), append(p99, s.P99)
			if ref, ok := round[reference]; ok && ref.Error == "" && ref.Cost > 0 {
				ratio = append(ratio, s.Cost/ref.Cost)
			}
		}
		if len(cost) > 0 {
			all = append(all, line{name, len(cost), median(cost), median(rate), median(p50), median(p99), spreadOf(ratio)})
		}
	}
	return all
}

// failures returns what in a row keeps it from being a fair comparison.
func (r rowResult) failures(contenders []string) []string {
	var all []string
	var tls []string
	for i, round := range r.Rounds {
		for _, name := range contenders {
			s := round[name]
			if s.Error != "" {
				all = append(all, fmt.Sprintf("%s: %s in round %d: %s", r.Name, name, i+1, s.Error))
			} else if s.TLS != "" && !slices.Contains(tls, s.TLS) {
				tls = append(tls, s.TLS)
			}
		}
	}
	if len(tls) > 1 {
		all = append(all, fmt.Sprintf("%s: contenders did not use the same cryptography: %q", r.Name, tls))
	}
	return all
}

// failures returns those of all rows.
func (r *result) failures() []string {
	var all []string
	for _, row := range r.Rows {
		all = append(all, row.failures(r.Contenders)...)
	}
	return all
}

// failure is the run's error: nil if every row counts.
func (r *result) failure() error {
	var errs []error
	for _, f := range r.failures() {
		errs = append(errs, errors.New("FAILED "+f))
	}
	return errors.Join(errs...)
}

// referenceName is whom ratios are taken to: nginx, or where it is not measured
// the first contender.
func (r *result) referenceName() string {
	if slices.Contains(r.Contenders, reference) || len(r.Contenders) == 0 {
		return reference
	}
	return r.Contenders[0]
}
