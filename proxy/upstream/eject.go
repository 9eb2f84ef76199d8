package upstream

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/router"
)

// maxEjections bounds the memory of targets whose exchanges failed.
const maxEjections = 4096

// ejections remembers targets whose exchanges fail, for backends that want to
// know. As failures it only ever changes an order: where all targets are out, all
// are tried.
type ejections struct {
	known   *bounded[ejectKey, *ejection]
	metrics *metrics
	log     *slog.Logger
	making  sync.Mutex // held while an entry is made
}

// ejectKey is what makes two targets the same one: backends that judge alike
// share what they know.
type ejectKey struct {
	ep   Endpoint
	addr netip.AddrPort // one of several that ep's name has; the zero value: ep as a whole
	rule router.Eject   // with its defaults
}

// ejection is what is remembered of a target.
type ejection struct {
	until atomic.Int64 // when it is over, in nanoseconds since the epoch; 0: never began

	mu       sync.Mutex // guards the following fields
	failures int        // in a row, since it ended last
	times    int        // that it was ejected, without a good while between
	length   time.Duration
	heard    time.Time // of the last failure
}

func newEjections(m *metrics, log *slog.Logger) *ejections {
	dead := func(e *ejection) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return time.Since(e.heard) > 2*e.length+time.Minute && !e.isOut()
	}
	return &ejections{known: &bounded[ejectKey, *ejection]{max: maxEjections, dead: dead}, metrics: m, log: log}
}

func (e *ejection) isOut() bool { return e.until.Load() > time.Now().UnixNano() }

// isOut reports whether ep is to be passed over. It takes no lock.
func (s *ejections) isOut(ep Endpoint, rule *router.Eject) bool {
	return s.isOutAt(ep, netip.AddrPort{}, rule)
}

// isOutAt is isOut for one of the addresses of ep's name.
func (s *ejections) isOutAt(ep Endpoint, addr netip.AddrPort, rule *router.Eject) bool {
	if rule == nil || s.known.empty() {
		return false
	}
	e, ok := s.known.load(ejectKey{ep, addr, rule.WithDefaults()})
	return ok && e.isOut()
}

// judge takes the outcome of an exchange. A target without failures costs one
// load.
func (s *ejections) judge(ep Endpoint, addr netip.AddrPort, rule *router.Eject, failed bool) {
	if rule == nil || !failed && s.known.empty() {
		return
	}
	key := ejectKey{ep, addr, rule.WithDefaults()}
	e, known := s.known.load(key)
	if !known {
		if !failed {
			return
		}
		e = s.make(key)
	}
	if !failed {
		if e.passed() {
			s.known.delete(key)
		}
		return
	}
	if length := e.fail(key.rule); length > 0 {
		s.metrics.ejections.Inc()
		attrs := []any{"upstream", ep.String(), "time", length}
		if addr.IsValid() {
			attrs = append(attrs, "address", addr.String())
		}
		s.log.Warn("a target is passed over, since its exchanges fail", attrs...)
	}
}

func (s *ejections) make(key ejectKey) *ejection {
	s.making.Lock()
	defer s.making.Unlock()
	e, known := s.known.load(key)
	if !known {
		e = &ejection{heard: time.Now()}
		s.known.store(key, e)
	}
	return e
}

// passed takes a success, and reports whether nothing is held against the target
// any more: it has been well for as long as it was out.
func (e *ejection) passed() bool {
	if e.isOut() {
		return false // an exchange from before, or one for lack of a better target
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures = 0
	return e.times == 0 || time.Now().UnixNano() > e.until.Load()+int64(e.length)
}

// fail takes a failure, and returns for how long the target is out if that is
// news. One that was out and fails again right away is out for twice as long.
func (e *ejection) fail(rule router.Eject) time.Duration {
	if e.isOut() {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if e.heard = now; e.isOut() {
		return 0
	}
	if e.times > 0 && now.UnixNano() > e.until.Load()+int64(e.length) {
		e.times = 0
	}
	e.failures++
	if e.times == 0 && e.failures < rule.Failures {
		return 0
	}
	e.length = rule.Time
	for range e.times {
		e.length = min(2*e.length, rule.MaxTime)
	}
	e.times++
	e.failures = 0
	e.until.Store(now.Add(e.length).UnixNano())
	return e.length
}

// Judge tells what came of the exchange with the target that NextTarget gave
// last, for backends that eject targets. Failures are the target's: a connection
// that it did not take or reset, a response that was none, or one too late. What
// the client did, or this node, is no outcome.
func (a *Attempt) Judge(failed bool) {
	if a.begun == 0 {
		return
	}
	a.dialer.ejections.judge(a.ep, netip.AddrPort{}, a.backend.Eject, failed)
	if a.several { // one of its addresses may be at fault alone
		a.dialer.ejections.judge(a.ep, a.addr, a.backend.Eject, failed)
	}
}
