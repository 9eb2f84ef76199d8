// Package h2 knows the wire of HTTP/2 (RFC 9113) and HPACK (RFC 7541), for both
// sides of a connection: frames, field blocks, windows. It reads and writes
// bytes, and neither starts goroutines nor knows streams' states; those belong
// to the codecs of package http.
//
// Reader takes frames off a connection and checks each by itself: sizes, stream
// identifiers, and that a field block is not interrupted. Appending functions
// write frames into a buffer of the caller's, so that many go out in one write.
// Decoder and Encoder keep the state of compression of one direction. Head holds
// a decoded message head, or a trailer section, and says whether it is well
// formed by RFC 9113 section 8.
//
// Strings of a Head may lie in its own buffer: they hold until it is reset.
//
// Errors of the peer's making are of two types. A *ConnError ends the connection
// with GOAWAY, a *StreamError one stream with RST_STREAM. Input never panics.
package h2
