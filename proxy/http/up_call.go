package http

import (
	"errors"
	"sync"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h1"
)

const (
	callBuffer = 8 << 10  // for heads and small responses
	bulkBuffer = 64 << 10 // for bodies that fill the former
	// maxInformed bounds the informational heads in front of one final head.
	maxInformed = 32
	// maxTogether bounds the body that is sent with its head, before anything is
	// read: it fits into the kernel's buffers where the backend does not read.
	maxTogether = 16 << 10
)

var errTooManyHints = errors.New("the backend sends informational heads without end")

// call is an exchange at a backend over HTTP/1.1. It reads the response on the
// exchange's goroutine; a body that has not come whole has one more, which sends
// it meanwhile.
type call struct {
	x    *exchange
	site *site
	u    *upConn

	head  []byte // of the request, and its body where that is at hand
	whole bool   // it is: head can be sent again

	fields field.List
	resp   h1.Response
	in     []byte // of the response, what is not used up is in[r:w]
	r, w   int
	full   bool // the last read filled in
	bulk   *[]byte
	left   int64 // of a response body of known length
	chunks h1.Chunks
	hints  int

	upload upload
}

var calls = sync.Pool{New: func() any { return &call{in: make([]byte, callBuffer), head: make([]byte, 0, 2<<10)} }}

// forwardH1 has the target of s answer x.
func (f *forwarder) forwardH1(x *exchange, s *site) *failure {
	c := calls.Get().(*call)
	c.x, c.site = x, s
	failed := c.run()
	if failed == nil || failed.err != errChoseHTTP2 {
		c.release()
		return failed
	}
	c.release()
	return f.forwardH2(x, s, failed.secured)
}

// release makes c ready for another exchange.
func (c *call) release() {
	if c.bulk != nil {
		bulkBuffers.Put(c.bulk)
	}
	c.x, c.site, c.u, c.bulk, c.whole, c.full = nil, nil, nil, nil, false, false
	if c.upload.c != nil {
		c.upload = upload{}
	}
	if len(c.in) != callBuffer {
		c.in = make([]byte, callBuffer) // it grew, or lent its place to a bulk buffer
	}
	if cap(c.head) > 2*maxTogether {
		c.head = nil
	}
	c.r, c.w, c.left, c.hints = 0, 0, 0, 0
	c.fields.Reset()
	c.chunks.Reset()
	poison(c.in)
	calls.Put(c)
}

var bulkBuffers = sync.Pool{New: func() any {
	b := make([]byte, bulkBuffer)
	return &b
}}

// run takes the exchange to the backend and back.
func (c *call) run() *failure {
	c.build()
	if failed := c.reach(); failed != nil {
		c.end(false)
		return failed
	}
	if c.x.retryStatus(c.resp.Status) {
		return c.giveBack()
	}
	if c.resp.Status == 101 {
		failed := c.change()
		c.end(false)
		return failed
	}
	failed := c.relay()
	c.end(failed == nil && c.resp.KeepAlive)
	return failed
}

// giveBack lets go of a response that is not passed on. Its connection is kept
// where all of it has come.
func (c *call) giveBack() *failure {
	whole := c.resp.Length >= 0 && int64(c.w-c.r) >= c.resp.Length
	if whole {
		c.r += int(c.resp.Length)
	}
	failed := statusFailure(c.resp.Status)
	c.x.life.headLost()
	c.end(whole && c.resp.KeepAlive)
	return failed
}

// build writes the request's head.
func (c *call) build() {
	x := c.x
	size := x.body.size()
	h := x.req.header
	h.DelID(field.ContentLength)
	b := h1.AppendRequestLine(c.head[:0], x.req.method, c.requestTarget())
	host := x.hop.hostName
	if host == "" {
		host = c.site.name
	}
	b = h1.AppendField(b, "Host", host)
	b = h1.AppendFields(b, h)
	if x.req.upgrade != "" {
		b = append(b, "Connection: Upgrade\r\n"...)
		b = h1.AppendField(b, "Upgrade", x.req.upgrade)
	}
	content, atHand := x.body.atHand()
	c.whole = size == 0 || atHand && len(content) <= maxTogether
	x.tries.bodyRead = !c.whole
	switch {
	case size > 0, size == 0 && wantsLength(x.req.method):
		b = h1.AppendLength(b, size)
	case size < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if names := x.body.announced(); names != "" {
			var promised field.List
			announce(&promised, names)
			b = h1.AppendFields(b, &promised)
		}
	}
	b = append(b, '\r', '\n')
	if c.whole {
		b = append(b, content...)
		x.bytes.up.Store(int64(len(content)))
	}
	c.head = b
}

// wantsLength reports whether a request without content says so (RFC 9110
// section 8.6).
func wantsLength(method string) bool {
	return method == "POST" || method == "PUT" || method == "PATCH"
}

// requestTarget returns the target as the backend gets it: byte for byte.
func (c *call) requestTarget() string { return c.x.req.target.String() }

// reach sends the request and reads the final head of the response. It tries a
// second time where a connection from the pool was closed under it before the
// backend had said anything, and the request may be repeated.
func (c *call) reach() *failure {
	x := c.x
	for again := false; ; again = true {
		fresh, failed := c.connect(again)
		if failed != nil {
			return failed
		}
		err := c.send(fresh)
		if err == errStale {
			again = false
			c.drop()
			continue
		}
		if err == nil {
			err = c.readHead()
		}
		if err == nil {
			x.life.headCame()
			return nil
		}
		x.life.expectHead(0)
		failed = c.failure(err)
		if again || !c.mayRepeat(fresh, err) {
			return failed
		}
		c.drop()
	}
}

// errStale says that a connection from the pool had ended, or was spoken on,
// before anything was sent.
var errStale = errors.New("the idle connection had ended")

// mayRepeat reports whether the request may be sent once more (RFC 9110 section
// 9.2.2): it is there to be sent, was sent over a connection that had been
// idle, and brought nothing back.
func (c *call) mayRepeat(fresh bool, err error) bool {
	if fresh || !c.whole || c.w > 0 || c.hints > 0 || c.x.life.abandoned() != nil {
		return false
	}
	var wire *h1.Error
	if errors.As(err, &wire) {
		return false
	}
	return isIdempotent(c.x.req.method)
}

// isIdempotent reports whether a request may be sent again without asking (RFC
// 9110 section 9.2.2).
func isIdempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// connect takes a connection from the pool, or where new is set or there is
// none makes one.
func (c *call) connect(anew bool) (fresh bool, failed *failure) {
	x := c.x
	if !anew {
		if c.u = c.site.take(); c.u != nil {
			x.at(c.u)
			x.life.attach(c.u)
			return false, nil
		}
	}
	u, err := c.site.connect(x.life.context(), x.hop.connect, x.proxyHeader(), x.req.upgrade != "")
	if err == errChoseHTTP2 {
		return false, &failure{err: err, secured: u}
	}
	if err != nil {
		return false, x.failureOf(err)
	}
	c.u = u
	x.at(u)
	x.life.attach(u)
	return true, nil
}

// drop lets go of a connection that is of no more use.
func (c *call) drop() {
	if c.u != nil {
		c.x.life.detach()
		c.u.close()
		c.u = nil
	}
}

// end ends the exchange at the backend; keep is whether the connection is good
// for another.
func (c *call) end(keep bool) {
	if c.u == nil {
		return
	}
	uploaded := c.upload.finish()
	if alive := c.x.life.detach(); !keep || !alive || !uploaded || c.r < c.w || c.u.saidMore(c.in[:1]) {
		c.u.close()
	} else {
		c.u.home().put(c.u, c.x.began)
	}
	c.u = nil
}

// send sends the head, and the body where it is at hand; else it has the body
// follow by itself.
func (c *call) send(fresh bool) error {
	x := c.x
	c.r, c.w = 0, 0
	c.resp.Reset(&c.fields)
	if !c.whole {
		if !fresh && c.u.raw.isStale() {
			return errStale
		}
		if _, err := c.u.Write(c.head); err != nil {
			return err
		}
		c.upload.start(c)
		return nil
	}
	if limit := x.hop.first; limit > 0 {
		x.life.expectHead(limit)
	}
	if c.u.tls != nil {
		if !fresh && c.u.raw.isStale() {
			return errStale
		}
		_, err := c.u.tls.Write(c.head)
		return err
	}
	sent, got, stage, err := c.u.raw.turn(c.head, c.in, fresh)
	switch {
	case stage == turnStale:
		return errStale
	case err == nil && stage == turnPartly:
		_, err = c.u.raw.Write(c.head[sent:])
	}
	c.w = got
	return err
}
