package http

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

// h1Body is the body of a request over HTTP/1.1.
type h1Body struct {
	c        *h1Conn
	length   int64 // h1.Chunked: not known
	left     int64
	expect   bool   // the client waits for 100 (Continue)
	promised string // names of trailer fields

	content []byte // all of it, where it came with the head

	// Of a chunked body: what has come and is not decoded is raw[r:w], what is
	// decoded and not read is pending.
	chunks  h1.Chunks
	raw     *[]byte
	r, w    int
	pending []byte

	started  atomic.Bool // somebody reads it
	complete atomic.Bool // all of it has been read
	stopped  atomic.Bool
	slow     atomic.Bool  // nothing came of it for too long
	heard    atomic.Int64 // when something came last, in nanoseconds since the epoch

	mu  sync.Mutex // guards the following fields
	err error      // of reading from the client
}

func (b *h1Body) reset(c *h1Conn) {
	req := &c.work.req
	b.c, b.length, b.left, b.expect = c, req.Length, req.Length, req.Expect
	b.promised = req.Fields.GetID(field.Trailer)
	b.chunks.Reset()
	b.content, b.raw, b.pending, b.err = nil, nil, nil, nil
	lower(&b.started)
	lower(&b.stopped)
	lower(&b.slow)
	if empty := b.length == 0; b.complete.Load() != empty {
		b.complete.Store(empty)
	}
	if b.length != 0 {
		b.heard.Store(time.Now().UnixNano())
	}
}

// lower clears a flag; looking first is far cheaper than storing.
func lower(flag *atomic.Bool) {
	if flag.Load() {
		flag.Store(false)
	}
}

func (b *h1Body) size() int64 { return b.length }

func (b *h1Body) announced() string { return b.promised }

// atHand takes the body from where the head was read to.
func (b *h1Body) atHand() ([]byte, bool) {
	w := b.c.work
	switch {
	case b.length == 0 || b.content != nil:
		return b.content, true
	case b.length < 0 || b.left < b.length || int64(w.w-w.r) < b.length:
		return nil, false
	}
	b.content = w.in[w.r : w.r+int(b.length)]
	w.r += int(b.length)
	b.left = b.length // for Read, which gives it once more
	b.complete.Store(true)
	return b.content, true
}

// Read is called by one goroutine at a time.
func (b *h1Body) Read(p []byte) (n int, err error) {
	b.started.Store(true)
	switch {
	case b.content != nil && b.left > 0:
		n = copy(p, b.content[b.length-b.left:])
		b.left -= int64(n)
		return n, nil
	case b.complete.Load():
		return 0, io.EOF
	case b.stopped.Load():
		return 0, errBodyOver
	}
	w := b.c.work
	if b.expect {
		b.expect = false
		if w.r == w.w { // else the client did not wait
			w.down.inform(100, nil)
		}
	}
	if b.length < 0 {
		n, err = b.readChunked(p)
	} else {
		n, err = b.readPlain(p)
	}
	w.x.bytes.up.Add(int64(n))
	if err != nil && err != io.EOF && !b.stopped.Load() {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

func (b *h1Body) readPlain(p []byte) (n int, err error) {
	w := b.c.work
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if w.r < w.w {
		n = copy(p, w.in[w.r:w.w])
		w.r += n
	} else if n, err = b.receive(p); n == 0 && err != nil {
		return 0, err
	}
	if b.left -= int64(n); b.left == 0 {
		b.complete.Store(true)
	}
	return n, nil
}

// receive reads from the connection. Its end is too early while a body lasts.
func (b *h1Body) receive(p []byte) (int, error) {
	n, err := b.c.io.Read(p)
	if n > 0 {
		b.heard.Store(time.Now().UnixNano())
		return n, nil
	}
	return 0, noEOF(err)
}

// readChunked fills p with the content of as many chunks as have come: a client
// that sends a byte in each must not have each sent on by itself.
func (b *h1Body) readChunked(p []byte) (n int, err error) {
	if b.raw == nil {
		b.takeRaw()
	}
	raw := *b.raw
	for n < len(p) {
		if len(b.pending) == 0 {
			content, used, err := b.chunks.Next(raw[b.r:b.w])
			if err != nil {
				return n, err
			}
			b.r += used
			if b.chunks.Done() {
				b.complete.Store(true)
				return n, io.EOF
			}
			b.pending = content
		}
		if len(b.pending) == 0 {
			if n > 0 {
				return n, nil
			}
			b.w = copy(raw, raw[b.r:b.w])
			b.r = 0
			got, err := b.receive(raw[b.w:])
			b.w += got
			if err != nil {
				return 0, err
			}
			continue
		}
		k := copy(p[n:], b.pending)
		n, b.pending = n+k, b.pending[k:]
	}
	return n, nil
}

// takeRaw gets a buffer to receive chunks in, with what has come already.
func (b *h1Body) takeRaw() {
	w := b.c.work
	if rest := w.w - w.r; rest <= copyBuffer/2 {
		b.raw = copyBuffers.Get().(*[]byte)
	} else {
		large := make([]byte, 2*rest)
		b.raw = &large
	}
	b.r, b.w = 0, copy(*b.raw, w.in[w.r:w.w])
	w.r = w.w
}

// giveBack puts what was read beyond a chunked body where the next request is
// read from.
func (b *h1Body) giveBack() {
	if b.raw == nil {
		return
	}
	w := b.c.work
	if rest := (*b.raw)[b.r:b.w]; len(rest) > 0 {
		if len(rest) > len(w.in) {
			w.in = make([]byte, len(rest))
		}
		w.r, w.w = 0, copy(w.in, rest)
	}
	if len(*b.raw) == copyBuffer {
		copyBuffers.Put(b.raw)
	}
	b.raw, b.pending = nil, nil
}

// trailer returns the trailer fields.
func (b *h1Body) trailer() *field.List {
	if b.chunks.Trailer.Len() == 0 {
		return nil
	}
	return &b.chunks.Trailer
}

// stop has a read under way return and further ones fail.
func (b *h1Body) stop() {
	b.started.Store(true)
	if !b.complete.Load() && !b.stopped.Swap(true) {
		b.c.conn.socket.SetReadDeadline(time.Unix(1, 0))
	}
}

// silence returns how long nothing came of a body that somebody reads.
func (b *h1Body) silence(now time.Time) time.Duration {
	if !b.started.Load() || b.stopped.Load() {
		return 0
	}
	return time.Duration(now.UnixNano() - b.heard.Load())
}

// tooSlow has a read under way fail.
func (b *h1Body) tooSlow() {
	b.slow.Store(true)
	b.c.conn.socket.SetReadDeadline(time.Unix(1, 0))
}

// drainable reports whether the body, which nobody reads, may be read to its end
// so that the connection can go on.
func (b *h1Body) drainable() bool {
	return !b.started.Load() && !b.expect && b.length <= maxDrained
}

// drain reads the body to its end, if that is not far.
func (b *h1Body) drain() bool {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for total := 0; total <= maxDrained; {
		n, err := b.Read(*buf)
		total += n
		if err == io.EOF || b.complete.Load() {
			return true
		}
		if err != nil {
			return false
		}
	}
	return false
}

// failure returns how reading from the client failed, or nil.
func (b *h1Body) failure() *failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	var wire *h1.Error
	switch {
	case b.err == nil:
		return nil
	case b.slow.Load():
		return bodyTooSlow(errBodyIdle)
	case errors.As(b.err, &wire):
		return &failure{class: endClientBody, status: 400, say: "the request's body is not well formed\n", err: b.err}
	}
	return b.c.work.x.clientGone(b.err)
}
