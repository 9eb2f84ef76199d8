package upstream

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the Dialer does, by outcomes: backends and names are too
// many for labels.
type metrics struct {
	dials      *prometheus.CounterVec
	byOutcome  [numOutcomes]prometheus.Counter
	connecting prometheus.Histogram

	lookups  *prometheus.CounterVec
	bySource [numSources]prometheus.Counter

	checks         *prometheus.CounterVec
	passed, failed prometheus.Counter
	targets        *prometheus.GaugeVec
	up, down       prometheus.Gauge
	ejections      prometheus.Counter
}

// source is where the answer to a look-up came from.
type source uint8

const (
	fromDNS   source = iota // a resolver's answer
	fromStale               // a former answer, since there was none now
	fromNone                // no answer
	numSources
)

var sourceNames = [numSources]string{"resolved", "stale", "failed"}

func newMetrics() *metrics {
	m := &metrics{
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_upstream_dials_total", Help: "Attempts to connect to a target of a backend by TCP, by how they ended."},
			[]string{"outcome"}),
		connecting: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_upstream_connect_seconds", Help: "Time it took to connect to one target, resolving included; successful attempts only.",
			Buckets: []float64{.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_upstream_lookups_total", Help: "Names of targets that were looked up, by what came of it; answers from memory are not counted while they are fresh."},
			[]string{"outcome"}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_upstream_checks_total", Help: "Health checks of targets, by how they ended; those that this node itself could not do are left out."},
			[]string{"outcome"}),
		targets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_upstream_checked_targets", Help: "Targets of backends with health checks, by what these say."},
			[]string{"state"}),
		ejections: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_upstream_ejections_total", Help: "Times that a target was passed over for a while, since its exchanges failed."}),
	}
	m.passed, m.failed = m.checks.WithLabelValues("passed"), m.checks.WithLabelValues("failed")
	m.up, m.down = m.targets.WithLabelValues("up"), m.targets.WithLabelValues("down")
	for o := range numOutcomes {
		m.byOutcome[o] = m.dials.WithLabelValues(outcomeNames[o])
	}
	for s := range numSources {
		m.bySource[s] = m.lookups.WithLabelValues(sourceNames[s])
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) {
	r.MustRegister(m.dials, m.connecting, m.lookups, m.checks, m.targets, m.ejections)
}

func (m *metrics) dialed(o outcome, took time.Duration) {
	m.byOutcome[o].Inc()
	if o == outConnected {
		m.connecting.Observe(took.Seconds())
	}
}

func (m *metrics) check(passed bool) {
	if passed {
		m.passed.Inc()
	} else {
		m.failed.Inc()
	}
}

// checked counts n more targets that are up or down.
func (m *metrics) checked(down bool, n float64) {
	if down {
		m.down.Add(n)
	} else {
		m.up.Add(n)
	}
}

func (m *metrics) lookedUp(s source) { m.bySource[s].Inc() }
