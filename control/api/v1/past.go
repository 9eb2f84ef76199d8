package v1

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// past registers what is asked of the history.
func (s *Server) past(api huma.API) {
	tags := []string{"history"}
	huma.Register(api, huma.Operation{
		OperationID: "list-history", Method: http.MethodGet, Path: "/history", Tags: tags, Summary: "Show who changed which key when", Metadata: needsAll(tokens.Viewer),
	}, s.listHistory)
	huma.Register(api, huma.Operation{
		OperationID: "get-diff", Method: http.MethodGet, Path: "/diff", Tags: tags, Summary: "Show how keys differ between a revision and another, or now", Metadata: needsAll(tokens.Viewer),
	}, s.diff)
	huma.Register(api, huma.Operation{
		OperationID: "rollback", Method: http.MethodPost, Path: "/rollback", Tags: tags, Summary: "Make keys again what they were at a revision",
		Description: "As a new change, which can be rolled back. Values that nodes would refuse are left out.", Metadata: needsAll(tokens.Admin),
	}, s.rollback)
}

func (s *Server) listHistory(ctx context.Context, in *struct {
	After int64  `query:"after" minimum:"0" doc:"Only changes after this revision."`
	Under string `query:"under" maxLength:"4096" doc:"Only keys that begin so, such as routes/."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The first so many."`
}) (*struct{ Body wire.History }, error) {
	log, err := history.Read(ctx, s.cfg.Keys.Client, in.After)
	if err != nil {
		return nil, problemOf(err)
	}
	out := &struct{ Body wire.History }{}
	out.Body.Items, out.Body.Gap = []wire.PastChange{}, log.Gap
	for _, c := range log.Changes {
		if c.Rev <= in.After || !strings.HasPrefix(c.Key, in.Under) || c.Key == control.MeantKey || strings.HasPrefix(c.Key, tokens.Folder) {
			continue
		}
		// Changes of one revision stay together.
		if n := len(out.Body.Items); n >= in.Limit && out.Body.Items[n-1].Revision != c.Rev {
			out.Body.Next = out.Body.Items[n-1].Revision
			break
		}
		out.Body.Items = append(out.Body.Items, PastOf(c))
	}
	return out, nil
}

// changesAnswer is how keys differ, or what was changed.
type changesAnswer struct{ Body wire.Changes }

func (s *Server) diff(ctx context.Context, in *struct {
	From  int64  `query:"from" minimum:"1" required:"true"`
	To    int64  `query:"to" minimum:"0" doc:"0: now."`
	Under string `query:"under" maxLength:"4096"`
}) (*changesAnswer, error) {
	before, err := s.keysAt(ctx, in.From, in.Under)
	if err != nil {
		return nil, err
	}
	out := new(changesAnswer)
	out.Body.Unknown = before.Unknown
	var after map[string]string
	if in.To == 0 {
		if after, err = s.cfg.Keys.Now(ctx, in.Under); err != nil {
			return nil, problemOf(err)
		}
	} else {
		then, err := s.keysAt(ctx, in.To, in.Under)
		if err != nil {
			return nil, err
		}
		after, out.Body.Unknown = then.Values, append(out.Body.Unknown, then.Unknown...)
	}
	changes := slices.DeleteFunc(keys.Difference(before.Values, after), func(c keys.Change) bool {
		return slices.Contains(out.Body.Unknown, c.Key) || strings.HasPrefix(c.Key, tokens.Folder)
	})
	out.Body.Changes = append([]wire.Change{}, changes...)
	return out, nil
}

// keysAt returns keys as of a revision.
func (s *Server) keysAt(ctx context.Context, rev int64, under string) (*history.Then, error) {
	then, err := history.KeysAt(ctx, s.cfg.Keys.Client, rev, under)
	return then, pastProblem(err)
}

// pastProblem is problemOf for a revision that may not be one to look back to.
func pastProblem(err error) error {
	if errors.As(err, new(*history.TooOldError)) || errors.As(err, new(*history.FutureError)) {
		return problem(http.StatusNotFound, wire.NotFound, err.Error())
	}
	return problemOf(err)
}

func (s *Server) rollback(ctx context.Context, in *struct {
	Waiting
	Body wire.Rollback
}) (*changesAnswer, error) {
	wishes, unknown, err := s.cfg.Keys.Back(ctx, in.Body.To, in.Body.Under)
	if err != nil {
		return nil, pastProblem(err)
	}
	plan, err := s.cfg.Keys.Plan(ctx, wishes)
	if err != nil {
		return nil, problemOf(err)
	}
	out := new(changesAnswer)
	out.Body.LeftOut, out.Body.Unknown = plan.Findings, unknown
	if len(plan.Findings) > 0 {
		wishes = slices.DeleteFunc(wishes, func(w keys.Wish) bool {
			return !w.Delete && slices.ContainsFunc(plan.Findings, func(f control.Finding) bool { return f.Key == w.Key })
		})
		if plan, err = s.cfg.Keys.Plan(ctx, wishes); err != nil {
			return nil, problemOf(err)
		}
	}
	out.Body.Changes = plan.Changes
	if in.Body.DryRun || len(plan.Changes) == 0 {
		return out, nil
	}
	if removed := slices.IndexFunc(plan.Changes, func(c keys.Change) bool { return c.After == nil }); removed >= 0 && !in.Body.Remove {
		p := problem(http.StatusConflict, wire.Conflict, fmt.Sprintf("this would remove keys, %s for one; look with dry_run, and then say remove", plan.Changes[removed].Key))
		p.Field = "remove"
		return nil, p
	}
	plan.Meant = in.Body.Remove
	store := s.storeOf(ctx)
	if out.Body.Revision, _, err = store.Commit(ctx, plan); err != nil {
		return nil, problemOf(err)
	}
	return out, s.await(ctx, in.Waiting, out.Body.Revision)
}
