package keys

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/control"
)

// judgedWithin bounds the wait for nodes to judge values that were put just now.
const judgedWithin = time.Second

// Refused returns the keys of a folder such as pools/ whose values every live node
// refuses, and why, in the words of the first of them by name. Of one that some node
// has yet to judge, after a second of waiting for that, nothing is said.
func (s *Store) Refused(ctx context.Context, folder string) (map[string]string, error) {
	all, err := s.List(ctx, folder)
	if err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, judgedWithin)
	defer cancel()
	said, errs := make([][]Answer, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, e := range all {
		if !e.isInForce() {
			// What stands there of a refusal may be of the value before.
			asked.Go(func() { said[i], errs[i] = s.Await(waiting, e.Rev, []string{e.Key}) })
		}
	}
	asked.Wait()
	why := map[string]string{}
	for i, e := range all {
		switch err := errs[i]; {
		case errors.As(err, new(*LateError)), err != nil && waiting.Err() != nil && ctx.Err() == nil:
			continue
		case err != nil:
			return nil, err
		}
		others := func(a Answer) bool { return a.Verdict.State != control.Refused }
		if len(said[i]) > 0 && !slices.ContainsFunc(said[i], others) {
			why[e.Key] = reasonOf(said[i][0].Verdict)
		}
	}
	return why, nil
}

// isInForce reports whether every node has said that the value of e is in force.
func (e *Entry) isInForce() bool {
	for _, v := range e.Verdicts {
		if v.Rev < e.Rev {
			return false
		}
	}
	return len(e.Verdicts) > 0
}

// reasonOf returns why a value is refused, without what is in force in its place.
func reasonOf(v control.Verdict) string {
	text := strings.TrimPrefix(v.Text, control.Refused+": ")
	if at := strings.LastIndex(text, " ("); at > 0 && strings.HasSuffix(text, ")") {
		text = text[:at]
	}
	return text
}
