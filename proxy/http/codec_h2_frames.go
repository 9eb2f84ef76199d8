package http

import (
	"errors"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// errStreamReset is why an exchange is given up whose stream the client reset.
var errStreamReset = errors.New("the client reset the stream")

// h2Block is a field block whose end has not come.
type h2Block struct {
	stream    uint32
	end, self bool
	frames    int
	bytes     []byte
	scrap     h2.Head // for blocks that nobody wants
}

// handle takes a frame.
func (c *h2DownConn) handle(f *h2.Frame) error {
	switch f.Type {
	case h2.TypeData:
		return c.data(f)
	case h2.TypeHeaders:
		return c.headers(f)
	case h2.TypeContinuation:
		return c.continuation(f)
	case h2.TypeRSTStream:
		return c.resetByClient(f)
	case h2.TypeSettings:
		return c.takeSettings(f)
	case h2.TypePing:
		return c.ping(f)
	case h2.TypeWindowUpdate:
		return c.widen(f)
	case h2.TypePushPromise:
		return &h2.ConnError{Code: h2.ProtocolError, What: "a client sent PUSH_PROMISE"}
	}
	return c.spend(budgetOthers) // priorities mean nothing, GOAWAY has the client's end follow
}

// data takes a part of a body.
func (c *h2DownConn) data(f *h2.Frame) error {
	content, _, err := f.Content()
	if err != nil {
		return err
	}
	end := f.Has(h2.FlagEndStream)
	c.reader.Keep = !end && len(content) >= h2Bulk
	if err := c.spendData(len(content), end); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.recv.Take(len(f.Payload)) {
		return &h2.ConnError{Code: h2.FlowControlError, What: "DATA is beyond the connection's window"}
	}
	s := c.streams[f.Stream]
	if s == nil || s.body.ended {
		c.release(len(f.Payload))
		return c.stray(f, s)
	}
	b := &s.body
	if !s.recv.Take(len(f.Payload)) {
		c.release(len(f.Payload))
		return &h2.StreamError{Stream: f.Stream, Code: h2.FlowControlError, What: "DATA is beyond the stream's window"}
	}
	if total := b.got + int64(len(content)); b.declared >= 0 && !b.tunnel && (total > b.declared || end && s.falls(total)) {
		c.release(len(f.Payload))
		return &h2.StreamError{Stream: f.Stream, Code: h2.ProtocolError, What: "the body is not as long as Content-Length says"}
	}
	if len(content) >= h2WorthyFrame {
		c.work.frames++
	}
	b.ended = end
	if s.lingering {
		b.got += int64(len(content))
		s.passOver(len(f.Payload))
		return nil
	}
	if b.stopped { // nobody takes it, but it still may not be too long
		b.got += int64(len(content))
		c.release(len(f.Payload))
		return nil
	}
	if padding := len(f.Payload) - len(content); padding > 0 {
		c.release(padding)
		b.release(padding)
	}
	b.append(content)
	if s.waiting > 0 {
		s.cond.Broadcast()
	}
	return nil
}

// falls reports whether a body of total bytes falls short of what Content-Length
// said. Of one that nobody takes any more it does not matter: a client that has
// its answer may say that it sends no more by an early end (curl before 8.1 does),
// and would lose the answer by a reset. c.mu is held.
func (s *h2DownStream) falls(total int64) bool {
	b := &s.body
	return total < b.declared && !b.tunnel && !b.stopped && !s.lingering
}

// stray judges a frame for a stream that takes no more of its kind: s, or one
// that is no more. c.mu is held.
func (c *h2DownConn) stray(f *h2.Frame, s *h2DownStream) error {
	if f.Stream > c.last || f.Stream%2 == 0 {
		return &h2.ConnError{Code: h2.ProtocolError, What: "a frame is for a stream that was not opened"}
	}
	if s == nil {
		if past, known := c.recall(f.Stream); known && past.end == endByUs {
			return nil
		}
	}
	return &h2.StreamError{Stream: f.Stream, Code: h2.StreamClosed, What: "a frame is for a stream that was closed"}
}

// headers takes the head of a request, a trailer section, or the first part of
// either.
func (c *h2DownConn) headers(f *h2.Frame) error {
	content, self, err := f.Content()
	if err != nil {
		return err
	}
	b := &c.block
	b.stream, b.end, b.self, b.frames = f.Stream, f.Has(h2.FlagEndStream), self, 0
	if f.Has(h2.FlagEndHeaders) {
		return c.section(content)
	}
	b.bytes = append(b.bytes[:0], content...)
	return nil
}

// continuation takes another part of a field block.
func (c *h2DownConn) continuation(f *h2.Frame) error {
	b := &c.block
	if b.frames++; b.frames > maxContinuations {
		return c.tooMuch("continuation", "a field block comes in too many frames")
	}
	if len(b.bytes)+len(f.Payload) > c.conn.server.cfg.Limits.HeadBytes+h2.MaxFrame {
		return c.tooMuch("header_bytes", "a field block is too large")
	}
	b.bytes = append(b.bytes, f.Payload...)
	if !f.Has(h2.FlagEndHeaders) {
		return nil
	}
	err := c.section(b.bytes)
	b.bytes = nil
	return err
}

// section takes a whole field block. It is decoded in any case: those after it
// build on it.
func (c *h2DownConn) section(block []byte) error {
	id := c.block.stream
	if id%2 == 0 {
		return &h2.ConnError{Code: h2.ProtocolError, What: "a client opens a stream of even number"}
	}
	c.mu.Lock()
	s := c.streams[id]
	opens := id > c.last
	full := c.active+c.lingering >= c.conn.server.cfg.Limits.Streams
	if opens {
		c.last = id
	}
	closed := c.drain == h2Closed
	c.mu.Unlock()
	switch {
	case s != nil:
		return c.trailer(s, block)
	case !opens:
		if err := c.discard(block); err != nil {
			return err
		}
		return c.late(id)
	case closed:
		// GOAWAY has said that it would not be taken up.
		c.mu.Lock()
		c.remember(id, endByUs)
		c.mu.Unlock()
		if err := c.discard(block); err != nil {
			return err
		}
		return c.spend(budgetOthers)
	case full:
		if err := c.discard(block); err != nil {
			return err
		}
		return &h2.StreamError{Stream: id, Code: h2.RefusedStream, What: "there are as many streams as may be"}
	}
	return c.request(id, block)
}

// discard decodes a block that nobody wants.
func (c *h2DownConn) discard(block []byte) error {
	c.block.scrap.Reset(h2.KindTrailer, 0)
	return c.decoder.Decode(block, &c.block.scrap)
}

// late judges a field block for a stream that was opened before, or passed over.
func (c *h2DownConn) late(id uint32) error {
	c.mu.Lock()
	past, known := c.recall(id)
	c.mu.Unlock()
	switch {
	case !known:
		return &h2.ConnError{Code: h2.ProtocolError, What: "a stream's number is lower than one before it"}
	case past.end == endByUs:
		return c.spend(budgetOthers) // it was on its way, or is for nothing
	case past.end == endBoth:
		return &h2.ConnError{Code: h2.StreamClosed, What: "HEADERS is for a stream that has come to its end"}
	}
	return &h2.StreamError{Stream: id, Code: h2.StreamClosed, What: "HEADERS is for a stream that the client has reset"}
}

// request makes an exchange of the head of a request.
func (c *h2DownConn) request(id uint32, block []byte) error {
	s := h2DownStreams.Get().(*h2DownStream)
	s.c, s.id = c, id
	head := &s.head
	head.Reset(h2.KindRequest, c.conn.server.cfg.Limits.HeadBytes)
	if err := c.decoder.Decode(block, head); err != nil {
		s.release()
		return err
	}
	end, wrong := c.block.end, head.Check()
	switch {
	case wrong != "":
	case c.block.self:
		wrong = "a stream depends on itself"
	case end && head.Length > 0:
		wrong = "the body is not as long as Content-Length says"
	}
	if wrong != "" {
		s.release()
		return &h2.StreamError{Stream: id, Code: h2.ProtocolError, What: wrong}
	}
	if head.TooLarge {
		return c.tooLarge(s, end)
	}
	if !c.conn.begin() {
		s.release()
		return errClientLeft
	}
	c.open(s, end)
	c.mu.Lock()
	s.window = h2.SendWindow(c.settings.InitialWindow)
	c.streams[id] = s
	c.active++
	c.mu.Unlock()
	c.ready = append(c.ready, s)
	return nil
}

// tooLarge answers a request whose head is beyond the limit.
func (c *h2DownConn) tooLarge(s *h2DownStream, end bool) error {
	c.mu.Lock()
	b := c.out.buffer()
	start := len(b)
	b = c.encoder.Status(c.encoder.Begin(h2.BeginHeaders(b)), 431)
	c.out.set(h2.EndHeaders(b, start, s.id, true))
	if end {
		c.remember(s.id, endBoth)
		s.release()
	} else {
		s.x.reset()
		s.begin(false)
		c.streams[s.id] = s
		s.linger()
	}
	c.mu.Unlock()
	return c.spend(budgetResets)
}

// trailer takes the trailer section of a request.
func (c *h2DownConn) trailer(s *h2DownStream, block []byte) error {
	trail := new(h2.Head)
	trail.Reset(h2.KindTrailer, c.conn.server.cfg.Limits.HeadBytes)
	if err := c.decoder.Decode(block, trail); err != nil {
		return err
	}
	wrong, id := trail.Check(), s.id
	c.mu.Lock()
	defer c.mu.Unlock()
	b := &s.body
	switch {
	case b.ended:
		return &h2.StreamError{Stream: id, Code: h2.StreamClosed, What: "HEADERS is for a stream that the client has closed"}
	case !c.block.end:
		wrong = "a trailer section does not end the stream"
	case trail.TooLarge:
		wrong = "the trailer section is too large"
	case s.falls(b.got):
		wrong = "the body is not as long as Content-Length says"
	}
	if wrong != "" {
		return &h2.StreamError{Stream: id, Code: h2.ProtocolError, What: wrong}
	}
	b.trail, b.ended = trail, true
	if s.lingering {
		s.lingered()
		return nil
	}
	s.cond.Broadcast()
	return nil
}

// resetByClient gives up an exchange whose stream the client reset.
func (c *h2DownConn) resetByClient(f *h2.Frame) error {
	c.mu.Lock()
	if f.Stream > c.last || f.Stream%2 == 0 {
		c.mu.Unlock()
		return &h2.ConnError{Code: h2.ProtocolError, What: "RST_STREAM is for a stream that was not opened"}
	}
	s := c.streams[f.Stream]
	if s == nil {
		c.mu.Unlock()
		return c.spend(budgetOthers)
	}
	answered := s.lingering
	s.tainted = true
	s.lose(errStreamReset)
	c.remember(f.Stream, endByClient)
	c.mu.Unlock()
	if answered { // it wants to send no more, either
		return c.spend(budgetOthers)
	}
	s.x.life.abandon(errStreamReset)
	return c.spend(budgetResets)
}

func (c *h2DownConn) takeSettings(f *h2.Frame) error {
	if f.Has(h2.FlagAck) {
		return c.spend(budgetOthers)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := int64(c.settings.InitialWindow)
	if err := c.settings.Update(f.Payload); err != nil {
		return err
	}
	c.encoder.SetLimit(c.settings.HeaderTableSize)
	if by := int64(c.settings.InitialWindow) - before; by != 0 {
		for _, s := range c.streams {
			if !s.window.Widen(by) {
				return &h2.ConnError{Code: h2.FlowControlError, What: "SETTINGS_INITIAL_WINDOW_SIZE makes a window too large"}
			}
			s.cond.Broadcast()
		}
	}
	c.out.set(h2.AppendSettingsAck(c.out.buffer()))
	return c.spendLocked(budgetSettings)
}

func (c *h2DownConn) ping(f *h2.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Has(h2.FlagAck) {
		if c.drain == h2Asked && string(f.Payload) == h2DrainPing {
			c.closeDrain()
		}
		return c.spendLocked(budgetOthers)
	}
	c.out.set(h2.AppendPing(c.out.buffer(), true, f.Payload))
	return c.spendLocked(budgetPings)
}

// widen takes a WINDOW_UPDATE.
func (c *h2DownConn) widen(f *h2.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Stream == 0 {
		if !c.window.Widen(int64(f.Increment())) {
			return &h2.ConnError{Code: h2.FlowControlError, What: "WINDOW_UPDATE makes the connection's window too large"}
		}
		c.out.wake()
		return c.spendLocked(budgetUpdates)
	}
	s := c.streams[f.Stream]
	switch {
	case s == nil && (f.Stream > c.last || f.Stream%2 == 0):
		return &h2.ConnError{Code: h2.ProtocolError, What: "WINDOW_UPDATE is for a stream that was not opened"}
	case s == nil:
		return c.spendLocked(budgetUpdates)
	case !s.window.Widen(int64(f.Increment())):
		return &h2.StreamError{Stream: f.Stream, Code: h2.FlowControlError, What: "WINDOW_UPDATE makes the window too large"}
	}
	if s.waiting > 0 {
		s.cond.Broadcast()
	}
	return c.spendLocked(budgetUpdates)
}
