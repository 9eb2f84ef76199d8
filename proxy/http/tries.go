package http

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// tries is an exchange's way through the targets of its backend. The zero value
// leads nowhere.
type tries struct {
	targets upstream.Attempt
	on      router.RetryReason // what it may be sent again for; 0: only where it was not sent
	left    int                // how often
	made    int                // tries so far
	rounds  int                // times that all targets were tried

	// Set by the codec of the backend's side.
	bodyRead bool // the body was read, and is there no more
	informed bool // the client was sent an informational head
}

// roundPause is waited, for the first time, before targets are tried again that
// failed a moment ago.
const roundPause = 25 * time.Millisecond

// begin finds x its targets.
func (t *tries) begin(x *exchange, dialer *upstream.Dialer) error {
	b := x.hop.backend
	var err error
	if t.targets, err = dialer.AttemptFor(b, &x.hop.vars, x.asker()); err != nil {
		return err
	}
	if r := b.Retry; r != nil {
		t.on, t.left = r.Reasons(), r.WithDefaults().Attempts
		if r.TryTimeout > 0 && (x.hop.first == 0 || r.TryTimeout < x.hop.first) {
			x.hop.first = r.TryTimeout
		} else {
			t.on &^= router.RetryTimeout // the limit is the route's own
		}
		t.targets.Ask(x.began)
	}
	return nil
}

// asker says what of x a balance may go by.
func (x *exchange) asker() upstream.Asker {
	by := upstream.Asker{Client: x.client.Addr()}
	b := x.hop.backend
	if b.Hash != nil {
		if b.Hash.Header != "" {
			by.Key = x.req.header.Get(b.Hash.Header)
		} else {
			by.Key = cookieOf(x.req.header, b.Hash.Cookie)
		}
	}
	if b.Sticky != nil {
		by.Token = cookieOf(x.req.header, b.Sticky.Cookie)
	}
	return by
}

// cookieOf returns the value of a request's cookie (RFC 6265 section 4.2), or "".
func cookieOf(h *field.List, name string) string {
	for _, l := range h.Lines() {
		if l.ID != field.Other || !field.EqualFold(l.Name, "cookie") {
			continue
		}
		for rest := l.Value; rest != ""; {
			var pair string
			pair, rest, _ = strings.Cut(rest, ";")
			if n, value, ok := strings.Cut(strings.Trim(pair, " \t"), "="); ok && n == name {
				return strings.Trim(value, `"`)
			}
		}
	}
	return ""
}

// setCookie has the client come back to the target that answers x, where that is
// wanted and the client would not anyway.
func (x *exchange) setCookie(h *field.List) {
	b := x.hop.backend
	if b == nil || b.Sticky == nil {
		return
	}
	token := x.tries.targets.Token()
	if token == "" {
		return
	}
	s := b.Sticky
	cookie := s.Cookie + "=" + token + "; Path=/; HttpOnly"
	if s.MaxAge > 0 {
		cookie += fmt.Sprintf("; Max-Age=%d", int64(s.MaxAge.Seconds()))
	}
	switch s.SameSite {
	case "strict":
		cookie += "; SameSite=Strict"
	case "none":
		cookie += "; SameSite=None"
	default:
		cookie += "; SameSite=Lax"
	}
	if x.conn.info.TLS || s.SameSite == "none" { // which browsers take with Secure alone
		cookie += "; Secure"
	}
	h.Add("Set-Cookie", cookie)
}

// judge tells what came of a try. What the client or the node did says nothing
// of the target.
func (x *exchange) judge(failed *failure) {
	e := x.hop.backend.Eject
	if e == nil {
		return
	}
	switch {
	case failed == nil:
		x.tries.targets.Judge(e.Status5xx && x.out.status >= 500)
	case failed.retry != 0:
		x.tries.targets.Judge(e.Status5xx)
	default:
		switch failed.class {
		case endUnresolved, endRefused, endUnreachable, endDialTimeout, endTLS, endSlow, endReset, endProtocol:
			x.tries.targets.Judge(true)
		}
	}
}

// again reports whether x, which failed at one target, may go to the next. Where
// all were tried it may begin anew with the first, after a pause.
func (x *exchange) again(failed *failure) bool {
	t := &x.tries
	if t.on == 0 {
		return failed.unsent
	}
	reason := failed.retry
	if reason == 0 {
		reason = x.reasonOf(failed)
		if reason&t.on == 0 || !x.takeRetry(reason) {
			return false
		}
	}
	if reason == router.RetryTimeout && !x.life.revive() {
		return false
	}
	if reason != router.RetryConnect && t.targets.Tried() {
		if !x.pause() {
			return false
		}
		t.targets.Again()
	}
	return true
}

// reasonOf says for what x, which failed, might be sent again; 0: nothing.
func (x *exchange) reasonOf(failed *failure) router.RetryReason {
	switch {
	case failed.unsent:
		return router.RetryConnect
	case x.out.status != 0:
		return 0 // the client has the response's head
	case failed.class == endReset:
		return router.RetryReset
	case failed.class == endSlow:
		return router.RetryTimeout
	}
	return 0
}

// takeRetry reports whether x may be sent once more, and takes that from what it
// and its backend have left. What was sent already may be sent again only if
// nothing changes by its being received twice (RFC 9110 section 9.2.2), it is
// there to be sent, and the budget has room; what was not sent costs nothing.
func (x *exchange) takeRetry(reason router.RetryReason) bool {
	t := &x.tries
	if t.left == 0 {
		return false
	}
	m := x.conn.server.metrics
	if reason != router.RetryConnect {
		if t.informed || !isIdempotent(x.req.method) || !x.isReplayable() {
			return false
		}
		if !t.targets.MayRetry(time.Now()) {
			m.retriesOverBudget.Inc()
			return false
		}
	} else if t.targets.Tried() {
		return false
	}
	t.left--
	m.retries[reason].Inc()
	return true
}

// retryStatus reports whether x is to be sent again for the status of a response
// whose head has come and was not passed on. The codec of the backend's side
// then lets go of the response and returns statusFailure.
func (x *exchange) retryStatus(status int) bool {
	reason := reasonOfStatus(status)
	return reason&x.tries.on != 0 && x.out.status == 0 && x.life.abandoned() == nil && x.takeRetry(reason)
}

func reasonOfStatus(status int) router.RetryReason {
	switch status {
	case 502:
		return router.Retry502
	case 503:
		return router.Retry503
	case 504:
		return router.Retry504
	}
	return 0
}

// statusFailure is what a try comes to after retryStatus.
func statusFailure(status int) *failure {
	return &failure{class: endReset, status: 502, say: "the backend cannot be reached\n", retry: reasonOfStatus(status),
		err: fmt.Errorf("the backend answered with status %d, and another try was given up", status)}
}

// isReplayable reports whether x's body is there to be sent again.
func (x *exchange) isReplayable() bool {
	if x.body.size() == 0 {
		return true
	}
	if x.tries.bodyRead {
		return false
	}
	content, whole := x.body.atHand()
	return whole && len(content) <= maxTogether
}

// pause waits a moment, the longer the more often all targets were tried. It
// reports false where x was given up meanwhile.
func (x *exchange) pause() bool {
	t := &x.tries
	wait := roundPause << min(t.rounds, 5)
	t.rounds++
	timer := time.NewTimer(wait/2 + rand.N(wait))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.life.context().Done():
		return false
	}
}

// newRetries makes the metrics of retries.
func (m *metrics) newRetries() *prometheus.CounterVec {
	retries := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_http_retries_total", Help: "Requests sent once more by the backend's retry, by what the try before came to."}, []string{"on"})
	m.retries = map[router.RetryReason]prometheus.Counter{router.RetryTimeout: retries.WithLabelValues("timeout")}
	for i, name := range router.RetryReasons {
		m.retries[1<<i] = retries.WithLabelValues(name)
	}
	m.retriesOverBudget = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sluice_http_retries_over_budget_total", Help: "Requests not sent once more since the budget of their backend's retries was used up."})
	return retries
}
