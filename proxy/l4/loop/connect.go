package loop

import (
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// maxTries bounds how many targets a flow tries. Each has its number in a byte.
const maxTries = 255

// prepare makes f, whose sockets are set, a flow under t.
func (l *loop) prepare(f *flow, t *Terms) {
	f.owner, f.pace = t.Owner, t.Pace
	if f.owner == nil {
		f.owner = nobody{}
	}
	f.idle, f.stall, f.stallSeen = ticks(t.IdleTimeout), ticks(t.StallTimeout), false
	f.since, f.active = l.now, l.tick
	f.end, f.broken, f.errno, f.tries, f.keepalive = 0, 0, 0, 0, false
	for i := range f.side {
		s := &f.side[i]
		s.flags, s.full, s.queue = 0, 0, nil
	}
	if len(t.First) > 0 {
		f.side[client].moved.Store(-int64(t.Header))
	}
	for i, waits := range [...][]byte{client: t.First, backend: t.Answer} {
		if len(waits) > 0 {
			f.side[i].queue = &queue{bytes: waits, progress: l.tick}
			f.stallSeen = f.stall > 0
		}
	}
}

// takeOver begins to relay between the two sockets of f.
func (l *loop) takeOver(f *flow, t *Terms) {
	l.prepare(f, t)
	// Whoever had them before has set their options.
	f.keepalive = true
	for s := range f.side {
		f.side[s].flags = noDelay
		if err := l.watch(f, s); err != nil {
			l.cut(f, Failed, err)
			return
		}
	}
	l.begin(f)
}

// dial begins to connect f to a backend, the first that can be tried at all, and
// ends the flow if there is none.
func (l *loop) dial(f *flow, to Next) {
	f.state = connecting
	for ok := true; ok; {
		f.tries++
		f.dialed = l.now
		err := l.connect(f, to.To)
		if err == nil {
			if to.Timeout <= 0 {
				to.Timeout = DefaultConnectTimeout
			}
			f.deadline = l.tick + ticks(to.Timeout)
			l.arm(f)
			return
		}
		to, ok = l.dialFailed(f, err)
	}
}

// await leaves f, which is not connected to a backend, until Flow.Dial.
func (l *loop) await(f *flow) {
	l.wheel.leave(&l.slab, f)
	f.state = waiting
}

// dialAfterWait ends the waiting of f.
func (l *loop) dialAfterWait(f *flow, to Next, err error) {
	if !to.To.IsValid() {
		l.cut(f, ConnectFailed, err)
		return
	}
	l.dial(f, to)
}

// connect begins to connect f's backend side.
func (l *loop) connect(f *flow, to netip.AddrPort) error {
	if to.Addr().Zone() != "" {
		return &os.SyscallError{Syscall: "connect", Err: unix.EAFNOSUPPORT} // zones have names, which are not looked up here
	}
	fd, errno := newSocket(family(to.Addr()))
	if errno != 0 {
		return os.NewSyscallError("socket", errno)
	}
	f.side[backend].fd = fd
	if control := l.group.cfg.Control; control != nil {
		if err := control(int(fd)); err != nil {
			return err
		}
	}
	if errno := connect(fd, to); errno != 0 && errno != unix.EINPROGRESS {
		return os.NewSyscallError("connect", errno)
	}
	return l.watch(f, backend)
}

// dialFailed tells the owner that a connect failed, and returns where to try
// next. If there is nowhere the flow has ended, or waits.
func (l *loop) dialFailed(f *flow, err error) (next Next, ok bool) {
	if fd := f.side[backend].fd; fd >= 0 {
		event.CloseFD(fd)
		f.side[backend].fd = -1
	}
	next = f.owner.Dialed(time.Duration(l.now-f.dialed), err)
	switch {
	case f.tries == maxTries:
	case next.Wait:
		l.await(f)
		return next, false
	case next.To.IsValid():
		return next, true
	}
	l.cut(f, ConnectFailed, err)
	return next, false
}

// redial tries the owner's next target after err, or ends the flow.
func (l *loop) redial(f *flow, err error) {
	if next, ok := l.dialFailed(f, err); ok {
		l.dial(f, next)
	}
}

// connected is called when the backend side of f, which is connecting, had an
// event.
func (l *loop) connected(f *flow, events uint32) {
	s := &f.side[backend]
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		errno := socketError(s.fd)
		if errno != 0 && errno != unix.ECONNRESET && errno != unix.EPIPE {
			l.redial(f, os.NewSyscallError("connect", errno))
			return
		}
		// It was up and has been reset since. What it sent before is passed on.
		l.breakOff(f, backend)
	} else if events&unix.EPOLLOUT == 0 {
		return
	}
	f.owner.Dialed(time.Duration(l.now-f.dialed), nil)
	s.note(events)
	l.begin(f)
}

// begin relays what has come so far.
func (l *loop) begin(f *flow) {
	f.state = relaying
	f.active = l.tick
	l.arm(f)
	if l.pump(f, client) {
		l.pump(f, backend)
	}
}

// clientWhileConnecting is called when the client side of f, which is
// connecting or waits to, had an event. Bytes wait until there is somebody to read them.
func (l *loop) clientWhileConnecting(f *flow, events uint32) {
	s := &f.side[client]
	if events&unix.EPOLLERR != 0 {
		errno := socketError(s.fd)
		if errno == 0 {
			errno = unix.ECONNRESET
		}
		f.broken, f.errno = client+1, uint16(errno)
		why, err := f.failure()
		l.cut(f, why, err)
		return
	}
	s.note(events)
}
