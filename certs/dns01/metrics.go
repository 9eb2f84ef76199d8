package dns01

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts challenges. The label provider is a key of sluice.yaml.
type metrics struct {
	published *prometheus.HistogramVec
	left      prometheus.Counter
	swept     prometheus.Counter
	usable    *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	return &metrics{
		published: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_certs_publication_duration_seconds",
			Help:    "Time from the addition of a challenge record until it was published, by provider and how that ended (seen, delayed, failed).",
			Buckets: []float64{.25, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300},
		}, []string{"provider", "result"}),
		left: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_certs_challenges_left_total",
			Help: "Challenge records whose deletion failed; it is tried again.",
		}),
		swept: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_certs_challenges_swept_total",
			Help: "Challenge records that were left behind, by any node, and deleted later.",
		}),
		usable: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_dns_provider_usable",
			Help: "1 if the last check of a DNS provider found it fit for its zones, 0 if not.",
		}, []string{"provider"}),
	}
}

func (m *metrics) waited(provider string, how way, took time.Duration) {
	m.published.WithLabelValues(provider, string(how)).Observe(took.Seconds())
}
