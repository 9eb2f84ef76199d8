package etcd

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the package's series, one set for each Client.
type metrics struct {
	connected   prometheus.Gauge
	heard       prometheus.Gauge
	seen        prometheus.Gauge
	delivered   prometheus.Gauge
	loads       *prometheus.CounterVec
	loadSeconds prometheus.Histogram
	keys        prometheus.Gauge
	changes     prometheus.Counter
	batches     prometheus.Counter

	registered prometheus.Gauge
	conflict   prometheus.Gauge
	full       prometheus.Gauge
	leases     prometheus.Counter
	pending    prometheus.Gauge
	writes     prometheus.Counter
	failures   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		connected: gauge("connected", "1 while the watch on etcd is loaded and alive, else 0."),
		heard:     gauge("last_heard_timestamp_seconds", "When etcd last said anything on the watch, in Unix time."),
		seen:      gauge("seen_revision", "Highest etcd revision seen on the watch."),
		delivered: gauge("delivered_revision", "Revision up to which all changes have been handed on."),
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_etcd_loads_total",
			Help: "Full loads, by what made them necessary."}, []string{"reason"}),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sluice_etcd_load_duration_seconds",
			Help: "Time to read all watched keys.", Buckets: []float64{.001, .01, .1, .5, 1, 2, 5, 10, 30}}),
		keys:    gauge("loaded_keys", "Watched keys found by the last full load."),
		changes: counter("changes_total", "Changes of watched keys handed on, full loads aside."),
		batches: counter("change_batches_total", "Batches in which changes were handed on."),

		registered: gauge("registered", "1 while this node holds its name in etcd, else 0."),
		conflict:   gauge("name_conflict", "1 while another node or process holds this node's name in etcd, else 0."),
		full:       gauge("full", "1 while etcd refuses this node's writes because its quota is reached, else 0."),
		leases:     counter("leases_total", "Leases taken: one, and one for each that was lost."),
		pending:    gauge("leased_writes_pending", "Keys under the lease that etcd does not have as they should be."),
		writes:     counter("leased_writes_total", "Keys under the lease written or deleted."),
		failures:   counter("leased_write_failures_total", "Transactions on keys under the lease that failed and were tried again."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connected, m.heard, m.seen, m.delivered, m.loads, m.loadSeconds, m.keys,
		m.changes, m.batches, m.registered, m.conflict, m.full, m.leases, m.pending, m.writes, m.failures} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register etcd metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) setConflict(is bool) {
	m.conflict.Set(0)
	if is {
		m.conflict.Set(1)
	}
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_etcd_" + name, Help: help})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_etcd_" + name, Help: help})
}
