package http

import (
	"errors"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// h2Reset is a backend's RST_STREAM.
type h2Reset struct{ code h2.Code }

func (e *h2Reset) Error() string { return "the backend reset the stream with " + e.code.String() }

// unsentError says that the backend has not taken a request up, so that it may
// be sent once more (RFC 9113 section 8.7).
type unsentError struct{ why string }

func (e *unsentError) Error() string { return e.why }

var (
	errRefusedStream = &unsentError{"the backend refused the stream (REFUSED_STREAM)"}
	errGoneAway      = &unsentError{"the backend ends the connection and has not taken the request up (GOAWAY)"}
	errUnopened      = &unsentError{"the connection ended before the request was sent"}

	errSilent = errors.New("the backend has not answered a PING in time")
	errClosed = errors.New("the connection was closed")
)

// isH2Reset reports whether err is a backend's way over HTTP/2 to end an
// exchange too early that is well formed.
func isH2Reset(err error) bool {
	_, reset := errors.AsType[*h2Reset](err)
	_, unsent := errors.AsType[*unsentError](err)
	return reset || unsent || errors.Is(err, errSilent) || errors.Is(err, errClosed)
}
