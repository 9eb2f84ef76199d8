package loop

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// loop is one event loop. All but the slab's lock and posting commands belongs to the
// goroutine in run.
type loop struct {
	group  *Group
	number int

	poll    event.Poller[command]
	slab    slab
	wheel   wheel
	buffers buffers
	pipes   pipes
	trimAt  int64       // loop time to see what of those is needed
	line    []reference // directions that wait for their turn
	served  int         // how many of line had it

	now  int64  // loop time, in nanoseconds, when events were last taken
	tick uint32 // the same in ticks

	listening map[uint32]*Listener
	muted     []*Listener // which cannot accept for want of something
	unmuteAt  int64       // loop time when they are to try again
	complain  int64       // loop time from when on that may be logged again

	stopping bool
}

// reference is to a direction of a flow that may have ended since.
type reference struct {
	flow *flow
	gen  uint32
	side uint8
}

func newLoop(g *Group, number int) *loop {
	return &loop{group: g, number: number, listening: map[uint32]*Listener{}, unmuteAt: event.Never, trimAt: event.Never}
}

// aboutInbox marks events of commands. Other events of generation 0 carry the id
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
			l.dispatch(&l.poll.Events[i], n)
		}
		l.serveLine()
		if tick := l.now >> tickBits; tick != l.wheel.now {
			l.wheel.advance(&l.slab, tick, l.due)
		}
		l.chores()
		if l.poll.Pending() {
			l.poll.Obey(l.carryOut)
		}
	}
	return nil
}

// open opens what the loop needs, or nothing.
func (l *loop) open() error {
	if err := l.poll.Open(); err != nil {
		return err
	}
	l.buffers.current = new(buffer)
	return nil
}

// wait returns how many events have come. It waits only if there is nothing else
// to do.
func (l *loop) wait() (int, error) {
	n, err := l.poll.Wait(l.wakeAt, len(l.line) > 0)
	l.now = l.poll.Now
	l.tick = uint32(l.now >> tickBits)
	if err != nil {
		return 0, fmt.Errorf("wait for events: %w", err)
	}
	return n, nil
}

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
	if l.now >= l.trimAt || l.trimAt == event.Never && len(l.pipes.spare)+len(l.buffers.spare) > 0 {
		l.trim()
	}
}

// trim gives back buffers and pipes that were not needed for a while.
func (l *loop) trim() {
	pipes := l.pipes.trim((*pipe).close)
	buffers := l.buffers.trim(func(*buffer) {})
	l.trimAt = event.Never
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
	if err := l.poll.Add(f.side[s].fd, interest, eventID(f, s), f.gen.Load()); err != nil {
		return fmt.Errorf("watch a connection: %w", err)
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
	l.poll.Close()
}
