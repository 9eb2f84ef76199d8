package http

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h3"
)

// h3Down answers a request over HTTP/3.
type h3Down struct {
	s        *h3Stream
	fields   field.List // of the final head
	trailers field.List
	out      []byte // gathered and not sent

	headed    bool  // the final head is in out, or sent
	open      int64 // what is left of the DATA frame that is the whole body; -1: each part has its own
	bodiless  bool
	aborted   bool
	websocket websocketAsk
	tunnel    *h3Tunnel

	sending atomic.Int64 // since when a write waits, in nanoseconds since the epoch; 0: none does

	mu    sync.Mutex // guards the following fields, and sending until final is set
	final bool       // the final head is being made
	err   error      // of sending
}

func (d *h3Down) reset(s *h3Stream) {
	d.s = s
	d.fields.Reset()
	d.trailers.Reset()
	if d.out = d.out[:0]; cap(d.out) > 2*maxGathered {
		d.out = make([]byte, 0, responseBuffer)
	}
	d.headed, d.bodiless, d.aborted, d.tunnel, d.final, d.err = false, false, false, nil, false, nil
	d.open = -1
}

func (d *h3Down) inform(status int, h *field.List) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.final || d.err != nil {
		return
	}
	d.send(h3.AppendHead(make([]byte, 0, 512), status, h))
}

func (d *h3Down) header() *field.List {
	if !d.final {
		d.mu.Lock()
		d.final = true
		d.mu.Unlock()
	}
	return &d.fields
}

// writeHead puts the head into out.
func (d *h3Down) writeHead(status int) {
	s := d.s
	if d.websocket.asked && status >= 200 && status < 300 {
		// To the client it would say that the tunnel is there.
		status = d.websocket.refuse(&s.x, &d.fields)
		d.bodiless = true
	}
	d.fields.DelID(field.Connection)
	if !d.fields.Has(field.Date) {
		d.fields.AddID(field.Date, httpDate(s.x.began.Add(s.x.out.head)))
	}
	d.out, d.headed = h3.AppendHead(d.out, status, &d.fields), true
	d.bodiless = d.bodiless || s.req.Method == "HEAD" || status == 204 || status == 304
	if n, ok := h3.Length(d.fields.GetID(field.ContentLength)); ok && !d.bodiless && n > 0 {
		d.open = n
		d.out = h3.AppendFrameHeader(d.out, h3.FrameData, uint64(n))
	}
}

var errLongBody = errors.New("the response's body is longer than its Content-Length")

// write gathers small parts and sends large ones with what was gathered.
func (d *h3Down) write(p []byte) (int, error) {
	switch {
	case d.err != nil:
		return 0, d.err
	case d.bodiless, len(p) == 0:
		return len(p), nil
	case d.open < 0:
		d.out = h3.AppendFrameHeader(d.out, h3.FrameData, uint64(len(p)))
	case int64(len(p)) > d.open:
		d.err = errLongBody
		return 0, d.err
	default:
		d.open -= int64(len(p))
	}
	rest := p
	if len(d.out)+len(p) > maxGathered {
		// A full buffer leaves in full packets.
		n := max(0, maxGathered-len(d.out))
		d.out = append(d.out, p[:n]...)
		rest = p[n:]
		if err := d.flush(); err != nil {
			return 0, err
		}
	}
	if len(rest) > maxGathered {
		if err := d.send(rest); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	d.out = append(d.out, rest...)
	return len(p), nil
}

func (d *h3Down) send(b []byte) error {
	d.sending.Store(time.Now().UnixNano())
	_, d.err = d.s.stream.Write(b)
	d.sending.Store(0)
	return d.err
}

func (d *h3Down) flush() error {
	if len(d.out) > 0 && d.err == nil {
		d.send(d.out)
		d.out = d.out[:0]
	}
	return d.err
}

// stalled returns for how long a write has waited for the client.
func (d *h3Down) stalled(now time.Time) time.Duration {
	since := d.sending.Load()
	if since == 0 {
		return 0
	}
	return time.Duration(now.UnixNano() - since)
}

func (d *h3Down) trailer(name, value string) { d.trailers.Add(name, value) }

func (d *h3Down) abort() { d.aborted = true }

// conclude ends the exchange towards the client: with the end of the stream, or,
// so that it cannot take what it got for complete, by a reset.
func (d *h3Down) conclude() {
	s := d.s
	if d.tunnel != nil {
		d.tunnel.Close()
		return
	}
	if d.trailers.Len() > 0 && !d.bodiless {
		d.out = h3.AppendFields(d.out, &d.trailers)
	}
	code, wrong := s.body.malformed()
	switch {
	case wrong:
	case d.aborted, d.open > 0 && d.err == nil:
		code = h3.RequestCancelled
		if end := s.x.out.end; end != endClientGone && end != endStalled && end != endCut {
			code = h3.InternalError
		}
	default:
		if d.flush() == nil {
			s.stream.Close()
			d.settle()
			return
		}
		code = h3.RequestCancelled
	}
	if d.err != nil {
		s.took(d.err)
	} else {
		s.took(s.x.life.abandoned())
	}
	s.reset(code)
}

// settle ends the client's direction, once it has been answered. What it is still
// sending nobody wants (RFC 9114 section 4.1).
func (d *h3Down) settle() {
	b := &d.s.body
	if b.stopped.Load() {
		return
	}
	err := b.finish()
	if err == nil {
		return
	}
	var wrong *h3.Error
	if errors.As(err, &wrong) {
		b.failed(err)
		return
	}
	d.s.stream.CancelRead(quic.StreamErrorCode(h3.NoError))
}

// upgrade answers an extended CONNECT and returns the stream as the connection
// that was asked for (RFC 9220).
func (d *h3Down) upgrade() (io.ReadWriteCloser, error) {
	if err := d.websocket.check(&d.fields); err != nil {
		d.aborted = true
		return nil, err
	}
	d.out, d.headed = h3.AppendHead(d.out, 200, &d.fields), true
	if err := d.flush(); err != nil {
		return nil, err
	}
	d.s.body.tunnel()
	d.tunnel = &h3Tunnel{d: d}
	return d.tunnel, nil
}

// h3Tunnel is a stream after it was answered as a connection.
type h3Tunnel struct {
	d       *h3Down
	closing sync.Once
	ended   atomic.Bool // our direction, in order
}

func (t *h3Tunnel) Read(p []byte) (int, error) {
	b := &t.d.s.body
	n, err := b.read(p)
	if err != nil && err != io.EOF {
		b.failed(err)
	}
	return n, err
}

// Write sends p in a DATA frame.
func (t *h3Tunnel) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	d := t.d
	d.out = append(h3.AppendFrameHeader(d.out[:0], h3.FrameData, uint64(len(p))), p...)
	if _, err := d.s.stream.Write(d.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends the sending direction.
func (t *h3Tunnel) CloseWrite() error {
	t.ended.Store(true)
	return t.d.s.stream.Close()
}

// Close ends both directions; where ours had not ended before, so that the client
// can tell.
func (t *h3Tunnel) Close() error {
	t.closing.Do(func() {
		stream := t.d.s.stream
		stream.CancelRead(quic.StreamErrorCode(h3.NoError))
		if !t.ended.Load() {
			stream.CancelWrite(quic.StreamErrorCode(h3.ConnectError))
		}
	})
	return nil
}
