package h2

import (
	"encoding/binary"
	"io"
	"sync"
)

const (
	// waitingRoom is what a Reader holds to be read into while it waits.
	waitingRoom = 512
	// readRoom holds a whole frame and what came with it.
	readRoom = 2*MaxFrame + HeaderLen
)

var readRooms = sync.Pool{New: func() any {
	b := make([]byte, readRoom)
	return &b
}}

// Reader takes frames off a connection. The zero value needs Reset. It is used by
// one goroutine. While it waits for a frame to begin it holds half a kilobyte;
// Keep has it hold on to its large buffer, for a peer that sends much.
type Reader struct {
	Keep bool
	// Begun, unless nil, is called before there is a wait for the rest of a frame
	// that is no DATA, or not known to be.
	Begun func()

	src   io.Reader
	spare []byte  // to be read into while nothing is there
	large *[]byte // of readRooms; nil: none is held
	buf   []byte  // spare or *large: what is not used up is buf[r:w]
	r, w  int
	block uint32 // the stream whose field block has begun and not ended
}

// Reset has r read from src, which it does not own.
func (r *Reader) Reset(src io.Reader) {
	r.Release()
	*r = Reader{Keep: r.Keep, Begun: r.Begun, src: src, spare: r.spare}
	if r.spare == nil {
		r.spare = make([]byte, waitingRoom)
	}
	r.buf = r.spare
}

// Release gives buffers back. What was read and not used is lost.
func (r *Reader) Release() {
	if r.large != nil {
		readRooms.Put(r.large)
		r.large = nil
	}
	r.buf, r.r, r.w = r.spare, 0, 0
}

// Expect reads text and reports whether that is what came.
func (r *Reader) Expect(text string) (same bool, err error) {
	for r.w-r.r < len(text) {
		if n := r.w - r.r; string(r.buf[r.r:r.w]) != text[:n] {
			return false, nil
		}
		if err := r.fill(len(text)); err != nil {
			return false, err
		}
	}
	r.r += len(text)
	return string(r.buf[r.r-len(text):r.r]) == text, nil
}

// Ready reports whether a whole frame has come already, so that Next will not
// read.
func (r *Reader) Ready() bool {
	have := r.w - r.r
	return have >= HeaderLen && have >= HeaderLen+length(r.buf[r.r:])
}

// InBlock reports whether a field block has begun and not ended.
func (r *Reader) InBlock() bool { return r.block != 0 }

func length(header []byte) int {
	return int(header[0])<<16 | int(header[1])<<8 | int(header[2])
}

// Next returns the next frame. After a *StreamError the frame was used up, and
// the connection can go on; other errors are final. Frames of types that are not
// known are returned like others.
func (r *Reader) Next() (f Frame, err error) {
	for r.w-r.r < HeaderLen {
		if err := r.fill(HeaderLen); err != nil {
			return f, err
		}
	}
	n := length(r.buf[r.r:])
	if n > MaxFrame {
		return f, &ConnError{FrameSizeError, "a frame is larger than SETTINGS_MAX_FRAME_SIZE"}
	}
	for r.w-r.r < HeaderLen+n {
		if err := r.fill(HeaderLen + n); err != nil {
			return f, err
		}
	}
	h := r.buf[r.r:]
	f = Frame{Type: Type(h[3]), Flags: h[4], Stream: binary.BigEndian.Uint32(h[5:]) & MaxStream,
		Payload: h[HeaderLen : HeaderLen+n : HeaderLen+n]}
	r.r += HeaderLen + n
	if r.block != 0 && (f.Type != TypeContinuation || f.Stream != r.block) {
		return f, &ConnError{ProtocolError, "a field block is interrupted by another frame"}
	}
	if r.block == 0 && f.Type == TypeContinuation {
		return f, &ConnError{ProtocolError, "a CONTINUATION frame continues nothing"}
	}
	if err := f.check(); err != nil {
		return f, err
	}
	switch f.Type {
	case TypeHeaders, TypePushPromise, TypeContinuation:
		r.block = f.Stream
		if f.Has(FlagEndHeaders) {
			r.block = 0
		}
	}
	return f, nil
}

// fill reads on, and makes room for need bytes from r.r on.
func (r *Reader) fill(need int) error {
	if r.r == r.w {
		r.r, r.w = 0, 0
		if r.large != nil && !r.Keep {
			r.Release()
		}
	}
	if r.large == nil && (r.w == len(r.buf) || need > len(r.buf)) {
		r.large = readRooms.Get().(*[]byte)
		r.w = copy(*r.large, r.buf[r.r:r.w])
		r.r, r.buf = 0, *r.large
	}
	if r.r+need > len(r.buf) {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	if r.r < r.w && r.Begun != nil && (r.w-r.r < 4 || Type(r.buf[r.r+3]) != TypeData) {
		r.Begun()
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == io.EOF && r.r < r.w {
		err = io.ErrUnexpectedEOF
	}
	return err
}
