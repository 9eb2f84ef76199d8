package l4

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/router"
)

var protos = [...]router.Proto{router.TCP, router.UDP}

// dropReason is why a datagram was not passed on.
type dropReason uint8

const (
	dropUnmapped dropReason = iota // no mapping, an expired one, or the node stops
	dropDenied                     // by the mapping's lists
	dropLimit                      // no session could be begun for it
	dropRate                       // bytes_per_second
	dropHeader                     // a trusted proxy sent it without a PROXY header
	dropQueue                      // too many came before the backend was connected
	dropSend                       // the kernel did not take it
	numDropReasons
)

var dropNames = [numDropReasons]string{"unmapped", "denied", "limit", "rate", "proxy_header", "queue", "send"}

// metrics are the package's. Live flows and the bytes of live flows are read
// from the flows themselves whenever somebody asks, so that copying touches
// nothing that flows share.
type metrics struct {
	server  *Server
	flows   [2][numEnds]prometheus.Counter // by router.Proto
	dropped [numDropReasons]prometheus.Counter
	evicted [numWaiting]prometheus.Counter
	connect prometheus.Histogram

	flowsVec, droppedVec, evictedVec *prometheus.CounterVec
	active, bytes                    *prometheus.Desc
	services                         *serviceMetrics
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		server: s,
		flowsVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_l4_flows_total", Help: "TCP connections and UDP sessions that have ended, by why they did."},
			[]string{"proto", "end"}),
		droppedVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_l4_datagrams_dropped_total", Help: "UDP datagrams that were not passed on, by why not."},
			[]string{"reason"}),
		evictedVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_l4_udp_evictions_total", Help: "UDP sessions that were ended to make room for others, by what was known of the client."},
			[]string{"state"}),
		connect: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_l4_connect_seconds", Help: "Time it took to connect a flow to its backend, other targets tried before included.",
			Buckets: []float64{.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
		active: prometheus.NewDesc("sluice_l4_flows_active", "Live TCP connections and UDP sessions.", []string{"proto"}, nil),
		bytes: prometheus.NewDesc("sluice_l4_bytes_total", "Bytes passed on, up (to backends) and down (to clients), those of live flows included.",
			[]string{"proto", "direction"}, nil),
	}
	m.services = newServiceMetrics(s)
	for _, p := range protos {
		for e := live + 1; e < numEnds; e++ {
			m.flows[p][e] = m.flowsVec.WithLabelValues(p.String(), e.String())
		}
	}
	for r := range numDropReasons {
		m.dropped[r] = m.droppedVec.WithLabelValues(dropNames[r])
	}
	for i := range m.evicted {
		m.evicted[i] = m.evictedVec.WithLabelValues(standingNames[i])
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	return errors.Join(r.Register(m.flowsVec), r.Register(m.droppedVec), r.Register(m.evictedVec), r.Register(m.connect), r.Register(m), r.Register(m.services))
}

func (m *metrics) ended(p router.Proto, e end) { m.flows[p][e].Inc() }

func (m *metrics) drop(r dropReason) { m.dropped[r].Inc() }

// Describe implements prometheus.Collector for what is read from the flows.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.active
	ch <- m.bytes
}

// Collect implements prometheus.Collector. A flow leaves the list of its port
// in the same step that adds its bytes to the port's past, so the sums never
// fall.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	active, bytes := m.server.totals()
	for _, p := range protos {
		ch <- prometheus.MustNewConstMetric(m.active, prometheus.GaugeValue, float64(active[p]), p.String())
		ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.CounterValue, float64(bytes[p].up), p.String(), "up")
		ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.CounterValue, float64(bytes[p].down), p.String(), "down")
	}
}

// totals returns the live flows and the bytes moved so far, by router.Proto.
func (s *Server) totals() (active [2]int, bytes [2]traffic) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	bytes = s.past
	s.eachPort(func(p *port) {
		p.mu.Lock()
		defer p.mu.Unlock()
		bytes[p.key.proto].add(p.past)
		for f := p.flows; f != nil; f = f.next {
			if !f.handed.Load() {
				active[p.key.proto]++
				bytes[p.key.proto].add(f.moved())
			}
		}
	})
	return active, bytes
}
