package loop

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// eventBatch is how many events one wait takes at most.
const eventBatch = 256

// yieldAfter is how long a loop that always has something to do keeps its
// processor from other goroutines.
const yieldAfter = time.Millisecond

// loop is one event loop. All but the slab's lock and the inbox belongs to the
// goroutine in run.
type loop struct {
	group  *Group
	number int

	epfd     int32
	epoll    *os.File           // the same, as the runtime's poller knows it
	parked   syscall.RawConn    // the same, for waiting
	look     func(uintptr) bool // takeEvents, made once
	deadline int64              // loop time until which waiting is bounded; never: it is not
	came     int                // events taken last
	failed   syscall.Errno      // of taking them
	events   [eventBatch]unix.EpollEvent
	slab     slab
	wheel    wheel
	buffers  buffers
	pipes    pipes
	trimAt   int64       // loop time to see what of those is needed
	line     []reference // directions that wait for their turn
	served   int         // how many of line had it

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
	if err = unix.SetNonblock(epfd, true); err == nil { // by which os knows that it can be waited for
		l.epoll = os.NewFile(uintptr(epfd), "epoll")
		l.parked, err = l.epoll.SyscallConn()
	}
	if err != nil {
		unix.Close(epfd)
		unix.Close(wake)
		return fmt.Errorf("wait for an epoll instance: %w", err)
	}
	l.epfd, l.look, l.deadline = int32(epfd), l.takeEvents, never
	l.inbox.open(int32(wake))
	l.buffers.current = new(buffer)
	l.base = time.Now()
	return nil
}

// wait returns how many of l.events have come. It waits only if there is nothing
// else to do: then the goroutine parks in the runtime's poller, which watches the
// epoll instance as it does sockets. A system call that waits would be dearer: the
// runtime's monitor has to take the processor from it, and looks around every
// 20 µs from then on.
func (l *loop) wait() (n int, err error) {
	l.takeEvents(0)
	l.keepTime()
	if l.came == 0 && l.failed == 0 && len(l.line) == 0 && !l.inbox.pending.Load() {
		l.boundWait(l.wakeAt())
		if l.parked.Read(l.look) != nil { // the deadline has passed
			l.deadline = passed
		}
		l.keepTime()
		l.yielded = l.now
	}
	if l.failed != 0 {
		return 0, fmt.Errorf("wait for events: %w", l.failed)
	}
	if l.now-l.yielded > int64(yieldAfter) {
		runtime.Gosched()
		l.yielded = l.now
	}
	return l.came, nil
}

// takeEvents takes the events that have come. It reports whether to go on.
func (l *loop) takeEvents(uintptr) bool {
	var errno syscall.Errno
	l.came, errno = epollPoll(l.epfd, l.events[:])
	if errno != 0 && errno != unix.EINTR {
		l.failed = errno
	}
	return l.came > 0 || l.failed != 0
}

// boundWait has waiting end at a loop time.
func (l *loop) boundWait(at int64) {
	if at == l.deadline {
		return
	}
	l.deadline = at
	if at == never {
		l.epoll.SetReadDeadline(time.Time{})
	} else {
		l.epoll.SetReadDeadline(l.base.Add(time.Duration(at)))
	}
}

func (l *loop) keepTime() {
	l.now = int64(time.Since(l.base))
	l.tick = uint32(l.now >> tickBits)
}

const (
	never  = 1<<63 - 1 // a loop time that does not come
	passed = -1        // one that nothing waits for
)

// wakeAt returns the loop time until which there is nothing to do unless an event
// comes.
func (l *loop) wakeAt() int64 {
	at := min(l.unmuteAt, l.trimAt)
	if ticks, ok := l.wheel.next(); ok {
		at = min(at, (l.wheel.now+ticks)<<tickBits)
	}
	return at
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
	if l.epoll != nil {
		l.epoll.Close()
	}
}
