package h1

import (
	"bytes"
	"strings"

	"github.com/remotegpu/sluice/proxy/http/field"
)

const (
	maxChunkLine    = 256
	maxTrailerBytes = 8 << 10
	// maxWaste bounds what chunk lines may come to beyond a fair share of the
	// content: a megabyte in one-byte chunks with long extensions is an attack.
	maxWaste = 16 << 10
)

// Chunks takes the chunked coding off a body (RFC 9112 section 7.1). The zero
// value is ready for one.
type Chunks struct {
	// Trailer has the trailer fields once the body is Done, copied.
	Trailer field.List

	left    int64 // of the chunk under way
	state   chunkState
	waste   int
	trailed int
}

type chunkState uint8

const (
	inSize chunkState = iota
	inData
	inDataEnd
	inTrailer
	chunksDone
)

// Reset makes c ready for the next body and keeps its room.
func (c *Chunks) Reset() {
	c.Trailer.Reset()
	c.left, c.state, c.waste, c.trailed = 0, inSize, 0, 0
}

// Done reports whether the body and its trailer have ended.
func (c *Chunks) Done() bool { return c.state == chunksDone }

// Next goes on with p, the bytes that have come and are not used up. It returns
// the next content in p, and how many bytes of p are used up with it. Where it
// returns no content and is not Done, it wants more bytes behind those that it
// left; they are never more than MaxChunkLine. Any error is an *Error.
func (c *Chunks) Next(p []byte) (content []byte, n int, err error) {
	for {
		switch c.state {
		case inSize:
			used, err := c.size(p[n:])
			if err != nil || used == 0 {
				return nil, n, err
			}
			n += used
		case inData:
			if n == len(p) {
				return nil, n, nil
			}
			take := int(min(int64(len(p)-n), c.left))
			content = p[n : n+take]
			n += take
			if c.left -= int64(take); c.left == 0 {
				c.state = inDataEnd
				if len(p)-n >= 2 && p[n] == '\r' && p[n+1] == '\n' { // nearly always
					n += 2
					c.state = inSize
				}
			}
			return content, n, nil
		case inDataEnd:
			if len(p)-n < 2 {
				if len(p) > n && p[n] != '\r' {
					return nil, n, errChunkEnd
				}
				return nil, n, nil
			}
			if p[n] != '\r' || p[n+1] != '\n' {
				return nil, n, errChunkEnd
			}
			n += 2
			c.state = inSize
		case inTrailer:
			used, err := c.trailer(p[n:])
			if err != nil || used == 0 {
				return nil, n, err
			}
			n += used
		case chunksDone:
			return nil, n, nil
		}
	}
}

// MaxChunkLine is how much Next may leave for the next time.
const MaxChunkLine = maxTrailerBytes

// size reads a chunk's size line; used is 0 where it has not ended.
func (c *Chunks) size(p []byte) (used int, err error) {
	end := bytes.IndexByte(p[:min(len(p), maxChunkLine)], '\n')
	if end < 0 {
		if len(p) >= maxChunkLine {
			return 0, errChunkLine
		}
		return 0, badSizeStart(p)
	}
	if end == 0 || p[end-1] != '\r' {
		return 0, errLineEnd
	}
	text := p[:end-1]
	size, digits := int64(0), 0
	for digits < len(text) && isHex(text[digits]) {
		size = size<<4 | int64(hexValue(text[digits]))
		digits++
	}
	if digits == 0 || digits > 15 || !validExtension(text[digits:]) {
		return 0, errChunkSize
	}
	// Sixteen bytes of overhead are free for each chunk, and as many more as it
	// brings content; the rest adds up.
	c.waste = max(0, c.waste+end+1-16-int(min(2*size, maxWaste)))
	if c.waste > maxWaste {
		return 0, errChunkWaste
	}
	c.left, c.state = size, inData
	if size == 0 {
		c.state = inTrailer
	}
	return end + 1, nil
}

// badSizeStart refuses a size line by what has come of it, so that no peer is
// waited for that speaks something else.
func badSizeStart(p []byte) error {
	if len(p) > 0 && !isHex(p[0]) {
		return errChunkSize
	}
	return nil
}

// validExtension reports whether a chunk's extension, which means nothing to
// anybody, at least ends where it seems to.
func validExtension(ext []byte) bool {
	if len(ext) == 0 {
		return true
	}
	rest := bytes.TrimLeft(ext, " \t")
	return len(rest) > 0 && rest[0] == ';' && isText(rest)
}

func hexValue(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// trailer reads a line of the trailer section; used is 0 where it has not ended.
func (c *Chunks) trailer(p []byte) (used int, err error) {
	text, next, err := line(p, 0)
	if err != nil {
		return 0, err
	}
	if next == 0 {
		if c.trailed+len(p) > maxTrailerBytes {
			return 0, errTrailerBytes
		}
		return 0, nil
	}
	if c.trailed += next; c.trailed > maxTrailerBytes {
		return 0, errTrailerBytes
	}
	if len(text) == 0 {
		c.state = chunksDone
		return next, nil
	}
	l, err := fieldLine(text)
	if err != nil {
		return 0, err
	}
	if c.Trailer.Len() == maxTrailers {
		return 0, errFieldCount
	}
	l.Name, l.Value = strings.Clone(l.Name), strings.Clone(l.Value)
	c.Trailer.Append(l)
	return next, nil
}
