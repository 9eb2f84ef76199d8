package http

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h3"
)

// maxIdleFrames is how many frames without content a request may have in a row,
// unknown ones included.
const maxIdleFrames = 64

// h3Stream is a request over HTTP/3 and its answer. It is of one goroutine, but
// for the body, which another may read.
type h3Stream struct {
	c      *h3Conn
	stream *quic.Stream
	x      exchange
	req    h3.Request
	body   h3Body
	down   h3Down
	owe    func(time.Duration)
	cut    func(time.Duration) // life.cut, the same

	in   []byte // of the client, what is not used up is in[r:w]
	r, w int
	// floor is where in begins to be free to be read into once more: in front of
	// it lies the head.
	floor int
	fin   bool  // the client has said all
	idle  int   // frames without content in a row
	fail  error // of reading, met once

	before, after *h3Stream           // in c.streams; guarded, as what follows, by c.mu
	phase         h1Phase             // phaseHead or phaseExchange
	since         time.Time           // of the phase
	firstBy       time.Time           // when a response head is due; zero: never
	unwatch       func() (still bool) // ends the watch for the client's leaving
	told          chan struct{}       // closed when it has given up the exchange
}

var h3Streams = sync.Pool{New: func() any {
	s := &h3Stream{in: make([]byte, requestBuffer)}
	s.owe, s.cut = s.oweHead, s.cutWrite
	s.down.out = make([]byte, 0, responseBuffer)
	return s
}}

// serve serves one request.
func (c *h3Conn) serve(stream *quic.Stream) {
	defer c.work.Done()
	s := h3Streams.Get().(*h3Stream)
	s.c, s.stream = c, stream
	s.run()
	s.release()
}

func (s *h3Stream) run() {
	if !s.c.enter(s, time.Now()) {
		return
	}
	defer s.c.leave(s)
	err := s.readHead()
	if err == nil && s.c.conn.begin() {
		s.exchange()
		s.c.conn.end()
		return
	}
	s.refuse(err)
}

// release makes s ready for another request.
func (s *h3Stream) release() {
	s.c, s.stream, s.fin, s.idle, s.fail, s.r, s.w, s.floor = nil, nil, false, 0, nil, 0, 0, 0
	poison(s.req.Section().Text())
	s.req.Section().Trim()
	s.req.Reset()
	poison(s.in)
	if len(s.in) != requestBuffer {
		s.in = make([]byte, requestBuffer)
	}
	s.body.release()
	h3Streams.Put(s)
}

// refuse ends a request that is none, and the connection where it must. What has
// too many fields is told so.
func (s *h3Stream) refuse(err error) {
	var wrong *h3.Error
	switch {
	case err == nil: // the connection is over
		s.reset(h3.RequestRejected)
	case err == h3.ErrTooLarge:
		s.down.reset(s)
		s.down.fields.AddID(field.ContentLength, "0")
		s.down.out = h3.AppendHead(s.down.out[:0], http.StatusRequestHeaderFieldsTooLarge, &s.down.fields)
		s.stream.CancelRead(quic.StreamErrorCode(h3.ExcessiveLoad))
		s.stream.Write(s.down.out)
		s.stream.Close()
	case !errors.As(err, &wrong):
		s.took(err)
		s.reset(h3.RequestIncomplete)
	case wrong.Conn:
		s.c.fail(wrong)
	default:
		s.c.conn.server.cfg.Logger.Debug("refused a request", "listener", s.c.conn.info.Port,
			"client", s.c.conn.info.Client.String(), "err", wrong)
		s.reset(wrong.Code)
	}
}

// reset ends the stream both ways.
func (s *h3Stream) reset(code h3.Code) {
	s.stream.CancelRead(quic.StreamErrorCode(code))
	s.stream.CancelWrite(quic.StreamErrorCode(code))
}

// took counts a request that the client took back.
func (s *h3Stream) took(err error) {
	var cancelled *quic.StreamError
	if errors.As(err, &cancelled) && cancelled.Remote && !s.c.resets.spend() {
		s.c.fail(errResetFlood)
	}
}

// readHead reads frames up to the request's head, and that.
func (s *h3Stream) readHead() error {
	limit := s.c.conn.server.cfg.Limits.HeadBytes
	for {
		frame, length, err := s.frame()
		switch {
		case err == io.EOF:
			return errNoRequest
		case err != nil:
			return err
		case frame == h3.FrameHeaders:
			content, err := s.section(length, limit)
			if err != nil {
				return err
			}
			return s.req.Parse(content, limit)
		default:
			if err := s.pass(frame, length); err != nil {
				return err
			}
		}
	}
}

var (
	errNoRequest    = &h3.Error{Code: h3.RequestIncomplete, What: "the stream ends without a request"}
	errFrameCut     = connError(h3.FrameError, "a stream ends within a frame")
	errRequestFrame = connError(h3.FrameUnexpected, "a frame has no place there on a request's stream")
	errIdleFrames   = connError(h3.ExcessiveLoad, "a request has too many frames without content")
)

// sideRoom is what is left behind a head to read what comes between the contents
// of frames.
const sideRoom = 64

// section returns the content of a HEADERS frame, which stays in s.in until the
// request is over.
func (s *h3Stream) section(length uint64, limit int) ([]byte, error) {
	if length > uint64(limit) {
		return nil, h3.ErrTooLarge
	}
	n := int(length)
	if s.r+n+sideRoom > len(s.in) {
		into := s.in
		if n+sideRoom > len(s.in) {
			into = make([]byte, n+requestBuffer)
		}
		s.r, s.w, s.in = 0, copy(into, s.in[s.r:s.w]), into
	}
	for s.w-s.r < n {
		if err := s.more(); err != nil {
			return nil, cutFrame(err)
		}
	}
	s.r += n
	s.floor = s.r
	return s.in[s.r-n : s.r : s.r], nil
}

// cutFrame makes an end within a frame the error that it is.
func cutFrame(err error) error {
	if err == io.EOF {
		return errFrameCut
	}
	return err
}

// frame reads type and length of the next frame; io.EOF where the stream ends
// instead.
func (s *h3Stream) frame() (frame, length uint64, err error) {
	for {
		frame, length, n := h3.FrameHeader(s.in[s.r:s.w])
		if n > 0 {
			s.r += n
			return frame, length, nil
		}
		had := s.w > s.r
		if s.w+h3.MaxFrameHeader > len(s.in) {
			s.w = s.floor + copy(s.in[s.floor:], s.in[s.r:s.w])
			s.r = s.floor
		}
		if err := s.more(); err != nil {
			if had {
				err = cutFrame(err)
			}
			return 0, 0, err
		}
	}
}

// more reads what the client has sent next.
func (s *h3Stream) more() error {
	if s.fin {
		return io.EOF
	}
	if s.fail != nil {
		return s.fail
	}
	n, err := s.stream.Read(s.in[s.w:])
	s.w += n
	switch {
	case err == io.EOF:
		s.fin = true
	case err != nil:
		s.fail = err
	}
	if n > 0 {
		return nil
	}
	return err
}

// pass passes over a frame that means nothing where it stands.
func (s *h3Stream) pass(frame, length uint64) error {
	if h3.IsKnown(frame) || h3.IsReserved(frame) {
		return errRequestFrame
	}
	if s.idle++; s.idle > maxIdleFrames {
		return errIdleFrames
	}
	for length > 0 {
		if s.r == s.w {
			s.r, s.w = s.floor, s.floor
			if err := s.more(); err != nil {
				return cutFrame(err)
			}
		}
		n := min(length, uint64(s.w-s.r))
		s.r += int(n)
		length -= n
	}
	return nil
}

// exchange makes an exchange of the request and has it answered.
func (s *h3Stream) exchange() {
	x, c, now := &s.x, s.c, time.Now()
	x.reset()
	x.conn, x.client, x.body, x.down, x.began = c.conn, c.conn.info.Client, &s.body, &s.down, now
	if at := addrPort(c.qc.RemoteAddr()); at.IsValid() { // QUIC clients can move
		x.client = at
	}
	x.life.owe, x.life.cut = s.owe, s.cut
	x.req.method, x.req.authority, x.req.header = s.req.Method, s.req.Authority, &s.req.Fields
	x.req.target, _ = parseTarget(s.req.Path)
	x.req.early = c.early()
	s.down.websocket.reset()
	s.down.websocket.ask(x, s.req.Protocol)
	s.body.reset(s)
	s.down.reset(s)
	if err := s.probe(); err != nil {
		s.refuse(err)
		return
	}
	s.begin(now)
	c.conn.server.serve(x)
	s.down.conclude()
}

// probe finds out whether a request of a kind that has mostly no body has one: in
// HTTP/3 only the stream's end tells. An HTTP/1.1 backend would get an empty
// chunked body otherwise, which some refuse. A client that leaves it open has as
// long as for a head.
func (s *h3Stream) probe() error {
	b := &s.body
	switch {
	case b.content != nil, s.down.websocket.asked:
		return nil
	case s.r < s.w && s.req.Length == 0:
	case s.fin && s.r == s.w, s.req.Length != h3.NoLength, !mostlyEmpty(s.req.Method):
		return nil
	}
	if err := b.next(); err != io.EOF {
		return err
	}
	b.length = 0
	b.complete.Store(true)
	return nil
}

// mostlyEmpty reports whether requests with a method have mostly no body.
func mostlyEmpty(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "DELETE":
		return true
	}
	return false
}

// begin says that the request's head is there, and an exchange under way.
func (s *h3Stream) begin(now time.Time) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.phase, s.since = phaseExchange, now
	if s.c.ended {
		s.x.life.abandon(errClientLeft)
		return
	}
	s.c.arm(now.Add(watchAfter), now) // the timer may wait for the head's end, which is far off
}

// cutWrite is life.cut.
func (s *h3Stream) cutWrite(time.Duration) {
	if s.down.stalled(time.Now()) > 0 {
		s.stream.CancelWrite(quic.StreamErrorCode(h3.RequestCancelled))
	}
}

// oweHead is life.owe.
func (s *h3Stream) oweHead(limit time.Duration) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if limit == 0 || s.phase != phaseExchange {
		s.firstBy = time.Time{}
		return
	}
	now := time.Now()
	s.firstBy = now.Add(limit)
	if !s.c.ended {
		s.c.arm(s.firstBy, now)
	}
}

// look does what is due on s and returns when to look again. c.mu is held.
func (s *h3Stream) look(now time.Time) time.Time {
	limits := &s.c.conn.server.cfg.Limits
	if s.phase == phaseHead {
		end := s.since.Add(limits.Head)
		if now.Before(end) {
			return end
		}
		s.stream.CancelRead(quic.StreamErrorCode(h3.RequestIncomplete))
		return now.Add(limits.Head)
	}
	begin := s.since.Add(watchAfter)
	if now.Before(begin) {
		return begin
	}
	if s.unwatch == nil {
		s.watchLeaving()
	}
	again := now.Add(limits.Idle / 4)
	if !s.firstBy.IsZero() {
		if !now.Before(s.firstBy) {
			s.firstBy = time.Time{}
			s.x.life.tooSlow()
		} else if s.firstBy.Before(again) {
			again = s.firstBy
		}
	}
	if s.down.stalled(now) >= limits.Idle {
		s.x.life.abandon(errTakesNothing)
		s.stream.CancelWrite(quic.StreamErrorCode(h3.RequestCancelled))
	}
	return again
}

// watchLeaving has the exchange given up when the client wants no answer any
// more. Most are over before there is a need for it. c.mu is held.
func (s *h3Stream) watchLeaving() {
	x, ctx, told := &s.x, s.stream.Context(), make(chan struct{})
	s.told = told
	s.unwatch = context.AfterFunc(ctx, func() {
		defer close(told)
		if err := context.Cause(ctx); !errors.Is(err, quic.ErrStreamClosed) {
			x.life.abandon(err)
		}
	})
}
