package http

import (
	"io"
	"sync"
)

// h2Upload sends a request's body by HTTP/2 while the response is waited for and
// read. The zero value has nothing to send.
type h2Upload struct {
	k     *h2Call
	buf   *[]byte       // of copyBuffers
	done  chan struct{} // closed when it is over; nil: there is none
	total int           // what was read from the client, in buf as long as that has room
	lost  bool          // it has none any more

	mu      sync.Mutex // guards the following fields
	reading bool       // it waits for the client
	stopped bool
}

// start begins to send the body of k's request.
func (u *h2Upload) start(k *h2Call) {
	u.k, u.done = k, make(chan struct{})
	u.buf = copyBuffers.Get().(*[]byte)
	go u.run()
}

// halt ends the upload if that can be done without giving up the body: unless it
// waits for the client just now.
func (u *h2Upload) halt() bool {
	if u.done == nil {
		return true
	}
	u.mu.Lock()
	u.stopped = true
	reading := u.reading
	u.mu.Unlock()
	if reading {
		return false
	}
	u.stopSending()
	<-u.done
	return true
}

// finish waits for the upload to be over, having stopped it if it is not.
func (u *h2Upload) finish() {
	if u.done == nil {
		return
	}
	if !u.halt() {
		u.k.x.body.stop()
		u.stopSending()
		<-u.done
	}
	if u.buf != nil {
		copyBuffers.Put(u.buf)
	}
}

// stopSending has the upload wait for nothing that the backend could do.
func (u *h2Upload) stopSending() {
	s := &u.k.s
	s.c.mu.Lock()
	s.stopSending()
	s.c.mu.Unlock()
}

func (u *h2Upload) run() {
	defer close(u.done)
	if err := u.copy(); err != nil {
		return
	}
	if x := u.k.x; x.hop.first > 0 {
		x.life.expectHead(x.hop.first)
	}
}

// copy sends the body. That the backend takes no more of it is for who reads the
// response to find out.
func (u *h2Upload) copy() error {
	x, s := u.k.x, &u.k.s
	size := x.body.size()
	for sent := int64(0); ; {
		if u.total == len(*u.buf) {
			u.total, u.lost = 0, true
		}
		p := (*u.buf)[u.total:]
		n, err := u.read(p)
		if err == errSendOver {
			return err
		}
		u.total += n
		sent += int64(n)
		last := err == io.EOF || err == nil && sent == size
		if err != nil && !last || last && size >= 0 && sent != size {
			s.giveUp(noEOF(err))
			return errUploadRead
		}
		if last && size < 0 {
			if t := x.allowedTrailer(x.body.trailer()); t != nil && t.Len() > 0 {
				if n > 0 {
					if err := s.send(p[:n], false); err != nil {
						return err
					}
				}
				return s.sendTrailer(appendLines(nil, t))
			}
		}
		if n == 0 && !last {
			continue
		}
		if err := s.send(p[:n], last); err != nil || last {
			return err
		}
	}
}

// read reads from the client, unless the upload is to end.
func (u *h2Upload) read(p []byte) (int, error) {
	u.mu.Lock()
	u.reading = !u.stopped
	stopped := u.stopped
	u.mu.Unlock()
	if stopped {
		return 0, errSendOver
	}
	n, err := u.k.x.body.Read(p)
	u.mu.Lock()
	u.reading = false
	u.mu.Unlock()
	return n, err
}

// regained is a body of which a part was read for nothing.
type regained struct {
	body
	again []byte
}

func (b *regained) atHand() ([]byte, bool) { return nil, false }

func (b *regained) Read(p []byte) (int, error) {
	if len(b.again) == 0 {
		return b.body.Read(p)
	}
	n := copy(p, b.again)
	b.again = b.again[n:]
	return n, nil
}

// regain has the request's body begin anew after halt, and reports whether it
// could.
func (u *h2Upload) regain() bool {
	if u.done == nil {
		return true
	}
	if u.lost {
		return false
	}
	if u.total > 0 {
		u.k.x.body = &regained{body: u.k.x.body, again: (*u.buf)[:u.total]}
	} else {
		copyBuffers.Put(u.buf)
	}
	*u = h2Upload{}
	return true
}
