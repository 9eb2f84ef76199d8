package http

import (
	"errors"
	"io"
	"slices"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

const (
	// A stream begins with the window that HTTP/2 gives it, in bytes, which bounds
	// what is kept of a response that the client does not take. Where it is the
	// window that a response waits for, it gets a larger one, as far as all
	// streams together stay within maxH2Grown.
	maxH2Window = 512 << 10
	maxH2Grown  = 64 << 20
)

// h2Stream is an exchange on an h2Conn. It begins with open and ends with close;
// the goroutine that reads from the connection fills it in between. The zero
// value needs its channels.
type h2Stream struct {
	c    *h2Conn
	came chan struct{} // told when something has come; has room for one
	room chan struct{} // told when more can be sent; has room for one

	// All else is guarded by c.mu.
	id  uint32
	err error // how the stream has failed

	fresh bool // no response had come on the connection before

	hints    []h2.Head // informational heads that nobody has taken
	informed int
	head     h2.Head // of the response
	headed   bool
	bodiless bool // there is no content, whatever Content-Length says
	toHead   bool // the request is a HEAD
	trail    *h2.Head
	ended    bool // the response is whole
	length   int64
	got      int64
	parts    []part     // of the body, which nobody has taken
	first    int        // the first of them
	window   int        // what the backend may send, in bytes
	full     int        // how large the window is when all that came was taken
	taken    int        // of what came, since the window was last widened
	grown    int        // of full, beyond the window that everybody has
	marked   bool       // is in c.woken
	allowed  int        // what may be sent, in bytes
	queued   *h2Waiters // that it is in
	sentEnd  bool
	noMore   bool // nothing is to be sent any more
	reset    bool // RST_STREAM was sent
}

// part is a part of a body, in one of copyBuffers.
type part struct {
	buf *[]byte
	n   int
}

func (p part) bytes() []byte { return (*p.buf)[:p.n] }

var (
	errSendOver  = errors.New("the request's body is not wanted any more")
	errGivenUp   = errors.New("the exchange was given up")
	errTwoBodies = "the response has content that it must not have"
)

// open sends a request on s.c, where a slot was reserved: its head and, where end
// says that this is its whole body and windows have room for it, content. sent is
// whether they had.
func (s *h2Stream) open(head, content []byte, end bool) (sent bool, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.window, s.full, s.length = h2.InitialWindow, h2.InitialWindow, -1
	for len(c.out) > maxH2Out && s.isOver() == nil {
		c.await(s, &c.crowded)
	}
	if s.err != nil {
		return false, s.err
	}
	if c.err != nil && !c.greeted {
		return false, c.err // who does not speak HTTP/2 will not on another connection either
	}
	if c.err != nil || c.leaving {
		return false, errUnopened
	}
	s.id, s.allowed, s.fresh = c.next, int(c.settings.InitialWindow), !c.used
	if c.next += 2; c.next > h2.MaxStream { // identifiers are used up
		c.leaving = true
		c.roomy.Store(false)
	}
	c.streams[s.id] = s
	c.earn()
	fits := !end || len(content) <= min(s.allowed, c.allowed)
	start := len(c.out)
	c.out = h2.BeginHeaders(c.out)
	if !c.tabled {
		c.tabled = true
		c.out = append(c.out, hpackNoTable)
	}
	s.sentEnd = end && len(content) == 0
	c.out = h2.EndHeaders(append(c.out, head...), start, s.id, s.sentEnd)
	if end && fits && !s.sentEnd {
		s.append(content, true)
	}
	c.flush()
	return fits, nil
}

// isOver returns why nothing more is to be sent, or nil.
func (s *h2Stream) isOver() error {
	switch {
	case s.err != nil:
		return s.err
	case s.c.err != nil:
		return s.c.err
	case s.noMore:
		return errSendOver
	}
	return nil
}

// append writes p as DATA; windows have room for it. c.mu is held.
func (s *h2Stream) append(p []byte, end bool) {
	c := s.c
	s.allowed -= len(p)
	c.allowed -= len(p)
	for {
		n := min(len(p), h2.MaxFrame)
		c.out = h2.AppendData(c.out, s.id, p[:n], end && n == len(p))
		c.earn()
		if p = p[n:]; len(p) == 0 {
			s.sentEnd = s.sentEnd || end
			return
		}
	}
}

// send sends a part of the body, as far as windows allow, and waits for them.
func (s *h2Stream) send(p []byte, end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := s.isOver(); err != nil {
			return err
		}
		// A backend can take back more of a window than is left of it.
		n := max(0, min(len(p), s.allowed, c.allowed))
		switch {
		case len(c.out) >= maxH2Out:
			c.await(s, &c.crowded)
			continue
		case len(p) == 0 || n > 0:
		case s.allowed <= 0:
			c.await(s, nil)
			continue
		default:
			c.await(s, &c.starved)
			continue
		}
		s.append(p[:n], end && n == len(p))
		if p = p[n:]; len(p) == 0 {
			c.flush()
			return nil
		}
	}
}

// sendTrailer ends the body with a trailer section.
func (s *h2Stream) sendTrailer(block []byte) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.isOver(); err != nil {
		return err
	}
	start := len(c.out)
	c.out = h2.EndHeaders(append(h2.BeginHeaders(c.out), block...), start, s.id, true)
	s.sentEnd = true
	c.flush()
	return nil
}

// stopSending has a send under way fail, and all that follow.
func (s *h2Stream) stopSending() {
	s.noMore = true
	signal(s.room)
}

// fail ends s by err, unless it has failed before. c.mu is held.
func (s *h2Stream) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	signal(s.came)
	signal(s.room)
}

// receiveFields takes the field section in head or trail, and returns what is
// wrong with it. c.mu is held.
func (s *h2Stream) receiveFields(end bool) (wrong string) {
	if s.headed {
		if !end {
			return "the trailer section does not end the response"
		}
		return s.end()
	}
	switch status := s.head.Status; {
	case status == 101:
		return "the backend changes protocols, which HTTP/2 cannot"
	case status < 200 && end:
		return "an informational head ends the response"
	case status < 200:
		if s.informed++; s.informed > maxInformed {
			return errTooManyHints.Error()
		}
		s.hints = append(s.hints, s.head)
		s.head = h2.Head{}
		return ""
	default:
		s.bodiless = s.toHead || status == 204 || status == 304
		s.length = s.head.Length
	}
	if end {
		wrong = s.end()
	}
	s.headed = wrong == ""
	return wrong
}

// receive takes a DATA frame of size, padding included. c.mu is held.
func (s *h2Stream) receive(content []byte, size int, end bool) (code h2.Code, wrong string) {
	switch {
	case s.ended:
		return h2.StreamClosed, "the backend goes on after the end of its response"
	case !s.headed:
		return h2.ProtocolError, "the response has content and no head"
	case size > s.window:
		return h2.FlowControlError, "the backend sends more than the window allows"
	case s.bodiless && len(content) > 0:
		return h2.ProtocolError, errTwoBodies
	}
	s.window -= size
	s.taken += size - len(content)
	if s.got += int64(len(content)); s.length >= 0 && s.got > s.length {
		return h2.ProtocolError, "the response is longer than its Content-Length"
	}
	s.keep(content)
	if end {
		return h2.ProtocolError, s.end()
	}
	return 0, ""
}

func (s *h2Stream) end() (wrong string) {
	if s.length >= 0 && s.got != s.length && !s.bodiless {
		return "the response is shorter than its Content-Length"
	}
	s.ended = true
	return ""
}

// keep keeps content until it is taken.
func (s *h2Stream) keep(content []byte) {
	for len(content) > 0 {
		last := len(s.parts) - 1
		if last < s.first || s.parts[last].n == copyBuffer {
			s.parts = append(s.parts, part{buf: copyBuffers.Get().(*[]byte)})
			last++
		}
		p := &s.parts[last]
		n := copy((*p.buf)[p.n:], content)
		p.n += n
		content = content[n:]
	}
}

// awaitHead waits for a head: an informational one, or where hint is nil the
// final one, which is in s.head.
func (s *h2Stream) awaitHead() (hint *h2.Head, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case len(s.hints) > 0:
			hint = &h2.Head{}
			*hint = s.hints[0]
			s.hints = s.hints[1:]
			return hint, nil
		case s.headed:
			return nil, nil
		case s.err != nil:
			return nil, s.err
		}
		c.mu.Unlock()
		<-s.came
		c.mu.Lock()
	}
}

// more says what is there behind a part of a body.
type more uint8

const (
	moreLater more = iota // it is still to come
	moreNow               // some has come
	moreNone              // it was the end
)

// atHand says what has come.
func (s *h2Stream) atHand() more {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.follows()
}

func (s *h2Stream) follows() more {
	switch {
	case s.first < len(s.parts):
		return moreNow
	case s.ended:
		return moreNone
	}
	return moreLater
}

// next waits for a part of the body, which the caller puts back into copyBuffers.
// passed bytes of parts before it are out of the way: the backend may send as
// much again. The end is io.EOF.
func (s *h2Stream) next(passed int) (p part, follows more, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.widen(passed)
	for {
		switch {
		case s.first < len(s.parts):
			p = s.parts[s.first]
			s.parts[s.first] = part{}
			if s.first++; s.first == len(s.parts) {
				s.first, s.parts = 0, s.parts[:0]
			}
			return p, s.follows(), nil
		case s.ended:
			return p, moreNone, io.EOF
		case s.err != nil:
			return p, moreNone, s.err
		}
		c.mu.Unlock()
		<-s.came
		c.mu.Lock()
	}
}

// widen has the backend send on once half of the window was taken. c.mu is held.
func (s *h2Stream) widen(passed int) {
	c := s.c
	s.taken += passed
	if s.ended || s.err != nil || s.taken < s.full/2 {
		return
	}
	by := s.taken
	if s.first == len(s.parts) && s.window < s.full/4 && s.full < maxH2Window {
		// All is taken at once, and still the backend is about to wait.
		grown := &c.site.pool.forwarder.grown
		if grown.Add(int64(s.full)) <= maxH2Grown {
			s.grown += s.full
			by += s.full
			s.full *= 2
		} else {
			grown.Add(int64(-s.full))
		}
	}
	s.window += by
	s.taken = 0
	c.out = h2.AppendWindowUpdate(c.out, s.id, uint32(by))
	c.flush()
}

// abort resets s at once, for an exchange that was given up. Any goroutine may
// call it until close.
func (s *h2Stream) abort() {
	s.giveUp(errGivenUp)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.fail(errGivenUp)
}

// giveUp resets s because the rest of the request will not come.
func (s *h2Stream) giveUp(err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, live := c.streams[s.id]; live && !s.ended {
		c.cut(s, h2.Cancel, err)
		c.flush()
	}
}

// close ends the stream, whatever its state, and gives its slot back. Nobody
// sends on it any more.
func (s *h2Stream) close() {
	c := s.c
	c.mu.Lock()
	if _, live := c.streams[s.id]; live {
		delete(c.streams, s.id)
		if !s.ended || !s.sentEnd {
			code := h2.Cancel
			if s.ended {
				code = h2.NoError
			}
			s.reset = true
			c.out = h2.AppendRSTStream(c.out, s.id, code)
		}
	}
	if s.reset && !s.ended {
		c.hold()
	} else {
		c.release(1)
	}
	if s.grown > 0 {
		c.site.pool.forwarder.grown.Add(int64(-s.grown))
	}
	for _, p := range s.parts[s.first:] {
		copyBuffers.Put(p.buf)
	}
	if w := s.queued; w != nil {
		*w = slices.DeleteFunc(*w, func(other *h2Stream) bool { return other == s })
	}
	if len(c.out) > 0 {
		c.flush()
	}
	changed := c.changed
	c.changed = false
	c.mu.Unlock()
	if changed && c.site.waiting.Load() > 0 {
		c.site.serveWaiters()
	}
}
