package l4

import (
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how much a pipe is asked to hold. The kernel may give less.
	pipeSize = 256 << 10
	// Below worthwhile bytes at a time, splicing costs more than copying; a
	// direction that had so many poor turns in a row is no longer bulk.
	worthwhile = 8 << 10
	poorTurns  = 8
	// pipeRest is how long a pipe stays unused before it is closed.
	pipeRest = 10 * time.Second
)

var (
	errNoPipe   = errors.New("no pipe to be had")
	errNoSplice = errors.New("the socket cannot be spliced")
)

// splice moves bytes from src to dst inside the kernel for as long as they come
// in bulk. While it waits for src it holds no pipe. nil errors mean that copying
// suits the flow better from here on.
func (d *direction) splice() (readErr, writeErr error) {
	if d.fillPipe == nil {
		d.fillPipe, d.drainPipe = d.spliceIn, d.spliceOut
	}
	defer d.returnPipe()
	for poor := 0; poor < poorTurns && !d.rate.limited(); {
		if err := d.src.raw.Read(d.fillPipe); err != nil {
			return err, nil
		}
		switch d.err {
		case nil:
		case errNoPipe:
			return nil, nil
		case errNoSplice:
			d.canBulk = false
			return nil, nil
		default:
			return d.err, nil
		}
		if d.pipe.held < worthwhile {
			poor++
		} else {
			poor = 0
		}
		if err := d.dst.raw.Write(d.drainPipe); err != nil {
			return nil, err
		}
		if d.err != nil {
			return nil, d.err
		}
	}
	return nil, nil
}

// spliceIn is called by the poller when src may be readable. It leaves bytes in
// d.pipe, or an error in d.err.
func (d *direction) spliceIn(fd uintptr) bool {
	d.err = nil
	if d.pipe == nil {
		if d.pipe = d.pair.flow.server.pipes.get(); d.pipe == nil {
			d.err = errNoPipe
			return true
		}
	}
	n, err := ignoringEINTR(func() (int, error) {
		n, err := unix.Splice(int(fd), nil, d.pipe.w, nil, pipeSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		return int(n), err
	})
	switch {
	case n > 0:
		d.pipe.held = n
	case err == unix.EAGAIN: // the pipe is empty, so it is src that has nothing
		d.returnPipe()
		return false
	case err == unix.EINVAL: // and nothing was taken from src
		d.err = errNoSplice
	default:
		d.err = orEOF(err)
	}
	return true
}

// returnPipe gives the pipe back, if there is one.
func (d *direction) returnPipe() {
	switch {
	case d.pipe == nil:
	case d.pipe.held > 0: // of this flow, which has failed
		d.pipe.close()
	default:
		d.pair.flow.server.pipes.put(d.pipe)
	}
	d.pipe = nil
}

// spliceOut is called by the poller when dst may be writable.
func (d *direction) spliceOut(fd uintptr) bool {
	for d.pipe.held > 0 {
		n, err := unix.Splice(d.pipe.r, nil, int(fd), nil, d.pipe.held, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			d.err = err
			return true
		case n == 0:
			d.err = io.ErrShortWrite // a socket takes something or says why not
			return true
		default:
			d.pipe.held -= int(n)
			d.moved.Add(n)
		}
	}
	return true
}

// pipe is a kernel pipe and how many bytes are in it.
type pipe struct {
	r, w, held int
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// pipePool keeps empty pipes for reuse and closes those that nobody needed for
// a while. The zero value is ready.
type pipePool struct {
	mu     sync.Mutex // guards the following fields
	free   []*pipe
	unused int // the fewest that were free since the last trim
	timer  *time.Timer
	closed bool
}

// get returns an empty pipe, which the caller gives back with put once it is
// empty again, or closes; nil if there is none to be had.
func (pp *pipePool) get() *pipe {
	pp.mu.Lock()
	if n := len(pp.free); n > 0 {
		p := pp.free[n-1]
		pp.free = pp.free[:n-1]
		pp.unused = min(pp.unused, n-1)
		pp.mu.Unlock()
		return p
	}
	pp.unused = 0
	pp.mu.Unlock()
	return newPipe()
}

func newPipe() *pipe {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	// Past /proc/sys/fs/pipe-user-pages-soft this is refused to ordinary users,
	// and the pipe is smaller; that costs speed only.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: fds[0], w: fds[1]}
}

// put takes back an empty pipe.
func (pp *pipePool) put(p *pipe) {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if pp.closed {
		p.close()
		return
	}
	pp.free = append(pp.free, p)
	if pp.timer == nil {
		pp.unused = 0
		pp.timer = time.AfterFunc(pipeRest, pp.trim)
	}
}

// trim closes the pipes that nobody took since the last time.
func (pp *pipePool) trim() {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if pp.closed {
		return
	}
	for _, p := range pp.free[:pp.unused] {
		p.close()
	}
	pp.free = append(pp.free[:0], pp.free[pp.unused:]...)
	pp.unused = len(pp.free)
	if pp.unused > 0 {
		pp.timer.Reset(pipeRest)
	} else {
		pp.timer = nil
	}
}

func (pp *pipePool) close() {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	for _, p := range pp.free {
		p.close()
	}
	pp.free, pp.closed = nil, true
	if pp.timer != nil {
		pp.timer.Stop()
	}
}
