package http

import (
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// exchange is one HTTP request and what becomes of it, whatever the version. A
// codec makes it and hands it to Server.serve, on a goroutine of the request's
// own, or of the connection's where there is one exchange at a time. Its outcome
// is written by that goroutine, its byte counts by any.
//
// Strings of an exchange may lie in the codec's buffers: they hold until it is
// over, and not a moment longer.
type exchange struct {
	conn   *conn
	client netip.AddrPort
	req    request
	body   body
	down   downstream
	coder  *encodedDown // in front of the codec's downstream; nil: the response is not encoded
	pinger *pingDown    // likewise; nil: no comments are sent into an event stream
	life   life

	began time.Time
	took  time.Duration // once it is over
	hop   hop
	tries tries
	out   outcome
	grant *grant // what a service says of the request; nil: none was asked
	// identity is what the client's certificate is worth; nil: the host asks for none.
	identity *clienttls.Identity
	guard    bodyGuard                       // where body is bounded
	times    timeLimits                      // of the exchange at the backend
	held     []uint64                        // what it counts against for as long as it lasts
	bytes    struct{ up, down atomic.Int64 } // of bodies and of upgraded connections

	relayed Relayed // by which the upgraded connection is copied; written with the lock by which x is listed

	routed atomic.Bool // hop.route and the outcome's env and service stay as they are
	seen   visible
}

// request is the head of a request. Policy edits it on its way to the backend.
type request struct {
	method    string
	authority string // Host or :authority, as received
	target    target
	header    *field.List
	upgrade   string // the protocol asked for by Upgrade, or "" where there is none to offer
	early     bool   // it may be a replay: it came before the handshake was complete

	host string // of authority, as by router.NormalizeHost
}

// body is the content of a request on its way to the backend. It is read by one
// goroutine at a time, which need not be the exchange's.
type body interface {
	// size returns the length: 0 where there is no body, -1 where only its end
	// tells.
	size() int64
	// atHand returns the whole body if it has come already, nobody has to be
	// asked for it, and no trailer follows it. Then it need not be read, and is
	// there to be sent again.
	atHand() (content []byte, whole bool)
	Read(p []byte) (int, error)
	// trailer returns the trailer fields once Read has returned io.EOF; nil
	// where there are none.
	trailer() *field.List
	// announced returns the names of trailer fields that the head promises.
	announced() string
	// failure returns how reading from the client failed, or nil.
	failure() *failure
	// stop has a Read under way return soon, and those after it fail.
	stop()
}

// downstream is how a codec has an exchange answered. Only inform may be called
// from another goroutine than the exchange's own.
type downstream interface {
	// inform sends an informational head (1xx, not 101) at once, unless the
	// final head is on its way or the client's version knows none. It keeps no
	// hold on h.
	inform(status int, h *field.List)
	// header returns the fields of the final head, to be filled before
	// writeHead.
	header() *field.List
	// writeHead sends the final head, at the latest with what follows it. Its
	// Content-Length, if there is one, has been checked by who set it.
	writeHead(status int)
	// write takes a part of the body and returns how many bytes are on their way
	// to the client by that; flush sends what write kept back.
	write(p []byte) (int, error)
	flush() error
	// trailer sets a trailer field, after the last write.
	trailer(name, value string)
	// upgrade sends the head with status 101 and returns the bare connection.
	// The codec closes it when the exchange is over.
	upgrade() (io.ReadWriteCloser, error)
	// abort has the codec end the exchange so that the client cannot take what
	// it got for complete.
	abort()
}

// hop is where an exchange is going and how.
type hop struct {
	route    *router.Route // nil: a mapping, or an answer of the node's own
	backend  *router.Backend
	vars     router.Vars
	connect  time.Duration // bounds dialling one target
	first    time.Duration // bounds the wait for the response head; 0: unbounded
	idle     time.Duration // bounds silence of the response, and on upgraded connections; 0: unbounded
	total    time.Duration // bounds the exchange; 0: unbounded
	body     bodyLimits
	hostName string // Host or :authority for the backend; "": the target's own address

	compress *router.Compress // nil: responses stay as they are
	coding   coding           // that the client wants most
	hsts     string           // Strict-Transport-Security over TLS; "": the node says nothing of it
	origin   string           // of the page that asks, where the route has CORS
	events   bool             // an event stream is asked for that may begin early
}

// outcome is what an exchange came to, for log and metrics.
type outcome struct {
	status       int           // of the final head; 0: none was sent
	head         time.Duration // from the beginning to the final head
	target       string        // of the backend, host:port
	address      string        // of the target, ip:port; "": there was no connection
	env, service string
	end          string // a failure's class, or ""
	err          error
}

// serve takes x from its request to its end. It is the seam between codecs and
// everything else.
func (s *Server) serve(x *exchange) {
	if x.began.IsZero() {
		x.began = time.Now()
	}
	s.metrics.active.Inc()
	defer s.finish(x)
	defer x.life.end()

	if a := s.decide(x); a != nil {
		x.answer(a)
		x.complete()
		return
	}
	x.routed.Store(true)
	x.editRequest()
	if x.hop.events {
		x.pingSoon()
	}
	if failed := s.forwardBounded(x); failed != nil {
		x.fail(failed)
	}
	x.complete()
}

// complete sends what is left of a response that something was put in front of.
func (x *exchange) complete() {
	var err error
	if x.coder != nil {
		err = x.coder.complete()
	}
	if x.pinger != nil {
		if failed := x.pinger.complete(); err == nil {
			err = failed
		}
	}
	if err != nil && x.out.end == "" {
		x.lostClient(err)
	}
}

// forwardBounded has a backend answer x within its limits.
func (s *Server) forwardBounded(x *exchange) *failure {
	bounded := x.guardBody(x.hop.body)
	x.startTotal()
	failed := s.forward.forward(x)
	x.times.end()
	if bounded { // x.body may be something in front of the guard by now
		x.guard.end()
	}
	return failed
}

// reset makes x ready for the next exchange of its connection. What decide and
// the codec write anyway is left as it is.
func (x *exchange) reset() {
	x.life.reset()
	x.began = time.Time{}
	x.hop = hop{}
	x.grant, x.identity = nil, nil
	x.coder, x.pinger = nil, nil
	x.seen.reset()
	x.out = outcome{}
	x.tries = tries{}
	x.bytes.up.Store(0)
	x.bytes.down.Store(0)
	x.req.upgrade, x.req.host = "", ""
}

// finish tells log and metrics of x.
func (s *Server) finish(x *exchange) {
	s.metrics.active.Dec()
	lower(&x.routed)
	if len(x.held) > 0 {
		s.limiter.leave(x)
	}
	x.took = time.Since(x.began)
	took := x.took
	s.metrics.exchange(x, took)
	s.logAccess(x, took)
}

// fail ends x by f: with an answer where the client has none yet, else by
// cutting the answer short.
func (x *exchange) fail(f *failure) {
	x.out.end, x.out.err = f.class, f.err
	if x.out.status != 0 {
		x.down.abort()
		return
	}
	if f.status == statusClientGone {
		x.out.status = statusClientGone // for the log; there is nobody to read it
		x.down.abort()
		return
	}
	x.answer(plain(f.status, f.say))
}

// writeHead sends the final head, whose fields are complete.
func (x *exchange) writeHead(status int) {
	x.noteHead(status)
	x.down.writeHead(status)
}

func (x *exchange) noteHead(status int) {
	x.out.status = status
	x.out.head = time.Since(x.began)
}

// write sends a part of the response's body.
func (x *exchange) write(p []byte) error {
	n, err := x.down.write(p)
	x.bytes.down.Add(int64(n))
	if x.times.silence != nil {
		x.times.silence.moved()
	}
	return err
}
