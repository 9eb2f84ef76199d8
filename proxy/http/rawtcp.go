package http

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawTCP reads and writes a TCP connection with one system call each, without
// telling the scheduler of it: the socket never blocks, so there is nothing to
// tell, and telling costs about as much as the rest of a small read. Deadlines
// and Close of the connection work as ever.
//
// There may be one reader and one writer at a time.
type rawTCP struct {
	tcp *net.TCPConn
	raw syscall.RawConn

	// What the callbacks below share with who waits for them: made once, since
	// a closure each time would be an allocation each time.
	readReady, writeReady, turnReady, answerReady func(fd uintptr) bool

	in      []byte
	lender  lender // of in; may be nil
	got     int
	readErr error

	out, more []byte // more goes behind out
	sent      int
	writeErr  error
	blocked   atomic.Int64 // since when the peer takes nothing, in nanoseconds since the epoch; 0: it does

	stage turnStage
	fresh bool

	meter meter // nil: nobody counts
	dry   bool  // Read gives nothing: TLS is to show what it has, see upConn.saidMore

	gather    io.Writer // gets what is written to conn; may be nil
	writeOnce func(fd uintptr) bool
}

// meter is told of what passes over a connection that is not the server's alone,
// and bounds how fast it does. It is called by one goroutine for each direction.
type meter interface {
	// Chunk returns how many bytes, of at most most, may move at once; more
	// than 0 where most is.
	Chunk(up bool, most int) int
	// Count is told that n bytes have moved. It does not wait.
	Count(up bool, n int)
	// Pace waits for as long as moving n bytes has to take.
	Pace(up bool, n int)
}

func newRawTCP(tcp *net.TCPConn) (*rawTCP, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &rawTCP{tcp: tcp, raw: raw}
	t.readReady, t.writeReady, t.turnReady, t.answerReady = t.tryRead, t.tryWrite, t.tryTurn, t.tryAnswer
	return t, nil
}

// conn returns the connection as crypto/tls wants it.
func (t *rawTCP) conn() net.Conn { return rawConn{t.tcp, t} }

type rawConn struct {
	*net.TCPConn
	raw *rawTCP
}

func (c rawConn) Read(p []byte) (int, error) { return c.raw.Read(p) }

func (c rawConn) Write(p []byte) (int, error) {
	if c.raw.gather != nil {
		return c.raw.gather.Write(p)
	}
	return c.raw.Write(p)
}

// recv and send are one system call each.
func recv(fd uintptr, p []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

func send(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// Read is io.Reader's; p must not be empty.
func (t *rawTCP) Read(p []byte) (int, error) {
	if t.dry {
		return 0, os.ErrDeadlineExceeded // which TLS takes for a pause, and not for the end
	}
	if len(p) == 0 {
		return 0, nil
	}
	t.in, t.lender = p, nil
	return t.read()
}

// lender lends a buffer to who has something to read.
type lender interface {
	lend() []byte
	takeBack() // nothing was read into it
}

// ReadLent reads into a buffer of l's, once there is something to read: who
// waits holds none.
func (t *rawTCP) ReadLent(l lender) (int, error) {
	t.in, t.lender = nil, l
	return t.read()
}

func (t *rawTCP) read() (int, error) {
	t.got, t.readErr = 0, nil
	err := t.raw.Read(t.readReady)
	t.in, t.lender = nil, nil
	if err == nil {
		err = t.readErr
	}
	if t.meter != nil {
		t.meter.Count(true, t.got)
		t.meter.Pace(true, t.got)
	}
	return t.got, err
}

func (t *rawTCP) tryRead(fd uintptr) bool {
	in := t.in
	if t.lender != nil {
		in = t.lender.lend()
	}
	if t.meter != nil {
		in = in[:t.meter.Chunk(true, len(in))]
	}
	n, errno := recv(fd, in, 0)
	switch {
	case errno == syscall.EAGAIN:
		if t.lender != nil {
			t.lender.takeBack()
		}
		return false
	case errno != 0:
		t.readErr = opError("read", errno)
	case n == 0:
		t.readErr = io.EOF
	default:
		t.got = n
	}
	return true
}

// Write is io.Writer's.
func (t *rawTCP) Write(p []byte) (int, error) { return t.Write2(p, nil) }

// Write2 writes p and then q, as one where that is possible.
func (t *rawTCP) Write2(p, q []byte) (sent int, err error) {
	if t.meter == nil {
		return t.write2(p, q)
	}
	for {
		most := t.meter.Chunk(false, len(p)+len(q))
		a := p[:min(len(p), most)]
		b := q[:min(len(q), most-len(a))]
		n, err := t.write2(a, b)
		sent += n
		t.meter.Count(false, n)
		t.meter.Pace(false, n)
		p, q = p[len(a):], q[len(b):]
		if err != nil || len(p)+len(q) == 0 {
			return sent, err
		}
	}
}

func (t *rawTCP) write2(p, q []byte) (int, error) {
	t.out, t.more, t.sent, t.writeErr = p, q, 0, nil
	err := t.raw.Write(t.writeReady)
	t.out, t.more = nil, nil
	if t.blocked.Load() != 0 {
		t.blocked.Store(0)
	}
	if err == nil {
		err = t.writeErr
	}
	return t.sent, err
}

// writeSome writes as much of p as can be written at once.
func (t *rawTCP) writeSome(p []byte) (int, error) {
	if t.writeOnce == nil {
		t.writeOnce = func(fd uintptr) bool {
			t.tryWrite(fd)
			return true
		}
	}
	t.out, t.more, t.sent, t.writeErr = p, nil, 0, nil
	err := t.raw.Write(t.writeOnce)
	t.out = nil
	if err == nil {
		err = t.writeErr
	}
	return t.sent, err
}

func (t *rawTCP) tryWrite(fd uintptr) bool {
	for len(t.out)+len(t.more) > 0 {
		n, errno := t.sendOnce(fd)
		if errno == syscall.EAGAIN {
			t.blocked.Store(time.Now().UnixNano())
			return false
		}
		if errno != 0 {
			t.writeErr = opError("write", errno)
			return true
		}
		t.sent += n
		k := min(n, len(t.out))
		t.out, t.more = t.out[k:], t.more[n-k:]
	}
	return true
}

func (t *rawTCP) sendOnce(fd uintptr) (int, syscall.Errno) {
	switch {
	case len(t.more) == 0:
		return send(fd, t.out)
	case len(t.out) == 0:
		return send(fd, t.more)
	}
	parts := [2]unix.Iovec{{Base: &t.out[0]}, {Base: &t.more[0]}}
	parts[0].SetLen(len(t.out))
	parts[1].SetLen(len(t.more))
	message := unix.Msghdr{Iov: &parts[0]}
	message.SetIovlen(len(parts))
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&message)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// blockedFor returns for how long the peer has taken nothing.
func (t *rawTCP) blockedFor(now time.Time) time.Duration {
	since := t.blocked.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(now.UnixNano() - since)
}

func opError(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, errno)}
}

// turnStage is how far a turn has come.
type turnStage uint8

const (
	turnBegins  turnStage = iota
	turnStale             // the peer had spoken or hung up: nothing was sent
	turnPartly            // not all could be sent at once
	turnAwaited           // all is sent
	turnOver
)

// turn writes out and reads the beginning of what comes back into in. fresh says
// that the connection has just been made; else whatever is there to be read
// beforehand, be it the end, makes it stale, and nothing is sent.
//
// It saves the read that would only learn that there is nothing yet: the peer
// speaks when it was spoken to, and the poller is told to listen before that.
func (t *rawTCP) turn(out, in []byte, fresh bool) (sent, got int, stage turnStage, err error) {
	t.out, t.sent, t.in, t.got = out, 0, in, 0
	t.stage, t.fresh, t.readErr = turnBegins, fresh, nil
	err = t.raw.Read(t.turnReady)
	t.out, t.in = nil, nil
	if err == nil {
		err = t.readErr
	}
	return t.sent, t.got, t.stage, err
}

func (t *rawTCP) tryTurn(fd uintptr) bool {
	if t.stage == turnBegins {
		return t.beginTurn(fd)
	}
	n, errno := recv(fd, t.in, 0)
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		t.readErr = opError("read", errno)
	case n == 0:
		t.readErr = io.EOF
	}
	t.got, t.stage = max(n, 0), turnOver
	return true
}

// beginTurn sends. It returns true where the turn is not to be waited for.
func (t *rawTCP) beginTurn(fd uintptr) bool {
	if !t.fresh {
		if _, errno := recv(fd, t.in[:1], unix.MSG_PEEK); errno != syscall.EAGAIN {
			t.stage = turnStale
			return true
		}
	}
	n, errno := send(fd, t.out)
	switch {
	case errno == syscall.EAGAIN:
		n = 0
	case errno != 0:
		t.readErr = opError("write", errno)
		return true
	}
	t.sent = n
	if n < len(t.out) {
		t.stage = turnPartly
		return true
	}
	t.stage = turnAwaited
	// A backend that speaks first has perhaps spoken before the poller listened.
	return t.fresh && t.tryTurn(fd)
}

// answer writes out, has l take back what it lent, and reads what comes next into
// a buffer of l's. It saves the read that would mostly learn that there is
// nothing yet: a peer that has sent something before it was answered, or has
// hung up, may go unnoticed, and the caller looks again some time later, by a
// read deadline in the past. sent is less than all of out where that could not
// be sent at once; then nothing is read or taken back.
func (t *rawTCP) answer(out []byte, l lender) (sent, got int, err error) {
	if t.meter != nil {
		out = out[:t.meter.Chunk(false, len(out))]
	}
	t.out, t.sent, t.got, t.lender = out, 0, 0, l
	t.stage, t.readErr = turnBegins, nil
	err = t.raw.Read(t.answerReady)
	t.out, t.lender = nil, nil
	if err == nil {
		err = t.readErr
	}
	if t.meter != nil {
		t.meter.Pace(false, t.sent)
		t.meter.Count(true, t.got)
		t.meter.Pace(true, t.got)
	}
	return t.sent, t.got, err
}

func (t *rawTCP) tryAnswer(fd uintptr) bool {
	if t.stage != turnBegins {
		return t.tryRead(fd)
	}
	n, errno := send(fd, t.out)
	switch {
	case errno == syscall.EAGAIN:
		return true
	case errno != 0:
		t.readErr = opError("write", errno)
		return true
	}
	t.sent = n
	if t.meter != nil {
		t.meter.Count(false, n)
	}
	if n < len(t.out) {
		return true
	}
	t.stage, t.out = turnAwaited, nil
	t.lender.takeBack()
	return false
}

// isStale reports whether a connection on which nothing is expected has
// something to read, or has ended.
func (t *rawTCP) isStale() bool {
	stale := true
	var one [1]byte
	err := t.raw.Control(func(fd uintptr) {
		_, errno := recv(fd, one[:], unix.MSG_PEEK)
		stale = errno != syscall.EAGAIN
	})
	return stale || err != nil
}
