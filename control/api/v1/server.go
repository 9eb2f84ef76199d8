package v1

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/sluice/control/api"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// Config wires a Server. All fields but Version and Registerer are needed.
type Config struct {
	Envs   *envs.Manager
	Keys   *keys.Store
	Tokens *tokens.Registry
	Live   api.Live // of this node
	// Sync returns once Tokens knows all that etcd had when it was called; nil:
	// it knows what it knows.
	Sync   func(ctx context.Context) error
	Logger *slog.Logger
	// Version is that of the program.
	Version string
	// Registerer gets the metrics; nil: nobody does.
	Registerer prometheus.Registerer
}

// Server serves the control API.
type Server struct {
	cfg     Config
	http    *http.Server
	api     huma.API
	metrics *metrics
	pace    *pacer

	watchers atomic.Int32
}

const (
	// maxBody bounds a request's body: twice what a transaction has room for, and what
	// huma takes.
	maxBody = 1 << 20
	// bodyTime and answerTime bound how long a request may take to come and to be
	// answered, waits included. Event streams end when their clients do.
	bodyTime   = 30 * time.Second
	answerTime = 90 * time.Second
)

// useProblems has huma make its errors as ours. Its hook is one for the process.
var useProblems = sync.OnceFunc(func() { huma.NewError = newProblem })

// New wires a Server; nothing runs yet.
func New(cfg Config) *Server {
	useProblems()
	s := &Server{cfg: cfg, metrics: newMetrics(cfg.Registerer), pace: newPacer()}
	mux := http.NewServeMux()
	c := huma.DefaultConfig("Sluice control API", cfg.Version)
	c.Info.Description = "What the commands of sluice do, for programs. Values of keys are described in KEYS.md."
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "/api/v1/openapi", "", "/api/v1/schemas"
	c.CreateHooks = nil // no $schema in what is answered
	c.RejectUnknownQueryParameters = true
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "A token that `sluice token create` has made."},
	}
	c.Security = []map[string][]string{{"token": {}}}
	s.api = humago.New(mux, c)
	group := huma.NewGroup(s.api, "/api/v1")
	group.UseMiddleware(s.identify)
	group.UseModifier(describeOnce)
	s.environments(group)
	s.keys(group)
	s.changes(group)
	s.nodes(group)
	s.ports(group)
	s.status(group)
	s.past(group)
	s.manageTokens(group)
	s.watch(group)
	s.live(group)
	s.http = &http.Server{
		Handler:           s.outermost(orProblem(mux)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       bodyTime,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// OpenAPI returns the document that describes the API, as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().MarshalJSON() }

// Handler returns what answers requests.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve answers on ln, which it owns, until ctx ends. It returns nil after that
// and an error if ln fails; either way no handler runs any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	return api.ServeUntil(ctx, s.http, ln, 3*time.Second)
}

// outermost is what holds for every request, whether the API knows it or not.
func (s *Server) outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		defer func() {
			// A mistake of ours ends a request, not the node. What was answered so
			// far, if anything, ends there.
			v := recover()
			if v == nil {
				return
			}
			if v != http.ErrAbortHandler {
				s.cfg.Logger.Error("control API: panic", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
				s.metrics.panics.Inc()
			}
			panic(http.ErrAbortHandler)
		}()
		next.ServeHTTP(w, r)
	})
}

// tokenKey is where the request's token is in its context.
type tokenKey struct{}

// tokenOf returns the token of a request that identify has let through.
func tokenOf(ctx context.Context) *tokens.Token { return ctx.Value(tokenKey{}).(*tokens.Token) }

// needs says which role an operation takes.
func needs(role tokens.Role) map[string]any { return map[string]any{"role": role} }

// needsAll is needs for what concerns all environments and pools: a token for some
// of them is refused.
func needsAll(role tokens.Role) map[string]any { return map[string]any{"role": role, "unscoped": true} }

// storeOf returns the keys of the cluster, changed in the name of who makes a request.
func (s *Server) storeOf(ctx context.Context) *keys.Store {
	store := *s.cfg.Keys
	store.By = s.by(ctx)
	return &store
}

// mayEnv refuses what lies outside of a token's scope.
func mayEnv(t *tokens.Token, id string) error {
	if t.HasEnv(id) {
		return nil
	}
	return problem(http.StatusForbidden, wire.Forbidden, fmt.Sprintf("the token %s is for environments that begin with %q; %q is not one of them", t.Name, t.Envs, id))
}

// mayPool refuses pools that lie outside of a token's scope.
func mayPool(t *tokens.Token, service string) error {
	if t.HasPool(service) {
		return nil
	}
	return problem(http.StatusForbidden, wire.Forbidden, fmt.Sprintf("the token %s is for the pools %v; %q is not one of them", t.Name, t.Pools, service))
}

// mayService refuses what one of mayEnv and mayPool does.
func mayService(t *tokens.Token, id, service string) error {
	if err := mayEnv(t, id); err != nil {
		return err
	}
	return mayPool(t, service)
}

// narrower returns the longer of a prefix that is asked for and one that bounds
// it, and false where nothing begins with both.
func narrower(asked, bound string) (string, bool) {
	n := min(len(asked), len(bound))
	if asked[:n] != bound[:n] {
		return "", false
	}
	if len(asked) > len(bound) {
		return asked, true
	}
	return bound, true
}

// etag is an entity tag (RFC 9110 section 8.8.3): the revision of what is shown.
func etag(rev int64) string { return fmt.Sprintf("%q", fmt.Sprint(rev)) }

// Conditional is a change that may depend on what it changes (RFC 9110 section
// 13.1.1).
type Conditional struct {
	IfMatch string `header:"If-Match" maxLength:"32" doc:"The ETag of what is to be changed: if it has been changed since, nothing is done."`
}

// Unless is a change that may depend on there being nothing yet (RFC 9110 section
// 13.1.2).
type Unless struct {
	IfNoneMatch string `header:"If-None-Match" maxLength:"32" doc:"*: only if there is none yet, else nothing is done. An ETag: only if it is not of that one."`
}

// nothing is the revision of what must not be there for If-None-Match: *.
const nothing = -2

// rev returns the revision that what is to be changed must not be of, 0 where it
// may be of any.
func (u Unless) rev() (int64, error) {
	if u.IfNoneMatch == "*" {
		return nothing, nil
	}
	rev, err := Conditional{u.IfNoneMatch}.rev()
	if p := (*Problem)(nil); errors.As(err, &p) {
		p.Field, p.Detail = "If-None-Match", strings.Replace(p.Detail, "If-Match", "If-None-Match", 1)
	}
	return rev, err
}

// whatever is the revision of If-Match: *, which is that there is one.
const whatever = -1

// rev returns the revision that is asked for, 0 for any or none.
func (c Conditional) rev() (int64, error) {
	switch c.IfMatch {
	case "":
		return 0, nil
	case "*":
		return whatever, nil
	}
	var rev int64
	if n, err := fmt.Sscanf(c.IfMatch, `"%d"`, &rev); n != 1 || err != nil || rev <= 0 || c.IfMatch != etag(rev) {
		return 0, invalid("If-Match", `If-Match: give the ETag of an answer, such as "412", or *`)
	}
	return rev, nil
}

func (w Waiting) limit() time.Duration { return time.Duration(w.Timeout) * time.Second }

// await waits, if that is asked for, until every live node has applied rev.
func (s *Server) await(ctx context.Context, w Waiting, rev int64) error {
	if w.Wait == "" || rev == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.limit())
	defer cancel()
	_, err := s.cfg.Keys.Await(ctx, rev, nil)
	return problemOf(err)
}
