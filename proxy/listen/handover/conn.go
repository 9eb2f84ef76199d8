// Package handover carries messages and open files between two processes of
// which one takes over from the other.
//
// A Conn is one end of a pair of sockets of type SOCK_SEQPACKET, which keeps
// messages apart: each is JSON of a kind, with up to MaxFiles files (SCM_RIGHTS,
// unix(7)). What is said, and in which order, is the business of cmd/sluice; the
// package knows neither sockets nor flows.
//
// Whoever has the other end is the same program of the same user, perhaps of
// another version: what comes is checked for form, and unknown members are passed
// over.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxFiles is how many files one message may carry: the kernel takes 253.
	MaxFiles = 250
	// MaxMessage bounds the size of a message, in bytes.
	MaxMessage = 128 << 10
)

// ErrTooLong says that a message is longer than MaxMessage.
var ErrTooLong = fmt.Errorf("too many bytes for one message, which takes %d", MaxMessage)

// Conn is one end. One goroutine may send while another one receives.
type Conn struct{ unix *net.UnixConn }

// Message is what was received.
type Message struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Into decodes the body of m into to.
func (m *Message) Into(to any) error {
	if err := json.Unmarshal(m.Body, to); err != nil {
		return fmt.Errorf("read the message %q of the other process: %w", m.Kind, err)
	}
	return nil
}

// Pair returns both ends: ours, and the other one as a file for a process to
// come, which the caller closes once that is started.
func Pair() (ours *Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "the other end")
	if ours, err = FromFile(os.NewFile(uintptr(fds[0]), "our end")); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// FromFile makes a Conn of an end, which it closes.
func FromFile(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take the connection to the other process: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("take the connection to the other process: it is not one of unix(7)")
	}
	raw, err := u.SyscallConn()
	if err == nil {
		// The messages of some batches of files are to have room.
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 4*MaxMessage) })
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	return &Conn{u}, nil
}

// File returns another descriptor of the end, for a third process to take it over.
func (c *Conn) File() (*os.File, error) { return c.unix.File() }

// Close closes the end.
func (c *Conn) Close() error { return c.unix.Close() }

// Gone reports whether nobody has the other end any more.
func (c *Conn) Gone() bool {
	gone := true // where our end is closed
	raw, err := c.unix.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(poll, 0)
			gone = err == nil && poll[0].Revents&unix.POLLHUP != 0
		})
	}
	return gone
}

// SetDeadline bounds what is sent and received from here on; zero: it does not.
func (c *Conn) SetDeadline(t time.Time) error { return c.unix.SetDeadline(t) }

// tooMany is how long to wait, each time, while more files are on their way
// than the user may have open.
const tooMany = time.Millisecond

// Send sends a message with files, MaxFiles at most, which stay the caller's. body
// is nil or something that JSON can be made of.
func (c *Conn) Send(kind string, body any, files ...*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("send %q: %d files are too many for one message, which takes %d", kind, len(files), MaxFiles)
	}
	m := Message{Kind: kind}
	var err error
	if body != nil {
		if m.Body, err = json.Marshal(body); err != nil {
			return fmt.Errorf("send %q: %w", kind, err)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send %q: %w", kind, err)
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("send %q, %d bytes: %w", kind, len(b), ErrTooLong)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	for {
		_, _, err = c.unix.WriteMsgUnix(b, rights, nil)
		if !errors.Is(err, syscall.ETOOMANYREFS) {
			break
		}
		time.Sleep(tooMany) // the other end takes them meanwhile, or closes
	}
	if err != nil {
		return fmt.Errorf("send %q to the other process: %w", kind, err)
	}
	return nil
}

// Receive waits for the next message. The files are the caller's. io.EOF says that
// the other end is closed.
func (c *Conn) Receive() (m Message, files []*os.File, err error) {
	b := make([]byte, MaxMessage)
	oob := make([]byte, unix.CmsgSpace(4*(MaxFiles+3)))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(b, oob)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || err == nil && n == 0 {
		return m, nil, io.EOF
	}
	if err != nil {
		return m, nil, fmt.Errorf("hear from the other process: %w", err)
	}
	files, err = filesOf(oob[:oobn])
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("hear from the other process: a message was cut off; too few files may be open, or it is too long")
	default:
		if err = json.Unmarshal(b[:n], &m); err != nil {
			err = fmt.Errorf("hear from the other process: %w", err)
		}
	}
	if err != nil {
		CloseAll(files)
		return m, nil, err
	}
	return m, files, nil
}

// filesOf returns the files in control messages.
func filesOf(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("hear from the other process: read its files: %w", err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // something else
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
