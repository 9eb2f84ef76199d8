package v1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// EnvironmentPatch is the body that changes an environment.
type EnvironmentPatch wire.EnvironmentPatch

// TransformSchema implements huma.SchemaTransformer: a service may be null.
func (EnvironmentPatch) TransformSchema(r huma.Registry, s *huma.Schema) *huma.Schema {
	service := *r.Schema(reflect.TypeFor[wire.ServiceSpec](), false, "ServiceSpec")
	service.Nullable = true
	s.Properties["services"].AdditionalProperties = &service
	return s
}

// ServiceSpecOf reads what a service is to be. The error is a *router.FieldError.
func ServiceSpecOf(s wire.ServiceSpec) (envs.ServiceSpec, error) {
	to := envs.ServiceSpec{Port: s.Port, Span: s.Span, Backend: s.Backend, Username: s.Username, Secrets: s.Secrets}
	if s.Inner != "" {
		ports, err := router.ParsePorts(s.Inner)
		if err != nil {
			return to, &router.FieldError{Path: "inner_ports", Msg: err.Error()}
		}
		to.InnerPorts = ports
	}
	if s.Mapping != nil {
		raw, err := json.Marshal(s.Mapping)
		if err != nil {
			return to, err
		}
		to.Mapping = raw
	}
	return to, nil
}

// serviceFor reads what the service name of an environment is to be, for a token
// that may use its pool.
func serviceFor(t *tokens.Token, name string, from wire.ServiceSpec) (envs.ServiceSpec, error) {
	if err := mayPool(t, name); err != nil {
		return envs.ServiceSpec{}, err
	}
	to, err := ServiceSpecOf(from)
	if err != nil {
		return envs.ServiceSpec{}, problemOf(envs.Within("services."+name, err))
	}
	return to, nil
}

// Waiting is a change that may be waited for.
type Waiting struct {
	Wait    string `query:"wait" enum:"applied" doc:"applied: answer once every live node has applied it."`
	Timeout int    `query:"timeout" minimum:"1" maximum:"60" default:"10" doc:"Seconds to wait for that."`
}

// envAnswer is an environment.
type envAnswer struct {
	ETag string `header:"ETag"`
	Body wire.Environment
}

func answerEnv(t *tokens.Token, e *envs.Env) *envAnswer {
	return &envAnswer{etag(e.Rev), viewFor(t, e)}
}

// viewFor returns an environment as a token may see it.
func viewFor(t *tokens.Token, e *envs.Env) wire.Environment {
	v := EnvironmentOf(e)
	maps.DeleteFunc(v.Services, func(name string, _ *wire.Service) bool { return !t.HasPool(name) })
	return v
}

// answerChanged is answerEnv after a change. Where that is waited for, it has what
// the nodes make of what the token may see; whole is as in Applied.
func (s *Server) answerChanged(ctx context.Context, w Waiting, e *envs.Env, whole bool) (*envAnswer, error) {
	t := tokenOf(ctx)
	out := answerEnv(t, e)
	if w.Wait == "" {
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.limit())
	defer cancel()
	said, err := Applied(ctx, s.cfg.Keys, e, whole)
	if errors.As(err, new(*keys.NobodyError)) {
		p := problem(http.StatusGatewayTimeout, wire.NotApplied, "the change was made; "+err.Error())
		p.Revision = e.Rev
		return nil, p
	}
	shown := *e
	shown.Services = maps.Clone(e.Services)
	maps.DeleteFunc(shown.Services, func(name string, _ *envs.Service) bool { return !t.HasPool(name) })
	seen := shown.Keys()
	out.Body.Answers = slices.DeleteFunc(said, func(a wire.Answer) bool { return !slices.Contains(seen, a.Key) })
	return out, problemOf(err)
}

// Applied waits until every live node has applied the last change of e, and returns
// what they say of its mappings and routes where there is more to say than that they
// are in force. whole has it wait for what the change has taken away, too. The errors
// are those of keys.Store.Await, and a *keys.NobodyError.
func Applied(ctx context.Context, store *keys.Store, e *envs.Env, whole bool) ([]wire.Answer, error) {
	if whole {
		if _, err := store.Await(ctx, e.Rev, nil); err != nil {
			return nil, err
		}
	}
	said, err := store.Await(ctx, e.Rev, e.Keys())
	if err == nil && len(said) == 0 {
		err = store.SomeoneLives(ctx)
	}
	return slices.DeleteFunc(said, func(a wire.Answer) bool { return a.Verdict.IsPlain() }), err
}

// mayAll refuses to do to a whole environment what a token may do to some of its
// services only.
func mayAll(t *tokens.Token, e *envs.Env) error {
	for name := range e.Services {
		if !t.HasPool(name) {
			return problem(http.StatusForbidden, wire.Forbidden, fmt.Sprintf("environment %s has services beyond the pools %v that the token %s is for; name those that are to be changed", e.ID, t.Pools, t.Name))
		}
	}
	return nil
}

// guarded returns a context with which a token's changes are made: who is for some
// environments or pools only leads no port to the nodes themselves.
func guarded(ctx context.Context, t *tokens.Token) context.Context {
	if t.Unscoped() {
		return ctx
	}
	return envs.Guard(ctx)
}

func (s *Server) environments(api huma.API) {
	tags := []string{"environments"}
	huma.Register(api, huma.Operation{
		OperationID: "create-environment", Method: http.MethodPost, Path: "/environments", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary:     "Create an environment",
		Description: "Allocates the ports, and writes the mappings, the routes and the record, in one transaction, or nothing. Asked again for the same, it answers with what there is.",
		Metadata:    needs(tokens.Operator),
	}, s.createEnv)
	huma.Register(api, huma.Operation{
		OperationID: "list-environments", Method: http.MethodGet, Path: "/environments", Tags: tags, Summary: "List environments", Metadata: needs(tokens.Viewer),
	}, s.listEnvs)
	huma.Register(api, huma.Operation{
		OperationID: "get-environment", Method: http.MethodGet, Path: "/environments/{id}", Tags: tags, Summary: "Show an environment", Metadata: needs(tokens.Viewer),
	}, s.getEnv)
	huma.Register(api, huma.Operation{
		OperationID: "patch-environment", Method: http.MethodPatch, Path: "/environments/{id}", Tags: tags, Summary: "Change an environment",
		Description: "Moves its backend, adds, changes or drops services, puts off its end.", Metadata: needs(tokens.Operator),
	}, s.patchEnv)
	huma.Register(api, huma.Operation{
		OperationID: "delete-environment", Method: http.MethodDelete, Path: "/environments/{id}", Tags: tags, Summary: "End an environment",
		Description: "Mappings and routes go, sessions end as on_delete of the mappings says, or drain, and ports rest in quarantine.", Metadata: needs(tokens.Operator),
	}, s.deleteEnv)
	huma.Register(api, huma.Operation{
		OperationID: "get-access", Method: http.MethodGet, Path: "/environments/{id}/access", Tags: tags, Summary: "Say how an environment is reached",
		Description: "Secrets, and texts that hold one, are given to operators only.", Metadata: needs(tokens.Viewer),
	}, s.getAccess)
}

func (s *Server) createEnv(ctx context.Context, in *struct {
	Waiting
	Body wire.NewEnvironment
}) (*envAnswer, error) {
	spec := envs.Spec{ID: in.Body.ID, Backend: in.Body.Backend, Services: map[string]envs.ServiceSpec{}}
	if in.Body.ExpiresAt != nil {
		spec.ExpiresAt = *in.Body.ExpiresAt
	}
	t := tokenOf(ctx)
	if err := mayEnv(t, spec.ID); err != nil {
		return nil, err
	}
	for name, from := range in.Body.Services {
		to, err := serviceFor(t, name, from)
		if err != nil {
			return nil, err
		}
		spec.Services[name] = to
	}
	e, err := s.cfg.Envs.Create(guarded(ctx, t), spec)
	if err != nil {
		return nil, problemOf(err)
	}
	return s.answerChanged(ctx, in.Waiting, e, false)
}

func (s *Server) getEnv(ctx context.Context, in *struct {
	ID string `path:"id"`
}) (*envAnswer, error) {
	e, err := s.env(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return answerEnv(tokenOf(ctx), e), nil
}

// env returns an environment that the token is for. To others there is none.
func (s *Server) env(ctx context.Context, id string) (*envs.Env, error) {
	if !tokenOf(ctx).HasEnv(id) {
		return nil, problemOf(&envs.NotFoundError{ID: id})
	}
	e, err := s.cfg.Envs.Get(ctx, id)
	return e, problemOf(err)
}

// Page asks for a part of a list.
type Page struct {
	After string `query:"after" maxLength:"4096" doc:"The name of the last one that is known; the list begins behind it."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

// listAnswer is a part of a list.
type listAnswer[T any] struct {
	Body wire.Page[T]
}

func answerList[T any](items []T) *listAnswer[T] { return &listAnswer[T]{wire.Page[T]{Items: items}} }

func (s *Server) listEnvs(ctx context.Context, in *struct {
	Page
	Prefix string `query:"prefix" maxLength:"63" doc:"What their names begin with."`
}) (*listAnswer[wire.Environment], error) {
	scope := tokenOf(ctx).Envs
	prefix, ok := narrower(in.Prefix, scope)
	out := answerList([]wire.Environment{})
	if !ok {
		return out, nil
	}
	all, err := s.cfg.Envs.List(ctx, prefix, in.After, in.Limit+1)
	if err != nil {
		return nil, problemOf(err)
	}
	for i, e := range all {
		if i == in.Limit {
			out.Body.Next = all[i-1].ID
			break
		}
		out.Body.Items = append(out.Body.Items, viewFor(tokenOf(ctx), e))
	}
	return out, nil
}

func (s *Server) patchEnv(ctx context.Context, in *struct {
	Waiting
	Conditional
	ID   string `path:"id"`
	Body EnvironmentPatch
}) (*envAnswer, error) {
	t := tokenOf(ctx)
	if err := mayEnv(t, in.ID); err != nil {
		return nil, err
	}
	rev, err := in.rev()
	if err != nil {
		return nil, err
	}
	rev = max(rev, 0) // of what is not there, that is said anyway
	there, err := s.env(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body.Backend != nil || in.Body.ExpiresAt != nil {
		if err := mayAll(t, there); err != nil {
			return nil, err
		}
	}
	p := envs.Patch{Rev: rev, Backend: in.Body.Backend, ExpiresAt: in.Body.ExpiresAt, Services: map[string]*envs.ServiceSpec{}}
	for name, from := range in.Body.Services {
		if from == nil {
			if err := mayPool(t, name); err != nil {
				return nil, err
			}
			p.Services[name] = nil
			continue
		}
		to, err := serviceFor(t, name, *from)
		if err != nil {
			return nil, err
		}
		p.Services[name] = &to
	}
	e, err := s.cfg.Envs.Patch(guarded(ctx, t), in.ID, p)
	if err != nil {
		return nil, problemOf(err)
	}
	return s.answerChanged(ctx, in.Waiting, e, true)
}

// done is the answer to a change that leaves nothing to show.
type done struct{ Body wire.Done }

func answerDone(rev int64) *done { return &done{wire.Done{Revision: rev}} }

func (s *Server) deleteEnv(ctx context.Context, in *struct {
	Waiting
	Conditional
	ID    string `path:"id"`
	Drain string `query:"drain" maxLength:"20" example:"30s" doc:"How long sessions may go on, in the place of what on_delete of the mappings says; 0s: not at all."`
}) (*done, error) {
	if err := mayEnv(tokenOf(ctx), in.ID); err != nil {
		return nil, err
	}
	rev, err := in.rev()
	if err != nil {
		return nil, err
	}
	rev = max(rev, 0) // of what is not there, that is said anyway
	there, err := s.env(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := mayAll(tokenOf(ctx), there); err != nil {
		return nil, err
	}
	if in.Drain != "" {
		if err := s.drain(ctx, there, in.Drain); err != nil {
			return nil, err
		}
	}
	rev, err = s.cfg.Envs.Delete(ctx, in.ID, rev)
	if err != nil {
		return nil, problemOf(err)
	}
	return answerDone(rev), s.await(ctx, in.Waiting, rev)
}

func (s *Server) getAccess(ctx context.Context, in *struct {
	ID      string `path:"id"`
	Secrets bool   `query:"secrets" default:"true" doc:"false: leave them out, whoever asks."`
}) (*struct{ Body wire.AccessAnswer }, error) {
	if _, err := s.env(ctx, in.ID); err != nil {
		return nil, err
	}
	info, err := s.cfg.Envs.Access(ctx, in.ID, in.Secrets && tokenOf(ctx).May(tokens.Operator))
	if err != nil {
		return nil, problemOf(err)
	}
	maps.DeleteFunc(info, func(name string, _ envs.Access) bool { return !tokenOf(ctx).HasPool(name) })
	out := &struct{ Body wire.AccessAnswer }{Body: wire.AccessAnswer{Message: "success"}}
	out.Body.Data.EnvironmentID, out.Body.Data.AccessInfo = in.ID, AccessOf(info)
	return out, nil
}
