package v1

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/router"
)

// drainWithin bounds the wait for nodes to know how sessions are to end.
const drainWithin = 3 * time.Second

// drain has every live node know how long sessions of an environment may go on
// once it is deleted. It is a change of its own: nodes look at what a mapping said
// before it was deleted.
func (s *Server) drain(ctx context.Context, e *envs.Env, limit string) error {
	d, err := time.ParseDuration(limit)
	if err != nil || d < 0 {
		return invalid("drain", fmt.Sprintf("drain: %q is not a duration; write a number with a unit, such as 30s, or 0s to cut sessions", limit))
	}
	onDelete := "cut"
	if d > 0 {
		onDelete = "drain " + router.DurationText(d)
	}
	since, of, err := s.cfg.Envs.Drain(ctx, e.ID, e.Rev, onDelete)
	if err != nil || since == 0 {
		return problemOf(err)
	}
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	if _, err = s.cfg.Keys.Await(ctx, since, of); err != nil {
		return problem(http.StatusServiceUnavailable, wire.Unavailable, fmt.Sprintf("the environment %s goes on: %v, and would cut its sessions; try again, or leave drain out", e.ID, err))
	}
	return nil
}
