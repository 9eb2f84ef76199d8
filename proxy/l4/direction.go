package l4

import (
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	bufferSize = 32 << 10
	// Sides whose bytes pass through code cannot be waited for without a
	// buffer: this small one does for waiting, and a full-size one takes over
	// while it gets filled.
	waitSize = 2 << 10
)

type buffer [bufferSize]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// direction copies from one side of a pair to the other. It belongs to one
// goroutine.
type direction struct {
	pair     *pair
	src, dst *side
	moved    *atomic.Int64
	rate     *bucket
	filled   bool // the last read filled its buffer

	// The state of the functions called by the poller, which are made once
	// because a closure per call would be garbage per call.
	fill, watch func(fd uintptr) bool
	buf         *buffer
	max, n      int
	err         error

	small *[waitSize]byte // where src is not the kernel's
}

func newDirection(p *pair, src, dst *side, moved *atomic.Int64, rate *bucket) *direction {
	d := &direction{pair: p, src: src, dst: dst, moved: moved, rate: rate}
	if src.raw != nil {
		d.fill = d.fillBuffer
	} else {
		d.small = new([waitSize]byte)
	}
	return d
}

// sendFirst passes on what was read before the relay began.
func (d *direction) sendFirst(p []byte) {
	if len(p) == 0 {
		return
	}
	n, err := d.dst.conn.Write(p)
	d.moved.Add(int64(n))
	d.err = err // run begins with it
	d.rate.pace(d.pair.flow.ctx, n)
}

// run copies until one side is done, tells the pair, and, where the pair lives
// on half-closed, watches src for a reset.
func (d *direction) run() {
	if d.err != nil {
		d.pair.cannotWrite(d.dst, d.err)
		return
	}
	readErr, writeErr := d.copy()
	switch {
	case writeErr != nil:
		d.pair.cannotWrite(d.dst, writeErr)
	case readErr != io.EOF:
		d.pair.cannotRead(d.src, readErr)
	case d.pair.sawEOF(d.src, d.dst):
		d.watchForReset()
	}
}

// copy moves bytes until reading or writing fails; a FIN is io.EOF of reading.
func (d *direction) copy() (readErr, writeErr error) {
	step := d.copyRaw
	if d.src.raw == nil {
		step = d.copyThrough
	}
	for {
		n, readErr, writeErr := step()
		if readErr != nil || writeErr != nil {
			return readErr, writeErr
		}
		d.rate.pace(d.pair.flow.ctx, n)
	}
}

// copyRaw waits for src, which is the kernel's, without a buffer and moves what
// a pooled one holds.
func (d *direction) copyRaw() (n int, readErr, writeErr error) {
	d.max = d.rate.chunk(bufferSize)
	if err := d.src.raw.Read(d.fill); err != nil {
		return 0, err, nil
	}
	if d.buf == nil {
		return 0, d.err, nil
	}
	n, writeErr = d.dst.conn.Write(d.buf[:d.n])
	d.moved.Add(int64(n))
	buffers.Put(d.buf)
	d.buf = nil
	return n, nil, writeErr
}

// fillBuffer is called by the poller when src may be readable. It leaves a
// buffer with n bytes in d.buf, or an error in d.err.
func (d *direction) fillBuffer(fd uintptr) bool {
	buf := buffers.Get().(*buffer)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), buf[:d.max]) })
	if n > 0 {
		d.buf, d.n = buf, n
		return true
	}
	buffers.Put(buf)
	if err == unix.EAGAIN {
		return false
	}
	d.err = orEOF(err)
	return true
}

// copyThrough moves bytes out of a connection that must be read by its own
// code.
func (d *direction) copyThrough() (n int, readErr, writeErr error) {
	room := d.small[:]
	if d.filled {
		big := buffers.Get().(*buffer)
		defer buffers.Put(big)
		room = big[:]
	}
	n, readErr = d.src.conn.Read(room[:d.rate.chunk(len(room))])
	d.filled = n == len(room)
	if n > 0 { // even with an error, which then counts after the bytes
		n, writeErr = d.dst.conn.Write(room[:n])
		d.moved.Add(int64(n))
	}
	return n, readErr, writeErr
}

// watchForReset waits, after src's FIN, for src to be reset or the pair to end:
// a client that is gone for good must not leave its backend talking to nobody.
func (d *direction) watchForReset() {
	if d.src.raw == nil {
		return // its code has no way to wait for that
	}
	d.watch = func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			d.err = unix.Errno(errno)
			return true
		}
		return false
	}
	if err := d.src.raw.Read(d.watch); err == nil {
		d.pair.cannotRead(d.src, d.err)
	}
}

// ignoringEINTR repeats f while a signal interrupts it.
func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// orEOF returns the error of a read that gave no bytes.
func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}
