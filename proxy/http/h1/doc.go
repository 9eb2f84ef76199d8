// Package h1 is the wire of HTTP/1.1 (RFC 9112): heads and chunks, read strictly
// and written. Bytes in, answer out: it reads no socket and keeps no clock.
//
// What two readers could understand in two ways is an error, never a guess: a
// request that the next hop frames otherwise is somebody else's request in
// disguise. An Error has the status to answer with; the connection must close
// behind it, for nothing on it can be told apart any more.
//
// Whatever net/http's server refuses is refused here, and these are refused here
// alone. A test has an example of each, and one that is fuzzed sends whatever it
// comes upon to net/http's very server, and fails upon any other difference.
//
//	a line that ends in LF without CR             could be one line or two
//	CR anywhere but before LF                     as above
//	a field line that begins with space (folded)  could be one field or two
//	Content-Length twice, even with one value     framing is said once
//	Content-Length of more than 18 digits         no body has it
//	Content-Length beside Transfer-Encoding       of a request and of a response
//	Transfer-Encoding from HTTP/1.0               no such thing (RFC 9112 section 6.1)
//	any version but HTTP/1.0 and HTTP/1.1         505
//	# in a target, user@ in an authority          no place there
//	* as a target, but of OPTIONS                 as above
//	a Host that is no host and port               the authority is what routes go by
//	absolute-form but of http and https           nothing else is proxied
//	space behind a chunk's size                   only an extension may follow
//	control characters in a chunk's extension     as in field values
//	a chunk line above 256 bytes                  a size has 16 digits at most
//	more than 1000 field lines                    no client needs them
//	more than 64 trailer lines, or 8 KiB of them
//	space in front of the colon in a trailer      as in heads
//	Expect twice, or beside another expectation   417; net/http reads the first only
//
// Heads are parsed without a copy: strings lie in the buffer that was parsed,
// which must stay as it is for as long as they are used.
package h1
