package proxy

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	mappings, routes prometheus.Gauge
	busyPorts        prometheus.Gauge
	portsMode        *prometheus.GaugeVec
	// Other programs' sockets among the ports: they get what they listen for,
	// or nothing.
	foreignHearing, foreignDeaf prometheus.Gauge
	udpSockets                  prometheus.Gauge // of steered ports
	// First datagrams of steered ports that were not served, by why.
	firstUnmapped, firstDenied, firstSockets, firstLate prometheus.Counter
	acceptErrors                                        prometheus.Counter
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
	m.portsMode = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_proxy_ports_mode", Help: "1 for the mode in which mapped ports are opened."}, []string{"mode"})
	foreign := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_proxy_foreign_sockets", Help: "Sockets of other programs among the steered ports, by whether they get anything."},
		[]string{"state"})
	m.foreignHearing, m.foreignDeaf = foreign.WithLabelValues("hearing"), foreign.WithLabelValues("deaf")
	m.udpSockets = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluice_proxy_udp_sockets", Help: "Steered UDP ports that have a socket of their own at the moment."})
	first := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_proxy_first_datagrams_dropped_total", Help: "Datagrams to steered ports without a socket that were not served, by why."},
		[]string{"reason"})
	m.firstUnmapped, m.firstDenied = first.WithLabelValues("unmapped"), first.WithLabelValues("denied")
	m.firstSockets, m.firstLate = first.WithLabelValues("sockets"), first.WithLabelValues("late")
	if r != nil {
		r.MustRegister(m.portsMode, foreign, m.udpSockets, first)
		r.MustRegister(m.mappings, m.routes, m.busyPorts, m.acceptErrors, tls)
	}
	return m
}
