package h2

import "encoding/binary"

// Type is the type of a frame (RFC 9113 section 6).
type Type uint8

// The types of frames. Others are ignored, as section 5.5 wants it.
const (
	TypeData         Type = 0x0
	TypeHeaders      Type = 0x1
	TypePriority     Type = 0x2
	TypeRSTStream    Type = 0x3
	TypeSettings     Type = 0x4
	TypePushPromise  Type = 0x5
	TypePing         Type = 0x6
	TypeGoAway       Type = 0x7
	TypeWindowUpdate Type = 0x8
	TypeContinuation Type = 0x9
)

// The flags of frames. FlagAck is of SETTINGS and PING, FlagEndStream of DATA
// and HEADERS.
const (
	FlagEndStream  uint8 = 0x1
	FlagAck        uint8 = 0x1
	FlagEndHeaders uint8 = 0x4
	FlagPadded     uint8 = 0x8
	FlagPriority   uint8 = 0x20
)

const (
	// HeaderLen is the length of a frame's header, in bytes.
	HeaderLen = 9
	// MaxFrame is the largest payload that is taken and sent: the least that
	// everybody must take (RFC 9113 section 4.2).
	MaxFrame = 16 << 10
	// MaxWindow is the largest flow-control window, in bytes.
	MaxWindow = 1<<31 - 1
	// InitialWindow is the window that every stream and connection begins with
	// where nothing else was agreed, in bytes.
	InitialWindow = 65535
	// MaxStream is the highest stream identifier.
	MaxStream = 1<<31 - 1
	// Preface is what a client sends first (RFC 9113 section 3.4).
	Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// Frame is a frame that was read. Payload lies in the Reader's buffer, and holds
// until its Next is called again.
type Frame struct {
	Type    Type
	Flags   uint8
	Stream  uint32
	Payload []byte
}

// Has reports whether a flag is set.
func (f *Frame) Has(flag uint8) bool { return f.Flags&flag != 0 }

// Content returns what DATA carries, without padding, or the part of a field
// block that HEADERS carries, without padding and priority. self is whether
// HEADERS has its own stream depend on itself, which is an error of the stream's
// (RFC 7540 section 5.3.1; later priorities mean nothing).
func (f *Frame) Content() (content []byte, self bool, err error) {
	p := f.Payload
	pad := 0
	if f.Has(FlagPadded) {
		if len(p) == 0 {
			return nil, false, &ConnError{FrameSizeError, "a padded frame is empty"}
		}
		pad, p = int(p[0]), p[1:]
	}
	if f.Type == TypeHeaders && f.Has(FlagPriority) {
		if len(p) < 5 {
			return nil, false, &ConnError{FrameSizeError, "a HEADERS frame has no room for its priority"}
		}
		self = binary.BigEndian.Uint32(p)&MaxStream == f.Stream
		p = p[5:]
	}
	if pad > len(p) {
		return nil, false, &ConnError{ProtocolError, "the padding is longer than the frame"}
	}
	return p[:len(p)-pad], self, nil
}

// Code returns the error code of RST_STREAM, or of GOAWAY.
func (f *Frame) Code() Code {
	if f.Type == TypeGoAway {
		return Code(binary.BigEndian.Uint32(f.Payload[4:]))
	}
	return Code(binary.BigEndian.Uint32(f.Payload))
}

// LastStream returns the highest stream that the sender of GOAWAY takes up.
func (f *Frame) LastStream() uint32 { return binary.BigEndian.Uint32(f.Payload) & MaxStream }

// Increment returns by how much WINDOW_UPDATE widens the window, in bytes.
func (f *Frame) Increment() uint32 { return binary.BigEndian.Uint32(f.Payload) & MaxWindow }

// check sees that a frame is in order by itself.
func (f *Frame) check() error {
	n, bad := len(f.Payload), ""
	code := ProtocolError
	switch f.Type {
	case TypeData, TypeHeaders, TypeContinuation:
		if f.Stream == 0 {
			bad = "a frame of a stream's names none"
		}
	case TypePriority:
		switch {
		case f.Stream == 0:
			bad = "a PRIORITY frame names no stream"
		case n != 5:
			return &StreamError{f.Stream, FrameSizeError, "a PRIORITY frame is not of 5 bytes"}
		case binary.BigEndian.Uint32(f.Payload)&MaxStream == f.Stream:
			return &StreamError{f.Stream, ProtocolError, "a stream depends on itself"}
		}
	case TypeRSTStream:
		switch {
		case f.Stream == 0:
			bad = "an RST_STREAM frame names no stream"
		case n != 4:
			bad, code = "an RST_STREAM frame is not of 4 bytes", FrameSizeError
		}
	case TypeSettings:
		switch {
		case f.Stream != 0:
			bad = "a SETTINGS frame names a stream"
		case f.Has(FlagAck) && n != 0:
			bad, code = "a SETTINGS acknowledgement is not empty", FrameSizeError
		case n%6 != 0:
			bad, code = "a SETTINGS frame is not of whole settings", FrameSizeError
		}
	case TypePing:
		switch {
		case f.Stream != 0:
			bad = "a PING frame names a stream"
		case n != 8:
			bad, code = "a PING frame is not of 8 bytes", FrameSizeError
		}
	case TypeGoAway:
		switch {
		case f.Stream != 0:
			bad = "a GOAWAY frame names a stream"
		case n < 8:
			bad, code = "a GOAWAY frame is shorter than 8 bytes", FrameSizeError
		}
	case TypeWindowUpdate:
		return f.checkWindowUpdate()
	}
	if bad != "" {
		return &ConnError{code, bad}
	}
	return nil
}

func (f *Frame) checkWindowUpdate() error {
	switch {
	case len(f.Payload) != 4:
		return &ConnError{FrameSizeError, "a WINDOW_UPDATE frame is not of 4 bytes"}
	case f.Increment() == 0 && f.Stream == 0:
		return &ConnError{ProtocolError, "a WINDOW_UPDATE frame widens nothing"}
	case f.Increment() == 0:
		return &StreamError{f.Stream, ProtocolError, "a WINDOW_UPDATE frame widens nothing"}
	}
	return nil
}
