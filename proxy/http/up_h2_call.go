package http

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/proxy/http/h2"
)

// maxH2Tries bounds how often one target is asked to take a request that it did
// not take up: a connection that was just ending, or had fewer streams than
// thought.
const maxH2Tries = 3

// h2Call is an exchange at a backend over HTTP/2. It reads the response on the
// exchange's goroutine; a body that has not come whole has one more, which sends
// it meanwhile.
type h2Call struct {
	x    *exchange
	site *site
	s    h2Stream

	head    []byte // of the request, as a field block
	content []byte // its body, where that is at hand
	whole   bool   // it is
	upload  h2Upload
}

var h2Calls = sync.Pool{New: func() any {
	return &h2Call{s: h2Stream{came: make(chan struct{}, 1), room: make(chan struct{}, 1)}, head: make([]byte, 0, 1<<10)}
}}

// forwardH2 has the target of s answer x. u, unless nil, is a connection to it
// that it has chosen HTTP/2 for.
func (f *forwarder) forwardH2(x *exchange, s *site, u *upConn) *failure {
	k := h2Calls.Get().(*h2Call)
	k.x, k.site = x, s
	var c *h2Conn
	if u != nil {
		c = s.adoptH2(u)
	}
	failed := k.run(c)
	k.release()
	if failed != nil && errors.Is(failed.err, errChoseHTTP1) {
		return f.forwardH1(x, s)
	}
	return failed
}

// release makes k ready for another exchange.
func (k *h2Call) release() {
	k.x, k.site, k.content, k.whole = nil, nil, nil, false
	k.upload = h2Upload{}
	if cap(k.head) > 2*maxTogether {
		k.head = nil
	}
	k.s.recycle()
	h2Calls.Put(k)
}

// recycle makes s ready for open.
func (s *h2Stream) recycle() {
	poison(s.head.Arena())
	head, parts := s.head, s.parts[:0]
	if cap(parts) > 4 {
		parts = nil
	}
	*s = h2Stream{came: s.came, room: s.room, head: head, parts: parts}
}

// run takes the exchange to the backend and back. c, unless nil, has a slot for
// it.
func (k *h2Call) run(c *h2Conn) *failure {
	k.build()
	for tries := 1; ; tries++ {
		failed, again := k.reach(c)
		if failed == nil {
			break
		}
		if !again || tries == maxH2Tries {
			return failed
		}
		c = nil
	}
	if status := k.s.head.Status; k.x.retryStatus(status) {
		k.x.life.headLost()
		k.end()
		return statusFailure(status)
	}
	failed := k.relay()
	k.end()
	return failed
}

// build makes the request's head.
func (k *h2Call) build() {
	x := k.x
	h := x.req.header
	h.DelID(field.ContentLength)
	host, scheme := x.hop.hostName, "http"
	if host == "" {
		host = k.site.name
	}
	if k.site.tls != nil {
		scheme = "https"
	}
	size := x.body.size()
	content, atHand := x.body.atHand()
	k.whole = size == 0 || atHand && len(content) <= maxTogether
	x.tries.bodyRead = !k.whole
	if k.whole {
		k.content = content
	}
	b := appendPseudo(k.head[:0], x.req.method, scheme, host, x.req.target.String())
	b = appendLines(b, h)
	switch {
	case size > 0, size == 0 && wantsLength(x.req.method):
		b = appendNamed4(b, hpackLiteral, staticNames[field.ContentLength], strconv.FormatInt(size, 10))
	case size < 0:
		if names := x.body.announced(); names != "" {
			var promised field.List
			announce(&promised, names)
			b = appendLines(b, &promised)
		}
	}
	k.head = b
}

// reach sends the request and waits for the final head of the response. Where it
// fails, again is whether it may be tried once more; the stream is closed then.
func (k *h2Call) reach(c *h2Conn) (failed *failure, again bool) {
	x := k.x
	if c == nil {
		if c, failed = k.site.takeH2(x); failed != nil {
			return failed, false
		}
	}
	k.s.c, k.s.toHead = c, x.req.method == "HEAD"
	x.at(c.u)
	x.life.attach(k)
	err := k.send()
	if err == nil {
		err = k.readHead()
	}
	if err == nil {
		x.life.headCame()
		return nil, false
	}
	x.life.expectHead(0)
	failed = k.failure(err)
	again = x.life.detach() && k.mayRepeat(err)
	failed.unsent = failed.unsent && again
	if !again {
		k.end()
		return failed, false
	}
	k.upload = h2Upload{}
	k.s.close()
	k.s.recycle()
	return failed, true
}

// mayRepeat reports whether the request may be sent once more after err, and has
// its body begin anew then. What the backend has not taken up may (RFC 9113
// section 8.7); what was lost with a connection only if it changes nothing to
// repeat it, as in call.mayRepeat.
func (k *h2Call) mayRepeat(err error) bool {
	if _, unsent := errors.AsType[*unsentError](err); unsent {
		return k.upload.halt() && k.upload.regain()
	}
	_, reset := errors.AsType[*h2Reset](err)
	_, bad := errors.AsType[*h2.ConnError](err)
	_, malformed := errors.AsType[*h2.StreamError](err)
	if reset || bad || malformed || k.s.fresh || !k.whole || k.s.informed > 0 {
		return false
	}
	return isIdempotent(k.x.req.method)
}

// interrupt resets the stream: see life.attach.
func (k *h2Call) interrupt() { k.s.abort() }

// send sends the head, and the body where it is at hand; else it has the body
// follow by itself.
func (k *h2Call) send() error {
	x := k.x
	if limit := x.hop.first; k.whole && limit > 0 {
		x.life.expectHead(limit)
	}
	sent, err := k.s.open(k.head, k.content, k.whole)
	switch {
	case err != nil:
		return err
	case k.whole && sent:
		x.bytes.up.Store(int64(len(k.content)))
	default:
		k.upload.start(k)
	}
	return nil
}

// readHead waits for the final head, and passes informational ones on.
func (k *h2Call) readHead() error {
	for {
		hint, err := k.s.awaitHead()
		if err != nil {
			return err
		}
		if hint == nil {
			return nil
		}
		if hint.Status == 100 { // the codec's: it sends one when the body is first read
			continue
		}
		dropFields(&hint.Fields, isAdvertising)
		hint.Fields.DelID(field.ContentLength)
		k.x.tries.informed = true
		k.x.down.inform(hint.Status, &hint.Fields)
	}
}

// failure says why the backend's side failed by err. Where the client's body
// failed first, that was why.
func (k *h2Call) failure(err error) *failure {
	if k.x.life.abandoned() == nil {
		if failed := k.x.bodyFailure(); failed != nil {
			return failed
		}
	}
	return k.x.failureOf(err)
}

// end ends the exchange at the backend.
func (k *h2Call) end() {
	k.x.life.detach()
	k.upload.finish()
	k.s.close()
}

// relay sends the response on.
func (k *h2Call) relay() *failure {
	x, h := k.x, &k.s.head
	promised, length := h.Fields.GetID(field.Trailer), h.Length
	status := h.Status
	x.down.header().Take(&h.Fields)
	x.relayHead(status, promised)
	if follows := k.s.atHand(); follows == moreLater && (length <= 0 || k.s.bodiless) {
		// Nothing says when the first byte will come, and the client may be
		// waiting for the head.
		if err := x.down.flush(); err != nil {
			return x.clientGone(err)
		}
	} else if x.req.method == "HEAD" && !x.down.header().Has(field.ContentLength) {
		// A codec that is asked for nothing more would say that there is no
		// content, which nobody knows.
		if err := x.down.flush(); err != nil {
			return x.clientGone(err)
		}
	}
	return k.relayBody()
}

func (k *h2Call) relayBody() *failure {
	x := k.x
	for passed := 0; ; {
		p, follows, err := k.s.next(passed)
		if err == io.EOF {
			k.relayTrailer()
			return nil
		}
		if err != nil {
			return k.failure(err)
		}
		passed = p.n
		err = x.write(p.bytes())
		copyBuffers.Put(p.buf)
		if err == nil && follows == moreLater {
			err = x.down.flush() // the last part goes out with the exchange's end
		}
		if err != nil {
			return x.clientGone(err)
		}
	}
}

func (k *h2Call) relayTrailer() {
	if k.s.trail == nil {
		return
	}
	for _, l := range k.s.trail.Fields.Lines() {
		if field.MayTrail(l.Name) {
			k.x.down.trailer(l.Name, strings.Clone(l.Value))
		}
	}
}
