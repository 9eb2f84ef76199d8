package http

import (
	"io"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/remotegpu/sluice/proxy/http/field"
)

const (
	// maxEncoders bounds the encoders at work, each of which takes about a
	// megabyte. A response that finds none left is sent as it is.
	maxEncoders = 64
	// encodedBuffer is how much encoded content is gathered before it is sent on.
	encodedBuffer = 8 << 10

	gzipLevel  = 4
	zstdWindow = 128 << 10
)

// encodedDown is a downstream in front of a codec's own that encodes the body.
// It sends on what it has whenever it is flushed, which is what the forwarder
// does when the backend pauses.
type encodedDown struct {
	downstream
	x      *exchange
	coding coding
	least  int // content of fewer bytes is not encoded

	stage  encodeStage
	status int      // of the head that waits
	held   []byte   // the beginning of content that may be all of it
	enc    *encoder // while encoding
}

type encodeStage uint8

const (
	holding  encodeStage = iota // head and content wait until there is enough of it
	encoding                    // content is encoded as it comes
	passing                     // there was no encoder: content stays as it is
	encoded                     // all is sent, or nothing more will be
)

// encode puts an encodedDown in front of x's downstream. known says that there is
// enough content to be worth it.
func (x *exchange) encode(c coding, least int64, known bool) {
	d := &encodedDown{downstream: x.down, x: x, coding: c, least: int(least)}
	if known {
		d.least = 0
	}
	x.coder, x.down = d, d
}

func (d *encodedDown) writeHead(status int) {
	d.status = status
	if d.least == 0 {
		d.begin()
		return
	}
	detach(d.header())
}

// detach has the fields of h outlive the buffer that they lie in: the backend's
// next bytes may be read into it.
func detach(h *field.List) {
	var all []byte
	for _, l := range h.Lines() {
		all = append(append(all, l.Name...), l.Value...)
	}
	rest := string(all)
	lines := h.Lines()
	for i := range lines {
		n, v := len(lines[i].Name), len(lines[i].Value)
		lines[i].Name, lines[i].Value, rest = rest[:n], rest[n:n+v], rest[n+v:]
	}
}

// begin sends the head, which says how the content that follows is encoded.
func (d *encodedDown) begin() {
	d.stage = passing
	if d.enc = d.x.conn.server.encoders.take(d.coding, d); d.enc != nil {
		d.stage = encoding
		h := d.header()
		h.Set("Content-Encoding", d.coding.String())
		h.DelID(field.ContentLength)
		for _, name := range ofPlainContent {
			h.Del(name)
		}
		weaken(h)
	}
	d.downstream.writeHead(d.status)
}

// ofPlainContent are fields that would not be true of encoded content.
var ofPlainContent = []string{"Accept-Ranges", "Content-MD5", "Digest", "Content-Digest", "Repr-Digest"}

func (d *encodedDown) write(p []byte) (int, error) {
	if d.stage == holding {
		if len(d.held)+len(p) < d.least {
			d.held = append(d.held, p...)
			return 0, nil
		}
		if err := d.beginHeld(); err != nil {
			return 0, err
		}
	}
	if d.stage == encoding {
		return 0, d.enc.encode(p) // which counts what it sends
	}
	return d.downstream.write(p)
}

// beginHeld sends the head and what was held of the content.
func (d *encodedDown) beginHeld() error {
	d.begin()
	held := d.held
	d.held = nil
	if len(held) == 0 {
		return nil
	}
	return d.x.write(held)
}

func (d *encodedDown) flush() error {
	if d.stage == holding {
		if err := d.beginHeld(); err != nil {
			return err
		}
	}
	if d.stage == encoding {
		if err := d.enc.flush(); err != nil {
			return err
		}
	}
	return d.downstream.flush()
}

func (d *encodedDown) trailer(name, value string) {
	if err := d.complete(); err != nil && d.x.out.end == "" {
		d.x.lostClient(err)
	}
	d.downstream.trailer(name, value)
}

func (d *encodedDown) abort() {
	d.letGo()
	d.downstream.abort()
}

// complete ends the content.
func (d *encodedDown) complete() (err error) {
	defer d.letGo()
	switch d.stage {
	case holding:
		d.stage = passing
		if h := d.header(); !h.Has(field.Trailer) {
			h.SetID(field.ContentLength, strconv.Itoa(len(d.held)))
		}
		d.downstream.writeHead(d.status)
		if len(d.held) > 0 {
			err = d.x.write(d.held)
		}
	case encoding:
		err = d.enc.close()
	}
	return err
}

// letGo gives the encoder back.
func (d *encodedDown) letGo() {
	d.stage = encoded
	if d.enc != nil {
		d.x.conn.server.encoders.put(d.enc)
		d.enc = nil
	}
}

// send passes encoded content on to the codec.
func (d *encodedDown) send(p []byte) error {
	n, err := d.downstream.write(p)
	d.x.bytes.down.Add(int64(n))
	return err
}

// encoders are the encoders of a server: a pool for each coding, and how many
// are at work.
type encoders struct {
	busy  atomic.Int64
	pools [numCodings]sync.Pool // of *encoder
}

// take returns an encoder that writes to d, or nil where too many are at work.
func (e *encoders) take(c coding, d *encodedDown) *encoder {
	if e.busy.Add(1) > maxEncoders {
		e.busy.Add(-1)
		return nil
	}
	enc, _ := e.pools[c].Get().(*encoder)
	if enc == nil {
		enc = newEncoder(c)
	}
	enc.to = d
	enc.out = enc.out[:0]
	enc.w.Reset(enc)
	return enc
}

func (e *encoders) put(enc *encoder) {
	enc.to, enc.dirty = nil, false
	enc.w.Reset(nil) // an encoder that failed is as good as any other then
	e.pools[enc.coding].Put(enc)
	e.busy.Add(-1)
}

// encoder encodes the content of one response at a time, and gathers what comes
// of it.
type encoder struct {
	coding coding
	w      interface {
		io.Writer
		Flush() error
		Close() error
		Reset(io.Writer)
	}
	to    *encodedDown
	out   []byte
	dirty bool // something was written since the last flush
}

func newEncoder(c coding) *encoder {
	e := &encoder{coding: c, out: make([]byte, 0, encodedBuffer)}
	var err error
	if c == codingZstd {
		// A single goroutine: the exchange's own. Browsers take windows of up
		// to 8 MB (RFC 9659); a small one bounds our memory.
		e.w, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	} else {
		e.w, err = gzip.NewWriterLevel(nil, gzipLevel)
	}
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}

func (e *encoder) encode(p []byte) error {
	e.dirty = e.dirty || len(p) > 0
	_, err := e.w.Write(p)
	return err
}

// flush has all that was encoded sent on, in such a way that it can be decoded.
func (e *encoder) flush() error {
	if !e.dirty {
		return nil
	}
	e.dirty = false
	if err := e.w.Flush(); err != nil {
		return err
	}
	return e.send()
}

func (e *encoder) close() error {
	if err := e.w.Close(); err != nil {
		return err
	}
	return e.send()
}

// Write takes encoded content.
func (e *encoder) Write(p []byte) (int, error) {
	if len(e.out)+len(p) > encodedBuffer {
		if err := e.send(); err != nil {
			return 0, err
		}
		if len(p) >= encodedBuffer {
			return len(p), e.to.send(p)
		}
	}
	e.out = append(e.out, p...)
	return len(p), nil
}

func (e *encoder) send() error {
	if len(e.out) == 0 {
		return nil
	}
	err := e.to.send(e.out)
	e.out = e.out[:0]
	return err
}
