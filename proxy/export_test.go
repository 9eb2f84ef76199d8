package proxy

import (
	"context"
	"time"

	"github.com/remotegpu/sluice/proxy/listen"
)

// SetPace has what takes its time in production take none. It is for TestMain.
func SetPace(rest, foreign time.Duration) { udpRest, foreignInterval = rest, foreign }

// SetOwners replaces the search for the owners of busy ports, until undo.
func SetOwners(f func(ctx context.Context, busy ...*listen.BusyError) []string) (undo func()) {
	owners = f
	return func() { owners = listen.Owners }
}
