package etcdstore

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the package's series.
type metrics struct {
	certificates prometheus.Gauge
	refused      prometheus.Gauge
	keyMissing   prometheus.Gauge
	saveFailures prometheus.Counter
	damaged      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	auto := promauto.With(reg)
	return &metrics{
		certificates: auto.NewGauge(prometheus.GaugeOpts{Name: "sluice_certs_stored",
			Help: "Certificates that this node has of those that the cluster shares."}),
		refused: auto.NewGauge(prometheus.GaugeOpts{Name: "sluice_certs_stored_refused",
			Help: "Certificates and other values in etcd that are not used, because they are torn, damaged, or sealed with a key that this node lacks."}),
		keyMissing: auto.NewGauge(prometheus.GaugeOpts{Name: "sluice_certs_cluster_key_trouble",
			Help: "1 while this node cannot read what the cluster has sealed, or not the file of its key, else 0."}),
		saveFailures: auto.NewCounter(prometheus.CounterOpts{Name: "sluice_certs_stored_save_failures_total",
			Help: "Attempts to keep a shared certificate or value on this node's disk that failed and are made again."}),
		damaged: auto.NewCounter(prometheus.CounterOpts{Name: "sluice_certs_stored_damaged_files_total",
			Help: "Files of shared certificates and values on this node's disk that were found damaged."}),
	}
}

func (m *metrics) noKey(is bool) {
	m.keyMissing.Set(0)
	if is {
		m.keyMissing.Set(1)
	}
}
