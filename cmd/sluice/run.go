package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
)

func newRunCommand(signals, hangups <-chan os.Signal) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a node",
		Long: `Run serves mappings and routes from etcd until it is told to stop by SIGTERM or
Ctrl-C. It then drains: it accepts nothing new, tells HTTP clients to go
elsewhere, and gives flows drain_timeout to end. A second signal cuts them at
once. It exits with 0 when every flow had ended, with 3 when some were cut.
SIGHUP has the access log's file opened anew, after it was moved away; at a
terminal, where it says that the terminal is gone, it stops the node.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(path)
			if err != nil {
				return err
			}
			if err := raiseCapabilities(); err != nil {
				return err
			}
			if err := confine(c, path); err != nil {
				return err
			}
			n, err := newNode(c, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			// Logs go to pipes, and whoever reads one may go away: that is a
			// failed write, and no reason for an edge to die.
			signal.Ignore(syscall.SIGPIPE)
			n.parts["log rotation"] = func(ctx context.Context) error { return n.runLogRotation(ctx, hangups) }
			return n.run(cmd.Context(), signals)
		},
	}
	addConfigFlag(cmd, &path)
	return cmd
}

// run opens the node, serves until a signal or until a part fails, drains, and
// closes everything in the reverse order.
func (n *node) run(ctx context.Context, signals <-chan os.Signal) (err error) {
	starting, started := context.WithCancel(ctx)
	defer started()
	interrupted := n.interruptible(starting, started, signals)
	err = n.open(starting)
	defer func() { err = errors.Join(err, n.close()) }()
	if err != nil {
		if interrupted() {
			return nil
		}
		return err
	}
	if interrupted() {
		return nil
	}

	parts := n.start(ctx)
	var failed error
	select {
	case s := <-signals:
		n.log.Info("stopping: draining", "signal", s.String(), "limit", n.cfg.DrainTimeout)
	case failed = <-parts.failed:
		n.log.Error("stopping: a part of the node failed", "err", failed)
	}
	cut := n.drain(ctx, signals)
	parts.stop()
	if failed == nil && cut > 0 {
		failed = cutError{cut}
	}
	return failed
}

// interruptible cancels a start that a signal ends. The function returned says
// whether that happened, and gives signals back to the caller.
func (n *node) interruptible(starting context.Context, cancel func(), signals <-chan os.Signal) func() bool {
	done := make(chan struct{})
	result := make(chan bool, 1)
	go func() {
		select {
		case <-signals:
			cancel()
			result <- true
		case <-done:
			result <- false
		}
	}()
	return sync.OnceValue(func() bool {
		close(done)
		return <-result
	})
}

// drain stops accepting, waits for flows up to the limit or the next signal,
// and returns how many had to be cut.
func (n *node) drain(ctx context.Context, signals <-chan os.Signal) (cut int) {
	n.draining.Store(true)
	n.registrar.Leave()
	ctx, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout)
	defer cancel()
	go func() {
		select {
		case <-signals:
			n.log.Warn("cutting what is left: a second signal")
			cancel()
		case <-ctx.Done():
		}
	}()
	return n.engine.Shutdown(ctx)
}

// parts are the long-running parts of a node.
type parts struct {
	failed  chan error // gets the first failure
	cancel  context.CancelFunc
	running sync.WaitGroup
	once    sync.Once
}

// start runs every part until stop, or until one of them fails.
func (n *node) start(ctx context.Context) *parts {
	p := &parts{failed: make(chan error, 1)}
	ctx, p.cancel = context.WithCancel(ctx)
	for name, run := range n.parts {
		p.running.Go(func() {
			if err := run(ctx); err != nil {
				p.once.Do(func() { p.failed <- fmt.Errorf("%s: %w", name, err) })
			}
		})
	}
	return p
}

// stop ends every part and returns when all have.
func (p *parts) stop() {
	p.cancel()
	p.running.Wait()
}
