package http

import (
	"crypto/tls"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

const (
	// h2DownStreamWindow and h2DownConnWindow are what a client may send of bodies that a
	// backend does not take, and so what it can have us hold, in bytes.
	h2DownStreamWindow = 512 << 10
	h2DownConnWindow   = 1 << 20
	// h2Bulk is the content of a DATA frame that will be followed by more like it.
	h2Bulk = 4 << 10
	// maxContinuations bounds the frames that one field block comes in.
	maxContinuations = 32
	// maxParked bounds the goroutines that wait for a connection's next streams.
	maxParked = 64
	// h2Remembered is how many streams are known by how they ended.
	h2Remembered = 128
)

// h2DownConn is a client connection that speaks HTTP/2. One goroutine reads frames
// and never writes to the client, so that neither can wait for the other. Each
// exchange has a goroutine of its own, one of those that the connection keeps
// for as long as it is busy; it appends frames to out, and whichever comes to
// flush while nobody writes, writes what all have gathered.
type h2DownConn struct {
	conn *conn
	io   io.ReadWriter // of HTTP: TLS, or the socket
	tls  *tls.Conn     // nil in clear text

	// Of the goroutine that reads.
	reader  h2.Reader
	frame   h2.Frame // that is being handled
	decoder h2.Decoder
	ready   []*h2DownStream // to be taken up before there is a wait
	block   h2Block         // the field block that is coming
	now     time.Time       // when what is being handled came; zero: nobody asked yet
	budgets [numH2Budgets]h2Budget
	broke   *h2.ConnError // what GOAWAY says, where the client broke the rules

	closing atomic.Bool // the reader is to end, for no fault of anybody's
	watch   h2Watch
	workers sync.WaitGroup

	mu        sync.Mutex // guards the following fields
	streams   map[uint32]*h2DownStream
	last      uint32 // the highest stream taken up
	active    int    // exchanges that have not ended, their stream may have
	lingering int    // streams that have not ended, their exchange has
	parked    []*h2Worker
	settings  h2.Settings // the client's
	encoder   h2.Encoder
	window    h2.SendWindow
	recv      h2.RecvWindow
	dead      error // why nothing can be sent any more
	drain     h2DrainState
	drained   time.Time // when drain began
	work      h2Done    // that budgets are measured by
	past      [h2Remembered]h2Past
	pastAt    int
	out       h2Out
}

// h2Past is a stream that is no more.
type h2Past struct {
	id  uint32
	end h2End
}

// h2End is how a stream ended.
type h2End uint8

const (
	endBoth     h2End = iota // both sides had sent all
	endByClient              // the client reset it
	endByUs                  // we did: what is on its way for it is no error
)

// h2Done counts what a connection was good for.
type h2Done struct {
	exchanges int // that went to their end
	frames    int // of DATA that were worth their overhead
}

// h2DrainState is how far a connection is with telling its client to go.
type h2DrainState uint8

const (
	h2Open   h2DrainState = iota
	h2Asked               // GOAWAY was sent that names no last stream, and PING
	h2Closed              // GOAWAY was sent that does
)

// serveH2 serves HTTP/2 on conn until it has ended.
func (s *Server) serveH2(conn *conn, secured *tls.Conn) {
	c := &h2DownConn{conn: conn, tls: secured, io: secured}
	if secured == nil {
		c.io = conn.socket
	}
	c.init()
	conn.h2.Store(c)
	c.watch.start()
	err := c.run()
	c.end(err)
	c.workers.Wait()
	c.watch.stop()
	c.reader.Release()
}

func (c *h2DownConn) init() {
	c.streams = map[uint32]*h2DownStream{}
	c.settings = h2.DefaultSettings()
	c.window = h2.InitialWindow
	c.recv = h2.NewRecvWindow(h2DownConnWindow)
	c.reader.Begun = func() { c.watch.partial(true) }
	c.reader.Reset(c.io)
	c.out.init(c)
	c.watch.c = c
	c.initBudgets()
}

// run reads frames until there are no more to be read, and returns why.
func (c *h2DownConn) run() error {
	c.greet()
	same, err := c.reader.Expect(h2.Preface)
	if err != nil {
		return err
	}
	if !same {
		return &h2.ConnError{Code: h2.ProtocolError, What: "the connection does not begin with the preface"}
	}
	for first := true; ; first = false {
		f := &c.frame // not one of its own for each, which would be an allocation
		*f, err = c.next()
		if err == nil {
			if first && (f.Type != h2.TypeSettings || f.Has(h2.FlagAck)) {
				return &h2.ConnError{Code: h2.ProtocolError, What: "the preface is not followed by SETTINGS"}
			}
			err = c.handle(f)
		}
		if err != nil {
			if err = c.outlive(err); err != nil {
				return err
			}
		}
		if first {
			c.watch.greeted()
		}
	}
}

// outlive resets the stream that err is of, or returns err where it is the
// connection's.
func (c *h2DownConn) outlive(err error) error {
	var stream *h2.StreamError
	if errors.As(err, &stream) {
		return c.refuse(stream)
	}
	return err
}

// greet sends the settings, before anything is read.
func (c *h2DownConn) greet() {
	limits := &c.conn.server.cfg.Limits
	c.mu.Lock()
	defer c.mu.Unlock()
	b := h2.AppendSettings(c.out.buffer(),
		h2.Setting{ID: h2.SettingMaxConcurrentStreams, Value: uint32(limits.Streams)},
		h2.Setting{ID: h2.SettingMaxHeaderListSize, Value: uint32(limits.HeadBytes)},
		h2.Setting{ID: h2.SettingInitialWindowSize, Value: h2DownStreamWindow},
		h2.Setting{ID: h2.SettingEnableConnect, Value: 1})
	c.out.set(h2.AppendWindowUpdate(b, 0, h2DownConnWindow-h2.InitialWindow))
	c.out.later()
}

// next returns the next frame. Before it waits, it has everything taken up that
// came so far.
func (c *h2DownConn) next() (h2.Frame, error) {
	if !c.reader.Ready() {
		c.takeUp()
		c.now = time.Time{}
		c.watch.partial(c.reader.InBlock())
	}
	return c.reader.Next()
}

// takeUp has workers take up the streams that are ready, and what the reader has
// to say to the client said.
func (c *h2DownConn) takeUp() {
	if len(c.ready) == 0 {
		c.mu.Lock()
		c.out.later()
		c.mu.Unlock()
		return
	}
	for i, s := range c.ready {
		c.start(s)
		c.ready[i] = nil
	}
	c.ready = c.ready[:0]
}

// time returns when what is being handled came.
func (c *h2DownConn) time() time.Time {
	if c.now.IsZero() {
		c.now = time.Now()
	}
	return c.now
}

// refuse resets a stream that broke the rules. Clients that have that done over
// and over are as good as those that reset streams themselves.
func (c *h2DownConn) refuse(e *h2.StreamError) error {
	c.log(e)
	c.mu.Lock()
	s := c.streams[e.Stream]
	c.reset(e.Stream, e.Code, e)
	c.mu.Unlock()
	if s != nil {
		s.x.life.abandon(e)
	}
	return c.spend(budgetResets)
}

// reset sends RST_STREAM and has the stream be gone for the client. c.mu is held.
func (c *h2DownConn) reset(id uint32, code h2.Code, why error) {
	c.out.set(h2.AppendRSTStream(c.out.buffer(), id, code))
	c.remember(id, endByUs)
	if s := c.streams[id]; s != nil {
		s.tainted = true
		s.lose(why)
	}
}

// remember keeps in mind that a stream is no more. c.mu is held.
func (c *h2DownConn) remember(id uint32, end h2End) {
	c.past[c.pastAt%h2Remembered] = h2Past{id, end}
	c.pastAt++
}

// recall says what is known of a stream that is no more. c.mu is held.
func (c *h2DownConn) recall(id uint32) (past h2Past, known bool) {
	for i := range min(c.pastAt, h2Remembered) {
		if p := c.past[(c.pastAt-1-i)%h2Remembered]; p.id == id {
			return p, true
		}
	}
	return h2Past{}, false
}

func (c *h2DownConn) log(err error) {
	info := &c.conn.info
	c.conn.server.cfg.Logger.Debug("refused a frame of HTTP/2", "listener", info.Port, "client", info.Client.String(), "err", err)
}

// end ends the connection: exchanges are given up, the client is told why where
// it broke the rules, and what was gathered is sent.
func (c *h2DownConn) end(err error) {
	errors.As(err, &c.broke)
	if c.broke != nil {
		c.log(err)
	}
	for _, s := range c.ready {
		c.start(s) // it has begun, and must come to its end
	}
	c.mu.Lock()
	var left []*h2DownStream
	for _, s := range c.streams {
		s.tainted = true
		left = append(left, s)
	}
	for _, s := range left {
		s.lose(errClientLeft)
	}
	c.closing.Store(true)
	for _, w := range c.parked {
		w.next <- nil
	}
	c.parked = nil
	c.mu.Unlock()
	for _, s := range left {
		s.x.life.abandon(errClientLeft)
	}
	if c.broke != nil || c.watch.leaving.Load() {
		c.goodbye()
	}
	c.mu.Lock()
	c.fail(errClientLeft)
	c.mu.Unlock()
}

// What a client may still send while the last frames reach it.
const (
	goodbyeTime  = time.Second
	goodbyeBytes = 1 << 20
)

// goodbye sends GOAWAY and closes the connection so that the client can read it:
// a reset, in answer to what it is still sending, would overtake it.
func (c *h2DownConn) goodbye() {
	c.mu.Lock()
	switch e := c.broke; {
	case e != nil:
		c.out.set(h2.AppendGoAway(c.out.buffer(), c.last, e.Code, e.What))
	case c.drain != h2Closed:
		c.out.set(h2.AppendGoAway(c.out.buffer(), c.last, h2.NoError, ""))
	}
	socket := c.conn.socket
	socket.SetDeadline(time.Now().Add(goodbyeTime))
	c.out.drainLocked()
	c.mu.Unlock()
	if c.tls != nil {
		c.tls.CloseWrite()
	}
	if socket.CloseWrite() == nil {
		io.CopyN(io.Discard, socket.Conn, goodbyeBytes)
	}
	socket.Conn.Close()
}

// fail has nothing more be sent. c.mu is held.
func (c *h2DownConn) fail(err error) {
	if c.dead == nil {
		c.dead = err
	}
	c.out.wake()
}
