package v1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// tokenAnswer is a token that was made, the only time that it is shown.
type tokenAnswer struct{ Body wire.MadeToken }

// manageTokens registers what is done to tokens.
func (s *Server) manageTokens(api huma.API) {
	tags := []string{"tokens"}
	meta := needsAll(tokens.Admin)
	secret := needsAll(tokens.Admin)
	secret["secret"] = true
	huma.Register(api, huma.Operation{OperationID: "list-tokens", Method: http.MethodGet, Path: "/tokens", Tags: tags, Summary: "List tokens", Metadata: meta},
		func(_ context.Context, _ *struct{}) (*listAnswer[wire.Token], error) {
			out := answerList([]wire.Token{})
			for _, t := range s.cfg.Tokens.All() {
				out.Body.Items = append(out.Body.Items, TokenOf(t))
			}
			return out, nil
		})
	huma.Register(api, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: "/tokens", Tags: tags, Summary: "Make a token", DefaultStatus: http.StatusCreated, Metadata: secret},
		func(ctx context.Context, in *struct{ Body wire.NewToken }) (*tokenAnswer, error) {
			secret, t := TokenFor(in.Body, time.Now())
			return s.writeToken(ctx, secret, t)
		})
	huma.Register(api, huma.Operation{OperationID: "rotate-token", Method: http.MethodPost, Path: "/tokens/{name}/rotate", Tags: tags, Summary: "Make another token in the place of one", Metadata: secret},
		func(ctx context.Context, in *struct {
			Name  string `path:"name" maxLength:"64"`
			Grace int    `query:"grace" minimum:"0" maximum:"604800" default:"3600" doc:"Seconds for which the former one is good besides."`
		}) (*tokenAnswer, error) {
			t := s.cfg.Tokens.Get(in.Name)
			if t == nil || t.Certificate != "" {
				return nil, problem(http.StatusNotFound, wire.NotFound, "there is no token of that name that could be made anew")
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
				return nil, problem(http.StatusNotFound, wire.NotFound, "there is no token of that name")
			}
			rev, err := s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Delete: true, Since: t.Rev}}, s.by(ctx))
			if err != nil {
				return nil, problemOf(err)
			}
			return answerDone(rev), nil
		})
}

// TokenFor makes a token as it is asked for. secret is it, "" where a certificate
// stands for it.
func TokenFor(n wire.NewToken, now time.Time) (secret string, t *tokens.Token) {
	secret, t = tokens.New(n.Name, now)
	t.Role, t.Envs, t.Pools, t.Note, t.Certificate = tokens.Role(n.Role), n.Envs, n.Pools, n.Note, n.Certificate
	if t.Certificate != "" {
		t.Hash, secret = "", ""
	}
	if n.ExpiresAt != nil {
		t.ExpiresAt = n.ExpiresAt.UTC()
	}
	return secret, t
}

// writeToken writes t in the place of what it was at its revision, and shows it.
func (s *Server) writeToken(ctx context.Context, secret string, t *tokens.Token) (*tokenAnswer, error) {
	if err := errors.Join(tokens.CheckName(t.Name), t.Check()); err != nil {
		return nil, problemOf(err)
	}
	value, err := json.Marshal(t)
	if err != nil {
		return nil, problemOf(err)
	}
	if t.Rev == 0 && s.cfg.Tokens.Get(t.Name) != nil {
		return nil, problem(http.StatusConflict, wire.Exists, "there is a token of that name already; rotate it, or remove it first")
	}
	if other := s.cfg.Tokens.ByCertificate(t.Certificate); other != nil && other.Name != t.Name {
		return nil, problem(http.StatusConflict, wire.Exists, fmt.Sprintf("the token %s is of that certificate already; remove it first", other.Name))
	}
	if _, err := s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Value: value, Since: t.Rev}}, s.by(ctx)); err != nil {
		return nil, problemOf(err)
	}
	out := new(tokenAnswer)
	out.Body.Token, out.Body.Secret = TokenOf(t), secret
	return out, nil
}
