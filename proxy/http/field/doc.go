// Package field has the field section of an HTTP message (RFC 9110 section 6.3)
// as an ordered list, and an index of the names that a proxy looks at.
//
// A list is filled by a codec, edited by policy and written by another codec,
// within one exchange. It makes no copies: names and values are strings that
// may lie in a codec's buffer, and hold for as long as the exchange does. Who
// keeps one for longer clones it.
package field
