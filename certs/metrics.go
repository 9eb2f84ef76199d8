package certs

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts what happens to certificates. The label domain is bounded by
// the list of names, which operators write.
type metrics struct {
	attempts *prometheus.CounterVec
	missing  prometheus.Counter
	leaves   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, m *Manager) *metrics {
	auto := promauto.With(reg)
	if reg != nil {
		reg.MustRegister(census{m})
	}
	return &metrics{
		attempts: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_certs_attempts_total",
			Help: "Checks of one certificate that ended, with whatever they obtained or renewed, by result (ok, failed).",
		}, []string{"result"}),
		missing: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_certs_missing_total",
			Help: "Handshakes for which there was no certificate.",
		}),
		leaves: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_certs_local_signatures_total",
			Help: "Certificates that the development CA has signed.",
		}),
	}
}

func (s *metrics) attempt(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	s.attempts.WithLabelValues(result).Inc()
}

// census collects what the list looks like now.
type census struct{ m *Manager }

var (
	descDomains = prometheus.NewDesc("sluice_certs_domains",
		"Names that are to have a certificate, by state (obtaining, obtained, failed).", []string{"state"}, nil)
	descExpiry = prometheus.NewDesc("sluice_certs_expiry_timestamp_seconds",
		"When the certificate of a name expires.", []string{"domain"}, nil)
)

// Describe implements prometheus.Collector.
func (census) Describe(ch chan<- *prometheus.Desc) {
	ch <- descDomains
	ch <- descExpiry
}

// Collect implements prometheus.Collector.
func (c census) Collect(ch chan<- prometheus.Metric) {
	states := map[State]int{StateObtaining: 0, StateObtained: 0, StateFailed: 0}
	for _, s := range c.m.Statuses() {
		states[s.State]++
		if !s.NotAfter.IsZero() {
			ch <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(s.NotAfter.Unix()), s.Name)
		}
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(descDomains, prometheus.GaugeValue, float64(n), string(state))
	}
}
