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
	Idle       *idleResult        `json:"idle,omitempty"`
	Sized      *sizedResult       `json:"map40k,omitempty"`
	Reload     *reloadResult      `json:"reload,omitempty"`
	Edits      *editsResult       `json:"edits,omitempty"`
	Fleet      *fleetResult       `json:"fleet,omitempty"`
	Envs       *envsResult        `json:"envs,omitempty"`
	Swarm      *swarmResult       `json:"swarm,omitempty"`
	Upgrades   *upgradesResult    `json:"upgrades,omitempty"`
	DNS        *dnsResult         `json:"dns,omitempty"`
	Certs      *certsResult       `json:"certs,omitempty"`
	Million    *millionResult     `json:"table1m,omitempty"`
	Shake      *shakeResult       `json:"shake,omitempty"`
	IdleWeb    *idleWebResult     `json:"idle_https,omitempty"`
	Streams    *streamResult      `json:"stream,omitempty"`
	// Failed says of studies that came to no result why.
	Failed []string `json:"failed,omitempty"`
}

// finding is what a study found.
type finding interface {
	section() string    // Markdown
	bars() []bar        // those it is held to
	failures() []string // what keeps it from counting
}

// findings are those of the studies that came to a result.
func (r *result) findings() []finding {
	var all []finding
	if r.Idle != nil {
		all = append(all, r.Idle)
	}
	if r.IdleWeb != nil {
		all = append(all, r.IdleWeb)
	}
	if r.Streams != nil {
		all = append(all, r.Streams)
	}
	if r.Shake != nil {
		all = append(all, r.Shake)
	}
	if r.Live != nil {
		all = append(all, r.Live)
	}
	if r.Sized != nil {
		all = append(all, r.Sized)
	}
	if r.Reload != nil {
		all = append(all, r.Reload)
	}
	if r.Edits != nil {
		all = append(all, r.Edits)
	}
	if r.Fleet != nil {
		all = append(all, r.Fleet)
	}
	if r.Envs != nil {
		all = append(all, r.Envs)
	}
	if r.Swarm != nil {
		all = append(all, r.Swarm)
	}
	if r.Upgrades != nil {
		all = append(all, r.Upgrades)
	}
	if r.DNS != nil {
		all = append(all, r.DNS)
	}
	if r.Certs != nil {
		all = append(all, r.Certs)
	}
	if r.Million != nil {
		all = append(all, r.Million)
	}
	return all
}

// rowResult is a row's samples.
type rowResult struct {
	Name   string   `json:"name"`
	Title  string   `json:"title"`
	Cost   string   `json:"cost_unit"`
	Rate   string   `json:"rate_unit"`
	Limits []limits `json:"limits,omitempty"`
	// Reference is whom ratios are taken to; "": as in most rows.
	Reference string `json:"reference,omitempty"`
	// Offered is the constant rate of the load; 0: as fast as answers come.
	Offered float64             `json:"offered,omitempty"`
	Rounds  []map[string]sample `json:"rounds"` // by contender
}

// line is a contender's summary in a row: medians over the rounds.
type line struct {
	contender  string
	rounds     int // that count
	cost, rate float64
	p50, p99   float64 // microseconds; 0: the row has no latency
	// Ratios to the reference's in the same round; NaN without it.
	ratio, ratio50, ratio99 spread
}

// lines sums a row up, one line for each contender that has a sample.
func (r rowResult) lines(contenders []string, reference string) []line {
	var all []line
	for _, name := range contenders {
		var cost, rate, p50, p99 series
		for _, round := range r.Rounds {
			s, ok := round[name]
			if !ok || s.Error != "" {
				continue
			}
			ref := round[reference] // its figures are 0 where it has none
			cost.add(s.Cost, ref.Cost)
			rate.add(s.Rate, ref.Rate)
			p50.add(s.P50, ref.P50)
			p99.add(s.P99, ref.P99)
		}
		if n := len(cost.values); n > 0 {
			all = append(all, line{
				contender: name, rounds: n,
				cost: median(cost.values), rate: median(rate.values),
				p50: median(p50.values), p99: median(p99.values),
				ratio: spreadOf(cost.ratios), ratio50: spreadOf(p50.ratios), ratio99: spreadOf(p99.ratios),
			})
		}
	}
	return all
}

// series is one figure over the rounds.
type series struct{ values, ratios []float64 }

// add takes a round's value and the reference's, 0 where that has none.
func (s *series) add(value, reference float64) {
	s.values = append(s.values, value)
	if reference > 0 {
		s.ratios = append(s.ratios, value/reference)
	}
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
	for _, f := range r.findings() {
		all = append(all, f.failures()...)
	}
	return append(all, r.Failed...)
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

// referenceOf is whom a row's ratios are taken to.
func (r *result) referenceOf(row rowResult) string {
	if slices.Contains(r.Contenders, row.Reference) {
		return row.Reference
	}
	return r.referenceName()
}
