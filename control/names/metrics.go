package names

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics count what the leader does. Their one label with values that people
// choose is the provider's name in the node's file.
type metrics struct {
	wanted, published, names, checked *prometheus.GaugeVec
	changes, drift                    *prometheus.CounterVec
	failures                          *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	by := []string{"provider"}
	return &metrics{
		wanted: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_names_addresses_wanted", Help: "Addresses that the names of a DNS provider are to have, on the node that leads."}, by),
		published: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_names_addresses_published", Help: "Addresses that the names of a DNS provider had when they were read last."}, by),
		names: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_names", Help: "Names that are kept at a DNS provider, by whether they are as wanted."}, []string{"provider", "state"}),
		checked: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_names_oldest_check_timestamp_seconds", Help: "When the records were read of the name whose records were not read for the longest time."}, by),
		changes: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_names_changes_total", Help: "Changes of a name's records, each of any number of them."}, by),
		drift: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_names_drift_total", Help: "Times that a name's records were found changed by other hands."}, by),
		failures: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_names_failures_total", Help: "Failed attempts to read or change records, by operation."}, []string{"provider", "op"}),
	}
}

func (m *metrics) set(provider string, wanted, published, troubled, names int, oldest time.Time) {
	m.wanted.WithLabelValues(provider).Set(float64(wanted))
	m.published.WithLabelValues(provider).Set(float64(published))
	m.names.WithLabelValues(provider, "degraded").Set(float64(troubled))
	m.names.WithLabelValues(provider, "applied").Set(float64(names - troubled))
	if !oldest.IsZero() {
		m.checked.WithLabelValues(provider).Set(float64(oldest.Unix()))
	}
}

// reset forgets what only the leader knows.
func (m *metrics) reset() {
	for _, v := range []*prometheus.GaugeVec{m.wanted, m.published, m.names, m.checked} {
		v.Reset()
	}
}
