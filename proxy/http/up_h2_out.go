package http

import (
	"sync"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// maxRounds bounds how often in a row an exchange sends what others have left
// meanwhile, before it leaves that to a goroutine of its own.
const maxRounds = 4

// sealed takes what crypto/tls writes, so that it can be sent without waiting.
type sealed struct {
	mu         sync.Mutex // guards the following fields
	buf, spare []byte
}

func (s *sealed) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = append(s.buf, p...)
	return len(p), nil
}

// take returns what was written since it was called last. It holds until then.
func (s *sealed) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.buf
	s.buf, s.spare = s.spare[:0], p
	return p
}

func (s *sealed) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.buf) > 0
}

// hasOut reports whether there is something to send. TLS has things to say of
// its own. c.mu is held.
func (c *h2Conn) hasOut() bool { return len(c.out) > 0 || c.sealed != nil && c.sealed.any() }

// flush sends what there is, unless somebody is sending already. It does not
// wait: what the socket does not take at once is left to a goroutine that does.
// c.mu is held, but not all the time.
func (c *h2Conn) flush() {
	if c.writing {
		return
	}
	for round := 0; c.err == nil && c.hasOut(); round++ {
		c.writing = true
		if round == maxRounds {
			go c.drain(nil)
			return
		}
		batch := c.takeOut()
		c.mu.Unlock()
		rest, err := c.push(batch, false)
		c.mu.Lock()
		if err == nil && len(rest) > 0 {
			go c.drain(rest)
			return
		}
		c.wrote(batch, err)
	}
	c.writing = false
}

// drain sends rest and all that there is, and waits where the socket is full.
func (c *h2Conn) drain(rest []byte) {
	var err error
	if len(rest) > 0 {
		_, err = c.u.raw.Write(rest)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrote(nil, err)
	for c.err == nil && c.hasOut() {
		batch := c.takeOut()
		c.mu.Unlock()
		_, err := c.push(batch, true)
		c.mu.Lock()
		c.wrote(batch, err)
	}
	c.writing = false
}

// takeOut takes what is to be sent. c.mu is held.
func (c *h2Conn) takeOut() []byte {
	batch := c.out
	c.out, c.spare = c.spare[:0], nil
	return batch
}

// wrote says that batch was sent, or was not because of err. c.mu is held.
func (c *h2Conn) wrote(batch []byte, err error) {
	if err != nil {
		c.shut(err)
		return
	}
	if cap(batch) <= 2*maxH2Out {
		c.spare = batch
	}
	c.crowded.tell()
}

// push sends batch: all of it where wait is set, else what the socket takes at
// once. What is left holds until push is called again.
func (c *h2Conn) push(batch []byte, wait bool) (rest []byte, err error) {
	if c.sealed != nil {
		if len(batch) > 0 {
			if _, err := c.u.tls.Write(batch); err != nil {
				return nil, err
			}
		}
		batch = c.sealed.take()
	}
	if wait {
		_, err := c.u.raw.Write(batch)
		return nil, err
	}
	n, err := c.u.raw.writeSome(batch)
	return batch[n:], err
}

// waiters are streams that have more to send than there is room for.
type h2Waiters []*h2Stream

// tell tells them all. c.mu is held.
func (w *h2Waiters) tell() {
	for i, s := range *w {
		s.queued = nil
		signal(s.room)
		(*w)[i] = nil
	}
	*w = (*w)[:0]
}

// await waits until s is told that there is room, among others in w where that
// is not nil. c.mu is held, but not all the time.
func (c *h2Conn) await(s *h2Stream, w *h2Waiters) {
	if w != nil && s.queued == nil {
		s.queued = w
		*w = append(*w, s)
	}
	c.flush()
	if s.isOver() != nil {
		return
	}
	c.mu.Unlock()
	<-s.room
	c.mu.Lock()
}

// cut resets a stream, whose exchange fails by err. c.mu is held.
func (c *h2Conn) cut(s *h2Stream, code h2.Code, err error) {
	delete(c.streams, s.id)
	if !s.reset {
		s.reset = true
		c.out = h2.AppendRSTStream(c.out, s.id, code)
	}
	s.fail(err)
}

// signal tells who waits for ch, now or next time.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
