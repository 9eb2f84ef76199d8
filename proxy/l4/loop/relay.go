package loop

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

const (
	// interest is what every connection is watched for, once and for all: with
	// edges that costs no more than less would.
	interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET
	// mayRead are the events after which a read is in order, and mustDrain those
	// of them after which one that leaves room in the buffer proves nothing.
	mayRead   = unix.EPOLLIN | mustDrain
	mustDrain = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLPRI

	// turn is how many bytes one direction moves before others have theirs.
	turn = 4 * bufferSize
	// bulkAfter is how many buffers a direction fills in a row until it is bulk,
	// which is spliced, and waits in line behind what is not.
	bulkAfter = 4
)

// ready is called when side s of f, which is relaying, had an event.
func (l *loop) ready(f *flow, s int, events uint32) {
	src := &f.side[s]
	if events&mayRead != 0 {
		src.note(events)
		if events&unix.EPOLLERR != 0 && src.flags&(eof|deaf) != 0 {
			// Nobody reads here any more, which would tell.
			if errno := socketError(src.fd); errno != 0 {
				l.cannotRead(f, s, errno)
				return
			}
		}
		if !l.move(f, s) {
			return
		}
	}
	if events&unix.EPOLLOUT != 0 && f.side[peer(s)].queue != nil {
		l.move(f, peer(s))
	}
}

// move has bytes from side s move: at once if they are few, and else when it is
// this direction's turn. It reports whether the flow is still relaying.
func (l *loop) move(f *flow, s int) bool {
	if f.side[s].has(bulk) {
		l.queueUp(f, s)
		return true
	}
	return l.pump(f, s)
}

// queueUp gives side s of f a turn when those before it had theirs.
func (l *loop) queueUp(f *flow, s int) {
	if src := &f.side[s]; !src.has(inLine) {
		src.flags |= inLine
		l.line = append(l.line, reference{f, f.gen.Load(), uint8(s)})
	}
}

// serveLine gives the first direction in line that can use it its turn. Between
// turns the loop looks for events, so that nobody waits for more than one of
// those.
func (l *loop) serveLine() {
	for l.served < len(l.line) {
		r := &l.line[l.served]
		f, gen, s := r.flow, r.gen, int(r.side)
		l.served++
		if f.gen.Load() != gen || f.state != relaying {
			continue
		}
		f.side[s].flags &^= inLine
		l.pump(f, s)
		break
	}
	if l.served*2 >= len(l.line) { // so that a line that never ends stays short
		n := copy(l.line, l.line[l.served:])
		clear(l.line[n:])
		l.line, l.served = l.line[:n], 0
	}
}

// note remembers that s had events.
func (s *side) note(events uint32) {
	if events&mayRead != 0 {
		s.flags |= readable
		if events&mustDrain != 0 {
			s.flags |= drain
		}
	}
}

// pump moves bytes that come from side s for as long as there are some, the
// other side takes them, and it is this direction's turn. It reports whether
// the flow is still relaying.
func (l *loop) pump(f *flow, s int) bool {
	src := &f.side[s]
	if src.queue != nil {
		if more, live := l.flush(f, s); !more {
			return live
		}
	}
	for budget := turn; src.flags&(readable|eof|deaf|paused) == readable && src.queue == nil; {
		if budget <= 0 {
			l.queueUp(f, s)
			return true
		}
		var n int
		var live bool
		if src.has(bulk) {
			n, live = l.splice(f, s)
		} else {
			n, live = l.copy(f, s)
		}
		if !live {
			return false
		}
		budget -= n
		if f.pace != nil && n > 0 {
			l.pause(f, s, f.pace.Spend(s == client, n))
		}
	}
	return true
}

// pause has no bytes from side s move for a while.
func (l *loop) pause(f *flow, s int, wait time.Duration) {
	if wait <= 0 {
		return
	}
	src := &f.side[s]
	src.flags |= paused
	src.until = l.tick + ticks(wait)
	l.arm(f)
}

// resume goes on with side s, which was paused, if its pace agrees. It reports
// whether the flow is still relaying.
func (l *loop) resume(f *flow, s int) bool {
	src := &f.side[s]
	src.flags &^= paused
	l.pause(f, s, f.pace.Spend(s == client, 0))
	return l.pump(f, s)
}

// copy reads once from side s and writes that to the other one. It returns how
// much it read, and whether the flow is still relaying.
func (l *loop) copy(f *flow, s int) (n int, live bool) {
	src, dst := &f.side[s], &f.side[peer(s)]
	room := bufferSize
	if f.pace != nil {
		room = f.pace.Chunk(s == client, room)
	}
	n, errno := event.Recv(src.fd, l.buffers.current[:room])
	switch {
	case n > 0:
	case errno == unix.EAGAIN:
		src.flags &^= readable | drain
		return 0, true
	case errno == 0:
		return 0, l.sawEOF(f, s)
	default:
		return 0, l.cannotRead(f, s, errno)
	}
	f.active = l.tick
	if n < room {
		src.full = 0
		if !src.has(drain) {
			src.flags &^= readable
		}
	} else if src.full++; src.full >= bulkAfter {
		src.full = 0
		if room == bufferSize {
			src.flags |= bulk
		}
	}
	m, errno := dst.write(l.buffers.current[:n])
	src.moved.Add(int64(m))
	switch errno {
	case 0:
		return n, true
	case unix.EAGAIN:
		buf := l.buffers.detach()
		src.queue = &queue{bytes: buf[m:n], buffer: buf, progress: l.tick}
		l.watchStall(f)
		return n, true
	}
	return n, l.cannotWrite(f, s, errno)
}

// write writes p to dst, as far as that takes it. Less than all of p comes with
// an error, EAGAIN at least: then, and only then, will EPOLLOUT follow.
func (s *side) write(p []byte) (n int, errno syscall.Errno) {
	if !s.has(noDelay) {
		s.hurry(len(p))
	}
	n, errno = event.Send(s.fd, p)
	for errno == 0 && n < len(p) {
		var m int
		m, errno = event.Send(s.fd, p[n:])
		n += m
	}
	return n, errno
}

// smallWrite is well below any segment's size.
const smallWrite = 512

// hurry sees that nothing written to s waits for an acknowledgement of what was
// written before (TCP_NODELAY). That concerns only bytes behind a segment that
// was not full: a connection that gets a single short message never needs it.
func (s *side) hurry(n int) {
	if n > smallWrite || s.has(wrote) {
		setInt(s.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		s.flags |= noDelay
	}
	s.flags |= wrote
}

// flush writes what is queued from side s. It reports whether nothing is left,
// so that more can be read, and whether the flow is still relaying.
func (l *loop) flush(f *flow, s int) (more, live bool) {
	src, dst := &f.side[s], &f.side[peer(s)]
	q := src.queue
	if len(q.bytes) > 0 {
		n, errno := dst.write(q.bytes)
		if n > 0 {
			f.active, q.progress = l.tick, l.tick
			src.moved.Add(int64(n))
			q.bytes = q.bytes[n:]
		}
		if errno == unix.EAGAIN {
			return false, true
		}
		if errno != 0 {
			return false, l.cannotWrite(f, s, errno)
		}
	}
	for q.pipe != nil && q.pipe.held > 0 {
		n, errno := splice(q.pipe.r, dst.fd, q.pipe.held)
		if errno == unix.EAGAIN {
			return false, true
		}
		if errno != 0 || n == 0 {
			return false, l.cannotWrite(f, s, errno)
		}
		f.active, q.progress = l.tick, l.tick
		src.moved.Add(int64(n))
		q.pipe.held -= n
	}
	l.drop(src)
	return true, true
}

// drop gives back what is queued from src, if anything.
func (l *loop) drop(src *side) {
	if q := src.queue; q != nil {
		src.queue = nil
		if q.buffer != nil {
			l.buffers.put(q.buffer)
		}
		if q.pipe != nil {
			l.pipes.put(q.pipe)
		}
	}
}
