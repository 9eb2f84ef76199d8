package proxy

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	mappings, routes prometheus.Gauge
	busyPorts        prometheus.Gauge
	acceptErrors     prometheus.Counter
	// Connections to HTTPS listeners, by who took them.
	takenByHTTP, takenByRoute, takenByNobody prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		mappings: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_proxy_mappings", Help: "Mappings in the table in force."}),
		routes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_proxy_routes", Help: "Routes in the table in force."}),
		busyPorts: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_proxy_closed_ports", Help: "Mapped ports that could not be opened and are tried again."}),
		acceptErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_proxy_accept_errors_total", Help: "Failed accepts, mostly for want of file descriptors."}),
	}
	tls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_proxy_tls_connections_total", Help: "Connections to HTTPS listeners, by who took them."},
		[]string{"taken_by"})
	m.takenByHTTP = tls.WithLabelValues("http")
	m.takenByRoute = tls.WithLabelValues("route")
	m.takenByNobody = tls.WithLabelValues("nobody")
	if r != nil {
		r.MustRegister(m.mappings, m.routes, m.busyPorts, m.acceptErrors, tls)
	}
	return m
}
