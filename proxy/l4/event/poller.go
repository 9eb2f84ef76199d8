package event

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many events one wait takes at most.
	batch = 256
	// yieldAfter is how long a loop that always has something to do keeps its
	// processor from other goroutines.
	yieldAfter = time.Millisecond
	// manyCommands is more than there are to come while nothing special is
	// going on.
	manyCommands = 256
)

// Never is a loop time that does not come.
const Never = math.MaxInt64

// passed is a loop time that nothing waits for.
const passed = -1

// Poller is where one goroutine, the loop, waits for events and for commands of
// type C. The zero value takes commands; Open comes before all else. Post may be
// called from any goroutine, everything else is the loop's own.
type Poller[C any] struct {
	// Events are those that the last Wait took. Fd is the id, Pad the generation
	// that Add was given; both are 0 where a command woke the loop.
	Events [batch]unix.EpollEvent
	// Now is the loop time when the last Wait returned: nanoseconds since Open.
	Now int64

	fd       int32
	file     *os.File           // the same, as the runtime's poller knows it; nil: not open
	parked   syscall.RawConn    // the same, for waiting
	look     func(uintptr) bool // take, made once
	came     int                // events taken last
	failed   syscall.Errno      // of taking them
	deadline int64              // loop time until which waiting is bounded; Never: it is not

	base    time.Time // when loop time began
	yielded int64     // loop time when other goroutines last had a chance

	pending atomic.Bool // there are commands
	spare   []C         // what commands was

	mu       sync.Mutex // guards the following fields
	commands []C
	wake     int32 // eventfd, while awake
	awake    bool
	closed   bool
}

// Open opens what the loop needs, or nothing.
func (p *Poller[C]) Open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open an epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("open an eventfd: %w", err)
	}
	p.fd = int32(fd)
	// Edges come with each write, so that nobody has to read it empty.
	if err = p.Add(int32(wake), unix.EPOLLIN|unix.EPOLLET, 0, 0); err != nil {
		err = fmt.Errorf("watch an eventfd: %w", err)
	} else if err = unix.SetNonblock(fd, true); err == nil { // by which os knows that it can be waited for
		p.file = os.NewFile(uintptr(fd), "epoll")
		if p.parked, err = p.file.SyscallConn(); err != nil {
			err = fmt.Errorf("wait for an epoll instance: %w", err)
		}
	}
	if err != nil {
		if p.file != nil {
			p.file.Close()
			p.file = nil
		} else {
			unix.Close(fd)
		}
		unix.Close(wake)
		return err
	}
	p.look, p.deadline, p.base = p.take, Never, time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake, p.awake = int32(wake), true
	return nil
}

// IsOpen reports whether Open was called with success.
func (p *Poller[C]) IsOpen() bool { return p.file != nil }

// Close closes the epoll instance. Refuse comes first.
func (p *Poller[C]) Close() {
	if p.file != nil {
		p.file.Close()
	}
}

// Add has events of fd carry id and gen.
func (p *Poller[C]) Add(fd int32, events, id, gen uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(id), Pad: int32(gen)}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Remove has no more events of fd come.
func (p *Poller[C]) Remove(fd int32) {
	var ev unix.EpollEvent
	syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), unix.EPOLL_CTL_DEL, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
}

// Wait returns how many of Events have come. It looks for itself first: where
// something is always under way, that is all it costs. Unless the loop is busy
// with something else, the goroutine then parks in the runtime's poller until the
// loop time that until returns, which watches the epoll instance as it does sockets. A system
// call that waits would be dearer: the runtime's monitor has to take the
// processor from it, and looks around every 20 µs from then on.
//
// An error means that the descriptor is not ours any more.
func (p *Poller[C]) Wait(until func() int64, busy bool) (int, error) {
	p.take(0)
	p.keepTime()
	if p.came == 0 && p.failed == 0 && !busy && !p.pending.Load() {
		p.bound(until())
		if p.parked.Read(p.look) != nil { // the deadline has passed
			p.deadline = passed
		}
		p.keepTime()
		p.yielded = p.Now
	}
	if p.failed != 0 {
		return 0, p.failed
	}
	if p.Now-p.yielded > int64(yieldAfter) {
		runtime.Gosched()
		p.yielded = p.Now
	}
	return p.came, nil
}

// take takes the events that have come. It reports whether to go on.
func (p *Poller[C]) take(uintptr) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.Events)), batch, 0, 0, 0)
	switch errno {
	case 0:
		p.came = int(n)
	case unix.EINTR:
		p.came = 0
	default:
		p.came, p.failed = 0, errno
	}
	return p.came > 0 || p.failed != 0
}

// bound has waiting end at a loop time.
func (p *Poller[C]) bound(until int64) {
	if until == p.deadline {
		return
	}
	p.deadline = until
	if until == Never {
		p.file.SetReadDeadline(time.Time{})
	} else {
		p.file.SetReadDeadline(p.Time(until))
	}
}

func (p *Poller[C]) keepTime() { p.Now = int64(time.Since(p.base)) }

// Time returns a loop time as others have it.
func (p *Poller[C]) Time(at int64) time.Time { return p.base.Add(time.Duration(at)) }

// Post hands the loop a command. It returns false if the loop takes none any
// more.
func (p *Poller[C]) Post(c C) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.commands = append(p.commands, c)
	if len(p.commands) == 1 {
		p.pending.Store(true)
		if p.awake {
			one := uint64(1)
			syscall.RawSyscall(unix.SYS_WRITE, uintptr(p.wake), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
		}
	}
	return true
}

// Pending reports whether there are commands.
func (p *Poller[C]) Pending() bool { return p.pending.Load() }

// Obey calls do for each command that is there. do must not keep its argument,
// nor call Obey.
func (p *Poller[C]) Obey(do func(*C)) {
	p.mu.Lock()
	todo := p.commands
	p.commands = p.spare[:0]
	p.pending.Store(false)
	p.mu.Unlock()
	for i := range todo {
		do(&todo[i])
	}
	clear(todo)
	if cap(todo) > manyCommands {
		todo = nil
	}
	p.spare = todo
}

// Refuse has Post take no command from here on, and returns those that nobody
// has obeyed. More than one call is harmless.
func (p *Poller[C]) Refuse() []C {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	left := p.commands
	p.commands = nil
	if p.awake {
		CloseFD(p.wake)
		p.awake = false
	}
	return left
}
