package loop

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// keepaliveAfter is how old a flow gets before its socket to the backend is told
// to probe its peer, which most never need: 4 system calls. The client's has
// that from its listener.
var keepaliveAfter = 15 * ticksPerSecond

const (
	// What sockets are told then, in seconds: a peer that vanished is found out
	// after two minutes of silence, and most NATs and firewalls on the way, few
	// of which forget a connection sooner than that, hear of it in time.
	keepaliveIdle, keepaliveInterval, keepaliveCount = 60, 15, 4

	ticksPerSecond = uint32(time.Second>>tickBits) + 1
)

// arm has f seen by due when the first of its timeouts may be over.
func (l *loop) arm(f *flow) {
	after := int32(neverTicks)
	sooner := func(at uint32) { after = min(after, int32(at-l.tick)) }
	switch f.state {
	case connecting:
		sooner(f.deadline)
	case relaying:
		if f.broken != 0 {
			sooner(f.deadline)
		}
		if f.idle > 0 {
			sooner(f.active + f.idle)
		}
		if f.stallSeen {
			for i := range f.side {
				if q := f.side[i].queue; q != nil {
					sooner(q.progress + f.stall)
				}
			}
		}
		if !f.keepalive {
			sooner(uint32(f.since>>tickBits) + keepaliveAfter)
		}
		for i := range f.side {
			if f.side[i].has(paused) {
				sooner(f.side[i].until)
			}
		}
	}
	if after < neverTicks {
		l.wheel.enter(&l.slab, f, uint32(max(after, 1)))
	}
}

// due is called when one of f's timeouts may be over.
func (l *loop) due(f *flow) {
	switch f.state {
	case connecting:
		if f.past(l.tick) {
			l.redial(f, os.ErrDeadlineExceeded)
			return
		}
	case flushing:
		l.flushed(f)
		return
	case relaying:
		if f.broken != 0 && f.past(l.tick) {
			l.abort(f, int(f.broken-1), unix.ECONNRESET)
			return
		}
		if f.idle > 0 && l.tick-f.active >= f.idle {
			l.cut(f, Idle, nil)
			return
		}
		if f.stallSeen && l.stalled(f) {
			l.cut(f, Stalled, nil)
			return
		}
		if !f.keepalive && l.tick-uint32(f.since>>tickBits) >= keepaliveAfter {
			f.keepalive = true
			keepAlive(f.side[backend].fd)
		}
		for s := range f.side {
			if f.side[s].has(paused) && int32(l.tick-f.side[s].until) >= 0 && !l.resume(f, s) {
				return
			}
		}
	}
	l.arm(f)
}

// watchStall sees to it that f, which has got a queue, is looked at.
func (l *loop) watchStall(f *flow) {
	if f.stall > 0 && !f.stallSeen {
		f.stallSeen = true
		l.arm(f)
	}
}

// stalled reports whether one side of f takes nothing of what waits for it.
func (l *loop) stalled(f *flow) bool {
	f.stallSeen = false
	for i := range f.side {
		q := f.side[i].queue
		if q == nil {
			continue
		}
		f.stallSeen = true
		if l.tick-q.progress < f.stall {
			continue
		}
		left := unsent(f.side[peer(i)].fd)
		if left == q.unsent {
			return true
		}
		q.unsent, q.progress = left, l.tick
	}
	return false
}

// past reports whether f's deadline is over at tick now.
func (f *flow) past(now uint32) bool { return int32(now-f.deadline) >= 0 }

// keepAlive has fd probe its peer once it is silent. That it fails harms nobody.
func keepAlive(fd int32) {
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepaliveIdle)
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepaliveInterval)
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepaliveCount)
	setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

// ticks returns after how many ticks d has passed in any case, the current one
// counted as over; 0 only for 0 and less.
func ticks(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min(int64(d>>tickBits)+2, neverTicks-1))
}
