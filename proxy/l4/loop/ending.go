package loop

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// sawEOF is called when side s has sent all that it will.
func (l *loop) sawEOF(f *flow, s int) bool {
	src := &f.side[s]
	src.flags |= eof
	src.flags &^= readable | drain
	if f.broken != 0 { // an end that a reset followed, or took for itself
		return l.abort(f, int(f.broken-1), unix.ECONNRESET)
	}
	if f.end == 0 {
		f.end = [2]End{ClientClosed, BackendClosed}[s]
	}
	dst := &f.side[peer(s)]
	if dst.has(eof) {
		// Nothing is queued either way: a FIN is only read behind bytes that
		// were all taken.
		event.CloseFD(f.side[client].fd)
		event.CloseFD(f.side[backend].fd)
		l.end(f, f.end, nil)
		return false
	}
	shutdownWrite(dst.fd) // an error shows again where dst is read
	return true
}

// cannotRead is called when side s failed: its peer is gone, and the other one
// must learn that this was no orderly end.
func (l *loop) cannotRead(f *flow, s int, errno syscall.Errno) bool {
	if f.broken != 0 {
		s = int(f.broken - 1)
	}
	return l.abort(f, s, errno)
}

// lastWords is how long the sound direction of a flow may go on after the other
// one could no longer write: a backend that answers and resets without reading
// the whole request is still heard.
const lastWords = ticksPerSecond * 10

// cannotWrite is called when bytes from side s could not be written to the other
// one. What that had sent before is still passed on, and the flow ends when
// there is no more of it.
func (l *loop) cannotWrite(f *flow, s int, errno syscall.Errno) bool {
	if f.broken != 0 || f.side[peer(s)].has(eof) {
		return l.abort(f, peer(s), errno)
	}
	l.breakOff(f, peer(s))
	l.arm(f)
	l.queueUp(f, peer(s))
	return true
}

// breakOff has the flow end once there is nothing more to be read from side s,
// which cannot be written to any more.
func (l *loop) breakOff(f *flow, s int) {
	f.broken = uint8(s) + 1
	f.deadline = l.tick + lastWords
	f.side[s].flags |= readable | drain
	f.side[peer(s)].flags |= deaf
	l.drop(&f.side[peer(s)])
}

// abort ends the flow with a reset on both sides, on account of side s, which
// failed with errno.
func (l *loop) abort(f *flow, s int, errno syscall.Errno) bool {
	f.broken, f.errno = uint8(s)+1, uint16(errno)
	resetFD(f.side[s].fd)
	f.side[s].fd = -1
	if unsent(f.side[peer(s)].fd) > 0 {
		l.holdReset(f)
		return false
	}
	resetFD(f.side[peer(s)].fd)
	why, err := f.failure()
	l.end(f, why, err)
	return false
}

// failure returns why a flow ended whose broken side failed with errno.
func (f *flow) failure() (End, error) {
	errno := syscall.Errno(f.errno)
	if errno != unix.ECONNRESET && errno != unix.EPIPE {
		return Failed, fmt.Errorf("%s: %w", [2]string{"client", "backend"}[f.broken-1], errno)
	}
	return [2]End{ClientReset, BackendReset}[f.broken-1], nil
}

// flushTime is how long a reset waits for what was written before it to be sent,
// which it would overtake.
const flushTime = ticksPerSecond

// holdReset leaves the flow with nothing but the socket that is to be reset.
func (l *loop) holdReset(f *flow) {
	for i := range f.side {
		l.drop(&f.side[i])
	}
	f.state = flushing
	f.deadline = l.tick + flushTime
	l.wheel.enter(&l.slab, f, 1)
}

// flushed is called every tick while a reset is held.
func (l *loop) flushed(f *flow) {
	victim := f.side[peer(int(f.broken-1))].fd
	if unsent(victim) > 0 && !f.past(l.tick) {
		l.wheel.enter(&l.slab, f, 1)
		return
	}
	resetFD(victim)
	why, err := f.failure()
	l.end(f, why, err)
}

// end takes the flow, whose sockets are closed, out of the books.
func (l *loop) end(f *flow, why End, err error) {
	l.wheel.leave(&l.slab, f)
	for i := range f.side {
		l.drop(&f.side[i])
	}
	r := Report{
		End: why, Err: err, Up: max(f.side[client].moved.Load(), 0), Down: f.side[backend].moved.Load(),
		Duration: time.Duration(l.now - f.since),
	}
	owner := f.owner
	f.owner, f.pace, f.state = nil, nil, free
	owner.Ended(r)
	l.slab.put(f)
}

// cut ends the flow with a reset on both sides, whatever it is at.
func (l *loop) cut(f *flow, why End, err error) {
	if f.state == flushing {
		why, err = f.failure()
	}
	for i := range f.side {
		if f.side[i].fd >= 0 {
			resetFD(f.side[i].fd)
		}
	}
	l.end(f, why, err)
}
