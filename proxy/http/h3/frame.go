package h3

import "encoding/binary"

// The types of frames (RFC 9114 section 7.2, RFC 9218 section 7).
const (
	FrameData        = 0x0
	FrameHeaders     = 0x1
	FrameCancelPush  = 0x3
	FrameSettings    = 0x4
	FramePushPromise = 0x5
	FrameGoAway      = 0x7
	FrameMaxPushID   = 0xd
)

// The types of unidirectional streams (RFC 9114 section 6.2, RFC 9204 section
// 4.2).
const (
	StreamControl = 0x0
	StreamPush    = 0x1
	StreamEncoder = 0x2
	StreamDecoder = 0x3
)

// IsReserved reports whether a type of frame was HTTP/2's and must not be used
// (RFC 9114 section 7.2.8).
func IsReserved(frame uint64) bool {
	switch frame {
	case 0x2, 0x6, 0x8, 0x9:
		return true
	}
	return false
}

// IsKnown reports whether RFC 9114 defines a type of frame. Others are passed
// over, wherever they stand.
func IsKnown(frame uint64) bool {
	switch frame {
	case FrameData, FrameHeaders, FrameCancelPush, FrameSettings, FramePushPromise, FrameGoAway, FrameMaxPushID:
		return true
	}
	return false
}

// maxVarint is the largest integer that QUIC writes.
const maxVarint = 1<<62 - 1

// Varint reads an integer of variable length (RFC 9000 section 16) from the
// beginning of b and returns its size; 0 where b ends within it.
func Varint(b []byte) (v uint64, size int) {
	if len(b) == 0 {
		return 0, 0
	}
	switch size = 1 << (b[0] >> 6); {
	case len(b) < size:
		return 0, 0
	case size == 1:
		return uint64(b[0] & 0x3f), 1
	case size == 2:
		return uint64(binary.BigEndian.Uint16(b) & 0x3fff), 2
	case size == 4:
		return uint64(binary.BigEndian.Uint32(b) & 0x3fffffff), 4
	}
	return binary.BigEndian.Uint64(b) & maxVarint, 8
}

// AppendVarint appends v, which is less than 1<<62, as short as it can be.
func AppendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(b, uint16(v)|0x4000)
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(b, uint32(v)|0x80000000)
	}
	return binary.BigEndian.AppendUint64(b, v|0xc000000000000000)
}

// MaxFrameHeader is the most that type and length of a frame take.
const MaxFrameHeader = 16

// FrameHeader reads type and length of the frame at the beginning of b, and
// their size; 0 where b ends within them.
func FrameHeader(b []byte) (frame, length uint64, size int) {
	frame, n := Varint(b)
	if n == 0 {
		return 0, 0, 0
	}
	length, m := Varint(b[n:])
	if m == 0 {
		return 0, 0, 0
	}
	return frame, length, n + m
}

// AppendFrameHeader appends type and length of a frame.
func AppendFrameHeader(b []byte, frame, length uint64) []byte {
	return AppendVarint(AppendVarint(b, frame), length)
}

// headersRoom is what is left for the length of a HEADERS frame while its
// content is not written yet.
const headersRoom = 4

// closeHeaders writes type and length of the HEADERS frame whose content begins
// at from, with room for them in front.
func closeHeaders(b []byte, from int) []byte {
	length := len(b) - from
	binary.BigEndian.PutUint32(b[from-headersRoom:], uint32(length)|0x80000000)
	b[from-headersRoom-1] = FrameHeaders
	return b
}

// openHeaders leaves room for what closeHeaders writes.
func openHeaders(b []byte) (grown []byte, from int) {
	b = append(b, 0, 0, 0, 0, 0)
	return b, len(b)
}
