package http

import (
	"runtime"
	"sync"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

const (
	// h2OutRoom is what a buffer for frames begins with, and h2OutMost how much
	// is gathered before those that have more to send wait, in bytes.
	h2OutRoom = 4 << 10
	h2OutMost = 64 << 10
	// h2Turns is how often an exchange writes for others too before somebody else
	// takes over.
	h2Turns = 4
)

// h2Out gathers the frames of a connection and writes them. All of it is guarded
// by the connection's mutex, which is let go while something is written.
type h2Out struct {
	c       *h2DownConn
	held    *[]byte // what was gathered; nil: nothing
	turn    uint32  // counts the writes, so that one knows what is still in held
	writing bool    // somebody writes, or is about to
	waiting int     // streams that wait for room
	idle    sync.Cond
}

var h2Outs = sync.Pool{New: func() any {
	b := make([]byte, 0, h2OutRoom)
	return &b
}}

func (o *h2Out) init(c *h2DownConn) {
	o.c = c
	o.idle.L = &c.mu
}

// buffer returns what was gathered, to be appended to.
func (o *h2Out) buffer() []byte {
	if o.held == nil {
		o.held = h2Outs.Get().(*[]byte)
	}
	return *o.held
}

// set keeps what buffer returned, with what was appended.
func (o *h2Out) set(b []byte) { *o.held = b }

func (o *h2Out) len() int {
	if o.held == nil {
		return 0
	}
	return len(*o.held)
}

// flush writes what was gathered, unless somebody does already, who then takes it
// along. The caller's goroutine does it.
func (o *h2Out) flush() {
	if o.writing || o.len() == 0 || o.c.dead != nil {
		return
	}
	o.writing = true
	if o.c.active > 1 {
		// Others may be about to have something: one write for all is far cheaper
		// than one for each.
		o.c.mu.Unlock()
		runtime.Gosched()
		o.c.mu.Lock()
	}
	for range h2Turns {
		if !o.write() {
			return
		}
	}
	o.goOn()
}

// later has somebody else write what was gathered.
func (o *h2Out) later() {
	if o.writing || o.len() == 0 || o.c.dead != nil {
		return
	}
	o.writing = true
	o.goOn()
}

// goOn has a goroutine of its own write, until nothing is left.
func (o *h2Out) goOn() {
	o.c.workers.Go(func() {
		o.c.mu.Lock()
		defer o.c.mu.Unlock()
		for o.write() {
		}
	})
}

// write writes what was gathered, and reports whether there is more. It ends
// writing where there is not.
func (o *h2Out) write() (more bool) {
	c := o.c
	if o.held != nil && c.dead == nil {
		held := o.held
		o.held = nil
		o.turn++
		c.mu.Unlock()
		_, err := c.io.Write(*held)
		poison((*held)[:cap(*held)])
		if *held = (*held)[:0]; cap(*held) <= 2*h2OutMost {
			h2Outs.Put(held)
		}
		c.mu.Lock()
		if err != nil {
			c.fail(err)
			c.conn.hangUp() // has the reader end too
		}
		if o.waiting > 0 {
			o.wake()
		}
	}
	if o.held != nil && c.dead == nil {
		return true
	}
	o.writing = false
	o.idle.Broadcast()
	return false
}

// wake has streams look again that wait for something.
func (o *h2Out) wake() {
	for _, s := range o.c.streams {
		if s.waiting > 0 {
			s.cond.Broadcast()
		}
	}
}

// drainLocked returns when everything gathered is written, or nothing can be.
func (o *h2Out) drainLocked() {
	for o.writing {
		o.idle.Wait()
	}
	if o.len() == 0 || o.c.dead != nil {
		return
	}
	o.writing = true
	for o.write() {
	}
}

// frameAt says where a frame lies that was gathered last for a stream.
type frameAt struct {
	turn uint32
	at   int // -1: nowhere
}

// mark returns the place of the frame that is appended next.
func (o *h2Out) mark() frameAt { return frameAt{o.turn, o.len()} }

// endAt sets END_STREAM in a frame that is not written yet, and reports whether
// it could.
func (o *h2Out) endAt(f frameAt) bool {
	if f.at < 0 || f.turn != o.turn || o.held == nil {
		return false
	}
	const flags = 4
	(*o.held)[f.at+flags] |= h2.FlagEndStream
	return true
}
