// Package h1 is the wire of HTTP/1.1 (RFC 9112): heads and chunks, read strictly
// and written. Bytes in, answer out: it reads no socket and keeps no clock.
//
// What two readers could understand in two ways is an error, never a guess: a
// request that the next hop frames otherwise is somebody else's request in
// disguise. An Error has the status to answer with; the connection must close
// behind it, for nothing on it can be told apart any more.
//
// Whatever net/http's server refuses is refused here, which a fuzz test sees to.
// These are refused here alone:
//
//	a line that ends in LF without CR             could be one line or two
//	CR anywhere but before LF                     as above
//	a field line that begins with space (folded)  could be one field or two
//	Content-Length twice, even with one value     framing is said once
//	Content-Length beside Transfer-Encoding       of a request and of a response
//	Transfer-Encoding from HTTP/1.0               no such thing (RFC 9112 section 6.1)
//	any version but HTTP/1.0 and HTTP/1.1         505
//	# in a target, user@ in an authority          no place there
//	a Host that is no host and port               the authority is what routes go by
//	absolute-form but of http and https           nothing else is proxied
//	space behind a chunk's size                   only an extension may follow
//	control characters in a chunk's extension     as in field values
//	a chunk line above 256 bytes                  a size has 16 digits at most
//	more than 256 field lines                     no client needs them
//	more than 64 trailer lines, or 8 KiB of them
//	trailer names that are no tokens              as in heads
//
// And these differ on purpose from what net/http makes of them:
//
//	Expect other than 100-continue                417 here, the handler's there
//	Expect from HTTP/1.0                          ignored (RFC 9110 section 10.1.1)
//
// Heads are parsed without a copy: strings lie in the buffer that was parsed,
// which must stay as it is for as long as they are used.
package h1
