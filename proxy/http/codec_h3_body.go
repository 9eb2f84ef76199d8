package http

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h3"
)

// h3Body is the body of a request over HTTP/3.
type h3Body struct {
	s        *h3Stream
	length   int64  // h3.NoLength: not known
	got      int64  // of it, read or in the frame begun
	left     int64  // of the frame begun
	expect   bool   // the client waits for 100 (Continue)
	promised string // names of trailer fields

	content []byte // all of it, where it came with the head
	at      int    // of content, what was read

	trailing bool // the trailer has come
	fields   h3.Trailer

	complete atomic.Bool // all of it has been read
	stopped  atomic.Bool

	mu  sync.Mutex // guards the following fields
	err error      // of reading from the client
}

func (b *h3Body) reset(s *h3Stream) {
	b.s, b.length, b.got, b.left, b.at = s, s.req.Length, 0, 0, 0
	b.expect = field.EqualFold(s.req.Fields.GetID(field.Expect), "100-continue")
	b.promised = s.req.Fields.GetID(field.Trailer) // which the backend does not get as it is
	b.content, b.trailing, b.err = nil, false, nil
	lower(&b.stopped)
	lower(&b.complete)
	switch {
	case s.down.websocket.asked: // what comes is not the request's
		b.length = 0
	case s.req.Protocol == "":
		b.takeWhole()
	}
	if b.length == 0 {
		b.complete.Store(true)
	}
}

// tunnel has the rest of the stream be read as the content of a connection.
func (b *h3Body) tunnel() {
	b.length, b.got = h3.NoLength, 0
	b.complete.Store(false)
}

// takeWhole takes a body that has come with the head in one frame, or none.
func (b *h3Body) takeWhole() {
	s := b.s
	rest := s.in[s.r:s.w]
	if len(rest) == 0 {
		if b.length == h3.NoLength && s.fin {
			b.length = 0
		}
		return
	}
	frame, length, n := h3.FrameHeader(rest)
	if n == 0 || frame != h3.FrameData || length != uint64(len(rest)-n) || length == 0 {
		return
	}
	if b.length != int64(length) && (b.length != h3.NoLength || !s.fin) {
		return
	}
	b.content, b.length, b.got = rest[n:], int64(length), int64(length)
	s.r = s.w
}

// release lets go of what the body held.
func (b *h3Body) release() {
	b.s, b.content = nil, nil
	if b.trailing {
		b.fields = h3.Trailer{}
	}
}

func (b *h3Body) size() int64 { return b.length }

func (b *h3Body) announced() string { return b.promised }

func (b *h3Body) atHand() ([]byte, bool) {
	if b.content != nil {
		b.complete.Store(true)
	}
	return b.content, b.length == 0 || b.content != nil
}

// Read is called by one goroutine at a time.
func (b *h3Body) Read(p []byte) (n int, err error) {
	switch {
	case b.content != nil && b.at < len(b.content):
		n = copy(p, b.content[b.at:])
		b.at += n
		b.complete.Store(b.at == len(b.content))
		return n, nil
	case b.complete.Load():
		return 0, io.EOF
	case b.stopped.Load():
		return 0, errBodyOver
	}
	if b.expect {
		b.expect = false
		if b.s.r == b.s.w { // else the client did not wait
			b.s.down.inform(100, nil)
		}
	}
	n, err = b.read(p)
	b.s.x.bytes.up.Add(int64(n))
	switch {
	case err == io.EOF:
		b.complete.Store(true)
	case err != nil:
		b.failed(err)
	}
	return n, err
}

func (b *h3Body) read(p []byte) (n int, err error) {
	s := b.s
	for b.left == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if s.r < s.w {
		n = copy(p, s.in[s.r:s.w])
		s.r += n
	} else if n, err = b.receive(p); n == 0 {
		return 0, cutFrame(err)
	}
	b.left -= int64(n)
	if b.left == 0 && b.got == b.length {
		// Who knows the length does not ask again. Where what has come on top
		// makes the request malformed, the last of it is kept back.
		if s.r < s.w {
			if err := b.next(); err != io.EOF {
				return 0, err
			}
		}
		return n, io.EOF
	}
	return n, nil
}

// receive reads content past the stream's buffer.
func (b *h3Body) receive(p []byte) (int, error) {
	s := b.s
	if s.fin || s.fail != nil {
		return 0, s.more()
	}
	n, err := s.stream.Read(p)
	switch {
	case err == io.EOF:
		s.fin = true
	case err != nil:
		s.fail = err
	}
	if n > 0 {
		return n, nil
	}
	return 0, err
}

var (
	errBodyLong  = &h3.Error{Code: h3.MessageError, What: "the body is longer than Content-Length says"}
	errBodyShort = &h3.Error{Code: h3.MessageError, What: "the body is shorter than Content-Length says"}
)

// next goes on to the next frame of the body; io.EOF where there is none.
func (b *h3Body) next() error {
	s := b.s
	for {
		frame, length, err := s.frame()
		switch {
		case err == io.EOF && b.length >= 0 && b.got != b.length:
			return errBodyShort
		case err != nil:
			return err
		case b.trailing && h3.IsKnown(frame):
			return errRequestFrame
		case frame == h3.FrameData:
			if b.length >= 0 && length > uint64(b.length-b.got) {
				return errBodyLong
			}
			if b.left = int64(length); b.left == 0 {
				if s.idle++; s.idle > maxIdleFrames {
					return errIdleFrames
				}
				continue
			}
			b.got += b.left
			s.idle = 0
			return nil
		case frame == h3.FrameHeaders:
			if err := b.readTrailer(length); err != nil {
				return err
			}
		default:
			if err := s.pass(frame, length); err != nil {
				return err
			}
		}
	}
}

// readTrailer reads the trailer section. Its strings lie in a buffer of its own.
func (b *h3Body) readTrailer(length uint64) error {
	s, limit := b.s, b.s.c.conn.server.cfg.Limits.HeadBytes
	if length > uint64(limit) {
		return h3.ErrTooLarge
	}
	content := make([]byte, length)
	for got := 0; got < len(content); {
		n := copy(content[got:], s.in[s.r:s.w])
		s.r += n
		if n == 0 {
			var err error
			if n, err = b.receive(content[got:]); n == 0 {
				return cutFrame(err)
			}
		}
		got += n
	}
	b.trailing = true
	return b.fields.Parse(content, limit)
}

func (b *h3Body) trailer() *field.List {
	if !b.trailing || b.fields.Fields.Len() == 0 {
		return nil
	}
	return &b.fields.Fields
}

// failed notes how reading failed, unless it was the exchange's end that did it.
func (b *h3Body) failed(err error) {
	if b.stopped.Load() {
		return
	}
	var wrong *h3.Error
	if errors.As(err, &wrong) {
		if wrong.Conn {
			b.s.c.fail(wrong)
		} else {
			b.s.stream.CancelRead(quic.StreamErrorCode(wrong.Code))
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *h3Body) failure() *failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	var wrong *h3.Error
	switch {
	case b.err == nil:
		return nil
	case errors.As(b.err, &wrong):
		return &failure{class: endClientBody, status: 400, say: "the request's body is not well formed\n", err: b.err}
	}
	return &failure{class: endClientGone, status: statusClientGone, err: b.err}
}

// malformed returns the code that the stream must end by, if the body has one.
func (b *h3Body) malformed() (h3.Code, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var wrong *h3.Error
	if errors.As(b.err, &wrong) {
		return wrong.Code, true
	}
	return 0, false
}

// stop has a Read under way return soon, and those after it fail.
func (b *h3Body) stop() {
	if !b.complete.Load() && !b.stopped.Swap(true) {
		b.s.stream.CancelRead(quic.StreamErrorCode(h3.NoError))
	}
}

// finish reads what has come behind a body of known length: its end, mostly. It
// waits for nothing that is still to be sent.
func (b *h3Body) finish() error {
	s := b.s
	switch {
	case s.fin && s.r == s.w:
		return nil
	case b.left > 0 || b.got != b.length:
		return errBodyOver
	case !s.fin:
		var size atomic.Int64
		s.stream.SetReceiveFinalSizeCallback(size.Store)
		if size.Load() == 0 {
			return errBodyOver
		}
		s.stream.SetReadDeadline(time.Now().Add(lastWrite))
	}
	if err := b.next(); err != io.EOF {
		return err
	}
	return nil
}
