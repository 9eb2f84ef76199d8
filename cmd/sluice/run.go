package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/systemd"
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
SIGHUP has the node replaced by the program that lies in its place now, as
sluice upgrade does; at a terminal, where it says that the terminal is gone, it
stops the node. SIGUSR1 has the access log's file opened anew, after it was
moved away.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := ownPath(); err != nil {
				return err
			}
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
			taking, err := beginTakeover() // not before: the program may have begun anew to be confined
			if err != nil {
				return err
			}
			n, err := newNode(c, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			// Logs go to pipes, and whoever reads one may go away: that is a
			// failed write, and no reason for an edge to die.
			signal.Ignore(syscall.SIGPIPE)
			n.taking = taking
			upgrades, rotations := split(hangups)
			n.parts["log rotation"] = func(ctx context.Context) error { return n.runLogRotation(ctx, rotations) }
			return n.run(cmd.Context(), signals, upgrades)
		},
	}
	addConfigFlag(cmd, &path)
	return cmd
}

// split gives SIGUSR1 to whoever minds the logs, and other signals to who upgrades,
// for as long as the process lives. One that nobody has taken yet covers the next.
func split(hangups <-chan os.Signal) (upgrades, rotations <-chan os.Signal) {
	up, rotate := make(chan os.Signal, 1), make(chan os.Signal, 1)
	go func() {
		for s := range hangups {
			to := up
			if s == syscall.SIGUSR1 {
				to = rotate
			}
			select {
			case to <- s:
			default:
			}
		}
	}()
	return up, rotate
}

// run opens the node, serves until a signal or until a part fails, drains, and
// closes everything in the reverse order.
func (n *node) run(ctx context.Context, signals, hangups <-chan os.Signal) (err error) {
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

	n.running = n.start(ctx)
	n.notify("READY=1", "STATUS=serving, version "+versionString())
	for {
		select {
		case s := <-signals:
			n.log.Info("stopping: draining", "signal", s.String(), "limit", n.cfg.DrainTimeout)
			return n.finish(ctx, signals, nil)
		case failed := <-n.running.failed:
			n.log.Error("stopping: a part of the node failed", "err", failed)
			return n.finish(ctx, signals, failed)
		case <-hangups:
			if s := n.upgrade(ctx, signals, nil); s != nil {
				return n.outlast(ctx, s, signals)
			}
		case r := <-n.requests:
			if s := n.upgrade(ctx, signals, r.done); s != nil {
				return n.outlast(ctx, s, signals)
			}
		}
		if n.told != nil { // to stop, in the midst of an upgrade
			n.log.Info("stopping: draining", "signal", n.told.String(), "limit", n.cfg.DrainTimeout)
			return n.finish(ctx, signals, nil)
		}
	}
}

// finish drains the node, because of a signal or since a part has failed.
func (n *node) finish(ctx context.Context, signals <-chan os.Signal, failed error) error {
	n.notify("STOPPING=1", "STATUS=draining")
	n.elders.tell(msgStop)
	cut := n.drain(ctx, signals)
	n.running.stopAllBut()
	n.elders.close()
	n.answering.Wait()
	if failed == nil && cut > 0 {
		failed = cutError{cut}
	}
	return failed
}

// upgrade replaces this process, and tells done, unless that is nil, what came of
// it. It returns nil where this process is to serve on. A signal to stop ends the
// attempt and is left in n.told.
func (n *node) upgrade(ctx context.Context, signals <-chan os.Signal, done chan<- upgradeResult) *successor {
	n.log.Info("upgrading: starting the new process")
	n.notify("RELOADING=1", systemd.Monotonic(), "STATUS=upgrading")
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		s   *successor
		err error
	}
	result := make(chan outcome, 1)
	go func() {
		s, err := n.replace(trying)
		result <- outcome{s, err}
	}()
	var is outcome
	select {
	case is = <-result:
	case n.told = <-signals:
		cancel()
		is = <-result
	}
	if is.err != nil {
		n.upgrades.failed.Add(1)
		n.log.Error("the upgrade has failed, and this process serves on", "err", is.err)
		n.notify("READY=1", "STATUS=serving, version "+versionString()+"; the last upgrade failed: "+is.err.Error())
	}
	if is.s != nil {
		n.letGo(is.s)
	}
	if done != nil {
		done <- n.upgradeResult(is.s, is.err)
	}
	return is.s
}

// outlast keeps the flows of a process that has been replaced.
func (n *node) outlast(ctx context.Context, s *successor, signals <-chan os.Signal) error {
	n.answering.Wait()
	stopping := make(chan os.Signal, 2)
	if n.told != nil { // meant for the node, before the other process was it
		stopping <- n.told
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				select {
				case stopping <- s:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	cut := n.linger(ctx, s, stopping)
	n.running.stopAllBut()
	if cut > 0 {
		return cutError{cut}
	}
	return nil
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
	failed chan error // gets the first failure
	once   sync.Once
	each   map[string]*part
}

// part is one of them.
type part struct {
	cancel context.CancelFunc
	over   chan struct{} // closed when it has ended
}

// start runs every part until it is stopped, or until one of them fails.
func (n *node) start(ctx context.Context) *parts {
	p := &parts{failed: make(chan error, 1), each: map[string]*part{}}
	for name, run := range n.parts {
		ctx, cancel := context.WithCancel(ctx)
		one := &part{cancel, make(chan struct{})}
		p.each[name] = one
		go func() {
			defer close(one.over)
			if err := run(ctx); err != nil {
				p.once.Do(func() { p.failed <- fmt.Errorf("%s: %w", name, err) })
			}
		}()
	}
	return p
}

// stop ends some parts and returns when they have. Those that have ended, or that
// there are not, are passed over.
func (p *parts) stop(names ...string) {
	for _, name := range names {
		if one := p.each[name]; one != nil {
			one.cancel()
		}
	}
	for _, name := range names {
		if one := p.each[name]; one != nil {
			<-one.over
		}
	}
}

// stopAllBut ends every part but some, and returns when all those have.
func (p *parts) stopAllBut(names ...string) {
	var others []string
	for name := range p.each {
		if !slices.Contains(names, name) {
			others = append(others, name)
		}
	}
	p.stop(others...)
}
