package tlskeys

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	known    *prometheus.GaugeVec
	failures prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		known: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_tls_ticket_keys",
			Help: "Keys that open session tickets, by whose key seals: that of all nodes, or this node's own.",
		}, []string{"sealed_by"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_tls_ticket_key_failures_total",
			Help: "Times that the next shared key of session tickets could not be made, or the shared ones were of no use.",
		}),
	}
	if r != nil {
		r.MustRegister(m.known, m.failures)
	}
	return m
}

func (m *metrics) keys(shared bool, n int) {
	by := map[bool]string{true: "cluster", false: "node"}
	m.known.WithLabelValues(by[shared]).Set(float64(n))
	m.known.WithLabelValues(by[!shared]).Set(0)
}
