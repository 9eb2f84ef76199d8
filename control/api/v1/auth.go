package v1

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// identify lets requests through that a token with the operation's role makes,
// at the pace that it may, and notes what changes.
func (s *Server) identify(ctx huma.Context, next func(huma.Context)) {
	start := time.Now()
	t, p := s.tokenFor(ctx)
	defer func() { s.note(ctx, t, start) }() // whatever becomes of it, a panic too
	if p == nil {
		p = s.allowed(ctx, t)
	}
	if p != nil {
		s.refuse(ctx, p)
	} else {
		if ctx.Operation().OperationID != watchOperation {
			limited, cancel := context.WithTimeout(ctx.Context(), answerTime)
			defer cancel()
			ctx = huma.WithContext(ctx, limited)
		}
		known := huma.WithValue(huma.WithValue(ctx, tokenKey{}, t), byKey{}, fmt.Sprintf("token %s from %s", t.Name, clientOf(ctx)))
		s.once(huma.WithContext(known, envs.By(known.Context(), s.by(known.Context()))), t.Name, next)
	}
}

// note counts a request, and leaves a line in the log if it was to change
// something. Those with no token that is known, and those that come too often,
// leave none that is shown by default: anybody can send them without end.
func (s *Server) note(ctx huma.Context, t *tokens.Token, start time.Time) {
	op := ctx.Operation()
	took := time.Since(start)
	s.metrics.seconds.WithLabelValues(op.OperationID, fmt.Sprint(ctx.Status()/100)+"xx").Observe(took.Seconds())
	if op.Method == http.MethodGet {
		return
	}
	name, level := "-", slog.LevelDebug
	if t != nil {
		name = t.Name
		if ctx.Status() != http.StatusTooManyRequests {
			level = slog.LevelInfo
		}
	}
	s.cfg.Logger.Log(ctx.Context(), level, "control API: change", "token", name, "client", ctx.RemoteAddr(), "op", op.OperationID,
		"path", ctx.URL().Path, "status", ctx.Status(), "took", took)
}

// byKey is where it says in a request's context who makes it, for the history.
type byKey struct{}

// by returns who makes a request that identify has let through.
func (*Server) by(ctx context.Context) string { return ctx.Value(byKey{}).(string) }

// tokenFor returns the token that a request comes with: as a bearer (RFC 6750
// section 2.1), else by its client certificate. All that is wrong with it looks
// the same from outside.
func (s *Server) tokenFor(ctx huma.Context) (*tokens.Token, *Problem) {
	now := time.Now()
	t, err := s.verify(ctx, now)
	if err != nil && !errors.Is(err, tokens.ErrNotLoaded) && !s.pace.stranger(clientOf(ctx), now) {
		s.metrics.refused.Inc()
		ctx.SetHeader("Retry-After", "60")
		return nil, problem(http.StatusTooManyRequests, wire.TooMany, "too many requests with no token that is known; wait a minute")
	}
	if errors.Is(err, tokens.ErrUnknown) && s.cfg.Sync != nil {
		// It may have been made a moment ago.
		waiting, cancel := context.WithTimeout(ctx.Context(), time.Second)
		if s.cfg.Sync(waiting) == nil {
			t, err = s.verify(ctx, now)
		}
		cancel()
	}
	if errors.Is(err, tokens.ErrNotLoaded) {
		return nil, problem(http.StatusServiceUnavailable, wire.Unavailable, "this node has just started and knows no tokens yet: try again, or ask another one")
	}
	if err != nil {
		s.metrics.refused.Inc()
		return nil, problem(http.StatusUnauthorized, wire.Unauthorized, "give a token that is known and has not expired: Authorization: Bearer ...; sluice token create makes one")
	}
	return t, nil
}

// verify returns the token that a request comes with.
func (s *Server) verify(ctx huma.Context, now time.Time) (*tokens.Token, error) {
	scheme, secret, _ := strings.Cut(ctx.Header("Authorization"), " ")
	state := ctx.TLS()
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return s.cfg.Tokens.Verify(strings.TrimSpace(secret), now)
	case scheme == "" && state != nil && len(state.VerifiedChains) > 0:
		return s.cfg.Tokens.VerifyCertificate(state.VerifiedChains[0][0], now)
	}
	return nil, errNoToken
}

// errNoToken is a request that comes with none.
var errNoToken = errors.New("no token")

// allowed returns what keeps a token from an operation.
func (s *Server) allowed(ctx huma.Context, t *tokens.Token) *Problem {
	role := ctx.Operation().Metadata["role"].(tokens.Role)
	if !t.May(role) {
		return problem(http.StatusForbidden, wire.Forbidden, fmt.Sprintf("the token %s is %s's; this takes one of %s", t.Name, withArticle(t.Role), withArticle(role)))
	}
	if all, _ := ctx.Operation().Metadata["unscoped"].(bool); all && !t.Unscoped() {
		return problem(http.StatusForbidden, wire.Forbidden, fmt.Sprintf("the token %s is for some environments or pools; this concerns all", t.Name))
	}
	if !s.pace.token(t.Name, time.Now()) {
		ctx.SetHeader("Retry-After", "1")
		return problem(http.StatusTooManyRequests, wire.TooMany, fmt.Sprintf("the token %s makes more than %d requests a second", t.Name, tokenRate))
	}
	return nil
}

// withArticle is a role in a sentence.
func withArticle(role tokens.Role) string {
	if strings.ContainsAny(string(role[:1]), "aeiou") {
		return "an " + string(role)
	}
	return "a " + string(role)
}

// refuse answers with a problem.
func (s *Server) refuse(ctx huma.Context, p *Problem) {
	if p.Status == http.StatusUnauthorized {
		ctx.SetHeader("WWW-Authenticate", `Bearer realm="sluice"`)
	}
	ctx.SetHeader("Content-Type", p.ContentType(""))
	ctx.SetStatus(p.Status)
	_ = s.api.Marshal(ctx.BodyWriter(), "application/json", p) // the client may be gone
}

// clientOf returns whose requests are counted together: an IPv4 address, or a /64
// of IPv6 addresses, which is what one client has.
func clientOf(ctx huma.Context) string {
	switch client := api.Client(ctx.RemoteAddr()); {
	case !client.IsValid():
		return ctx.RemoteAddr()
	case client.IsSingleIP():
		return client.Addr().String()
	default:
		return client.String()
	}
}

const (
	// tokenRate is how many requests a token may make each second, with a burst
	// of two seconds.
	tokenRate = 500
	// strangerTries is how many requests without a known token a client may make
	// each minute.
	strangerTries = 60
	// maxPaced bounds how many clients and tokens are remembered.
	maxPaced = 10000
)

// pacer bounds how often clients and tokens may ask.
type pacer struct {
	mu      sync.Mutex
	failing map[string]*bucket // by client
	tokens  map[string]*bucket
}

// bucket is what was spent and when that was.
type bucket struct {
	spent float64
	at    time.Time
}

func newPacer() *pacer {
	return &pacer{failing: map[string]*bucket{}, tokens: map[string]*bucket{}}
}

// left returns a bucket as of now, of which rate a second have been given back.
func left(of map[string]*bucket, name string, now time.Time, rate float64) *bucket {
	b := of[name]
	if b == nil {
		if len(of) >= maxPaced {
			clear(of) // all begin anew, rather than one for ever
		}
		b = &bucket{at: now}
		of[name] = b
	}
	b.spent = max(0, b.spent-rate*now.Sub(b.at).Seconds())
	b.at = now
	return b
}

// stranger reports whether a client without a known token may have it looked for,
// and counts that it asked.
func (p *pacer) stranger(client string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := left(p.failing, client, now, strangerTries/60.0)
	if b.spent >= strangerTries {
		return false
	}
	b.spent++
	return true
}

// token reports whether a token may make one more request, and counts it.
func (p *pacer) token(name string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := left(p.tokens, name, now, tokenRate)
	if b.spent >= 2*tokenRate {
		return false
	}
	b.spent++
	return true
}

// metrics counts requests. The label op is bounded by the operations.
type metrics struct {
	seconds *prometheus.HistogramVec
	refused prometheus.Counter
	panics  prometheus.Counter
}

func newMetrics(to prometheus.Registerer) *metrics {
	auto := promauto.With(to)
	return &metrics{
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_api_request_seconds", Help: "Time that requests of the control API took, by operation and class of status (2xx, 4xx, 5xx).",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"op", "status"}),
		refused: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_api_unauthorized_total", Help: "Requests of the control API with no token that is known.",
		}),
		panics: auto.NewCounter(prometheus.CounterOpts{
			Name: "sluice_api_panics_total", Help: "Requests of the control API that ended by a mistake of the program's.",
		}),
	}
}
