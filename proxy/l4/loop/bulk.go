package loop

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/l4/event"
)

const (
	// pipeSize is how much a pipe is asked to hold. The kernel may give less. The
	// more one splice moves, the fewer acknowledgements are sent for it.
	pipeSize = 1 << 20
	// Below worthwhile bytes at a time, splicing costs more than copying; a
	// direction that had poorTurns in a row is no longer bulk.
	worthwhile = 8 << 10
	poorTurns  = 8
)

// splice does what copy does, inside the kernel.
func (l *loop) splice(f *flow, s int) (n int, live bool) {
	src, dst := &f.side[s], &f.side[peer(s)]
	p := l.pipes.get()
	if p == nil {
		src.flags &^= bulk
		return 0, true // copying goes on
	}
	room := pipeSize
	if f.pace != nil {
		room = f.pace.Chunk(s == client, room)
	}
	n, errno := splice(src.fd, p.w, room)
	if n <= 0 {
		l.pipes.put(p)
		switch errno {
		case unix.EAGAIN: // the pipe is empty, so it is src that has nothing
			src.flags &^= readable | drain
			return 0, true
		case 0:
			return 0, l.sawEOF(f, s)
		}
		return 0, l.cannotRead(f, s, errno)
	}
	f.active = l.tick
	if n >= worthwhile {
		src.full = 0
	} else if src.full++; src.full >= poorTurns {
		src.full = 0
		src.flags &^= bulk
	}
	p.held = n
	for p.held > 0 {
		m, errno := splice(p.r, dst.fd, p.held)
		if m <= 0 {
			src.queue = &queue{pipe: p, progress: l.tick}
			if errno == unix.EAGAIN {
				l.watchStall(f)
				return n, true
			}
			return n, l.cannotWrite(f, s, errno)
		}
		src.moved.Add(int64(m))
		p.held -= m
	}
	l.pipes.put(p)
	return n, true
}

// pipe is a kernel pipe and how many bytes are in it.
type pipe struct {
	r, w int32
	held int
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	// Past /proc/sys/fs/pipe-user-pages-soft this is refused to ordinary users,
	// and the pipe is smaller; that costs speed only.
	syscall.RawSyscall(unix.SYS_FCNTL, uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: int32(fds[0]), w: int32(fds[1])}, nil
}

func (p *pipe) close() {
	event.CloseFD(p.r)
	event.CloseFD(p.w)
}

// pipes are a loop's empty pipes.
type pipes struct{ pool[*pipe] }

// get returns an empty pipe, or nil if there is none to be had.
func (pp *pipes) get() *pipe {
	if p, ok := pp.pool.get(); ok {
		return p
	}
	p, err := newPipe()
	if err != nil {
		return nil // out of descriptors, most likely; copying needs none
	}
	return p
}

// put takes back a pipe that get gave. One that still holds bytes is closed.
func (pp *pipes) put(p *pipe) {
	if p.held > 0 {
		p.close()
		return
	}
	pp.pool.put(p)
}
