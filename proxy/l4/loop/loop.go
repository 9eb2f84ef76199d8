package loop

import (
	"fmt"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// eventBatch is how many events one wait takes at most.
const eventBatch = 256

// yieldAfter is how long a loop that always has something to do keeps its
// processor from other goroutines, unless it may hold it.
const yieldAfter = time.Millisecond

// loop is one event loop. All but the slab's lock and the inbox belongs to the
// goroutine in run.
type loop struct {
	group  *Group
	number int

	epfd    int32
	events  [eventBatch]unix.EpollEvent
	slab    slab
	wheel   wheel
	buffers buffers
	pipes   pipes
	trimAt  int64       // loop time to see what of those is needed
	line    []reference // directions that wait for their turn
	served  int         // how many of line had it

	base    time.Time // when loop time began
	now     int64     // loop time, in nanoseconds, when events were last taken
	tick    uint32    // the same in ticks
	yielded int64     // loop time when other goroutines last had a chance

	listening map[uint32]*Listener
	muted     []*Listener // which cannot accept for want of something
	unmuteAt  int64       // loop time when they are to try again
	complain  int64       // loop time from when on that may be logged again

	inbox    inbox
	commands []command // what inbox.commands was
	stopping bool
}

// reference is to a direction of a flow that may have ended since.
type reference struct {
	flow *flow
	gen  uint32
	side uint8
}

func newLoop(g *Group, number int) *loop {
	return &loop{group: g, number: number, epfd: -1, listening: map[uint32]*Listener{}, inbox: inbox{wake: -1}, unmuteAt: never, trimAt: never}
}

// aboutInbox marks events of the inbox. Other events of generation 0 carry the id
// of a listener, which is never 0.
const aboutInbox = 0

// run works until it is told to stop.
func (l *loop) run() error {
	defer l.close()
	for !l.stopping {
		n, err := l.wait()
		if err != nil {
			return err
		}
		for i := range n {
			l.dispatch(&l.events[i], n)
		}
		l.serveLine()
		if tick := l.now >> tickBits; tick != l.wheel.now {
			l.wheel.advance(&l.slab, tick, l.due)
		}
		l.chores()
		if l.inbox.pending.Load() {
			l.obey()
		}
	}
	return nil
}

// open opens what the loop needs, or nothing.
func (l *loop) open() error {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open an epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return fmt.Errorf("open an eventfd: %w", err)
	}
	// Edges come with each write, so that nobody has to read it empty.
	if errno := epollAdd(int32(epfd), int32(wake), unix.EPOLLIN|unix.EPOLLET, aboutInbox, 0); errno != 0 {
		unix.Close(epfd)
		unix.Close(wake)
		return fmt.Errorf("watch an eventfd: %w", errno)
	}
	l.epfd = int32(epfd)
	l.inbox.open(int32(wake))
	l.buffers.current = new(buffer)
	l.base = time.Now()
	return nil
}

// wait returns how many of l.events have come. It waits only if there is nothing
// else to do: at first, where that is allowed, without telling the scheduler.
// That spares both of them the work of giving the processor away and back, and
// the runtime's monitor from being woken, which then looks around every 20 µs.
func (l *loop) wait() (n int, err error) {
	var errno syscall.Errno
	hold := l.group.cfg.Hold
	busy := len(l.line) > 0 || l.inbox.pending.Load()
	if busy || hold == 0 {
		n, errno = epollPoll(l.epfd, l.events[:])
	} else {
		n, errno = epollHold(l.epfd, l.events[:], min(l.sleep(), hold))
	}
	l.keepTime()
	if n == 0 && !busy {
		n, errno = epollWait(l.epfd, l.events[:], l.sleep())
		l.keepTime()
		l.yielded = l.now
	}
	if errno != 0 && errno != unix.EINTR {
		return 0, fmt.Errorf("wait for events: %w", errno)
	}
	if hold == 0 && l.now-l.yielded > int64(yieldAfter) {
		runtime.Gosched()
		l.yielded = l.now
	}
	return n, nil
}

func (l *loop) keepTime() {
	l.now = int64(time.Since(l.base))
	l.tick = uint32(l.now >> tickBits)
}

// never is a loop time that does not come.
const never = 1<<63 - 1

// sleep returns how long there is nothing to do unless an event comes.
func (l *loop) sleep() time.Duration {
	until := min(l.unmuteAt, l.trimAt)
	if ticks, ok := l.wheel.next(); ok {
		until = min(until, (l.wheel.now+ticks)<<tickBits)
	}
	if until == never {
		return never
	}
	return time.Duration(max(until-l.now, 0))
}

// chores does what is done once in a while.
func (l *loop) chores() {
	if l.now >= l.unmuteAt {
		l.unmuteAll()
	}
	if l.now >= l.trimAt || l.trimAt == never && len(l.pipes.spare)+len(l.buffers.spare) > 0 {
		l.trim()
	}
}

// trim gives back buffers and pipes that were not needed for a while.
func (l *loop) trim() {
	pipes := l.pipes.trim((*pipe).close)
	buffers := l.buffers.trim(func(*buffer) {})
	l.trimAt = never
	if pipes || buffers {
		l.trimAt = l.now + int64(rest)
	}
}

// dispatch deals with an event, one of several.
func (l *loop) dispatch(ev *unix.EpollEvent, several int) {
	id, gen := uint32(ev.Fd), uint32(ev.Pad)
	if gen == 0 {
		if id != aboutInbox {
			l.acceptFrom(id, several)
		}
		return
	}
	f := l.slab.at(id >> 1 & (1<<indexBits - 1))
	if f.gen.Load() != gen {
		return
	}
	switch s := int(id & 1); f.state {
	case relaying:
		l.ready(f, s, ev.Events)
	case connecting, waiting:
		if s == client {
			l.clientWhileConnecting(f, ev.Events)
		} else if uint8(id>>(indexBits+1)) == f.tries {
			l.connected(f, ev.Events)
		}
	}
}

// eventID returns what the events of side s of f carry, besides f's generation.
func eventID(f *flow, s int) uint32 {
	id := f.index<<1 | uint32(s)
	if s == backend {
		id |= uint32(f.tries) << (indexBits + 1)
	}
	return id
}

// watch has events of side s of f come in.
func (l *loop) watch(f *flow, s int) error {
	if errno := epollAdd(l.epfd, f.side[s].fd, interest, eventID(f, s), f.gen.Load()); errno != 0 {
		return fmt.Errorf("watch a connection: %w", errno)
	}
	return nil
}

// close leaves nothing behind: commands that nobody will obey are refused, flows
// reset, descriptors closed.
func (l *loop) close() {
	l.refuse()
	l.slab.each(func(f *flow) {
		if f.state != free {
			l.cut(f, Stopped, nil)
		}
	})
	for _, ln := range l.listening {
		ln.release()
	}
	l.pipes.least = len(l.pipes.spare)
	l.pipes.trim((*pipe).close)
	if l.epfd >= 0 {
		closeFD(l.epfd)
	}
}
