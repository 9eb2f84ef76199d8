package http

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/router"
)

// maxRouteLabels bounds the values of the label route: names of deleted routes
// stay until the process ends. Routes beyond it count as "other".
const maxRouteLabels = 1000

type metrics struct {
	requests    *prometheus.CounterVec
	seconds     [numProtos]prometheus.Observer
	firstByte   [numProtos]prometheus.Observer
	active      prometheus.Gauge
	connections [numProtos]prometheus.Gauge
	refused     map[string]prometheus.Counter // by how the exchange ended

	retries           map[router.RetryReason]prometheus.Counter
	retriesOverBudget prometheus.Counter
	abuse             *prometheus.CounterVec

	routes atomic.Pointer[map[string]*routeMetrics] // replaced, never modified: exchanges read it without a lock
	making sync.Mutex                               // held while it is replaced
}

// routeMetrics are the counters of one route by proto and class of status, made
// when first counted.
type routeMetrics struct {
	label string
	count [numProtos][6]atomic.Pointer[prometheus.Counter]
}

// refusals are the ends of exchanges that were held against limits and failed.
var refusals = []string{endDenied, endRate, endConcurrency, endBodySize, endBodySlow, endHeadSlow, endUnauthorized, endAuthBusy, endAuthDenied, endAuthFailed, endTotal, endIdle, endSlow}

var classes = [6]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{}
	m.routes.Store(&map[string]*routeMetrics{})
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_http_requests_total",
		Help: "HTTP exchanges that ended, by version, route and class of the status sent (499, the client left, counts as 4xx).",
	}, []string{"proto", "route", "code_class"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "sluice_http_request_seconds",
		Help:    "Time from the request's head to the response's last byte; upgraded connections are not counted.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"proto"})
	firstByte := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "sluice_http_first_byte_seconds",
		Help:    "Time from the request's head to the response's head.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"proto"})
	m.active = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluice_http_active_exchanges", Help: "HTTP exchanges under way, upgraded ones included."})
	connections := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_http_active_connections", Help: "Client connections open, by HTTP version."}, []string{"proto"})
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_http_refused_total",
		Help: "HTTP exchanges that a route's or the node's own limits ended, by which.",
	}, []string{"reason"})
	m.refused = map[string]prometheus.Counter{}
	for _, end := range refusals {
		m.refused[end] = refused.WithLabelValues(end)
	}
	retries := m.newRetries()
	m.abuse = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_http_abusive_connections_total",
		Help: "Client connections ended because they did too much of something that brings nothing, by version and what it was.",
	}, []string{"proto", "reason"})
	for _, reason := range h2Abuses() { // a rate over a series that begins at 1 misses the first
		m.abuse.WithLabelValues(protoH2.String(), reason)
	}
	for p := range numProtos {
		m.seconds[p] = seconds.WithLabelValues(p.String())
		m.firstByte[p] = firstByte.WithLabelValues(p.String())
		m.connections[p] = connections.WithLabelValues(p.String())
	}
	if r != nil {
		r.MustRegister(m.requests, seconds, firstByte, m.active, connections, refused, retries, m.retriesOverBudget, m.abuse)
	}
	return m
}

// connection counts a connection until the function it returns is called.
func (m *metrics) connection(p proto) (gone func()) {
	m.connections[p].Inc()
	return m.connections[p].Dec
}

// abused counts a connection that is ended for a reason, of a handful.
func (m *metrics) abused(p proto, reason string) { m.abuse.WithLabelValues(p.String(), reason).Inc() }

// exchange counts x, which took this long.
func (m *metrics) exchange(x *exchange, took time.Duration) {
	p, route := x.conn.proto, ""
	if x.hop.route != nil {
		route = x.hop.route.Name
	}
	m.route(route).counter(m.requests, p, x.out.status/100).Inc()
	if x.out.end != "" {
		if counter := m.refused[x.out.end]; counter != nil {
			counter.Inc()
		}
	}
	if x.out.status != 101 {
		m.seconds[p].Observe(took.Seconds())
	}
	if x.out.head > 0 {
		m.firstByte[p].Observe(x.out.head.Seconds())
	}
}

// route returns the counters of a route, or those that all beyond
// maxRouteLabels share.
func (m *metrics) route(name string) *routeMetrics {
	routes := *m.routes.Load()
	if r := routes[name]; r != nil {
		return r
	}
	if len(routes) < maxRouteLabels {
		return m.newRoute(name)
	}
	if r := routes["other"]; r != nil {
		return r
	}
	return m.newRoute("other")
}

func (m *metrics) newRoute(name string) *routeMetrics {
	m.making.Lock()
	defer m.making.Unlock()
	routes := *m.routes.Load()
	if len(routes) >= maxRouteLabels {
		name = "other"
	}
	if r := routes[name]; r != nil {
		return r
	}
	routes = maps.Clone(routes)
	routes[name] = &routeMetrics{label: name}
	m.routes.Store(&routes)
	return routes[name]
}

// counter returns one of r's counters. Whoever is first makes it; those who come
// at the same time make the same one.
func (r *routeMetrics) counter(of *prometheus.CounterVec, p proto, class int) prometheus.Counter {
	if class < 0 || class >= len(classes) {
		class = 0
	}
	place := &r.count[p][class]
	if c := place.Load(); c != nil {
		return *c
	}
	c := of.WithLabelValues(p.String(), r.label, classes[class])
	place.Store(&c)
	return c
}
