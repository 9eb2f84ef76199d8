package l4

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/sluice/proxy/sniff"
)

const (
	// serverFirst is how long a client may be silent on a port that serves
	// HTTP and something else, before it is taken to wait for a server that
	// speaks first. It delays the first greeting of such servers by as much.
	serverFirst = 300 * time.Millisecond
	// undecided is how long a client may pause within its first few bytes
	// while they could still be TLS or HTTP. Those come in one segment from
	// all but the oddest of clients.
	undecided = time.Second
	// httpSilence is how long a client may be silent on a port that serves
	// only HTTP. Browsers open connections ahead of need.
	httpSilence = 30 * time.Second

	tlsHandshakeRecord = 22 // RFC 8446 section 5.1
)

// opening looks at what a client sends first. The bytes stay in the socket, so
// that whoever takes the connection on reads them there.
type opening struct {
	raw syscall.RawConn
	buf [sniff.MaxClassify]byte
	// n bytes of buf are filled; the first held of them came before the
	// socket's.
	n, held int
	err     error
}

// sniff tells what c speaks, given what was read from it already. An error
// means that it is not worth serving.
func (f *flow) sniff(c *net.TCPConn, peeked []byte) (sniff.Kind, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return sniff.Other, err
	}
	o := &opening{raw: raw}
	o.held = copy(o.buf[:], peeked)
	o.n = o.held
	defer c.SetReadDeadline(time.Time{})
	if f.mapping.Backend == nil {
		return f.sniffHTTP(c, o)
	}
	wait := time.Now().Add(serverFirst)
	for {
		kind := sniff.Classify(o.buf[:o.n])
		if kind != sniff.NeedMore || o.n == len(o.buf) {
			return kind, nil
		}
		c.SetReadDeadline(wait)
		switch err := o.more(); {
		case err == nil:
			wait = time.Now().Add(undecided)
		case errors.Is(err, os.ErrDeadlineExceeded), err == io.EOF:
			return sniff.Other, nil // whatever it is, it goes where bytes go untouched
		default:
			return sniff.Other, err
		}
	}
}

// sniffHTTP waits for the first byte on a port that has nothing but HTTP, and
// tells TLS from clear by it. What is neither is for the HTTP server to answer.
func (f *flow) sniffHTTP(c *net.TCPConn, o *opening) (sniff.Kind, error) {
	if o.n == 0 {
		f.awaitsFirstByte.Store(true)
		defer f.awaitsFirstByte.Store(false)
		if f.server.isDraining() { // and has perhaps looked at this flow already
			f.stop(drained, nil)
		}
		c.SetReadDeadline(time.Now().Add(httpSilence))
		if err := o.more(); err != nil {
			return sniff.Other, err
		}
	}
	if o.buf[0] == tlsHandshakeRecord {
		return sniff.TLS, nil
	}
	return sniff.HTTP, nil
}

// more waits until the client has sent more than is in buf.
func (o *opening) more() error {
	before := o.n
	err := o.raw.Read(func(fd uintptr) bool {
		n, err := ignoringEINTR(func() (int, error) {
			n, _, err := unix.Recvfrom(int(fd), o.buf[o.held:], unix.MSG_PEEK)
			return n, err
		})
		switch {
		case err == unix.EAGAIN:
			return false
		case err != nil || n == 0:
			o.err = orEOF(err)
			return true
		}
		o.n = o.held + n
		// Waking up without news is followed by waiting for the next segment;
		// a FIN behind bytes that were seen is news as well, but only the
		// deadline tells.
		return o.n > before
	})
	if err == nil {
		err = o.err
	}
	return err
}

// openingEnd returns why a connection ended that was never served.
func openingEnd(err error) end {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return idle
	case err == io.EOF:
		return clientClosed
	case isReset(err):
		return clientReset
	}
	return failed
}
