package http

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/remotegpu/sluice/proxy/http/h3"
)

// h3Conn is a client connection that speaks HTTP/3. One goroutine accepts its
// requests, each of which gets one of its own, and as many read what the client
// says on the side.
type h3Conn struct {
	conn    *conn
	qc      *quic.Conn
	proven  atomic.Bool // the handshake is complete: nothing can be a replay any more
	control *quic.SendStream
	closed  atomic.Pointer[h3.Error] // by which the client was sent away
	work    sync.WaitGroup

	// What the client may do beyond asking and waiting for answers.
	resets, frames budget
	uni            atomic.Uint32 // which critical streams there are, by type

	mu       sync.Mutex // guards the following fields
	ended    bool
	streams  *h3Stream // being served, a list
	serving  int
	fewer    sync.Cond      // told when serving was as many as may be
	spent    []*quic.Stream // whose place the client has not been given back
	next     quic.StreamID
	rejected quic.StreamID // from here on after GOAWAY; -1 before it
	warned   time.Time     // when a GOAWAY said that there is to be another one; zero: not yet
	timer    *time.Timer
	due      time.Time // when timer fires; zero: it is not set
}

func newH3Conn(conn *conn, qc *quic.Conn) *h3Conn {
	c := &h3Conn{conn: conn, qc: qc, rejected: -1}
	c.fewer.L = &c.mu
	c.resets.init(maxResets)
	c.frames.init(maxSideFrames)
	return c
}

// run serves requests until the connection has ended.
func (c *h3Conn) run() error {
	if err := c.greet(); err != nil {
		c.qc.CloseWithError(quic.ApplicationErrorCode(h3.ClosedCriticalStream), "no room for the control stream")
		return err
	}
	if c.conn.server.registry.draining.Load() {
		c.goAway() // drain may have come before there was a way to tell
	}
	idle := c.conn.server.cfg.Limits.Idle
	c.mu.Lock()
	c.due = time.Now().Add(idle)
	c.timer = time.AfterFunc(idle, c.watch)
	c.mu.Unlock()
	defer context.AfterFunc(c.qc.Context(), c.end)()
	c.work.Go(c.acceptUni)
	var err error
	for {
		var stream *quic.Stream
		if stream, err = c.qc.AcceptStream(context.Background()); err != nil {
			break
		}
		if !c.admit(stream) {
			stream.CancelRead(quic.StreamErrorCode(h3.RequestRejected))
			stream.CancelWrite(quic.StreamErrorCode(h3.RequestRejected))
			continue
		}
		c.work.Add(1)
		go c.serve(stream)
	}
	c.end()
	c.work.Wait()
	if why := c.closed.Load(); why != nil {
		return why
	}
	return err
}

// greet opens the control stream and says how HTTP/3 is spoken here.
func (c *h3Conn) greet() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.control, err = c.qc.OpenUniStream(); err != nil {
		return err
	}
	b := h3.AppendVarint(make([]byte, 0, 32), h3.StreamControl)
	_, err = c.control.Write(h3.AppendSettings(b, c.conn.server.cfg.Limits.HeadBytes))
	return err
}

// admit takes note of a request, once there is a place for it, and unless it has
// come behind GOAWAY.
func (c *h3Conn) admit(stream *quic.Stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = stream.StreamID() + 4
	if c.rejected >= 0 && stream.StreamID() >= c.rejected {
		stream.ReleaseStreamCredit()
		return false
	}
	for c.serving >= c.conn.server.cfg.Limits.Streams && !c.ended {
		c.fewer.Wait()
	}
	c.serving++
	return true
}

// maxSpent is how many streams, of so many at a time, may be over without the
// client being allowed new ones. quic-go tells a client of each place that is
// given back, in a packet of its own, which the client acknowledges in another:
// that is as much as the request itself took. So many are given back at a time.
func maxSpent(streams int) int { return streams * 3 / 8 }

// spend takes note of a stream that is over. The client gets its place back with
// those of others, some time later: streams whose end it has not acknowledged by
// then, it would be told of one by one. c.mu is held.
func (c *h3Conn) spend(stream *quic.Stream) {
	c.spent = append(c.spent, stream)
	most := maxSpent(c.conn.server.cfg.Limits.Streams)
	if len(c.spent) > most {
		c.giveBack(len(c.spent) - most/3)
	}
}

// giveBack gives the client back the n places that were spent first. c.mu is held.
func (c *h3Conn) giveBack(n int) {
	for _, stream := range c.spent[:n] {
		stream.ReleaseStreamCredit()
	}
	rest := copy(c.spent, c.spent[n:])
	clear(c.spent[rest:])
	c.spent = c.spent[:rest]
}

// goAway has the client make no further requests here. Those that cross it are
// rejected, so that they can be made elsewhere (RFC 9114 section 5.2).
func (c *h3Conn) goAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.goAwayLocked()
}

// warn tells the client that it is to make no further requests here, and still
// takes those that cross it (RFC 9114 section 5.2). c.mu is held.
func (c *h3Conn) warn() {
	if c.control == nil || c.ended {
		return
	}
	c.warned = time.Now()
	c.tellLast(maxRequestStream)
}

// maxRequestStream is the highest ID of a stream that a client can open for a
// request.
const maxRequestStream = 1<<62 - 4

// goAwayLocked is goAway for who holds c.mu.
func (c *h3Conn) goAwayLocked() {
	if c.rejected >= 0 || c.control == nil || c.ended {
		return
	}
	c.rejected = c.next
	c.tellLast(c.rejected)
}

// tellLast sends a GOAWAY. c.mu is held.
func (c *h3Conn) tellLast(stream quic.StreamID) {
	var content [8]byte
	id := h3.AppendVarint(content[:0], uint64(stream))
	b := h3.AppendFrameHeader(make([]byte, 0, 16), h3.FrameGoAway, uint64(len(id)))
	c.control.TryWriteAll(append(b, id...)) // a client that takes nothing is not told
}

// fail ends the connection for what the client did.
func (c *h3Conn) fail(why *h3.Error) {
	if c.closed.CompareAndSwap(nil, why) {
		c.qc.CloseWithError(quic.ApplicationErrorCode(why.Code), why.What)
	}
}

// end gives up what is under way: nobody is there to be answered.
func (c *h3Conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.timer.Stop()
	c.fewer.Broadcast()
	for s := c.streams; s != nil; s = s.after {
		s.x.life.abandon(errClientLeft)
	}
}

// cut gives up the exchanges under way.
func (c *h3Conn) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := c.streams; s != nil; s = s.after {
		s.x.life.abandon(errCut)
	}
}

// early reports whether what was just read may be a replay of what the client
// has sent another time (RFC 8470).
func (c *h3Conn) early() bool {
	if c.proven.Load() {
		return false
	}
	select {
	case <-c.qc.HandshakeComplete():
		c.proven.Store(true)
		c.conn.proven()
		return false
	default:
		return true
	}
}

// errH3Idle ends a connection that carried no exchange for too long.
var errH3Idle = &h3.Error{Code: h3.NoError, Conn: true, What: "the connection was idle for too long"}

// watch does what is due on the connection and its streams. Its timer is not set
// for each request, but looks, when it fires, at what there is to wait for then.
func (c *h3Conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	now := time.Now()
	c.due = time.Time{}
	patience := c.conn.server.cfg.Limits.Idle
	if c.streams == nil {
		c.giveBack(len(c.spent))
		_, _, since := c.conn.load()
		if end := since.Add(patience); now.Before(end) {
			c.arm(end, now)
			return
		}
		c.work.Go(func() { c.fail(errH3Idle) }) // it waits for the connection to end
		return
	}
	for s := c.streams; s != nil; s = s.after {
		c.arm(s.look(now), now)
	}
}

// arm has the timer fire at t, unless it fires before that anyway. c.mu is held.
func (c *h3Conn) arm(t, now time.Time) {
	if c.due.IsZero() || t.Before(c.due) {
		c.due = t
		c.timer.Reset(t.Sub(now))
	}
}

// enter begins to watch s, which the caller has to itself until then.
func (c *h3Conn) enter(s *h3Stream, now time.Time) (alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	s.phase, s.since, s.firstBy = phaseHead, now, time.Time{}
	s.before, s.after = nil, c.streams
	if c.streams != nil {
		c.streams.before = s
	}
	c.streams = s
	c.arm(now.Add(watchAfter), now)
	return true
}

// leave ends the watch for s. Nobody else has a hold on s then.
func (c *h3Conn) leave(s *h3Stream) {
	c.mu.Lock()
	if s.before != nil {
		s.before.after = s.after
	} else {
		c.streams = s.after
	}
	if s.after != nil {
		s.after.before = s.before
	}
	s.before, s.after = nil, nil
	c.serving--
	c.fewer.Signal()
	c.spend(s.stream)
	unwatch, told := s.unwatch, s.told
	s.unwatch, s.told = nil, nil
	c.mu.Unlock()
	if unwatch != nil && !unwatch() {
		<-told
	}
}

// budget bounds how often a client may do something in a short time.
type budget struct {
	mu   sync.Mutex // guards the following fields
	left float64
	most float64
	last time.Time
}

const (
	// maxResets is how many requests a client may take back in a row, and
	// refillRate how many more each second.
	maxResets  = 200
	refillRate = 50
	// maxSideFrames is the same of frames and streams that ask for nothing.
	maxSideFrames = 500
)

func (b *budget) init(most float64) { b.left, b.most, b.last = most, most, time.Now() }

// spend reports whether there was something left.
func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.left = min(b.most, b.left+now.Sub(b.last).Seconds()*refillRate)
	b.last = now
	b.left--
	return b.left >= 0
}
