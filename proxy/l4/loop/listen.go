package loop

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

// Incoming is a connection that was accepted, for a Handler to decide about.
type Incoming struct {
	Flow   Flow           // what the connection will be if it is relayed
	Client netip.AddrPort // IPv4 as IPv4
	fd     int32
}

// Local returns the address that the client came to, IPv4 as IPv4. That is a
// system call, and to be made only until the Handler returns.
func (in Incoming) Local() netip.AddrPort { return localAddr(in.fd) }

// FD returns the connection's file descriptor, which is valid until the Handler
// returns and nobody else's to use.
func (in Incoming) FD() int { return int(in.fd) }

// Handler decides about a connection. It runs on a loop and must not block. It
// is called from several loops at once.
type Handler func(Incoming) Verdict

// Action is what becomes of a connection that was accepted.
type Action uint8

const (
	// Reset closes it as a port without a listener would. No owner is told.
	Reset Action = iota
	// Connect connects to a backend and relays. If that cannot be, the client
	// is reset.
	Connect
	// HandOver gives it away as a *net.TCPConn. No owner is told.
	HandOver
)

// Verdict is what a Handler decided. The zero value resets the connection.
type Verdict struct {
	Action Action

	// Of Connect.
	Terms
	Next // with To or Wait

	// Take, of HandOver, owns the connection and runs on a goroutine of its
	// own, for as long as it likes. Where the connection cannot be had, it is
	// reset and Take is called with nil and an error.
	Take func(*net.TCPConn, error)
}

// DefaultConnectTimeout is how long connecting to one target may take.
const DefaultConnectTimeout = 10 * time.Second

// Listener is a listening socket that a Group accepts from. Its methods may be
// called from any goroutine.
type Listener struct {
	group  *Group
	handle Handler
	id     uint32
	fd     int32 // for loops among the users

	mu     sync.Mutex // guards the following fields
	users  int        // loops that may use fd; it is closed when there are none
	closed bool
}

// Listen has the loops accept from ln and ask h about each connection. It owns
// ln from here on, whatever it returns.
func (g *Group) Listen(ln *net.TCPListener, h Handler) (*Listener, error) {
	fd, err := duplicate(ln)
	ln.Close() // takes the other descriptor out of the runtime's poller
	if err != nil {
		return nil, fmt.Errorf("take over the listener %v: %w", ln.Addr(), err)
	}
	// Accepted connections inherit all of it.
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	keepAlive(fd)
	l := &Listener{group: g, handle: h, id: g.listeners.Add(1), fd: fd, users: len(g.loops)}
	stopped := false
	for _, loop := range g.loops {
		if !loop.post(command{kind: cmdListen, listener: l}) {
			l.release()
			stopped = true
		}
	}
	if stopped {
		l.Close()
		return nil, errGroupStopped
	}
	return l, nil
}

// File returns another descriptor of the socket, which the caller owns. It fails
// once the Listener is closed.
func (l *Listener) File() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.users == 0 {
		return nil, net.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// Close stops listening. When it returns, clients are refused and the port can
// be listened on again; flows go on, and connections that no loop has accepted
// are reset. Those that one has just accepted may still come to the Handler. More
// than one call is harmless.
func (l *Listener) Close() { l.stop(true) }

// Leave is Close for a socket that somebody else has a descriptor of and goes on
// to listen with: connections that no loop has accepted are theirs.
func (l *Listener) Leave() { l.stop(false) }

func (l *Listener) stop(forAll bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.users == 0 {
		return
	}
	l.closed = true
	// The descriptor must stay until no loop can use it any more, lest they use
	// another socket of the same number. Shutting it down is what ends the
	// listening.
	if forAll {
		syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(l.fd), unix.SHUT_RDWR, 0)
	}
	for _, loop := range l.group.loops {
		loop.post(command{kind: cmdUnlisten, listener: l})
	}
}

// release is called by each loop that will not use fd any more.
func (l *Listener) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
	if l.users == 0 {
		event.CloseFD(l.fd)
	}
}

// listen begins to accept from ln.
func (l *loop) listen(ln *Listener) {
	l.listening[ln.id] = ln
	if err := l.watchListener(ln); err != nil {
		l.group.log.Error("a loop cannot accept connections", "loop", l.number, "err", err)
	}
}

// watchListener has this loop woken for connections that no other loop that
// sleeps was woken for (EPOLLEXCLUSIVE). Not edges: the loop takes one
// connection at a time, so that others get their share.
func (l *loop) watchListener(ln *Listener) error {
	if err := l.poll.Add(ln.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, ln.id, 0); err != nil {
		return fmt.Errorf("watch a listener: %w", err)
	}
	return nil
}

// unlisten forgets ln.
func (l *loop) unlisten(ln *Listener) {
	if _, ok := l.listening[ln.id]; !ok {
		return
	}
	delete(l.listening, ln.id)
	l.poll.Remove(ln.fd)
	ln.release()
}

// muteTime is how long a loop that could not accept, for want of descriptors or
// memory, leaves its listeners alone.
const muteTime = 100 * time.Millisecond

// complainEvery is how often a loop says so.
const complainEvery = 10 * time.Second

// acceptFrom takes connections from the listener with the given id: one, which
// spares asking whether there are more, unless the loop has so much to do that
// it will be a while until it is told so.
func (l *loop) acceptFrom(id uint32, events int) {
	for range 1 + events/16 {
		ln := l.listening[id]
		if ln == nil || !l.accept(ln) {
			return
		}
	}
}

// accept takes a connection from ln. It reports whether there was one.
func (l *loop) accept(ln *Listener) bool {
	var from unix.RawSockaddrAny
	fd, errno := accept(ln.fd, &from)
	switch errno {
	case 0:
		l.distribute(ln, fd, addrPort(&from))
		return true
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		l.mute(ln, errno)
	case unix.EINVAL: // it was shut down
		l.poll.Remove(ln.fd)
	}
	return false // EAGAIN: another loop took it. Or it ended before it was accepted.
}

// distribute has the connection fd served by this loop, or by another that has
// much less to do.
func (l *loop) distribute(ln *Listener, fd int32, from netip.AddrPort) {
	other := l.group.lighter(l)
	if other == nil || !other.post(command{kind: cmdAdmit, listener: ln, fd: fd, from: from}) {
		l.admit(ln, fd, from)
	}
}

func (l *loop) mute(ln *Listener, why error) {
	l.poll.Remove(ln.fd)
	l.muted = append(l.muted, ln)
	l.unmuteAt = l.now + int64(muteTime)
	if failed := l.group.cfg.AcceptFailed; failed != nil {
		failed()
	}
	if l.now >= l.complain {
		l.complain = l.now + int64(complainEvery)
		l.group.log.Warn("cannot accept connections; trying again until it goes", "err", why, "every", muteTime)
	}
}

func (l *loop) unmuteAll() {
	for _, ln := range l.muted {
		if l.listening[ln.id] == ln {
			l.watchListener(ln)
		}
	}
	clear(l.muted)
	l.muted, l.unmuteAt = l.muted[:0], event.Never
}

// admit asks ln's handler about the connection fd and does what it says.
func (l *loop) admit(ln *Listener, fd int32, from netip.AddrPort) {
	f := l.slab.get(l)
	if f == nil {
		resetFD(fd)
		return
	}
	v := ln.handle(Incoming{Flow: Flow{f, f.gen.Load()}, Client: from, fd: fd})
	if v.Action != Connect {
		l.slab.put(f)
		if v.Action == HandOver && v.Take != nil {
			l.group.handOver(fd, v.Take)
		} else {
			resetFD(fd)
		}
		return
	}
	f.side[client].fd, f.side[backend].fd = fd, -1
	l.prepare(f, &v.Terms)
	f.side[client].flags = noDelay
	if v.Wait {
		l.await(f)
	} else {
		l.dial(f, v.Next)
	}
	if f.state == free { // not even that
		return
	}
	if err := l.watch(f, client); err != nil {
		l.cut(f, Failed, err)
	}
}

// handOver gives fd to take as a *net.TCPConn.
func (g *Group) handOver(fd int32, take func(*net.TCPConn, error)) {
	g.handed.Go(func() {
		file := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(file) // has a descriptor of its own
		file.Close()
		if err != nil {
			take(nil, fmt.Errorf("take a connection out of the loop: %w", err))
			return
		}
		take(c.(*net.TCPConn), nil)
	})
}
