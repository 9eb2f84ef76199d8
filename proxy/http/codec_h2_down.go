package http

import (
	"errors"
	"io"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h2"
)

// h2Down answers a request over HTTP/2.
type h2Down struct {
	s        *h2DownStream
	fields   field.List // of the final head
	trailers field.List
	headed   bool // the final head was appended
	bodiless bool
	aborted  bool

	websocket websocketAsk

	// The following are guarded by the connection's mutex.
	final bool    // the final head is being made
	last  frameAt // the stream's last frame, which could have END_STREAM
}

func (d *h2Down) reset() {
	d.fields.Reset()
	d.trailers.Reset()
	d.websocket.reset()
	d.headed, d.bodiless, d.aborted, d.final, d.last = false, false, false, false, frameAt{at: -1}
}

func (d *h2Down) inform(status int, h *field.List) {
	c := d.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	d.informLocked(status, h)
}

func (d *h2Down) informLocked(status int, h *field.List) {
	c := d.s.c
	if d.final || d.s.gone != nil || c.dead != nil {
		return
	}
	d.appendHead(status, h, false)
	c.out.flush()
}

// appendHead appends HEADERS. c.mu is held.
func (d *h2Down) appendHead(status int, h *field.List, dated bool) {
	c, s := d.s.c, d.s
	b := c.out.buffer()
	start := len(b)
	b = c.encoder.Status(c.encoder.Begin(h2.BeginHeaders(b)), status)
	if h != nil {
		b = c.encoder.Fields(b, h)
	}
	if dated && !h.Has(field.Date) {
		b = c.encoder.Line(b, &field.Line{ID: field.Date, Value: httpDate(s.x.began.Add(s.x.out.head))})
	}
	c.out.set(h2.EndHeaders(b, start, s.id, false))
}

func (d *h2Down) header() *field.List {
	if !d.headed && !d.final {
		c := d.s.c
		c.mu.Lock()
		d.final = true
		c.mu.Unlock()
	}
	return &d.fields
}

func (d *h2Down) writeHead(status int) {
	s := d.s
	d.bodiless = s.x.req.method == "HEAD" || status == 204 || status == 304
	if d.websocket.asked && status >= 200 && status < 300 {
		// To the client it would say that the tunnel is there.
		status = d.websocket.refuse(&s.x, &d.fields)
		d.bodiless = true
	}
	d.headed = true
	d.sendHead(status)
}

func (d *h2Down) sendHead(status int) {
	c, s := d.s.c, d.s
	c.mu.Lock()
	defer c.mu.Unlock()
	d.final = true
	for s.waitForRoom() {
	}
	if s.cannotSend() != nil {
		return
	}
	d.last = c.out.mark()
	d.appendHead(status, &d.fields, true)
}

// write gathers p, and sends what is gathered, and waits, where the client or
// the connection has no room for more.
func (d *h2Down) write(p []byte) (written int, err error) {
	if d.bodiless {
		return len(p), nil
	}
	c, s := d.s.c, d.s
	c.mu.Lock()
	defer c.mu.Unlock()
	for written < len(p) {
		if err := s.cannotSend(); err != nil {
			return written, err
		}
		if s.waitForRoom() {
			continue
		}
		n := min(len(p)-written, h2.MaxFrame, int(s.window), int(c.window))
		if n <= 0 {
			if c.out.flush(); s.window <= 0 || c.window <= 0 {
				s.waitForWindow()
			}
			continue
		}
		d.last = c.out.mark()
		c.out.set(h2.AppendData(c.out.buffer(), s.id, p[written:written+n], false))
		s.window -= h2.SendWindow(n)
		c.window -= h2.SendWindow(n)
		written += n
		if s.moved += n; s.moved >= h2WorthyFrame {
			s.blocked = time.Time{}
		}
		if n >= h2WorthyFrame {
			c.work.frames++
		}
	}
	s.blocked = time.Time{}
	return written, nil
}

// waitForRoom waits where more is gathered than should be, until some of it was
// sent, and reports whether it did. c.mu is held.
func (s *h2DownStream) waitForRoom() (waited bool) {
	o := &s.c.out
	if o.len() < h2OutMost || s.cannotSend() != nil {
		return false
	}
	if o.flush(); o.len() >= h2OutMost {
		o.waiting++
		s.wait()
		o.waiting--
	}
	return true
}

// cannotSend returns why nothing more can be sent on a stream. c.mu is held.
func (s *h2DownStream) cannotSend() error {
	if s.gone != nil {
		return s.gone
	}
	return s.c.dead
}

// waitForWindow waits until the client leaves room. One that leaves a byte now
// and then is as one that leaves none. c.mu is held.
func (s *h2DownStream) waitForWindow() {
	if s.cannotSend() != nil {
		return
	}
	if s.blocked.IsZero() {
		s.blocked, s.moved = time.Now(), 0
		s.c.watch.arm(s.blocked.Add(s.c.conn.server.cfg.Limits.Idle))
	}
	s.wait()
}

func (d *h2Down) flush() error {
	c := d.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.flush()
	return d.s.cannotSend()
}

func (d *h2Down) trailer(name, value string) { d.trailers.Add(name, value) }

func (d *h2Down) abort() { d.aborted = true }

var errAborted = errors.New("the exchange was cut short")

// conclude ends the stream, and reports whether nobody has a hold on it any more.
func (d *h2Down) conclude() (reuse bool) {
	c, s := d.s.c, d.s
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone == nil && c.dead == nil {
		switch {
		case d.aborted || !d.headed && !s.ended:
			c.reset(s.id, h2.InternalError, errAborted)
		default:
			d.end()
			switch {
			case s.body.ended:
				c.work.exchanges++
			case s.body.tunnel:
				c.reset(s.id, h2.NoError, errBodyOver)
			default:
				s.linger()
			}
		}
	}
	s.concluded = true
	if k := s.body.reading; k != nil {
		s.body.reading = nil
		k.release()
	}
	s.body.drop()
	if s.gone == nil && !s.lingering {
		delete(c.streams, s.id)
		c.remember(s.id, endBoth)
	}
	c.active--
	c.out.flush()
	if c.active == 0 {
		c.watch.rest(s.x.began.Add(s.x.took))
	}
	return !s.tainted
}

// end sends END_STREAM, with the trailer where there is one, and else in the last
// frame if that is not written yet. c.mu is held.
func (d *h2Down) end() {
	c, s := d.s.c, d.s
	switch {
	case s.ended:
		return
	case d.trailers.Len() > 0:
		b := c.out.buffer()
		start := len(b)
		b = c.encoder.Fields(c.encoder.Begin(h2.BeginHeaders(b)), &d.trailers)
		c.out.set(h2.EndHeaders(b, start, s.id, true))
	case !c.out.endAt(d.last):
		c.out.set(h2.AppendData(c.out.buffer(), s.id, nil, true))
	}
	s.ended = true
}

// upgrade answers an extended CONNECT with 200 (RFC 8441 section 5), and hands
// the stream over.
func (d *h2Down) upgrade() (io.ReadWriteCloser, error) {
	if err := d.websocket.check(&d.fields); err != nil {
		d.aborted = true
		return nil, err
	}
	d.headed = true
	d.sendHead(200)
	if err := d.flush(); err != nil {
		return nil, err
	}
	return &h2Tunnel{d.s}, nil
}
