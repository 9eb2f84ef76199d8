package h2

import "strconv"

// Code is an error code of RFC 9113 section 7.
type Code uint32

// The error codes.
const (
	NoError            Code = 0x0
	ProtocolError      Code = 0x1
	InternalError      Code = 0x2
	FlowControlError   Code = 0x3
	SettingsTimeout    Code = 0x4
	StreamClosed       Code = 0x5
	FrameSizeError     Code = 0x6
	RefusedStream      Code = 0x7
	Cancel             Code = 0x8
	CompressionError   Code = 0x9
	ConnectError       Code = 0xa
	EnhanceYourCalm    Code = 0xb
	InadequateSecurity Code = 0xc
	HTTP11Required     Code = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "code " + strconv.FormatUint(uint64(c), 10)
}

// ConnError says why a connection cannot go on (RFC 9113 section 5.4.1).
type ConnError struct {
	Code Code
	What string
}

func (e *ConnError) Error() string { return e.What + " (" + e.Code.String() + ")" }

// StreamError says why a stream cannot go on (RFC 9113 section 5.4.2).
type StreamError struct {
	Stream uint32
	Code   Code
	What   string
}

func (e *StreamError) Error() string {
	return "stream " + strconv.FormatUint(uint64(e.Stream), 10) + ": " + e.What + " (" + e.Code.String() + ")"
}
