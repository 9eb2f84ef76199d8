package http

import (
	"github.com/remotegpu/sluice/proxy/http/h2"
)

// handle does what a frame says. Its errors are of the backend's making. c.mu is
// held.
func (c *h2Conn) handle(f *h2.Frame) error {
	if !c.greeted && f.Type != h2.TypeSettings {
		return &h2.ConnError{Code: h2.ProtocolError, What: "the backend does not begin with SETTINGS"}
	}
	switch f.Type {
	case h2.TypeData:
		return c.onData(f)
	case h2.TypeHeaders, h2.TypeContinuation:
		return c.onFields(f)
	case h2.TypeRSTStream:
		return c.onReset(f)
	case h2.TypeSettings:
		return c.onSettings(f)
	case h2.TypePing:
		return c.onPing(f)
	case h2.TypeGoAway:
		c.onGoAway(f)
		return nil
	case h2.TypeWindowUpdate:
		return c.onWindow(f)
	case h2.TypePushPromise:
		return &h2.ConnError{Code: h2.ProtocolError, What: "the backend pushes, which it was told not to"}
	}
	return c.spend()
}

// stray is for a frame of a stream that is over, or was reset when the frame was
// on its way already.
func (c *h2Conn) stray(stream uint32) error {
	if stream%2 == 0 || stream >= c.next {
		return &h2.ConnError{Code: h2.ProtocolError, What: "the backend speaks on a stream that was never begun"}
	}
	return c.spend()
}

func (c *h2Conn) onData(f *h2.Frame) error {
	size := len(f.Payload)
	if c.window -= size; c.window < 0 {
		return &h2.ConnError{Code: h2.FlowControlError, What: "the backend sends more than the connection's window allows"}
	}
	if used := h2ConnWindow - c.window; used >= h2ConnSlack {
		c.window += used
		c.out = h2.AppendWindowUpdate(c.out, 0, uint32(used))
	}
	content, _, err := f.Content()
	if err != nil {
		return err
	}
	s := c.streams[f.Stream]
	if s == nil {
		if size > 0 && f.Stream%2 == 1 && f.Stream < c.next {
			return nil // was on its way when the stream was reset
		}
		return c.stray(f.Stream)
	}
	c.pinged = false
	end := f.Has(h2.FlagEndStream)
	switch {
	case len(content) > 0 || end:
		c.earn()
	default:
		if err := c.spend(); err != nil {
			return err
		}
	}
	if code, bad := s.receive(content, size, end); bad != "" {
		return &h2.StreamError{Stream: s.id, Code: code, What: bad}
	}
	c.wake(s)
	return nil
}

// onFields gathers a field section.
func (c *h2Conn) onFields(f *h2.Frame) error {
	part := f.Payload
	if f.Type == h2.TypeHeaders {
		var err error
		if part, _, err = f.Content(); err != nil {
			return err
		}
		c.begun = *f
		if f.Has(h2.FlagEndHeaders) {
			return c.onSection(part)
		}
		c.block = c.block[:0]
	} else if err := c.spend(); err != nil {
		return err
	}
	if len(c.block)+len(part) > maxH2Block {
		return &h2.ConnError{Code: h2.EnhanceYourCalm, What: "a field block is too large"}
	}
	c.block = append(c.block, part...)
	if !f.Has(h2.FlagEndHeaders) {
		return nil
	}
	err := c.onSection(c.block)
	if cap(c.block) > maxH2Out {
		c.block = nil
	}
	return err
}

// onSection takes a whole field section.
func (c *h2Conn) onSection(block []byte) error {
	s, end := c.streams[c.begun.Stream], c.begun.Has(h2.FlagEndStream)
	if s == nil || s.ended {
		c.unread.Reset(h2.KindResponse, 0)
		if err := c.decoder.Decode(block, &c.unread); err != nil {
			return err
		}
		if s == nil {
			return c.stray(c.begun.Stream)
		}
		return &h2.StreamError{Stream: s.id, Code: h2.StreamClosed, What: "the backend goes on after the end of its response"}
	}
	h := &s.head
	if kind := h2.KindResponse; !s.headed {
		h.Reset(kind, maxResponseHead)
	} else {
		s.trail = new(h2.Head)
		h = s.trail
		h.Reset(h2.KindTrailer, maxResponseHead)
	}
	if err := c.decoder.Decode(block, h); err != nil {
		return err
	}
	c.pinged = false
	c.earn()
	wrong := h.Check()
	if h.TooLarge {
		wrong = "the field section is too large"
	}
	if wrong == "" {
		wrong = s.receiveFields(end)
	}
	if wrong != "" {
		return &h2.StreamError{Stream: s.id, Code: h2.ProtocolError, What: wrong}
	}
	c.used = c.used || s.headed
	c.wake(s)
	return nil
}

func (c *h2Conn) onReset(f *h2.Frame) error {
	s := c.streams[f.Stream]
	if s == nil {
		return c.stray(f.Stream)
	}
	delete(c.streams, s.id)
	switch code := f.Code(); {
	case s.ended:
		s.stopSending() // it has answered, and wants no more of the request
		return c.spend()
	case code == h2.RefusedStream && !s.headed && len(s.hints) == 0:
		s.fail(errRefusedStream)
	default:
		s.fail(&h2Reset{code})
	}
	return c.spend()
}

func (c *h2Conn) onSettings(f *h2.Frame) error {
	if f.Has(h2.FlagAck) {
		return nil
	}
	if err := c.spend(); err != nil {
		return err
	}
	before := int(c.settings.InitialWindow)
	if err := c.settings.Update(f.Payload); err != nil {
		return err
	}
	if by := int(c.settings.InitialWindow) - before; by != 0 {
		for _, s := range c.streams {
			if s.allowed += by; s.allowed > h2.MaxWindow {
				return &h2.ConnError{Code: h2.FlowControlError, What: "SETTINGS_INITIAL_WINDOW_SIZE widens a window beyond the largest"}
			}
			signal(s.room)
		}
	}
	c.greeted = true
	c.limit = int(min(c.settings.MaxStreams, maxH2Streams))
	c.release(0)
	c.out = h2.AppendSettingsAck(c.out)
	return nil
}

func (c *h2Conn) onPing(f *h2.Frame) error {
	if err := c.spend(); err != nil {
		return err
	}
	if !f.Has(h2.FlagAck) {
		c.out = h2.AppendPing(c.out, true, f.Payload)
		return nil
	}
	c.pinged = true
	if f.Payload[0] == pingReset[0] && c.held > 0 {
		n := c.held
		c.held = 0
		c.release(n)
	}
	return nil
}

func (c *h2Conn) onGoAway(f *h2.Frame) {
	c.leaving = true
	c.roomy.Store(false)
	c.changed = true // who waits for a slot needs another connection
	last := f.LastStream()
	for id, s := range c.streams {
		if id > last {
			delete(c.streams, id)
			s.fail(errGoneAway)
		}
	}
	if c.slots == 0 {
		c.shut(errClosed)
	}
}

func (c *h2Conn) onWindow(f *h2.Frame) error {
	if err := c.spend(); err != nil {
		return err
	}
	by := int(f.Increment())
	if f.Stream == 0 {
		if c.allowed += by; c.allowed > h2.MaxWindow {
			return &h2.ConnError{Code: h2.FlowControlError, What: "WINDOW_UPDATE widens the connection's window beyond the largest"}
		}
		c.starved.tell()
		return nil
	}
	s := c.streams[f.Stream]
	if s == nil {
		return c.stray(f.Stream)
	}
	if s.allowed += by; s.allowed > h2.MaxWindow {
		return &h2.StreamError{Stream: s.id, Code: h2.FlowControlError, What: "WINDOW_UPDATE widens the window beyond the largest"}
	}
	signal(s.room)
	return nil
}
