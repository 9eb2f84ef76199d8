package http

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/remotegpu/sluice/proxy/http/h3"
)

// maxSideContent bounds the frames of the control stream that are read whole.
const maxSideContent = 4 << 10

func connError(code h3.Code, what string) *h3.Error {
	return &h3.Error{Code: code, Conn: true, What: what}
}

var (
	errTwice       = connError(h3.StreamCreationError, "the client opened a stream twice that there is one of")
	errPush        = connError(h3.StreamCreationError, "a client cannot push")
	errCritical    = connError(h3.ClosedCriticalStream, "the client closed a stream that the connection needs")
	errNoSettings  = connError(h3.MissingSettings, "the control stream does not begin with SETTINGS")
	errSideFrame   = connError(h3.FrameUnexpected, "a frame has no place on the control stream")
	errSideLength  = connError(h3.FrameError, "a frame of the control stream is not as long as it should be")
	errSideLarge   = connError(h3.ExcessiveLoad, "a frame of the control stream is too large")
	errSideFlood   = connError(h3.ExcessiveLoad, "the client sends too much that asks for nothing")
	errResetFlood  = connError(h3.ExcessiveLoad, "the client takes back too many requests")
	errID          = connError(h3.IDError, "an identifier is not one that it can be")
	errEncoder     = connError(h3.EncoderStreamError, "the client fills a dynamic table that has no room")
	errDecoder     = connError(h3.DecoderStreamError, "the client acknowledges a dynamic table that nobody uses")
	errSideInteger = connError(h3.EncoderStreamError, "the client sets the dynamic table's room to more than there is")
)

// acceptUni serves the streams that only the client sends on.
func (c *h3Conn) acceptUni() {
	for {
		stream, err := c.qc.AcceptUniStream(context.Background())
		if err != nil {
			return
		}
		c.work.Go(func() { c.serveUni(stream) })
	}
}

// serveUni serves one of them until it ends. Of those that matter there is one
// each, and it must not end.
func (c *h3Conn) serveUni(stream *quic.ReceiveStream) {
	r := &sideReader{stream: stream}
	stream.SetReadDeadline(time.Now().Add(c.conn.server.cfg.Limits.Head))
	kind, err := r.varint()
	stream.SetReadDeadline(time.Time{})
	if err != nil || kind > h3.StreamDecoder {
		stream.CancelRead(quic.StreamErrorCode(h3.StreamCreationError))
		if !c.frames.spend() {
			c.fail(errSideFlood)
		}
		stream.ReleaseStreamCredit()
		return
	}
	c.early() // every client opens one of these once the handshake is complete
	if kind == h3.StreamPush {
		c.fail(errPush)
		return
	}
	if bit := uint32(1) << kind; c.uni.Or(bit)&bit != 0 {
		c.fail(errTwice)
		return
	}
	switch kind {
	case h3.StreamControl:
		err = c.readControl(r)
	case h3.StreamEncoder:
		err = c.readEncoder(r)
	case h3.StreamDecoder:
		err = c.readDecoder(r)
	}
	var wrong *h3.Error
	if !errors.As(err, &wrong) {
		wrong = errCritical // or the connection is over anyway
	}
	c.fail(wrong)
}

// readControl reads the control stream. It always returns an error.
func (c *h3Conn) readControl(r *sideReader) error {
	for first, state := true, new(clientIDs); ; first = false {
		frame, err := r.varint()
		if err != nil {
			return err
		}
		length, err := r.varint()
		if err != nil {
			return err
		}
		switch {
		case first != (frame == h3.FrameSettings):
			if first {
				return errNoSettings
			}
			return errSideFrame
		case frame == h3.FrameData, frame == h3.FrameHeaders, frame == h3.FramePushPromise, h3.IsReserved(frame):
			return errSideFrame
		case !first && !c.frames.spend():
			return errSideFlood
		case !h3.IsKnown(frame):
			err = r.skip(length)
		default:
			err = r.content(frame, length, state)
		}
		if err != nil {
			return err
		}
	}
}

// clientIDs are what must only move one way.
type clientIDs struct {
	goneFrom uint64 // of GOAWAY, plus one; 0: none came
	maxPush  uint64
}

// content reads what a known frame holds.
func (s *sideReader) content(frame, length uint64, ids *clientIDs) error {
	if length > maxSideContent {
		return errSideLarge
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(s, b); err != nil {
		return err
	}
	if frame == h3.FrameSettings {
		return h3.CheckSettings(b)
	}
	id, n := h3.Varint(b)
	if n == 0 || n != len(b) {
		return errSideLength
	}
	switch frame {
	case h3.FrameCancelPush:
		return errID // nothing is ever pushed
	case h3.FrameGoAway:
		if ids.goneFrom != 0 && id >= ids.goneFrom {
			return errID
		}
		ids.goneFrom = id + 1
	case h3.FrameMaxPushID:
		if id < ids.maxPush {
			return errID
		}
		ids.maxPush = id
	}
	return nil
}

// readEncoder reads the client's QPACK encoder stream (RFC 9204 section 4.3),
// which has nothing to say to a table without room. It always returns an error.
func (c *h3Conn) readEncoder(r *sideReader) error {
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			return err
		case b&0xe0 != 0x20:
			return errEncoder
		case b&0x1f != 0:
			return errSideInteger
		case !c.frames.spend():
			return errSideFlood
		}
	}
}

// readDecoder reads the client's QPACK decoder stream (RFC 9204 section 4.4): a
// client may say that it has given up a stream. It always returns an error.
func (c *h3Conn) readDecoder(r *sideReader) error {
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			return err
		case b&0xc0 != 0x40:
			return errDecoder
		case !c.frames.spend():
			return errSideFlood
		}
		for more, n := b&0x3f == 0x3f, 0; more; n++ {
			if b, err = r.ReadByte(); err != nil {
				return err
			}
			if more = b&0x80 != 0; n > 9 {
				return errDecoder
			}
		}
	}
}

// sideReader reads a stream by small pieces.
type sideReader struct {
	stream *quic.ReceiveStream
	buf    [64]byte
	r, w   int
}

func (s *sideReader) fill() error {
	if s.r < s.w {
		return nil
	}
	n, err := s.stream.Read(s.buf[:])
	s.r, s.w = 0, n
	if n > 0 {
		return nil
	}
	return err
}

func (s *sideReader) ReadByte() (byte, error) {
	if err := s.fill(); err != nil {
		return 0, err
	}
	s.r++
	return s.buf[s.r-1], nil
}

func (s *sideReader) Read(p []byte) (int, error) {
	if err := s.fill(); err != nil {
		return 0, err
	}
	n := copy(p, s.buf[s.r:s.w])
	s.r += n
	return n, nil
}

func (s *sideReader) varint() (uint64, error) {
	first, err := s.ReadByte()
	if err != nil {
		return 0, err
	}
	v := uint64(first & 0x3f)
	for range 1<<(first>>6) - 1 {
		b, err := s.ReadByte()
		if err != nil {
			return 0, err
		}
		v = v<<8 | uint64(b)
	}
	return v, nil
}

func (s *sideReader) skip(n uint64) error {
	for n > 0 {
		if err := s.fill(); err != nil {
			return err
		}
		k := min(n, uint64(s.w-s.r))
		s.r += int(k)
		n -= k
	}
	return nil
}
