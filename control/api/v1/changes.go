package v1

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// changes registers what is done to several keys at once, and what is asked of
// all nodes about them.
func (s *Server) changes(api huma.API) {
	tags := []string{"cluster"}
	huma.Register(api, huma.Operation{
		OperationID: "change-keys", Method: http.MethodPost, Path: "/changes", Tags: tags, Summary: "Change several keys at once",
		Description: "Mappings, routes, domains, names and pools, in one transaction, or none of them. Values are checked against the keys that there are.", Metadata: needsAll(tokens.Operator),
	}, s.changeKeys)
	huma.Register(api, huma.Operation{
		OperationID: "list-verdicts", Method: http.MethodGet, Path: "/verdicts", Tags: tags, Summary: "List what nodes say of keys", Metadata: needsAll(tokens.Viewer),
	}, s.listVerdicts)
	huma.Register(api, huma.Operation{
		OperationID: "wait-applied", Method: http.MethodGet, Path: "/applied", Tags: tags, Summary: "Wait until every live node has applied a revision",
		Description: "Answered with 504 not_applied, which names the nodes that have not, when the time is over.", Metadata: needsAll(tokens.Viewer),
	}, s.waitApplied)
}

// wishOf reads what a key is to be. The error is a *router.FieldError.
func wishOf(w wire.KeyWish) (keys.Wish, error) {
	if !slices.ContainsFunc(keyKinds, func(k keyKind) bool { return strings.HasPrefix(w.Key, k.folder) }) {
		return keys.Wish{}, &router.FieldError{Path: "key", Msg: fmt.Sprintf("%q lies below none of ports/, routes/, domains/, names/ and pools/", w.Key)}
	}
	if w.Delete != (w.Value == nil) {
		return keys.Wish{}, &router.FieldError{Path: "value", Msg: "give either a value, or delete"}
	}
	if w.Delete {
		return keys.Wish{Key: w.Key, Delete: true}, nil // whatever its form: somebody has put it there
	}
	if _, err := router.ParseKey(w.Key); err != nil {
		return keys.Wish{}, &router.FieldError{Path: "key", Msg: err.Error()}
	}
	return keys.Wish{Key: w.Key, Value: wire.TextOf(w.Value)}, nil
}

// wishesOf reads what keys are to be, and the revisions that this is based on.
func wishesOf(in []wire.KeyWish) (wishes []keys.Wish, since map[string]int64, err error) {
	since = map[string]int64{}
	seen := map[string]bool{}
	for i, w := range in {
		wish, err := wishOf(w)
		if err == nil && seen[w.Key] {
			err = &router.FieldError{Path: "key", Msg: fmt.Sprintf("%s is there twice", w.Key)}
		}
		if err != nil {
			return nil, nil, withinKeys(i, err)
		}
		seen[w.Key] = true
		if w.Since != nil {
			since[w.Key] = *w.Since
		}
		wishes = append(wishes, wish)
	}
	return wishes, since, nil
}

func withinKeys(i int, err error) error {
	fe, ok := err.(*router.FieldError)
	if !ok {
		return err
	}
	return &router.FieldError{Path: fmt.Sprintf("keys[%d].%s", i, fe.Path), Msg: fe.Msg}
}

// planAnswer is what wishes come to.
type planAnswer struct{ Body wire.KeyPlan }

func (s *Server) changeKeys(ctx context.Context, in *struct {
	Waiting
	Body wire.KeyWishes
}) (*planAnswer, error) {
	wishes, since, err := wishesOf(in.Body.Keys)
	if err != nil {
		return nil, problemOf(err)
	}
	plan, err := s.cfg.Keys.Plan(ctx, wishes)
	if err != nil {
		return nil, problemOf(err)
	}
	if err := asSince(plan, since); err != nil {
		return nil, err
	}
	out := &planAnswer{PlanOf(plan)}
	if in.Body.DryRun {
		return out, nil
	}
	switch {
	case len(plan.Findings) > 0:
		return nil, problemOfFindings(plan.Findings[0].Key, plan.Findings)
	case len(plan.Missing) > 0:
		return nil, noKey(plan.Missing[0])
	case !plan.IsWhole():
		return nil, problem(http.StatusRequestEntityTooLarge, wire.TooLarge, "the values are more than a transaction has room for (512 KB); give fewer keys at once")
	}
	plan.Meant = in.Body.Meant
	store := s.storeOf(ctx)
	var wait time.Duration
	if in.Wait != "" {
		wait = in.limit()
	}
	made, err := store.Make(ctx, plan, wait)
	out.Body.Committed, out.Body.Answers = made.Committed, made.Answers
	if made.Done > 0 && errors.As(err, new(*keys.NobodyError)) {
		p := problem(http.StatusGatewayTimeout, wire.NotApplied, "the change was made; "+err.Error())
		p.Revision = made.Committed
		return nil, p
	}
	return out, problemOf(err)
}

// asSince refuses a plan for keys that have been changed since the revisions that
// it is meant for.
func asSince(plan *keys.Plan, since map[string]int64) error {
	for _, c := range plan.Changes {
		if want, ok := since[c.Key]; ok && want != c.Since {
			return problem(http.StatusPreconditionFailed, wire.Stale, fmt.Sprintf("%s is as of revision %d by now, not %d; look at it and try again", c.Key, c.Since, want))
		}
	}
	return nil
}

func (s *Server) listVerdicts(ctx context.Context, in *struct {
	Under string `query:"under" maxLength:"4096" doc:"On keys that begin so, such as routes/."`
	Node  string `query:"node" maxLength:"128" doc:"Of this node."`
	State string `query:"state" enum:"applied,refused,degraded,held"`
	After string `query:"after" maxLength:"4096" doc:"The key of the last one that is known."`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"So many or a few more: those on one key stay together."`
}) (*listAnswer[wire.NodeVerdict], error) {
	out := answerList([]wire.NodeVerdict{})
	size := in.Limit
	if in.Node != "" || in.State != "" { // of many keys few may be wanted
		size = max(size, 500)
	}
	for _, kind := range keyKindsInOrder() {
		under, ok := narrower(in.Under, kind.folder)
		for after, more := in.After, ok; more; {
			var all []keys.Entry
			var err error
			if all, more, err = s.cfg.Keys.Page(ctx, under, after, size); err != nil {
				return nil, problemOf(err)
			}
			for _, e := range all {
				if n := len(out.Body.Items); n >= in.Limit {
					out.Body.Next = out.Body.Items[n-1].Key
					return out, nil
				}
				for _, node := range sortedNodes(e) {
					if v := e.Verdicts[node]; (in.Node == "" || in.Node == node) && (in.State == "" || in.State == v.State) {
						out.Body.Items = append(out.Body.Items, wire.NodeVerdict{Key: e.Key, Node: node, Verdict: v})
					}
				}
				after = e.Key
			}
		}
	}
	return out, nil
}

// keyKindsInOrder are the kinds in the order of their keys.
func keyKindsInOrder() []keyKind {
	kinds := slices.Clone(keyKinds)
	slices.SortFunc(kinds, func(a, b keyKind) int { return strings.Compare(a.folder, b.folder) })
	return kinds
}

func sortedNodes(e keys.Entry) []string {
	nodes := make([]string, 0, len(e.Verdicts))
	for node := range e.Verdicts {
		nodes = append(nodes, node)
	}
	slices.Sort(nodes)
	return nodes
}

func (s *Server) waitApplied(ctx context.Context, in *struct {
	Revision int64 `query:"revision" minimum:"0" doc:"0: the newest."`
	Timeout  int   `query:"timeout" minimum:"1" maximum:"60" default:"10" doc:"Seconds to wait for that."`
}) (*struct{ Body wire.AppliedBy }, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(in.Timeout)*time.Second)
	defer cancel()
	began := time.Now()
	if err := s.cfg.Keys.SomeoneLives(ctx); errors.As(err, new(*keys.NobodyError)) {
		return nil, problem(http.StatusGatewayTimeout, wire.NotApplied, err.Error())
	} else if err != nil {
		return nil, problemOf(err)
	}
	rev := in.Revision
	if rev == 0 {
		var err error
		if rev, err = s.cfg.Keys.Newest(ctx); err != nil {
			return nil, problemOf(err)
		}
	}
	if _, err := s.cfg.Keys.Await(ctx, rev, nil); err != nil {
		return nil, problemOf(err)
	}
	return &struct{ Body wire.AppliedBy }{wire.AppliedBy{Revision: rev, Seconds: time.Since(began).Seconds()}}, nil
}
