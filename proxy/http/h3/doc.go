// Package h3 has the wire of HTTP/3 (RFC 9114) and of QPACK without a dynamic
// table (RFC 9204): bytes in, answer out. It knows no QUIC: who reads and writes
// the streams, and obeys the errors, is package http.
//
// It is strict. What RFC 9114 calls malformed is an Error, and so is what leaves
// two readers room for two opinions: a pseudo-header field that is there twice,
// or behind others, or unknown; an :authority that Host contradicts; a name that
// is not a token in lower case; white space around a value; fields that belong
// to a connection; a Content-Length that is there twice, or is no number.
//
// The dynamic table of QPACK has capacity 0: nothing that a client sends is kept
// beyond its request, no stream waits for another, and a section of fields cannot
// grow to more than what Huffman coding saves.
package h3
