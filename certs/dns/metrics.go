package dns

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts the calls of all providers. Labels are bounded: provider is a
// key of sluice.yaml, op and result are a handful of words. A nil *Metrics
// counts nothing.
type Metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// NewMetrics registers the metrics with reg; a nil reg keeps them private. It
// panics if reg has them already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	return &Metrics{
		calls: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_dns_calls_total",
			Help: "Calls to DNS providers by provider, operation and result (ok, exists, missing, transient, refused).",
		}, []string{"provider", "op", "result"}),
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_dns_call_duration_seconds",
			Help:    "Time that calls to DNS providers took, waiting for an earlier call included.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
		}, []string{"provider", "op"}),
	}
}

func (m *Metrics) observe(provider string, o op, c class, took time.Duration) {
	if m == nil {
		return
	}
	m.calls.WithLabelValues(provider, string(o), string(c)).Inc()
	m.seconds.WithLabelValues(provider, string(o)).Observe(took.Seconds())
}
