package http

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/remotegpu/sluice/proxy/http/h1"
)

const (
	requestBuffer  = 4 << 10 // for the head of a request and what comes with it
	responseBuffer = 4 << 10 // for the head of a response and small bodies
	// maxGathered is how much of a response is gathered before it is sent on.
	maxGathered = 16 << 10
	// spareBytes is what a connection holds to be read into while it waits, if
	// the kernel cannot wait without: over TLS.
	spareBytes = 512
	// maxDeferred is how much of an answer may wait to be sent with the next read.
	maxDeferred = 4 << 10
	// hotGap is how soon a client asks again that does nothing else.
	hotGap = 5 * time.Millisecond
	// maxDrained is how much of a body that nobody wanted is read so that the
	// connection may go on.
	maxDrained = 256 << 10
)

// h1Conn is a client connection that speaks HTTP/1.1. One goroutine walks it
// from its first request to its last. What an exchange needs, it has from a
// pool, and gives back before it waits for the next.
type h1Conn struct {
	conn    *conn
	io      io.ReadWriter // of HTTP: TLS, or the socket
	secured *tls.Conn     // nil in clear text
	watch   h1Watch
	work    *h1Work // nil while idle
	spare   []byte  // to be read into while idle; nil: ReadLent does without
	early   []byte  // in spare: came during an exchange, behind its request

	idle     time.Time // since when there is no exchange
	hot      bool      // the request came right after the answer before it
	eager    bool      // the client does not wait for its answers
	deferred bool      // the last of the answer is not sent yet, and complete
	refused  error     // what came was no request
}

// h1Work is what a connection holds while it carries exchanges.
type h1Work struct {
	x    exchange
	req  h1.Request
	in   []byte // of the client, what is not used up is in[r:w]
	r, w int
	body h1Body
	down h1Down
}

var h1Works = sync.Pool{New: func() any {
	w := &h1Work{in: make([]byte, requestBuffer)}
	w.down.out = make([]byte, 0, responseBuffer)
	return w
}}

// serveH1 serves HTTP/1.1 on conn until it has ended.
func (s *Server) serveH1(conn *conn, secured *tls.Conn) {
	c := &h1Conn{conn: conn, secured: secured, io: conn.socket}
	if secured != nil {
		c.io = secured
	}
	c.watch.init(c)
	conn.h1.Store(c)
	gently := c.run()
	c.watch.stop()
	c.release()
	conn.unserved(c.refused)
	if gently {
		c.close()
	}
}

// close closes the connection so that the client reads all that was sent.
func (c *h1Conn) close() {
	if c.secured != nil {
		c.secured.Close()
		return
	}
	c.conn.socket.Close()
}

// run serves one request after the other. It reports whether the client should
// get to read what was sent.
func (c *h1Conn) run() (gently bool) {
	for {
		if c.work == nil && !c.await() {
			return true
		}
		if complete := c.readHead(); !complete {
			return true
		}
		if !c.conn.begin() {
			return true
		}
		keep, whole := c.exchange()
		if c.deferred {
			if !c.answerAndAwait() {
				return true
			}
			continue
		}
		c.settle(false)
		if !keep {
			return whole
		}
		c.next()
	}
}

// settle ends an exchange that has been answered. loose is for watch.leave.
func (c *h1Conn) settle(loose bool) {
	c.deferred = false
	c.idle = c.work.x.began.Add(c.work.x.took)
	c.watch.leave(c.idle, loose)
	c.work.body.giveBack()
	c.conn.end()
}

// mayDefer reports whether the last of an answer may be sent with the waiting
// for the next request, which saves a system call. That is so for a client that
// asks again as soon as it is answered; the others would pay for the look that
// makes up for it.
func (c *h1Conn) mayDefer() bool {
	w := c.work
	if !c.hot || c.eager || !c.conn.socket.canWaitBare() || w.r < w.w || w.body.raw != nil || len(w.down.out) > maxDeferred {
		return false
	}
	c.watch.quiet()
	c.deferred = len(c.early) == 0
	return c.deferred
}

// answerAndAwait sends what is left of an answer and waits for the next request.
func (c *h1Conn) answerAndAwait() bool {
	n, err := c.answerAndRead()
	if c.deferred { // it could not be sent at once
		c.settle(false)
		c.release()
		if err != nil {
			return false
		}
		if n == 0 {
			return c.await()
		}
	}
	switch {
	case n > 0 && c.secured == nil:
		c.work.w = n
		return true
	case n > 0:
		c.hold()
		c.work.w = copy(c.work.in, c.spare[:n])
		return true
	case !c.watch.wasPoked():
		return false
	}
	looked := time.Now()
	if !c.await() {
		return false
	}
	// What was there at once had been said before the answer.
	c.eager = c.eager || time.Since(looked) < time.Millisecond
	return true
}

// answerAndRead sends the answer and reads what comes then: in clear text into
// c.work, which is taken anew for it, over TLS into c.spare.
func (c *h1Conn) answerAndRead() (n int, err error) {
	out, socket := c.work.down.out, c.conn.socket
	if c.secured == nil {
		sent, n, err := socket.raw.answer(out, c)
		if sent < len(out) && err == nil {
			_, err = socket.raw.Write(out[sent:])
		}
		return n, err
	}
	socket.holdFor(c)
	_, err = c.secured.Write(out)
	socket.hold = false
	if err == nil {
		n, err = c.secured.Read(c.room())
	}
	if socket.held != nil { // TLS had something left to give, or has failed
		c.eager = true
		if _, writeErr := socket.raw.Write(*socket.held); err == nil {
			err = writeErr
		}
		socket.letHeldGo()
	}
	return n, err
}

// await waits for a request to begin.
func (c *h1Conn) await() bool {
	if c.spare == nil && c.secured == nil && c.conn.socket.canWaitBare() {
		n, err := c.conn.socket.raw.ReadLent(c)
		if err != nil {
			return false
		}
		c.work.w = n
		return true
	}
	n, err := c.io.Read(c.room())
	if n == 0 && err != nil {
		return false
	}
	c.hold()
	c.work.w = copy(c.work.in, c.spare[:n])
	return true
}

// room returns spare, which is made when first needed.
func (c *h1Conn) room() []byte {
	if c.spare == nil {
		c.spare = make([]byte, spareBytes)
	}
	return c.spare
}

// lend and takeBack are lender's.
func (c *h1Conn) lend() []byte {
	c.hold()
	return c.work.in
}

func (c *h1Conn) takeBack() {
	if c.deferred {
		c.settle(true)
	}
	c.release()
}

func (c *h1Conn) hold() {
	c.work = h1Works.Get().(*h1Work)
	c.work.r, c.work.w = 0, 0
}

func (c *h1Conn) release() {
	w := c.work
	if w == nil {
		return
	}
	c.work = nil
	w.req.Reset()
	poison(w.in)
	if len(w.in) != requestBuffer {
		w.in = make([]byte, requestBuffer)
	}
	h1Works.Put(w)
}

// next makes ready for the next request: with what has come of it, or by giving
// everything back.
func (c *h1Conn) next() {
	w := c.work
	w.req.Reset()
	n := w.w - w.r + len(c.early)
	if n == 0 {
		c.release()
		return
	}
	if n > len(w.in) {
		grown := make([]byte, n)
		copy(grown, w.in[w.r:w.w])
		copy(grown[w.w-w.r:], c.early)
		w.in = grown
	} else {
		w.w = copy(w.in, w.in[w.r:w.w])
		copy(w.in[w.w:], c.early)
	}
	w.r, w.w, c.early = 0, n, nil
}

// readHead reads the head of a request, and answers one that is none.
func (c *h1Conn) readHead() (complete bool) {
	w, waited := c.work, false
	for {
		complete, err := w.req.Parse(w.in[:w.w])
		if err != nil {
			c.refuse(err.(*h1.Error))
			return false
		}
		if complete {
			w.r = w.req.Size()
			return true
		}
		if !waited {
			waited = true
			c.watch.enter(phaseHead, time.Now(), nil)
		}
		if w.w == len(w.in) && !w.grow(c.conn.server.cfg.Limits.HeadBytes) {
			c.refuse(w.req.TooLarge())
			return false
		}
		n, err := c.io.Read(w.in[w.w:])
		w.w += n
		if n == 0 && err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.conn.server.metrics.refused[endHeadSlow].Inc()
				c.refuse(&h1.Error{Status: 408, What: "the head did not end in time"})
				c.conn.socket.linger.Store(0) // it has had its time
			}
			return false
		}
	}
}

// grow makes room for a longer head, of at most limit bytes.
func (w *h1Work) grow(limit int) bool {
	if len(w.in) >= limit {
		return false
	}
	grown := make([]byte, min(2*len(w.in), max(limit, len(w.in)+1)))
	copy(grown, w.in[:w.w])
	w.in = grown
	w.req.Reset() // its strings lie in the old buffer
	return true
}

// refuse answers what is no request, and has the connection end: what follows
// cannot be told apart.
func (c *h1Conn) refuse(e *h1.Error) {
	c.refused = e
	c.conn.server.cfg.Logger.Debug("refused a request", "listener", c.conn.info.Port, "client", c.conn.info.Client.String(), "err", e)
	b := h1.AppendStatusLine(c.work.down.out[:0], e.Status, http.StatusText(e.Status))
	b = append(b, "Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\n"...)
	b = h1.AppendField(b, "Date", httpDate(time.Now()))
	b = h1.AppendLength(b, int64(len(e.What)+1))
	b = append(b, "\r\n"...)
	b = append(b, e.What...)
	b = append(b, '\n')
	c.conn.socket.linger.Store(lingerNoBody)
	c.io.Write(b)
}

// exchange makes an exchange of the request and has it answered. keep is whether
// the connection goes on; else, whole is whether what was sent is complete.
func (c *h1Conn) exchange() (keep, whole bool) {
	w, now := c.work, time.Now()
	x := &w.x
	x.reset()
	x.conn, x.client, x.body, x.down, x.began = c.conn, c.conn.info.Client, &w.body, &w.down, now
	x.life.owe, x.life.cut = c.watch.oweFunc, c.watch.cutFunc
	x.req.method, x.req.authority, x.req.header = w.req.Method, w.req.Authority, &w.req.Fields
	x.req.target, _ = parseTarget(w.req.Target)
	if w.req.Minor == 1 && w.req.Length == 0 {
		// With a body on the way there is no telling where it ends and the new
		// protocol begins, so the offer is passed over (RFC 9110 section 7.8).
		x.req.upgrade = upgradeOffer(x.req.header)
	}
	w.body.reset(c)
	w.down.reset(c)
	c.hot = now.Sub(c.idle) < hotGap
	c.watch.enter(phaseExchange, now, x)
	c.conn.server.serve(x)
	return w.down.conclude()
}

// cut gives up the exchange under way.
func (c *h1Conn) cut() { c.watch.abandon(errCut) }

// over is conn.over: a connection without exchange is closed at once, unless a
// request has begun to come.
func (c *h1Conn) over(began time.Time) bool {
	active, _, _ := c.conn.load()
	return active == 0 && (!c.watch.inHead() || time.Since(began) >= goAwayTime+goAwayTime/2)
}
