package h1

// Error says what is wrong with a message, and which status tells a client.
type Error struct {
	Status int
	What   string
}

func (e *Error) Error() string { return e.What }

var (
	errLineEnd      = &Error{400, "a line does not end in CR LF"}
	errControl      = &Error{400, "a field value holds a control character"}
	errFolded       = &Error{400, "a field line begins with white space"}
	errFieldName    = &Error{400, "a field name is not a token that a colon follows"}
	errRequestLine  = &Error{400, "the request line is not a method, a target and a version with one space between them"}
	errMethod       = &Error{400, "the method is not a token"}
	errVersion      = &Error{505, "the version is neither HTTP/1.0 nor HTTP/1.1"}
	errTarget       = &Error{400, "the request target is not well formed"}
	errHost         = &Error{400, "there must be one Host field that holds a host"}
	errLengthTwice  = &Error{400, "Content-Length is there more than once"}
	errLength       = &Error{400, "Content-Length is not a number"}
	errTwoLengths   = &Error{400, "Content-Length and Transfer-Encoding are both there"}
	errCoding10     = &Error{400, "Transfer-Encoding has no place in HTTP/1.0"}
	errCodingTwice  = &Error{400, "Transfer-Encoding is there more than once"}
	errCoding       = &Error{501, "the transfer coding is not chunked"}
	errExpect       = &Error{417, "the only expectation that can be met is 100-continue"}
	errFieldCount   = &Error{431, "the head has too many fields"}
	errStatusLine   = &Error{502, "the status line is not well formed"}
	errChunkSize    = &Error{400, "a chunk's size is not a hexadecimal number"}
	errChunkLine    = &Error{400, "a chunk's size line is too long"}
	errChunkEnd     = &Error{400, "a chunk does not end where its size says"}
	errChunkWaste   = &Error{400, "the chunks are mostly overhead"}
	errTrailerBytes = &Error{400, "the trailer section is too long"}
)

// TooLarge is for a head that does not end within the caller's limit: 414 while
// its first line has not ended, else 431.
func (r *Request) TooLarge() *Error {
	if r.pos == 0 {
		return &Error{414, "the request line is too long"}
	}
	return &Error{431, "the head is too long"}
}
