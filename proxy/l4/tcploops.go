package l4

import (
	"context"
	"errors"
	"sync"

	"github.com/remotegpu/sluice/proxy/l4/loop"
	"github.com/remotegpu/sluice/proxy/upstream"
)

// tcpLoops are the event loops of a server, which run from when they are first
// needed until stop.
type tcpLoops struct {
	server *Server

	mu      sync.Mutex // guards the following fields
	group   *loop.Group
	end     context.CancelFunc
	done    chan struct{} // closed when no loop runs any more
	stopped bool
}

var errServerStopped = errors.New("l4: the server has been shut down")

// start returns the loops, running.
func (t *tcpLoops) start() (*loop.Group, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return nil, errServerStopped
	}
	if t.group != nil {
		return t.group, nil
	}
	cfg := t.server.cfg
	group, err := loop.New(loop.Config{Control: upstream.ShareLocalPort, AcceptFailed: cfg.AcceptFailed, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	if err := group.Open(); err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := group.Run(ctx); err != nil {
			cfg.Logger.Error("the event loops for TCP have failed, and their flows with them", "err", err)
		}
	}()
	t.group, t.end, t.done = group, end, done
	return group, nil
}

// stop ends the loops, if any run, and waits for that.
func (t *tcpLoops) stop() {
	t.mu.Lock()
	t.stopped = true
	end, done := t.end, t.done
	t.mu.Unlock()
	if end != nil {
		end()
		<-done
	}
}
