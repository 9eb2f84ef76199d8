package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/remotegpu/sluice/proxy/http/h2"
	"github.com/remotegpu/sluice/proxy/upstream"
	"github.com/remotegpu/sluice/router"
)

// Ways for an exchange to end, as the access log calls them. They are part of
// what operators build upon: add, but do not rename.
const (
	endDone         = "done"                // the response went out whole
	endClientGone   = "client_gone"         // the client went away or stopped the exchange
	endClientBody   = "client_malformed"    // the request's body was not well formed
	endCut          = "shutdown"            // cut when the time to drain was over
	endBodySize     = "body_limit"          // the request's body is too large
	endBodySlow     = "body_slow"           // the request's body comes too slowly
	endHeadSlow     = "head_slow"           // a request's head did not end in time; there is no record of it
	endRate         = "rate_limit"          // too many requests in a time
	endConcurrency  = "concurrency_limit"   // too many requests at a time
	endDenied       = "denied"              // the client's address is not allowed
	endUnauthorized = "unauthorized"        // nobody who is let in
	endAuthBusy     = "auth_busy"           // too many passwords wait to be verified
	endAuthDenied   = "auth_denied"         // forward_auth does not let it pass
	endAuthFailed   = "auth_failed"         // forward_auth could not be asked
	endTotal        = "timeout"             // the exchange as a whole took too long
	endCutOff       = "cut"                 // an operator ended it
	endIdle         = "idle"                // silence on an upgraded connection, or in a response
	endStalled      = "stalled"             // the client takes nothing of the response, or one side of an upgraded connection nothing
	endNoTarget     = "backend_unnamed"     // the request's values name no backend
	endUnresolved   = "backend_unresolved"  // no address for the backend's name
	endRefused      = "backend_refused"     // nothing listens at the backend
	endUnreachable  = "backend_unreachable" // no way to the backend
	endForbidden    = "backend_forbidden"   // the backend is an address that this node connects nobody to
	endDialTimeout  = "backend_timeout"     // no connection in time
	endTLS          = "backend_tls"         // no TLS with the backend
	endSlow         = "backend_slow"        // no response head in time
	endReset        = "backend_reset"       // the backend ended the connection too early
	endProtocol     = "backend_malformed"   // the backend does not speak HTTP as it should
	endExhausted    = "node_exhausted"      // this node has no file, port or memory left for a connection
)

// statusClientGone stands in the log where no response could be sent any more.
const statusClientGone = 499

// failure is why an exchange did not end well: for the client in few words that
// name no inner address, for the log in full.
type failure struct {
	class   string
	status  int    // of the answer, where there can still be one
	say     string // its body
	err     error
	secured *upConn            // with errChoseHTTP2: the connection
	unsent  bool               // the backend has not taken the request up: another target may be tried
	retry   router.RetryReason // unless 0, what another try was granted for
}

// The causes of contexts that the forwarder ends itself.
var (
	errFirstByte = errors.New("the backend sent no response head in time (timeouts.first_byte)")
	errIdle      = errors.New("no byte moved in time on an upgraded connection")
)

// dialError is a failure to connect, TLS included: nothing has been sent, so
// that the next target may be tried.
type dialError struct {
	err error
	tls bool // TCP was connected
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// failureOf finds the class of err, met while x was at the backend. Where x was
// given up, that was why.
func (x *exchange) failureOf(err error) *failure {
	class := x.classOf(err)
	f := &failure{class: class, status: 502, err: err}
	cutBy, _ := x.cutBy()
	switch class {
	case endClientGone, endStalled, cutBy:
		f.status = statusClientGone
	case endClientBody:
		f.status, f.say = 400, "the request's body is not well formed\n"
	case endTotal:
		f.status, f.say = 504, "the request took too long\n"
	case endIdle:
		f.status, f.say = 504, "the backend fell silent\n"
	case endDialTimeout:
		f.status, f.say = 504, "the backend could not be reached in time\n"
	case endSlow:
		f.status, f.say = 504, "the backend did not answer in time\n"
	case endExhausted:
		f.status, f.say = 503, "this node cannot open more connections\n"
	case endReset:
		f.say = "the backend ended the connection before it had answered\n"
	case endProtocol:
		f.say = "the backend's answer is not well formed\n"
	default:
		f.say = "the backend cannot be reached\n"
	}
	var dial *dialError
	_, unsent := errors.AsType[*unsentError](err)
	f.unsent = (unsent || errors.As(err, &dial)) && x.life.abandoned() == nil
	return f
}

func (x *exchange) classOf(err error) string {
	if cause := x.life.abandoned(); cause != nil {
		switch cause {
		case errFirstByte:
			return endSlow
		case errTotal:
			return endTotal
		case errSilence:
			return endIdle
		case errTakesNothing:
			return endStalled
		}
		var wire *h2.StreamError
		if errors.As(cause, &wire) {
			return endClientBody
		}
		return x.clientGone(err).class
	}
	var dial *dialError
	if errors.As(err, &dial) {
		return classOfDial(dial)
	}
	var network net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed), isH2Reset(err):
		return endReset
	case errors.As(err, &network) && network.Timeout():
		return endReset // the kernel gave the connection up
	}
	return endProtocol
}

// clientGone says that x failed by err on the client's side: because the client
// went away, or because the node cut it off.
func (x *exchange) clientGone(err error) *failure {
	cause := x.life.abandoned()
	if cause == nil && err == errTakesNothing { // it is about to be
		cause = errTakesNothing
	}
	switch cause { // the client was there, and took nothing
	case errSilence:
		return &failure{class: endIdle, status: statusClientGone, err: fmt.Errorf("%w: %w", cause, err)}
	case errTakesNothing:
		return &failure{class: endStalled, status: statusClientGone, err: cause}
	}
	if end, why := x.cutBy(); end != "" {
		return &failure{class: end, status: statusClientGone, err: fmt.Errorf("%w: %w", why, err)}
	}
	return &failure{class: endClientGone, status: statusClientGone, err: err}
}

// lostClient has x, which is about to be complete, end by err on the client's side.
func (x *exchange) lostClient(err error) {
	f := x.clientGone(err)
	x.out.end, x.out.err = f.class, f.err
}

func classOfDial(dial *dialError) string {
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.As(dial.err, &network) && network.Timeout(), errors.Is(dial.err, context.DeadlineExceeded),
		errors.Is(dial.err, syscall.ETIMEDOUT):
		if errors.As(dial.err, &dns) {
			return endUnresolved
		}
		return endDialTimeout
	case errors.As(dial.err, &dns):
		return endUnresolved
	case isForbidden(dial.err):
		return endForbidden
	case dial.tls && !isNetworkEnd(dial.err):
		return endTLS
	case anyOf(dial.err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EACCES, syscall.EPERM):
		return endExhausted
	case errors.Is(dial.err, syscall.ECONNREFUSED):
		return endRefused
	case dial.tls, errors.Is(dial.err, syscall.ECONNRESET):
		return endReset
	}
	return endUnreachable
}

func isForbidden(err error) bool {
	_, forbidden := errors.AsType[*upstream.ForbiddenError](err)
	return forbidden
}

func isNetworkEnd(err error) bool {
	return errors.Is(err, io.EOF) || anyOf(err, syscall.ECONNRESET, syscall.EPIPE)
}

func anyOf(err error, errnos ...syscall.Errno) bool {
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
