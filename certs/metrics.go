package certs

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/crypto/ocsp"
)

// metrics counts what happens to certificates. The label domain is bounded by
// the list of names, which operators write.
type metrics struct {
	attempts *prometheus.CounterVec
	orders   *prometheus.CounterVec
	staples  *prometheus.CounterVec
	missing  prometheus.Counter
	taken    prometheus.Histogram
	leaves   prometheus.Counter
	began    time.Time

	authorities atomic.Pointer[[]*authority] // nil: none yet
}

func newMetrics(reg prometheus.Registerer, m *Manager) *metrics {
	auto := promauto.With(reg)
	if reg != nil {
		reg.MustRegister(census{m})
	}
	return &metrics{
		began: time.Now(),
		attempts: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_certs_attempts_total",
			Help: "Checks of one certificate that ended, with whatever they obtained or renewed, by result (ok, failed).",
		}, []string{"result"}),
		orders: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_certs_orders_total",
			Help: "Orders for a certificate, by issuer and result (ok, failed, limited: not made, or refused, because of a limit).",
		}, []string{"issuer", "result"}),
		staples: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_certs_staple_fetches_total",
			Help: "OCSP responses that this node has asked for, by result (good, revoked, failed).",
		}, []string{"result"}),
		missing: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_certs_missing_total",
			Help: "Handshakes for which there was no certificate.",
		}),
		taken: auto.NewHistogram(prometheus.HistogramOpts{
			Name:    "sluice_certs_distribution_seconds",
			Help:    "Time from a certificate stored, by the clock of the node that stored it, to served by this one.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		leaves: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_certs_local_signatures_total",
			Help: "Certificates that the development CA has signed.",
		}),
	}
}

func (s *metrics) attempt(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	s.attempts.WithLabelValues(result).Inc()
}

func (s *metrics) order(issuer string, err error) {
	result := "ok"
	if _, limited := errors.AsType[*LimitError](err); limited {
		result = "limited"
	} else if err != nil {
		result = "failed"
	}
	s.orders.WithLabelValues(issuer, result).Inc()
}

// stapleFetched counts an OCSP response that was asked for.
func (s *metrics) stapleFetched(r *ocsp.Response, err error) {
	result := "good"
	if err != nil {
		result = "failed"
	} else if r.Status == ocsp.Revoked {
		result = "revoked"
	}
	s.staples.WithLabelValues(result).Inc()
}

// watch has the metrics tell of the limits of authorities from now on.
func (s *metrics) watch(all []*authority) { s.authorities.Store(&all) }

// collectLimits tells what this node knows of each authority.
func (s *metrics) collectLimits(ch chan<- prometheus.Metric) {
	all := s.authorities.Load()
	if all == nil {
		return
	}
	for _, a := range *all {
		left, until := a.limits.survey()
		if a.Orders.Count > 0 {
			ch <- prometheus.MustNewConstMetric(descOrdersLeft, prometheus.GaugeValue, float64(left), a.Name)
		}
		resumes := 0.0
		if !until.IsZero() {
			resumes = float64(until.Unix())
		}
		ch <- prometheus.MustNewConstMetric(descResumes, prometheus.GaugeValue, resumes, a.Name)
	}
}

// took counts a certificate that is served now. Those that were stored before
// the process began, or by a clock that differs much, say nothing of the way here.
func (s *metrics) took(stored *Stored) {
	if age := time.Since(stored.Modified); !stored.Modified.Before(s.began) && age < time.Minute {
		s.taken.Observe(max(0, age.Seconds()))
	}
}

// census collects what the list looks like now.
type census struct{ m *Manager }

var (
	descDomains = prometheus.NewDesc("sluice_certs_domains",
		"Names that are to have a certificate, by state (obtaining, obtained, expiring, failed).", []string{"state"}, nil)
	descExpiry = prometheus.NewDesc("sluice_certs_expiry_timestamp_seconds",
		"When the certificate of a name expires.", []string{"domain"}, nil)
	descStaples = prometheus.NewDesc("sluice_certs_staples",
		"Certificates that ask for a stapled OCSP response, by state (stapled, missing, revoked).", []string{"state"}, nil)
	descOrdersLeft = prometheus.NewDesc("sluice_certs_orders_left",
		"Orders that the cluster's budget for an issuer has left, as this node last read it.", []string{"issuer"}, nil)
	descResumes = prometheus.NewDesc("sluice_certs_issuer_resumes_timestamp_seconds",
		"When an issuer takes orders again that takes none now; 0: it does.", []string{"issuer"}, nil)
)

// Describe implements prometheus.Collector.
func (census) Describe(ch chan<- *prometheus.Desc) {
	ch <- descDomains
	ch <- descExpiry
	ch <- descStaples
	ch <- descOrdersLeft
	ch <- descResumes
}

// Collect implements prometheus.Collector.
func (c census) Collect(ch chan<- prometheus.Metric) {
	states := map[State]int{StateObtaining: 0, StateObtained: 0, StateExpiring: 0, StateFailed: 0}
	for _, s := range c.m.Statuses() {
		states[s.State]++
		if !s.NotAfter.IsZero() {
			ch <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(s.NotAfter.Unix()), s.Name)
		}
	}
	c.m.metrics.collectLimits(ch)
	for state, n := range c.m.stapleStates() {
		ch <- prometheus.MustNewConstMetric(descStaples, prometheus.GaugeValue, float64(n), state)
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(descDomains, prometheus.GaugeValue, float64(n), string(state))
	}
}
