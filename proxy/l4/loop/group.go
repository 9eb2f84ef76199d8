package loop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config wires a Group. The zero value is fine.
type Config struct {
	// Loops is how many event loops share the work, each of which may keep a
	// processor busy; 0 means one less than there are processors that Go may use
	// (GOMAXPROCS), but one at least: what the rest of the program does need not
	// wait for them, and fewer loops find more to do each time they look.
	Loops int
	// Control, if not nil, is called with each socket that is about to connect
	// to a backend, to set options that a connect depends on. It runs on the
	// loop and must not block.
	Control func(fd int) error
	// AcceptFailed, if not nil, is called whenever a loop cannot accept, for
	// want of descriptors or memory. It runs on the loop and must not block.
	AcceptFailed func()
	Logger       *slog.Logger // nil: off
}

// Group is some event loops that share flows. Make it with New; its methods may
// be called from any goroutine.
type Group struct {
	cfg   Config
	log   *slog.Logger
	loops []*loop

	turn      atomic.Uint32  // whose turn a flow from outside is
	listeners atomic.Uint32  // ids given so far
	handed    sync.WaitGroup // connections handed over
}

// New checks cfg and returns a Group. Nothing is started or opened before Open
// or Run.
func New(cfg Config) (*Group, error) {
	if cfg.Loops < 0 {
		return nil, fmt.Errorf("loop: Loops is %d; it must be 0, for the default, or more", cfg.Loops)
	}
	if cfg.Loops == 0 {
		cfg.Loops = max(runtime.GOMAXPROCS(0)-1, 1)
	}
	g := &Group{cfg: cfg, log: cfg.Logger}
	if g.log == nil {
		g.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	for i := range cfg.Loops {
		g.loops = append(g.loops, newLoop(g, i))
	}
	return g, nil
}

// Open opens what the loops need, which Run does otherwise, so that whoever
// calls it learns at once that there is no descriptor to be had. Run comes next,
// which closes everything. After an error nothing is open, and the Group has
// stopped.
func (g *Group) Open() error {
	for _, l := range g.loops {
		if l.poll.IsOpen() {
			continue
		}
		if err := l.open(); err != nil {
			for _, l := range g.loops {
				l.close()
			}
			return fmt.Errorf("open an event loop: %w", err)
		}
	}
	return nil
}

// Run serves flows until ctx ends. It then resets those there are, as Stopped,
// closes the listeners and returns nil, or what made it fail. When it returns,
// every owner has been told of its flow's end, no file descriptor is left open,
// and no goroutine runs, those that serve connections handed over included:
// whoever took those ends them first. A Group runs once.
func (g *Group) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := g.Open(); err != nil {
		return err
	}
	errs := make([]error, len(g.loops))
	var running sync.WaitGroup
	for i, l := range g.loops {
		running.Go(func() {
			defer cancel()
			errs[i] = l.run()
		})
	}
	<-ctx.Done()
	for _, l := range g.loops {
		l.post(command{kind: cmdStop})
	}
	running.Wait()
	g.handed.Wait()
	return errors.Join(errs...)
}

// Terms are what a flow is relayed under.
type Terms struct {
	// Owner is told what becomes of the flow; nil: nobody is, and no second
	// target is tried.
	Owner Owner
	// IdleTimeout is how long no byte may move before the flow ends, which
	// happens up to 40 ms later; 0 means for ever.
	IdleTimeout time.Duration
	// Pace bounds how fast bytes move; nil: it does not.
	Pace Pace
	// StallTimeout is how long one side may take none of the bytes that wait
	// for it before the flow ends; 0 means for ever. Up to twice that may pass.
	// Such a flow holds a buffer or a pipe.
	StallTimeout time.Duration
	// First is sent to the backend before what the client sends: a PROXY header,
	// bytes that were read already. It must not be modified from here on. Its
	// first Header bytes are the header's, and are not counted.
	First  []byte
	Header int
	// Answer is sent to the client before what the backend sends: bytes that
	// were read already, of a pair that Group.Relay takes over. It must not be
	// modified from here on.
	Answer []byte
}

// Pace bounds how fast the bytes of a flow move. Flows may share one: it is then
// called from several loops at once. Its methods must not block. They are asked
// for every read, so that a limit may come, change and go while flows last.
type Pace interface {
	// Chunk returns how many bytes, of at most max, to move at once; more
	// than 0.
	Chunk(up bool, max int) int
	// Spend is told that n bytes were moved, maybe 0, and returns how long to
	// wait until more are.
	Spend(up bool, n int) time.Duration
}

// Relay takes over an established pair of connections, on the loop that has the
// fewest flows. It owns both from here on, whatever it returns, and no other
// goroutine may be using them. On error both are reset, and Terms.Owner hears
// nothing.
func (g *Group) Relay(client, backend *net.TCPConn, t Terms) (Flow, error) {
	c, err := detach(client)
	if err != nil {
		reset(backend)
		return Flow{}, fmt.Errorf("take over the client's connection: %w", err)
	}
	b, err := detach(backend)
	if err != nil {
		resetFD(c)
		return Flow{}, fmt.Errorf("take over the backend's connection: %w", err)
	}
	l := g.lightest()
	f := l.slab.get(l)
	if f == nil {
		resetFD(c)
		resetFD(b)
		return Flow{}, errors.New("take over a pair of connections: too many flows")
	}
	h := Flow{f, f.gen.Load()}
	// The slot is nobody's but ours until the loop reads the command.
	f.side[0].fd, f.side[1].fd = c, b
	if !l.post(command{kind: cmdRelay, flow: f, terms: t}) {
		l.slab.put(f)
		resetFD(c)
		resetFD(b)
		return Flow{}, errGroupStopped
	}
	return h, nil
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// detach returns a descriptor for c's socket that the runtime's poller does not
// know of, and closes c, which takes the other one out of there. The socket
// itself stays open. On error it is reset.
func detach(c *net.TCPConn) (int32, error) {
	fd, err := duplicate(c)
	if err != nil {
		reset(c)
		return -1, err
	}
	c.Close()
	return fd, nil
}

// duplicate returns another descriptor for the socket of c.
func duplicate(c syscall.Conn) (int32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return int32(fd), dupErr
}

// Pulse waits until every loop has turned once, or ctx ends. A Group that has
// stopped has no loop that could.
func (g *Group) Pulse(ctx context.Context) error {
	done := make(chan struct{}, len(g.loops))
	for i, l := range g.loops {
		if !l.post(command{kind: cmdPulse, done: done}) {
			return fmt.Errorf("event loop %d has stopped", i)
		}
	}
	for range g.loops {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("an event loop for TCP does not turn: %w", ctx.Err())
		}
	}
	return nil
}

// lightest returns the loop with the fewest flows, and each in turn where they
// have as many.
func (g *Group) lightest() *loop {
	n := uint32(len(g.loops))
	turn := g.turn.Add(1)
	best := g.loops[turn%n]
	for i := range n {
		if l := g.loops[(turn+i)%n]; l.slab.live.Load() < best.slab.live.Load() {
			best = l
		}
	}
	return best
}

// lighter returns a loop that is to serve a connection that l accepted, or nil
// if that is l itself. Which loop gets to accept depends on who was asleep, so
// that left alone one of them would gather most of the flows that last.
func (g *Group) lighter(l *loop) *loop {
	const enough = 16
	mine := l.slab.live.Load()
	if mine < enough {
		return nil
	}
	for _, other := range g.loops {
		if mine > 2*other.slab.live.Load()+enough {
			return other
		}
	}
	return nil
}
