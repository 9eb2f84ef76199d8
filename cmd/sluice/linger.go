package main

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/systemd"
	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// lingering are the parts of a node that go on once another process has taken
// over: flows that are left follow their mappings' rules and edits until they end.
var lingering = []string{"control", "own addresses", "authorities of clients", "log rotation"}

// letGo has the process that has taken over begin with what two cannot have at a
// time.
func (n *node) letGo(s *successor) {
	n.running.stopAllBut(lingering...)
	for _, own := range n.sockets {
		if c, ok := own.socket.(interface{ Close() error }); ok {
			c.Close() // the other process has it
		}
	}
	if n.embedded != nil {
		if err := n.embedded.close(); err != nil {
			n.log.Error("the embedded etcd has not stopped in order", "err", err)
		}
	}
	n.elders.close()
	// Where the other process ends, another one may begin though flows linger here.
	if err := n.unlockData(); err != nil {
		n.log.Error("cannot give up the data directory", "err", err)
	}
	s.conn.SetDeadline(time.Now().Add(n.cfg.Upgrade.Timeout)) // etcd may have taken long
	if err := s.conn.Send(msgReleased, nil); err != nil {
		n.log.Error("the process that has taken over is gone", "err", err)
	}
	s.conn.SetDeadline(time.Time{})
}

// linger keeps the flows that there are until they end, upgrade.linger is over, or
// somebody has it stop, after which they have drain_timeout; none if the process
// that has taken over is no more by then, since whoever is to start the node anew
// waits for this one. It returns how many were cut because of a stop.
func (n *node) linger(ctx context.Context, s *successor, signals <-chan os.Signal) (cut int) {
	n.log.Info("another process has taken over: this one keeps its flows until they end",
		"pid", s.process.Pid, "version", s.version, "flows", n.engine.Remaining(), "limit", *n.cfg.Upgrade.Linger)
	until := time.Now().Add(*n.cfg.Upgrade.Linger)
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	stop := make(chan struct{}, 1)
	answered := make(chan struct{})
	stopped := make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(answered)
		told := n.answer(s.conn, stop, until)
		// Nobody is there to tell how this one is: the process that had taken over,
		// or whichever had after that, has ended.
		n.engine.Forsake()
		select {
		case <-over:
			return
		default:
		}
		if !told {
			n.log.Error("the process that has taken over has ended, and new clients are refused until the node is started again; TCP flows that are left go on",
				"pid", s.process.Pid, "flows", n.engine.Remaining())
		}
	}()
	go func() {
		select {
		case <-over:
			return
		case <-signals:
			if s.conn.Gone() {
				n.log.Warn("the process that has taken over has ended: flows that are left are cut, lest they hold up the next", "flows", n.engine.Remaining())
				close(stopped)
				cancel()
				return
			}
		case <-stop:
		}
		close(stopped)
		n.log.Info("flows that are left have as long as at any stop", "limit", n.cfg.DrainTimeout, "flows", n.engine.Remaining())
		select {
		case <-over:
		case <-signals:
			cancel()
		case <-time.After(n.cfg.DrainTimeout):
			cancel()
		}
	}()
	cut = n.engine.Linger(ctx)
	close(over)
	s.conn.Close()
	<-answered
	n.log.Info("the last flow of this process is over", "cut", cut)
	select {
	case <-stopped:
		return cut
	default:
		return 0
	}
}

// answer tells the process that has taken over how this one is, which goes on until
// then, and does what it is told, until the connection ends. It reports whether it
// was told to stop.
func (n *node) answer(conn *handover.Conn, stop chan<- struct{}, until time.Time) (told bool) {
	var telling sync.WaitGroup
	defer telling.Wait()
	for {
		m, files, err := conn.Receive()
		if err != nil {
			return told
		}
		if m.Kind == msgFlows && len(files) == 1 {
			var q flowsBody
			if m.Into(&q) == nil {
				telling.Go(func() { n.tellFlows(q, files[0]) })
				continue
			}
		}
		handover.CloseAll(files)
		switch m.Kind {
		case msgReport:
			var q reportBody
			if m.Into(&q) == nil {
				q.Flows, q.PID, q.Version = n.engine.Remaining(), os.Getpid(), versionString()
				q.Left, q.Until = new(n.engine.Left()), until.UTC().Truncate(time.Second)
				_ = conn.Send(msgReport, q)
			}
		case msgReopen:
			if n.accessLog != nil {
				n.accessLog.Reopen()
			}
		case msgStop:
			told = true
			select {
			case stop <- struct{}{}:
			default:
			}
		}
	}
}

// notify tells systemd how the node is. That it cannot be told is no reason to
// stop.
func (n *node) notify(states ...string) {
	if err := systemd.Notify(states...); err != nil {
		n.log.Warn("systemd does not learn how this node is", "err", err)
	}
}

// runWatchdog tells systemd again and again that the loops which serve clients
// turn, as long as they do.
func (n *node) runWatchdog(ctx context.Context) error {
	limit := n.watchdog
	if limit == 0 {
		return nil
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		pulse, cancel := context.WithTimeout(ctx, limit/3)
		err := n.engine.Pulse(pulse)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			n.log.Error("a part that serves clients does not answer; systemd is not told that all is well", "err", err)
		default:
			n.notify("WATCHDOG=1")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
