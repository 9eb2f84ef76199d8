package clienttls

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Refusal is a handshake that failed.
type Refusal struct {
	// Asked is what the client was asked for; nil: nothing, and then the failure
	// is not about its certificate.
	Asked  *Auth
	Client netip.AddrPort
	// ServerName is what the client asked for, as it comes; "": not known.
	ServerName string
	Listener   string // "443", or the route that takes the connection
	Err        error  // of the handshake, over TCP or QUIC
}

// Refused counts a client that was kept out for its certificate, or for having
// none, and logs who it was and why: nothing else would, since no request came of
// it. Of other failures it does nothing. Failed handshakes are for anybody to make:
// a burst is logged, then one in a second, with how many were not.
func (t *Terms) Refused(r Refusal) {
	if r.Asked == nil || !r.Asked.required || r.Err == nil {
		return
	}
	why := t.whyRefused(r.Err)
	if why == "" {
		return
	}
	unsaid, say := t.refusals.next(time.Now())
	if !say {
		return
	}
	t.cfg.Logger.Info("a client is refused for its certificate", "listener", r.Listener, "client", r.Client.String(),
		"server_name", printable(r.ServerName, ""), "client_auth", r.Asked.policy.authority.name, "reason", why, "not_logged", unsaid)
}

// whyRefused says, and counts, why a handshake failed whose client was asked for a
// certificate; "": for another reason.
func (t *Terms) whyRefused(err error) string {
	if wrong, is := errors.AsType[*tls.CertificateVerificationError](err); is {
		if ours, is := errors.AsType[errRefused](wrong.Err); is {
			return string(ours) // counted when it was judged
		}
		t.metrics.refused.Inc()
		return failed(say(wrong.Err)).Why
	}
	if saysExactly(err, errNoneShown) {
		t.metrics.absent.Inc()
		return whyNone
	}
	return ""
}

// errNoneShown is what crypto/tls, which has no type for it and ends the handshake
// before it asks anybody, says where a certificate is required and there is none.
const errNoneShown = "tls: client didn't provide a certificate"

// saysExactly reports whether err, or one that it wraps, has this text: the whole
// of it, since what ends a QUIC connection may quote the client.
func saysExactly(err error, text string) bool {
	if err.Error() == text {
		return true
	}
	switch wraps := err.(type) {
	case interface{ Unwrap() error }:
		inner := wraps.Unwrap()
		return inner != nil && saysExactly(inner, text)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(wraps.Unwrap(), func(inner error) bool { return inner != nil && saysExactly(inner, text) })
	}
	return false
}

// refusals bound what is logged of them.
type refusals struct {
	mu     sync.Mutex // guards the following
	left   int
	filled time.Time // when left was last counted up
	unsaid int
}

const (
	refusalBurst = 20
	refusalPause = time.Second // for one more
)

// next reports whether one may be logged at now, and how many before it were not.
func (r *refusals) next(now time.Time) (unsaid int, say bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if more := int(min(now.Sub(r.filled)/refusalPause, refusalBurst)); more > 0 {
		r.left, r.filled = min(r.left+more, refusalBurst), now
	}
	if r.left <= 0 {
		r.unsaid++
		return 0, false
	}
	r.left--
	unsaid, r.unsaid = r.unsaid, 0
	return unsaid, true
}
