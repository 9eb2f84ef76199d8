package http

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h2"
)

// h2DownStream is an exchange over HTTP/2, from its head to its end. It comes from a
// pool, and goes back unless somebody may still have a hold on it.
type h2DownStream struct {
	c    *h2DownConn
	id   uint32
	x    exchange
	head h2.Head
	body h2Body
	down h2Down
	owe  func(time.Duration) // life.owe, made once
	cut  func(time.Duration) // life.cut, the same

	// The following are guarded by the connection's mutex.
	cond      sync.Cond // told of windows, room, content and the end
	waiting   int       // who wait for it
	window    h2.SendWindow
	recv      h2.RecvWindow
	gone      error     // why the stream is no more; nil: it is
	ended     bool      // END_STREAM was sent
	tainted   bool      // somebody may have a hold on it beyond its end
	blocked   time.Time // since when the client leaves next to no window; zero: it does
	moved     int       // bytes sent since then
	firstBy   time.Time // when the backend owes a response head, or a client that lingers the end; zero: never
	concluded bool
	lingering bool // see linger
	patience  int  // bytes that it may still send then
}

var h2DownStreams = sync.Pool{New: func() any {
	s := new(h2DownStream)
	s.owe, s.cut = s.expectHead, s.cutWrite
	s.body.s, s.down.s = s, s
	return s
}}

// h2Worker is a goroutine that waits for a stream; nil has it go.
type h2Worker struct{ next chan *h2DownStream }

// start has a worker take up a stream.
func (c *h2DownConn) start(s *h2DownStream) {
	c.mu.Lock()
	var w *h2Worker
	if n := len(c.parked); n > 0 {
		w = c.parked[n-1]
		c.parked = c.parked[:n-1]
	}
	c.mu.Unlock()
	if w != nil {
		w.next <- s
		return
	}
	c.workers.Go(func() { c.toil(&h2Worker{next: make(chan *h2DownStream, 1)}, s) })
}

// toil walks one exchange after the other.
func (c *h2DownConn) toil(w *h2Worker, s *h2DownStream) {
	for s != nil {
		c.conn.server.serve(&s.x)
		reuse := s.down.conclude()
		c.conn.end()
		if reuse {
			s.release()
		}
		c.mu.Lock()
		if c.closing.Load() || len(c.parked) >= maxParked {
			c.mu.Unlock()
			return
		}
		c.parked = append(c.parked, w)
		c.mu.Unlock()
		s = <-w.next
	}
}

// open makes an exchange of a request's head, which s.head has and which is well
// formed.
func (c *h2DownConn) open(s *h2DownStream, end bool) {
	x, head := &s.x, &s.head
	x.reset()
	x.conn, x.client, x.body, x.down, x.began = c.conn, c.conn.info.Client, &s.body, &s.down, c.time()
	x.life.owe, x.life.cut = s.owe, s.cut
	x.req.method, x.req.authority, x.req.header = head.Method, head.Authority, &head.Fields
	x.req.target, _ = parseTarget(head.Path)
	s.begin(end)
	if s.down.websocket.ask(x, head.Protocol); s.down.websocket.asked {
		// What comes is not the request's.
		s.body.tunnel, s.body.expect = true, false
		head.Fields.DelID(field.ContentLength)
	}
}

// begin makes s ready for its request, whose head is there. end is whether all of
// it is.
func (s *h2DownStream) begin(end bool) {
	s.gone, s.ended, s.tainted, s.concluded, s.lingering, s.waiting = nil, false, false, false, false, 0
	s.blocked, s.firstBy = time.Time{}, time.Time{}
	s.cond.L = &s.c.mu
	s.body.reset(&s.head, end)
	s.down.reset()
	s.recv = h2.NewRecvWindow(h2DownStreamWindow)
}

// release gives the stream back.
func (s *h2DownStream) release() {
	poison(s.head.Arena())
	s.c = nil
	h2DownStreams.Put(s)
}

// lose has the stream be no more for its client: whoever reads or writes it gets
// err. c.mu is held.
func (s *h2DownStream) lose(err error) {
	if s.gone == nil {
		s.gone = err
	}
	if s.lingering {
		s.lingering = false
		s.c.lingering--
	}
	delete(s.c.streams, s.id)
	s.cond.Broadcast()
}

// wait waits until the stream is told of something. c.mu is held.
func (s *h2DownStream) wait() {
	s.waiting++
	s.cond.Wait()
	s.waiting--
}

// cutWrite is life.cut. A client that takes nothing at all holds up all streams,
// and its connection goes.
func (s *h2DownStream) cutWrite(limit time.Duration) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.cannotSend() != nil || s.concluded:
	case c.conn.socket.stalled(time.Now()) >= limit/2:
		c.conn.hangUp()
	case !s.blocked.IsZero(), s.waiting > 0 && c.out.waiting > 0:
		c.reset(s.id, h2.Cancel, errSilence)
		c.out.later()
	}
}

// expectHead is life.owe.
func (s *h2DownStream) expectHead(limit time.Duration) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.concluded {
		return
	}
	if s.firstBy = (time.Time{}); limit > 0 {
		s.firstBy = time.Now().Add(limit)
		c.watch.arm(s.firstBy)
	}
}

var errBodyOver = errors.New("the exchange is over")

// h2Chunk is a part of a body that has come.
type h2Chunk struct {
	next *h2Chunk
	r, w int
	b    [h2.MaxFrame]byte
}

var h2Chunks = sync.Pool{New: func() any { return new(h2Chunk) }}

func (k *h2Chunk) release() {
	poison(k.b[:])
	k.next, k.r, k.w = nil, 0, 0
	h2Chunks.Put(k)
}

// h2Body is the body of a request over HTTP/2.
type h2Body struct {
	s        *h2DownStream
	declared int64 // by Content-Length; -1: it is not
	length   int64 // as size says it; -1: not known
	sized    bool  // length is said, and stays
	whole    bool  // all of it had come by then, in one part at most
	tunnel   bool  // it is no body, but what follows a CONNECT
	expect   bool  // the client waits for 100 (Continue)
	promised string
	reading  *h2Chunk // of who reads

	// The following are guarded by the connection's mutex.
	first, last *h2Chunk
	got         int64 // bytes that have come
	left        int   // of them, that the connection's window has not been given back
	ended       bool  // END_STREAM has come
	stopped     bool  // nobody reads any more
	trail       *h2.Head
}

func (b *h2Body) reset(head *h2.Head, end bool) {
	*b = h2Body{s: b.s, declared: head.Length, ended: end}
	if end {
		return
	}
	b.promised = head.Fields.GetID(field.Trailer)
	b.expect = field.EqualFold(head.Fields.GetID(field.Expect), "100-continue")
}

// settle decides on what size and atHand say.
func (b *h2Body) settle() {
	if b.sized {
		return
	}
	b.sized = true
	c := b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	b.length = b.declared
	switch {
	case b.tunnel:
		b.length = 0
	case b.ended && b.trail == nil:
		b.length = b.got
		b.whole = b.first == b.last
	}
}

func (b *h2Body) size() int64 {
	b.settle()
	return b.length
}

func (b *h2Body) announced() string { return b.promised }

// atHand leaves the body where it is, to be read or asked for again.
func (b *h2Body) atHand() ([]byte, bool) {
	b.settle()
	switch {
	case b.length == 0:
		return nil, true
	case !b.whole || b.reading != nil:
		return nil, false
	}
	c := b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.first == nil {
		return nil, false
	}
	return b.first.b[b.first.r:b.first.w], true
}

// Read is called by one goroutine at a time.
func (b *h2Body) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if b.reading == nil {
			if b.reading, err = b.take(n == 0); b.reading == nil {
				break
			}
		}
		k := b.reading
		m := copy(p[n:], k.b[k.r:k.w])
		n += m
		if k.r += m; k.r == k.w {
			b.reading = nil
			k.release()
		}
	}
	if !b.tunnel {
		b.s.x.bytes.up.Add(int64(n))
	}
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// take takes a part off what has come; where wait is set it waits for one. It
// returns nil where there is none, and at the end why.
func (b *h2Body) take(wait bool) (*h2Chunk, error) {
	s, c := b.s, b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for b.first == nil {
		switch {
		case b.stopped || s.concluded:
			return nil, errBodyOver
		case b.ended:
			return nil, io.EOF
		case s.gone != nil:
			return nil, s.gone
		case c.dead != nil:
			return nil, c.dead
		case !wait:
			return nil, nil
		}
		if b.expect {
			b.expect = false
			s.down.informLocked(100, nil)
			continue
		}
		s.wait()
	}
	k := b.first
	if b.first = k.next; b.first == nil {
		b.last = nil
	}
	b.giveBack(k.w - k.r)
	return k, nil
}

// giveBack has the client be given leave for n bytes more. c.mu is held.
func (b *h2Body) giveBack(n int) {
	b.left -= n
	more := b.s.c.release(n)
	if b.release(n) || more {
		b.s.c.out.flush()
	}
}

// release gives n bytes of the stream's window back, and reports whether there is
// something to be sent for it. c.mu is held.
func (b *h2Body) release(n int) bool {
	s, c := b.s, b.s.c
	if b.ended || s.gone != nil || s.concluded || b.stopped {
		return false
	}
	increment := s.recv.Release(n)
	if increment == 0 {
		return false
	}
	c.out.set(h2.AppendWindowUpdate(c.out.buffer(), s.id, increment))
	return true
}

// release gives n bytes of the connection's window back, and reports whether
// there is something to be sent for it. c.mu is held.
func (c *h2DownConn) release(n int) bool {
	increment := c.recv.Release(n)
	if increment == 0 {
		return false
	}
	c.out.set(h2.AppendWindowUpdate(c.out.buffer(), 0, increment))
	return true
}

// append takes what has come. c.mu is held.
func (b *h2Body) append(content []byte) {
	b.got += int64(len(content))
	b.left += len(content)
	for len(content) > 0 {
		if b.last == nil || b.last.w == len(b.last.b) {
			k := h2Chunks.Get().(*h2Chunk)
			if b.last == nil {
				b.first = k
			} else {
				b.last.next = k
			}
			b.last = k
		}
		n := copy(b.last.b[b.last.w:], content)
		b.last.w += n
		content = content[n:]
	}
}

// drop lets go of what nobody reads any more. c.mu is held.
func (b *h2Body) drop() {
	for k := b.first; k != nil; {
		next := k.next
		k.release()
		k = next
	}
	b.first, b.last = nil, nil
	if b.left > 0 {
		b.s.c.release(b.left)
		b.left = 0
	}
}

func (b *h2Body) trailer() *field.List {
	c := b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.trail == nil || b.trail.Fields.Len() == 0 {
		return nil
	}
	return &b.trail.Fields
}

// stop has a read under way return and further ones fail.
func (b *h2Body) stop() {
	c := b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	b.stopped = true
	b.s.cond.Broadcast()
}

// failure returns how reading from the client failed, or nil.
func (b *h2Body) failure() *failure {
	s, c := b.s, b.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var wire *h2.StreamError
	switch {
	case b.ended || s.gone == nil:
		return nil
	case errors.As(s.gone, &wire):
		return &failure{class: endClientBody, status: 400, say: "the request's body is not well formed\n", err: s.gone}
	}
	return &failure{class: endClientGone, status: statusClientGone, err: s.gone}
}
