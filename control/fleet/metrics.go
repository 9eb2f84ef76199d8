package fleet

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// watchMetrics counts what a Watcher does, and what follows from all views.
type watchMetrics struct {
	looks   *prometheus.CounterVec
	seconds prometheus.Histogram
	votes   prometheus.Counter
}

func newWatchMetrics(to prometheus.Registerer, reg *Registry) *watchMetrics {
	auto := promauto.With(to)
	if to != nil {
		to.MustRegister(census{reg})
	}
	return &watchMetrics{
		looks: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_fleet_looks_total", Help: "Looks at the addresses of other nodes, by result (up, down, unable).",
		}, []string{"result"}),
		seconds: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_fleet_look_seconds", Help: "Time that looks took which found another node up.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
		votes: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_fleet_views_total", Help: "Times that this node's view of the others changed and was written.",
		}),
	}
}

// census tells what the members of a Registry are, when it is asked.
type census struct{ reg *Registry }

var (
	membersDesc = prometheus.NewDesc("sluice_fleet_members", "Nodes of the cluster, as this one sees them, by state (healthy, or why not: out, joining, draining, down).", []string{"state"}, nil)
	waryDesc    = prometheus.NewDesc("sluice_fleet_wary", "1 while votes would put more than half of all IPv4 or of all IPv6 addresses out, so that no more of those go out.", nil, nil)
)

// Describe implements prometheus.Collector.
func (census) Describe(to chan<- *prometheus.Desc) {
	to <- membersDesc
	to <- waryDesc
}

// Collect implements prometheus.Collector.
func (c census) Collect(to chan<- prometheus.Metric) {
	members, _ := c.reg.Members()
	counts := map[State]int{"healthy": 0, "out": 0, Joining: 0, Draining: 0, Down: 0}
	for _, m := range members {
		switch {
		case m.Healthy:
			counts["healthy"]++
		case m.State == Ready:
			counts["out"]++
		default:
			if _, known := counts[m.State]; known {
				counts[m.State]++
			}
		}
	}
	for state, n := range counts {
		to <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), string(state))
	}
	wary := 0.0
	if c.reg.Wary() {
		wary = 1
	}
	to <- prometheus.MustNewConstMetric(waryDesc, prometheus.GaugeValue, wary)
}
