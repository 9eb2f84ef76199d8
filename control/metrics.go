package control

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	loads        prometheus.Counter
	changes      prometheus.Counter
	applySeconds prometheus.Histogram
	rev          prometheus.Gauge
	refused      prometheus.Gauge
	keys         prometheus.Gauge
	held         prometheus.Gauge
	fingerprint  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		loads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_control_loads_total", Help: "Full loads from etcd applied."}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_control_changes_total", Help: "Changes of keys taken from etcd."}),
		applySeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_control_apply_seconds", Help: "Time from a batch of changes received to applied.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8)}),
		rev: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_control_applied_revision", Help: "The etcd revision in force."}),
		refused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_control_refused_keys", Help: "Keys whose current value is refused."}),
		keys: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_control_keys", Help: "Keys known, refused ones included."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_control_held_keys", Help: "Keys whose deletion is held back by the shrink guard."}),
		fingerprint: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_control_fingerprint", Help: "A number that is the same where the same keys are in force with the same values."}),
	}
	if r != nil {
		r.MustRegister(m.loads, m.changes, m.applySeconds, m.rev, m.refused, m.keys, m.held, m.fingerprint)
	}
	return m
}
