package h2

import "encoding/binary"

// AppendHeader appends the header of a frame whose payload has length bytes.
func AppendHeader(b []byte, length int, t Type, flags uint8, stream uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(t), flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

// AppendData appends a DATA frame; p has at most the peer's largest frame.
func AppendData(b []byte, stream uint32, p []byte, end bool) []byte {
	var flags uint8
	if end {
		flags = FlagEndStream
	}
	return append(AppendHeader(b, len(p), TypeData, flags, stream), p...)
}

// BeginHeaders appends room for the header of a HEADERS frame, behind which a
// field block is to be appended. EndHeaders completes it.
func BeginHeaders(b []byte) []byte { return append(b, "123456789"...) }

// EndHeaders writes the frame header that BeginHeaders left room for at start,
// and cuts the block into CONTINUATION frames where it is longer than a frame.
func EndHeaders(b []byte, start int, stream uint32, end bool) []byte {
	flags := FlagEndHeaders
	if end {
		flags |= FlagEndStream
	}
	length := len(b) - start - HeaderLen
	if length <= MaxFrame {
		AppendHeader(b[:start], length, TypeHeaders, flags, stream)
		return b
	}
	block := append([]byte(nil), b[start+HeaderLen:]...)
	b = AppendHeader(b[:start], MaxFrame, TypeHeaders, flags&^FlagEndHeaders, stream)
	b = append(b, block[:MaxFrame]...)
	for block = block[MaxFrame:]; len(block) > 0; {
		n := min(len(block), MaxFrame)
		last := uint8(0)
		if n == len(block) {
			last = FlagEndHeaders
		}
		b = AppendHeader(b, n, TypeContinuation, last, stream)
		b = append(b, block[:n]...)
		block = block[n:]
	}
	return b
}

// AppendRSTStream appends an RST_STREAM frame.
func AppendRSTStream(b []byte, stream uint32, code Code) []byte {
	b = AppendHeader(b, 4, TypeRSTStream, 0, stream)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

// AppendWindowUpdate appends a WINDOW_UPDATE frame; stream 0 is the connection.
func AppendWindowUpdate(b []byte, stream, increment uint32) []byte {
	b = AppendHeader(b, 4, TypeWindowUpdate, 0, stream)
	return binary.BigEndian.AppendUint32(b, increment)
}

// AppendPing appends a PING frame with the eight bytes of data.
func AppendPing(b []byte, ack bool, data []byte) []byte {
	var flags uint8
	if ack {
		flags = FlagAck
	}
	return append(AppendHeader(b, 8, TypePing, flags, 0), data[:8]...)
}

// AppendGoAway appends a GOAWAY frame, with what is wrong in words for whoever
// looks at the wire.
func AppendGoAway(b []byte, last uint32, code Code, what string) []byte {
	b = AppendHeader(b, 8+len(what), TypeGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, what...)
}

// AppendSettings appends a SETTINGS frame.
func AppendSettings(b []byte, settings ...Setting) []byte {
	b = AppendHeader(b, 6*len(settings), TypeSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Value)
	}
	return b
}

// AppendSettingsAck appends the acknowledgement of a SETTINGS frame.
func AppendSettingsAck(b []byte) []byte { return AppendHeader(b, 0, TypeSettings, FlagAck, 0) }
