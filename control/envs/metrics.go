package envs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/remotegpu/sluice/portpool"
)

// Metrics counts what becomes of pools and environments on a node. A nil one
// counts nothing.
type Metrics struct {
	seconds   *prometheus.HistogramVec
	failures  *prometheus.CounterVec
	conflicts prometheus.Counter
	reuse     prometheus.Histogram
}

// NewMetrics registers the metrics of a Manager, and what reg's pools look like.
func NewMetrics(to prometheus.Registerer, reg *Registry) *Metrics {
	auto := promauto.With(to)
	if to != nil {
		to.MustRegister(census{reg})
	}
	return &Metrics{
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_envs_change_seconds", Help: "Time that changes of environments took, by what was done (create, patch, delete, alloc, release).",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"op"}),
		failures: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_envs_failures_total", Help: "Changes of environments that came to nothing, by reason (exhausted, taken, exists, not_found, invalid, etcd).",
		}, []string{"reason"}),
		conflicts: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_envs_conflicts_total", Help: "Transactions that had to be made anew because another change came first.",
		}),
		reuse: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_pool_reuse_seconds", Help: "Time from the release of a port to its next allocation.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 12),
		}),
	}
}

func (m *Metrics) conflict() {
	if m != nil {
		m.conflicts.Inc()
	}
}

// reused notes that a port is somebody's again.
func (m *Metrics) reused(after time.Duration) {
	if m != nil {
		m.reuse.Observe(after.Seconds())
	}
}

// done notes what a change came to.
func (m *Metrics) done(op string, start time.Time, err error) {
	switch {
	case m == nil:
	case err == nil:
		m.seconds.WithLabelValues(op).Observe(time.Since(start).Seconds())
	default:
		m.failures.WithLabelValues(Reason(err)).Inc()
	}
}

// census collects what pools look like now. The label service is bounded by the
// pools, which operators write.
type census struct{ reg *Registry }

var descPorts = prometheus.NewDesc("sluice_pool_ports",
	"Ports of a pool by state (available, allocated, reserved, quarantined, mapped).", []string{"service", "state"}, nil)

// Describe implements prometheus.Collector.
func (census) Describe(ch chan<- *prometheus.Desc) { ch <- descPorts }

// Collect implements prometheus.Collector.
func (c census) Collect(ch chan<- prometheus.Metric) {
	for service, s := range c.reg.Stats(time.Now()) {
		for state, n := range map[portpool.State]int{
			portpool.Available: s.Available, portpool.Allocated: s.Held, portpool.Reserved: s.Reserved,
			portpool.Quarantined: s.Quarantined, portpool.Mapped: s.Mapped,
		} {
			ch <- prometheus.MustNewConstMetric(descPorts, prometheus.GaugeValue, float64(n), service, string(state))
		}
	}
}

// Stats returns the numbers of all pools at the time now.
func (r *Registry) Stats(now time.Time) map[string]portpool.Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]portpool.Stats{}
	for _, service := range r.book.Services() {
		all[service] = r.book.Stats(r.book.Pool(service), now)
	}
	return all
}
