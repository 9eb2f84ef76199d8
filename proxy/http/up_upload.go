package http

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

// upload sends a request's body to the backend while the response is waited for
// and read. The zero value has nothing to send.
type upload struct {
	c       *call
	size    int64
	done    chan struct{} // closed when it is over; nil: there is none
	taken   atomic.Bool   // all of it has come from the client
	sent    bool          // all of it; written before done is closed
	stopped atomic.Bool
}

// start begins to send the body of c's request.
func (u *upload) start(c *call) {
	u.c, u.size, u.done = c, c.x.body.size(), make(chan struct{})
	go u.run()
}

// lastWrite is how long the end of an upload may take once the backend has
// answered: what is left of it is mostly a system call about to return.
const lastWrite = 100 * time.Millisecond

// finish waits for the upload to be over, having stopped it if it is not. It
// reports whether all has been sent and the connection is still good.
func (u *upload) finish() bool {
	if u.done == nil {
		return true
	}
	if !u.isOver() {
		u.stopped.Store(true)
		u.c.x.body.stop()
		u.c.u.interrupt()
		<-u.done
		return false
	}
	return u.sent
}

func (u *upload) isOver() bool {
	select {
	case <-u.done:
		return true
	default:
	}
	if !u.taken.Load() {
		return false
	}
	patience := time.NewTimer(lastWrite)
	defer patience.Stop()
	select {
	case <-u.done:
		return true
	case <-patience.C:
		return false
	}
}

func (u *upload) run() {
	defer close(u.done)
	c := u.c
	err := u.copy()
	if err == nil {
		u.sent = true
		if limit := c.x.hop.first; limit > 0 {
			c.x.life.expectHead(limit)
		}
		return
	}
	if errors.Is(err, errUploadRead) && !u.stopped.Load() {
		c.u.interrupt() // nothing can come of the exchange any more
	}
}

// errUploadRead marks a failure to read the body, as opposed to sending it.
var errUploadRead = errors.New("the client's body broke off")

// The room for a chunk's size in front of its content, and for its end behind.
const (
	sizeRoom = 8
	endRoom  = 2
)

// copy sends the body. A backend that takes no more of it may have answered: that
// is for who reads the response to find out.
func (u *upload) copy() error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	b, body := *buf, u.c.x.body
	for total := int64(0); ; {
		n, err := body.Read(b[sizeRoom : len(b)-endRoom])
		total += int64(n)
		if err == io.EOF || total == u.size {
			u.taken.Store(true)
		}
		if n > 0 {
			if _, err := u.c.u.Write(u.frame(b, n)); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF && u.size < 0:
			_, err := u.c.u.Write(h1.AppendLastChunk(b[:0], u.c.x.allowedTrailer(body.trailer())))
			return err
		case err == io.EOF && total != u.size:
			return errUploadRead
		case err == io.EOF, err == nil && total == u.size:
			return nil
		case err != nil:
			return errUploadRead
		}
	}
}

// frame returns the n bytes that were read into b as they are sent.
func (u *upload) frame(b []byte, n int) []byte {
	if u.size >= 0 {
		return b[sizeRoom : sizeRoom+n]
	}
	var size [sizeRoom]byte
	line := h1.AppendChunkSize(size[:0], n)
	begin := sizeRoom - len(line)
	copy(b[begin:], line)
	return append(b[begin:sizeRoom+n], '\r', '\n')
}

// allowedTrailer takes out of a request's trailer what the backend must not take
// for the node's word: some put trailers and heads together.
func (x *exchange) allowedTrailer(t *field.List) *field.List {
	if t != nil {
		t.DelFunc(func(l *field.Line) bool { return !field.MayTrail(l.Name) || isForwarding(l) || x.speaksFor(l.Name) })
	}
	return t
}

// speaksFor reports whether a request field has the node say what is in it, and
// nobody else: by forward_auth or by the route's edits.
func (x *exchange) speaksFor(name string) bool {
	if g := x.grant; g != nil {
		for _, own := range g.names {
			if likeName(name, own) {
				return true
			}
		}
	}
	r := x.hop.route
	if r == nil {
		return false
	}
	for own := range r.RequestHeaders.Set {
		if field.EqualFold(name, own) {
			return true
		}
	}
	return containsFold(r.RequestHeaders.Remove, name)
}
