package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// said is what an authority answered last in the course of one order: the ACME
// library keeps the status and the words of an answer, but not Retry-After.
type said struct {
	mu     sync.Mutex // guards the following
	orders string     // where orders are made
	asked  bool       // anything at all
	err    error      // nil: it answered
	status int
	after  time.Time // by Retry-After of a refusal; zero: it did not say
	order  bool      // the question was one for a new order
}

type saidKey struct{}

// listenTo returns a context for the requests of one order.
func listenTo(ctx context.Context) (context.Context, *said) {
	s := new(said)
	return context.WithValue(ctx, saidKey{}, s), s
}

func saidIn(ctx context.Context) *said {
	s, _ := ctx.Value(saidKey{}).(*said)
	return s
}

// ordersAt tells where orders are made.
func (s *said) ordersAt(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = url
}

// listener notes the answers to requests of an order, and bounds what is read of
// each: the ACME library reads to the end.
type listener struct{ base http.RoundTripper }

// largestAnswer bounds an answer; the largest is a chain of certificates.
const largestAnswer = 4 << 20

// RoundTrip implements http.RoundTripper.
func (l listener) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.base.RoundTrip(req)
	if s := saidIn(req.Context()); s != nil {
		s.note(req, resp, err)
	}
	if err != nil {
		return nil, err
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: largestAnswer}
	return resp, nil
}

// bounded is a body that fails where it is too large.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the certificate authority's answer has more than %d bytes", largestAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func (s *said) note(req *http.Request, resp *http.Response, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && req.Context().Err() != nil {
		return // called off by us
	}
	s.asked, s.err, s.status, s.after = true, err, 0, time.Time{}
	s.order = s.orders != "" && req.URL.String() == s.orders
	if resp == nil {
		return
	}
	s.status = resp.StatusCode
	if s.status >= http.StatusBadRequest {
		s.after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
}

// retryAfter reads the field of that name (RFC 9110 section 10.2.3).
func retryAfter(value string, now time.Time) time.Time {
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return now.Add(time.Duration(n) * time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return at
	}
	return time.Time{}
}

// refusedOrder reports whether the last answer refused a new order.
func (s *said) refusedOrder() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order && s.status >= http.StatusBadRequest
}

// broken reports whether the authority did not answer, or said that it is out of
// order.
func (s *said) broken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked && (s.err != nil || s.status >= http.StatusInternalServerError)
}

const (
	// limitPause is how long a limit holds of which the authority does not say
	// until when.
	limitPause = time.Hour
	// leastPause keeps an authority that says "now" from being asked at once.
	leastPause = 5 * time.Second
)

// limit reports whether an order failed because the authority takes none for
// now, and until when that is so.
func (s *said) limit(err error, now time.Time) (until time.Time, limited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := errors.AsType[acme.Problem](err)
	limited = ok && isLimit(p) || s.status == http.StatusTooManyRequests ||
		s.status == http.StatusServiceUnavailable && !s.after.IsZero()
	if !limited {
		return time.Time{}, false
	}
	until = s.after
	if until.IsZero() {
		until = now.Add(limitPause)
	}
	if least := now.Add(leastPause); until.Before(least) {
		until = least
	}
	return until, true
}

func tlsTo(roots *x509.CertPool) *tls.Config { return &tls.Config{RootCAs: roots} }

// lower takes what the ACME library logs for debugging only: what an order
// comes to is its error, which is logged where it is dealt with.
type lower struct{ slog.Handler }

// Enabled implements slog.Handler.
func (l lower) Enabled(ctx context.Context, _ slog.Level) bool {
	return l.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (l lower) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	r.Message = "acme: " + strings.ToValidUTF8(r.Message, "?")
	return l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l lower) WithAttrs(attrs []slog.Attr) slog.Handler { return lower{l.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (l lower) WithGroup(name string) slog.Handler { return lower{l.Handler.WithGroup(name)} }
