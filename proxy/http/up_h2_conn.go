package http

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

const (
	// maxH2Streams bounds the exchanges on one connection, also where the
	// backend would take more: one goroutine reads for them all.
	maxH2Streams = 256
	// maxH2Out is how much may wait to be sent before bodies and heads wait
	// themselves, in bytes.
	maxH2Out = 64 << 10
	// maxH2Block bounds a field block as it is sent, in bytes.
	maxH2Block = 2 * maxResponseHead

	// The window of a connection has no say in what is kept of a backend's
	// answers: the windows of streams have. A stream that nobody reads from must
	// not hold up the others.
	h2ConnWindow = 1 << 30
	h2ConnSlack  = 1 << 20 // of it may be used up before it is widened again

	// h2Patience is how many frames a backend may send that move nothing, over
	// those that are earned: see earn.
	h2Patience = 2000

	// pingAfter is how many sweeps in a row nothing may come before the backend
	// is asked for a sign of life, which is due by the next; pingAgain is how
	// many where it has sent no message since it was last asked. Servers of gRPC
	// hang up on who asks more often.
	pingAfter = 2
	pingAgain = 21
)

// h2Conn is a connection to a backend that speaks HTTP/2, which many exchanges
// use at a time. One goroutine reads from it for them all; what is to be sent,
// whoever has it sends, as far as the socket takes it at once.
type h2Conn struct {
	site   *site
	u      *upConn
	sealed *sealed     // what TLS has made of what is sent; nil in clear text
	roomy  atomic.Bool // whether asking for a slot is likely to succeed

	// Of the goroutine that reads.
	frames  h2.Reader
	decoder h2.Decoder
	block   []byte          // of a field section in several frames
	begun   h2.Frame        // the HEADERS frame that it began with
	unread  h2.Head         // for field sections that nobody waits for
	woken   []*h2Stream     // have got something
	tell    []chan struct{} // what woken are told by, once mu is free

	mu       sync.Mutex // guards the following fields
	err      error      // why the connection is of no more use; nil: it is
	streams  map[uint32]*h2Stream
	next     uint32 // the next stream's identifier
	slots    int    // exchanges that have a stream, or will
	limit    int    // of slots
	greeted  bool   // SETTINGS have come
	leaving  bool   // no further stream is begun
	used     bool   // a response has come
	since    time.Time
	settings h2.Settings

	window  int       // what the backend may send, in bytes
	allowed int       // what may be sent to it
	starved h2Waiters // for it
	crowded h2Waiters // for room in out

	out, spare []byte // what is to be sent; the buffer that it was before
	writing    bool   // somebody is sending
	tabled     bool   // the backend knows that there is no dynamic table

	credit  int  // frames that may come without moving anything
	heard   bool // something has come since the last sweep
	quiet   int  // sweeps without
	asked   bool // a PING is to be answered before the next sweep
	pinged  bool // and no message has come since a PING was answered
	held    int  // slots of streams that were reset: see hold
	changed bool // slots have come free, for who waits for one
}

// newH2Conn begins to speak HTTP/2 on u.
func newH2Conn(s *site, u *upConn) *h2Conn {
	c := &h2Conn{
		site: s, u: u, streams: map[uint32]*h2Stream{}, next: 1, limit: 1, since: time.Now(),
		settings: h2.DefaultSettings(), window: h2ConnWindow, allowed: h2.InitialWindow, credit: h2Patience,
	}
	if u.tls != nil {
		c.sealed = &sealed{}
		u.raw.gather = c.sealed
	}
	c.frames.Reset(u)
	c.frames.Keep = true
	c.roomy.Store(true)
	c.out = append(make([]byte, 0, 4<<10), h2.Preface...)
	c.out = h2.AppendSettings(c.out, h2.Setting{ID: h2.SettingEnablePush, Value: 0},
		h2.Setting{ID: h2.SettingMaxHeaderListSize, Value: maxResponseHead})
	c.out = h2.AppendWindowUpdate(c.out, 0, h2ConnWindow-h2.InitialWindow)
	return c
}

// reserve takes a slot for an exchange, if there is one. Until the backend has
// said how many there are, there is one.
func (c *h2Conn) reserve() bool {
	if !c.roomy.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.leaving || c.slots >= c.limit {
		c.roomy.Store(false)
		return false
	}
	c.slots++
	return true
}

// release gives a slot back. c.mu is held.
func (c *h2Conn) release(n int) {
	c.slots -= n
	c.changed = true
	if c.err == nil && !c.leaving && c.slots < c.limit && !c.roomy.Load() {
		c.roomy.Store(true)
	}
	if c.slots > 0 || c.err != nil {
		return
	}
	if c.leaving || c.site.pool.h2.Load() > maxIdle {
		c.shut(errClosed)
	}
	c.since = time.Now()
}

// isNew reports whether the backend has still to say how many slots there are.
func (c *h2Conn) isNew() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.greeted && !c.leaving
}

// hold keeps the slot of a stream that was reset until the backend has answered
// a PING, and so has seen the reset: a client that comes and goes must not have
// the backend take this node for one that floods it. c.mu is held.
func (c *h2Conn) hold() {
	if c.pinged || c.err != nil {
		c.release(1)
		return
	}
	if c.held++; c.held == 1 {
		c.out = h2.AppendPing(c.out, false, pingReset)
	}
}

var (
	pingReset = []byte("reset\x00\x00\x00")
	pingAlive = []byte("alive\x00\x00\x00")
)

// retire has no further stream begun, and the connection close after the last.
// c.mu is held.
func (c *h2Conn) retire() {
	c.leaving = true
	c.roomy.Store(false)
	if c.slots == 0 {
		c.shut(errClosed)
	}
}

// shut ends the connection, and the exchanges on it by err. c.mu is held.
func (c *h2Conn) shut(err error) {
	if c.err != nil {
		return
	}
	code := h2.NoError
	if bad, ok := errors.AsType[*h2.ConnError](err); ok {
		code = bad.Code
	}
	if err == errClosed || code != h2.NoError {
		c.out = h2.AppendGoAway(c.out, 0, code, "")
		if !c.writing {
			c.push(c.out, false)
		}
	}
	c.err = err
	c.leaving = true
	c.roomy.Store(false)
	for id, s := range c.streams {
		delete(c.streams, id)
		s.fail(err)
	}
	c.starved.tell()
	c.crowded.tell()
	c.release(c.held)
	c.held = 0
	c.u.close()
}

// sweep looks after the connection every now and then, and reports whether it
// has ended.
func (c *h2Conn) sweep(now time.Time) (ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credit = h2Patience
	if c.err == nil && c.slots == 0 && now.Sub(c.since) > idleTime {
		c.shut(errClosed)
	}
	if c.err == nil && !c.leaving && c.u.astray {
		c.retire() // the next one may be where it should
	}
	if c.err != nil {
		return true
	}
	if c.heard {
		c.heard, c.asked, c.quiet = false, false, 0
		return false
	}
	c.quiet++
	patience := pingAfter
	if c.pinged {
		patience = pingAgain
	}
	switch {
	case c.asked:
		c.shut(errSilent)
	case c.quiet >= patience:
		c.asked = true
		c.out = h2.AppendPing(c.out, false, pingAlive)
		c.flush()
	}
	return c.err != nil
}

// read takes frames until the connection has ended.
func (c *h2Conn) read() {
	for c.readOn() {
	}
	c.frames.Release()
	c.site.dropH2(c)
}

// readOn waits for a frame, and takes all that came with it before it tells
// anybody: mostly a response is whole then.
func (c *h2Conn) readOn() bool {
	f, err := c.frames.Next()
	c.mu.Lock()
	c.heard = true
	c.take(&f, err)
	for c.err == nil && c.frames.Ready() {
		f, err = c.frames.Next()
		c.take(&f, err)
	}
	for i, s := range c.woken {
		s.marked = false
		c.tell = append(c.tell, s.came)
		c.woken[i] = nil
	}
	c.woken = c.woken[:0]
	goOn, send, changed := c.err == nil, c.hasOut(), c.changed
	c.changed = false
	c.mu.Unlock()
	for _, came := range c.tell {
		signal(came)
	}
	c.tell = c.tell[:0]
	if send && goOn {
		c.mu.Lock()
		c.flush()
		c.mu.Unlock()
	}
	if changed {
		c.site.serveWaiters()
	}
	return goOn
}

// take takes a frame, or the error that came instead. c.mu is held.
func (c *h2Conn) take(f *h2.Frame, err error) {
	if err == nil {
		err = c.handle(f)
	}
	if err == nil || c.err != nil {
		return
	}
	if bad, ok := errors.AsType[*h2.StreamError](err); ok {
		if s := c.streams[bad.Stream]; s != nil {
			c.cut(s, bad.Code, err)
			return
		}
		if err = c.stray(bad.Stream); err == nil {
			return
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.shut(err)
}

// wake has s told that something has come, once the lock is free. c.mu is held,
// and this is the goroutine that reads.
func (c *h2Conn) wake(s *h2Stream) {
	if !s.marked {
		s.marked = true
		c.woken = append(c.woken, s)
	}
}

// earn is for a frame that moves something: it makes up for some that do not, as
// widening windows and asking for a sign of life.
func (c *h2Conn) earn() { c.credit = min(c.credit+4, h2Patience) }

// spend is for a frame that moves nothing. A backend that sends them without end
// is let go of, and so is one that has many answered and reads no answer.
func (c *h2Conn) spend() error {
	if c.credit--; c.credit < 0 {
		return &h2.ConnError{Code: h2.EnhanceYourCalm, What: "the backend sends frames without end that say nothing"}
	}
	if len(c.out) > 4*maxH2Out {
		return &h2.ConnError{Code: h2.EnhanceYourCalm, What: "the backend does not read what it asks for"}
	}
	return nil
}
