package l4

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxServices bounds the values of the label service. Services that come later
// share one value.
const (
	maxServices   = 100
	otherServices = "other"
)

// serviceMetrics shows the accounts of services. They are summed whenever
// somebody asks.
type serviceMetrics struct {
	server *Server

	active, started, refused, unreachable, bytes *prometheus.Desc

	mu    sync.Mutex // guards the following field
	known map[string]bool
}

func newServiceMetrics(s *Server) *serviceMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sluice_l4_service_"+name, help, append([]string{"proto", "service"}, labels...), nil)
	}
	return &serviceMetrics{
		server:      s,
		active:      desc("flows_active", "Live flows of a service, connections that speak HTTP on its mapped ports included."),
		started:     desc("flows_started_total", "Flows of a service that were let in."),
		refused:     desc("flows_refused_total", "Flows of a service that its mappings' lists or limits refused, or that did not open as they should."),
		unreachable: desc("flows_unreachable_total", "Flows of a service that found no target of their backend."),
		bytes:       desc("bytes_total", "Bytes from clients of a service (up) and to them (down), those of live flows included.", "direction"),
		known:       map[string]bool{},
	}
}

// Describe implements prometheus.Collector.
func (m *serviceMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.active, m.started, m.refused, m.unreachable, m.bytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *serviceMetrics) Collect(ch chan<- prometheus.Metric) {
	for key, of := range m.bounded(m.server.byService()) {
		labels := []string{key.proto.String(), key.service}
		counter := func(d *prometheus.Desc, value int64, more ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), append(labels, more...)...)
		}
		ch <- prometheus.MustNewConstMetric(m.active, prometheus.GaugeValue, float64(of.live), labels...)
		counter(m.started, of.Started)
		counter(m.refused, of.Refused)
		counter(m.unreachable, of.Unreachable)
		counter(m.bytes, of.Up, "up")
		counter(m.bytes, of.Down, "down")
	}
}

// bounded puts services beyond the first maxServices together. A service keeps
// its name for good once it has had one, so that no counter ever falls.
func (m *serviceMetrics) bounded(all map[serviceKey]serviceLive) map[serviceKey]serviceLive {
	m.mu.Lock()
	defer m.mu.Unlock()
	in := slices.SortedFunc(maps.Keys(all), func(a, b serviceKey) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.proto, b.proto))
	})
	out := make(map[serviceKey]serviceLive, min(len(all), 2*maxServices))
	for _, key := range in {
		if !m.known[key.service] && len(m.known) < maxServices {
			m.known[key.service] = true
		}
		to := serviceKey{key.proto, strings.ToValidUTF8(key.service, "?")}
		if !m.known[key.service] {
			to.service = otherServices
		}
		of := out[to]
		of.add(all[key].Tally)
		of.live += all[key].live
		out[to] = of
	}
	return out
}
