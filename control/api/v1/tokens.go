package v1

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/tokens"
)

// TokenView is a token as it is shown: without its hashes.
type TokenView struct {
	Name        string    `json:"name"`
	Role        string    `json:"role" enum:"viewer,operator,admin"`
	Envs        string    `json:"envs,omitempty" doc:"What the names of environments begin with that it is for."`
	Pools       []string  `json:"pools,omitempty" doc:"The pools that it is for."`
	Certificate string    `json:"certificate,omitempty" doc:"The name in client certificates that stand for it."`
	CreatedAt   time.Time `json:"created_at,omitzero"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"`
	FormerUntil time.Time `json:"former_until,omitzero" doc:"Until when the former one is good besides."`
	Note        string    `json:"note,omitempty"`
}

func viewToken(t *tokens.Token) TokenView {
	return TokenView{t.Name, string(t.Role), t.Envs, t.Pools, t.Certificate, t.CreatedAt, t.ExpiresAt, t.FormerUntil, t.Note}
}

// NewToken is the body that makes one.
type NewToken struct {
	Name      string     `json:"name" minLength:"1" maxLength:"64" pattern:"^[a-z0-9-]+$"`
	Role      string     `json:"role" enum:"viewer,operator,admin"`
	Envs      string     `json:"envs,omitempty" maxLength:"63"`
	Pools     []string   `json:"pools,omitempty" maxItems:"100"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	Note      string     `json:"note,omitempty" maxLength:"200"`
}

// tokenAnswer is a token that was made, the only time that it is shown.
type tokenAnswer struct {
	Body struct {
		TokenView
		Token string `json:"token" doc:"The token itself. It is shown this once."`
	}
}

// manageTokens registers what is done to tokens.
func (s *Server) manageTokens(api huma.API) {
	tags := []string{"tokens"}
	meta := map[string]any{"role": tokens.Admin, "unscoped": true}
	secret := map[string]any{"role": tokens.Admin, "unscoped": true, "secret": true}
	huma.Register(api, huma.Operation{OperationID: "list-tokens", Method: http.MethodGet, Path: "/tokens", Tags: tags, Summary: "List tokens", Metadata: meta},
		func(_ context.Context, _ *struct{}) (*listAnswer[TokenView], error) {
			out := &listAnswer[TokenView]{Body: list[TokenView]{Items: []TokenView{}}}
			for _, t := range s.cfg.Tokens.All() {
				out.Body.Items = append(out.Body.Items, viewToken(t))
			}
			return out, nil
		})
	huma.Register(api, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: "/tokens", Tags: tags, Summary: "Make a token", DefaultStatus: http.StatusCreated, Metadata: secret},
		func(ctx context.Context, in *struct{ Body NewToken }) (*tokenAnswer, error) {
			secret, t := tokens.New(in.Body.Name, time.Now())
			t.Role, t.Envs, t.Pools, t.Note = tokens.Role(in.Body.Role), in.Body.Envs, in.Body.Pools, in.Body.Note
			if in.Body.ExpiresAt != nil {
				t.ExpiresAt = in.Body.ExpiresAt.UTC()
			}
			return s.writeToken(ctx, secret, t)
		})
	huma.Register(api, huma.Operation{OperationID: "rotate-token", Method: http.MethodPost, Path: "/tokens/{name}/rotate", Tags: tags, Summary: "Make another token in the place of one", Metadata: secret},
		func(ctx context.Context, in *struct {
			Name  string `path:"name" maxLength:"64"`
			Grace int    `query:"grace" minimum:"0" maximum:"604800" default:"3600" doc:"Seconds for which the former one is good besides."`
		}) (*tokenAnswer, error) {
			t := s.cfg.Tokens.Get(in.Name)
			if t == nil || t.Certificate != "" {
				return nil, problem(http.StatusNotFound, "not_found", "there is no token of that name that could be made anew")
			}
			secret, renewed := t.Renew(time.Now(), time.Duration(in.Grace)*time.Second)
			return s.writeToken(ctx, secret, renewed)
		})
	huma.Register(api, huma.Operation{OperationID: "delete-token", Method: http.MethodDelete, Path: "/tokens/{name}", Tags: tags, Summary: "Remove a token", Metadata: meta},
		func(ctx context.Context, in *struct {
			Name string `path:"name" maxLength:"64"`
		}) (*done, error) {
			t := s.cfg.Tokens.Get(in.Name)
			if t == nil {
				return nil, problem(http.StatusNotFound, "not_found", "there is no token of that name")
			}
			rev, err := s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Delete: true, Since: t.Rev}}, s.by(ctx))
			if err != nil {
				return nil, problemOf(err)
			}
			return answerDone(rev), nil
		})
}

// writeToken writes t in the place of what it was at its revision, and shows it.
func (s *Server) writeToken(ctx context.Context, secret string, t *tokens.Token) (*tokenAnswer, error) {
	value, err := json.Marshal(t)
	if err != nil {
		return nil, problemOf(err)
	}
	if _, err := tokens.Parse(t.Name, value); err != nil {
		return nil, problemOf(err)
	}
	if t.Rev == 0 && s.cfg.Tokens.Get(t.Name) != nil {
		return nil, problem(http.StatusConflict, "exists", "there is a token of that name already; rotate it, or remove it first")
	}
	if _, err := s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Value: value, Since: t.Rev}}, s.by(ctx)); err != nil {
		return nil, problemOf(err)
	}
	out := new(tokenAnswer)
	out.Body.TokenView, out.Body.Token = viewToken(t), secret
	return out, nil
}
