package proxy

import (
	"context"
	"time"

	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/listen"
	"github.com/remotegpu/sluice/router"
)

// SetPace has what takes its time in production take none. It is for TestMain.
func SetPace(rest, foreign time.Duration) { udpRest, foreignInterval = rest, foreign }

// SetOwners replaces the search for the owners of busy ports, until undo.
func SetOwners(f func(ctx context.Context, busy ...*listen.BusyError) []string) (undo func()) {
	owners = f
	return func() { owners = listen.Owners }
}

// EndUDP has a UDP port of bind mode that is busy with an older socket go on as
// if that had been its own and has just been closed, by closing, with left in it.
func (e *Engine) EndUDP(port int, closing func(), left []l4.Datagram) {
	key := portKey{router.UDP, port}
	e.mapped.mu.Lock()
	e.mapped.forgetBusy(key)
	e.mapped.mu.Unlock()
	closing()
	e.mapped.opener.(*boundPorts).ended(key, &boundPort{}, left, nil)
}
