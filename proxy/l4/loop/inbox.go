package loop

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// command is something that another goroutine has a loop do.
type command struct {
	kind     commandKind
	flow     *flow          // of cmdRelay, cmdCut and cmdDial
	gen      uint32         // of cmdCut and cmdDial: that of flow
	err      error          // of cmdCut and cmdDial: the cause
	terms    Terms          // of cmdRelay
	listener *Listener      // of cmdListen, cmdUnlisten and cmdAdmit
	fd       int32          // of cmdAdmit
	from     netip.AddrPort // of cmdAdmit
	next     Next           // of cmdDial
}

type commandKind uint8

const (
	cmdStop commandKind = iota
	cmdRelay
	cmdCut
	cmdDial
	cmdListen
	cmdUnlisten
	cmdAdmit // a connection that another loop accepted
)

// inbox is where commands wait for their loop.
type inbox struct {
	pending atomic.Bool // there are some

	mu       sync.Mutex // guards the following fields
	commands []command
	wake     int32 // eventfd; -1: the loop does not run
	closed   bool
}

// open has whoever posts from here on wake the loop with an eventfd, which is
// the inbox's to close.
func (in *inbox) open(wake int32) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.wake = wake
}

// close refuses commands from here on and returns those that nobody has obeyed.
func (in *inbox) close() []command {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	left := in.commands
	in.commands = nil
	if in.wake >= 0 {
		closeFD(in.wake)
		in.wake = -1
	}
	return left
}

// post hands the loop a command. It returns false if the loop has stopped.
func (l *loop) post(c command) bool {
	in := &l.inbox
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.commands = append(in.commands, c)
	if len(in.commands) == 1 {
		in.pending.Store(true)
		if in.wake >= 0 {
			one := uint64(1)
			syscall.RawSyscall(unix.SYS_WRITE, uintptr(in.wake), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
		}
	}
	return true
}

// manyCommands is more than what there is room for while nothing special is
// going on.
const manyCommands = 256

// obey carries out the commands that are there.
func (l *loop) obey() {
	in := &l.inbox
	in.mu.Lock()
	in.commands, l.commands = l.commands[:0], in.commands
	in.pending.Store(false)
	in.mu.Unlock()
	for i := range l.commands {
		l.carryOut(&l.commands[i])
	}
	clear(l.commands)
	if cap(l.commands) > manyCommands {
		l.commands = nil
	}
}

func (l *loop) carryOut(c *command) {
	switch c.kind {
	case cmdStop:
		l.stopping = true
	case cmdRelay:
		l.takeOver(c.flow, &c.terms)
	case cmdCut:
		if c.flow.gen.Load() == c.gen && c.flow.state != free {
			l.cut(c.flow, Cut, c.err)
		}
	case cmdDial:
		if c.flow.gen.Load() == c.gen && c.flow.state == waiting {
			l.dialAfterWait(c.flow, c.next, c.err)
		}
	case cmdListen:
		l.listen(c.listener)
	case cmdUnlisten:
		l.unlisten(c.listener)
	case cmdAdmit:
		l.admit(c.listener, c.fd, c.from)
	}
}

// refuse deals with commands that came too late for the loop to obey them, and
// with those that come from here on.
func (l *loop) refuse() {
	for _, c := range l.inbox.close() {
		switch c.kind {
		case cmdRelay:
			l.prepare(c.flow, &c.terms)
			l.cut(c.flow, Stopped, nil)
		case cmdListen:
			c.listener.release()
		case cmdAdmit:
			resetFD(c.fd)
		}
	}
}
