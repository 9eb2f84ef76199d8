package v1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
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
			Grace string `query:"grace" maxLength:"20" default:"1h" example:"30m" doc:"How long the former one is good besides, up to a week: a duration, or a number of seconds."`
		}) (*tokenAnswer, error) {
			grace, err := graceOf(in.Grace)
			if err != nil {
				return nil, err
			}
			t := s.cfg.Tokens.Get(in.Name)
			if t == nil || t.Certificate != "" {
				return nil, problem(http.StatusNotFound, wire.NotFound, "there is no token of that name that could be made anew")
			}
			secret, renewed := t.Renew(time.Now(), grace)
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
			if t.Name == tokenOf(ctx).Name && !s.otherAdmin(t.Name, time.Now()) {
				return nil, problem(http.StatusConflict, wire.LastAdmin, fmt.Sprintf("the token %s asks for its own end, and no other is an admin's for all environments and pools: make one first, or remove this one over etcd (sluice token rm %[1]s)", t.Name))
			}
			rev, err := s.cfg.Keys.Client.Commit(ctx, []etcd.Edit{{Key: tokens.Folder + t.Name, Delete: true, Since: t.Rev}}, s.by(ctx))
			if err != nil {
				return nil, problemOf(err)
			}
			return answerDone(rev), nil
		})
}

// maxGrace bounds how long a former token is good.
const maxGrace = 7 * 24 * time.Hour

// graceOf reads how long a former token is good: a duration, or seconds.
func graceOf(text string) (time.Duration, error) {
	grace, err := time.ParseDuration(text)
	if seconds, ok := strconv.Atoi(text); ok == nil && seconds <= int(maxGrace/time.Second) {
		grace, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || grace < 0 || grace > maxGrace {
		return 0, invalid("grace", fmt.Sprintf("grace: %q is no duration of at most a week; write a number with a unit, such as 30m, or 0s for none", text))
	}
	return grace, nil
}

// otherAdmin reports whether there is a token but name that may make tokens.
func (s *Server) otherAdmin(name string, now time.Time) bool {
	return slices.ContainsFunc(s.cfg.Tokens.All(), func(t *tokens.Token) bool {
		return t.Name != name && t.May(tokens.Admin) && t.Unscoped() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
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
