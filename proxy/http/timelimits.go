package http

import (
	"errors"
	"strings"

	"github.com/remotegpu/sluice/proxy/http/field"
)

var (
	errTotal        = errors.New("the exchange took longer than timeouts.total")
	errSilence      = errors.New("no byte of the response moved for too long (timeouts.idle)")
	errTakesNothing = errors.New("the client took nothing of the response for too long (clients.idle_timeout)")
)

// timeLimits end an exchange that takes too long at the backend. The zero value
// bounds nothing.
type timeLimits struct {
	total   *silenceWatch
	silence *silenceWatch
}

// startTotal bounds x as a whole. Upgraded connections are not bounded.
func (x *exchange) startTotal() {
	if limit := x.hop.total; limit > 0 && x.req.upgrade == "" {
		x.times.total = watchSilence(limit, func() { x.life.abandon(errTotal) })
	}
}

// headFollows is called when the fields of the final head are complete: a stream
// of events is not bounded as a whole, and silence counts from now on.
func (x *exchange) headFollows(h *field.List) {
	if x.times.total != nil && isStream(h) {
		x.times.total.stop()
	}
	if limit := x.hop.idle; limit > 0 && x.req.method != "HEAD" {
		x.times.silence = watchSilenceBesides(&x.guard.heard, limit, x.tooSilent)
	}
}

// tooSilent ends an exchange whose response does not move, also where it is the
// client who takes nothing.
func (x *exchange) tooSilent() {
	x.life.abandon(errSilence)
	if x.life.cut != nil {
		x.life.cut(x.hop.idle)
	}
}

// end ends the limits: none of them has an effect any more.
func (l *timeLimits) end() {
	if l.total != nil {
		l.total.stop()
	}
	if l.silence != nil {
		l.silence.stop()
	}
	*l = timeLimits{}
}

// isStream reports whether a response goes on for as long as there is something
// to tell.
func isStream(h *field.List) bool {
	kind, _, _ := strings.Cut(h.GetID(field.ContentType), ";")
	kind = strings.Trim(kind, " \t")
	return field.EqualFold(kind, "text/event-stream") ||
		len(kind) >= len("application/grpc") && field.EqualFold(kind[:len("application/grpc")], "application/grpc")
}
