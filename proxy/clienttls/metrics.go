package clienttls

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	resumed, foreignTickets, unknownTickets prometheus.Counter
	verified, absent, refused               prometheus.Counter
	readFailures                            prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	tickets := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_tls_tickets_total",
		Help: "Session tickets that clients showed, by what came of them.",
	}, []string{"outcome"})
	clients := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_tls_client_certificates_total",
		Help: "Handshakes of clients that were asked for a certificate, by what it was worth.",
	}, []string{"outcome"})
	m := &metrics{
		resumed: tickets.WithLabelValues("opened"), foreignTickets: tickets.WithLabelValues("other_client_auth"),
		unknownTickets: tickets.WithLabelValues("unknown_key"),
		verified:       clients.WithLabelValues("verified"), absent: clients.WithLabelValues("none"), refused: clients.WithLabelValues("failed"),
		readFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_tls_client_authority_failures_total",
			Help: "Times that files of client_auth turned out to be of no use.",
		}),
	}
	if r != nil {
		r.MustRegister(tickets, clients, m.readFailures)
	}
	return m
}

func (m *metrics) judged(id *Identity) {
	switch {
	case id.Verified:
		m.verified.Inc()
	case id.None():
		m.absent.Inc()
	default:
		m.refused.Inc()
	}
}
