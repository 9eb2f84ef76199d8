package h3

import "fmt"

// Code is an error code of HTTP/3 or QPACK, for a stream or the connection.
type Code uint64

// The codes of RFC 9114 section 8.1 and RFC 9204 section 6.
const (
	NoError              Code = 0x100
	GeneralProtocolError Code = 0x101
	InternalError        Code = 0x102
	StreamCreationError  Code = 0x103
	ClosedCriticalStream Code = 0x104
	FrameUnexpected      Code = 0x105
	FrameError           Code = 0x106
	ExcessiveLoad        Code = 0x107
	IDError              Code = 0x108
	SettingsError        Code = 0x109
	MissingSettings      Code = 0x10a
	RequestRejected      Code = 0x10b
	RequestCancelled     Code = 0x10c
	RequestIncomplete    Code = 0x10d
	MessageError         Code = 0x10e
	ConnectError         Code = 0x10f
	VersionFallback      Code = 0x110

	DecompressionFailed Code = 0x200
	EncoderStreamError  Code = 0x201
	DecoderStreamError  Code = 0x202
)

// Error says what is wrong with what a client sent.
type Error struct {
	Code Code
	// Conn has the whole connection end, else it is the stream.
	Conn bool
	What string
}

func (e *Error) Error() string { return fmt.Sprintf("%s (code %#x)", e.What, uint64(e.Code)) }

// malformed is what is wrong with one message (RFC 9114 section 4.1.2).
func malformed(what string) *Error { return &Error{Code: MessageError, What: what} }

// broken is what the connection cannot go on after.
func broken(code Code, what string) *Error { return &Error{Code: code, Conn: true, What: what} }

var (
	errPseudoLate     = malformed("a pseudo-header field stands behind other fields")
	errPseudoTwice    = malformed("a pseudo-header field is there twice")
	errPseudoUnknown  = malformed("a pseudo-header field is not known in requests")
	errPseudoTrailer  = malformed("a trailer section has a pseudo-header field")
	errPseudoMissing  = malformed("a request needs :method, :scheme and :path")
	errConnect        = malformed("CONNECT has :authority and neither :scheme nor :path, or all of them with :protocol")
	errProtocol       = malformed(":protocol is for CONNECT")
	errScheme         = malformed(":scheme is not https")
	errPath           = malformed(":path begins with no slash, or is empty")
	errName           = malformed("a field name is not a token in lower case")
	errValue          = malformed("a field value holds a control character, or begins or ends with white space")
	errConnectionName = malformed("a field belongs to a connection of HTTP/1.1")
	errAuthority      = malformed(":authority and Host are not the same, or both are missing")
	errLength         = malformed("Content-Length is not a number, or there twice")

	errPrefix   = broken(DecompressionFailed, "a field section does not begin as it should")
	errDynamic  = broken(DecompressionFailed, "a field section refers to the dynamic table, which has no room")
	errStatic   = broken(DecompressionFailed, "a field section refers to no entry of the static table")
	errCutShort = broken(DecompressionFailed, "a field section ends within a field")
	errInteger  = broken(DecompressionFailed, "a field section holds an integer that is too large")
	errHuffman  = broken(DecompressionFailed, "a field section holds a string that is no Huffman code")

	errSettingTwice = broken(SettingsError, "a setting is there twice")
	errSettingOld   = broken(SettingsError, "a setting is HTTP/2's")
	errSettingValue = broken(SettingsError, "a setting has a value that it cannot have")
	errSettingShort = broken(FrameError, "SETTINGS ends within a setting")
)

// ErrTooLarge is for a section of fields that is larger than what was announced
// by SETTINGS_MAX_FIELD_SECTION_SIZE, which the request can be answered for.
var ErrTooLarge = &Error{Code: ExcessiveLoad, What: "the fields are too large"}
