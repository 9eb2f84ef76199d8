package http

import (
	"context"
	"crypto/tls"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// tunnel carries bytes both ways between an upgraded client connection and the
// backend's. It returns when both directions have ended, or closes both where
// one fails, nothing moved for x.hop.idle, or ctx ends. How the ends part is
// theirs to know, so that only the node's own acts make a failure.
func (x *exchange) tunnel(ctx context.Context, down, up io.ReadWriteCloser) *failure {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		down.Close()
		up.Close()
	})()
	w := watchSilence(x.hop.idle, func() { cancel(errIdle) })
	defer w.stop()

	var other sync.WaitGroup
	other.Go(func() {
		if err := pump(up, down, &x.bytes.up, w); err != nil {
			cancel(err)
		}
	})
	if err := pump(down, up, &x.bytes.down, w); err != nil {
		cancel(err)
	}
	other.Wait()
	if context.Cause(ctx) == errIdle {
		return &failure{class: endIdle, err: errIdle}
	}
	if end, why := x.cutBy(); end != "" {
		return &failure{class: end, err: why}
	}
	return nil
}

// pump copies until from ends, then ends the sending direction of to. It holds a
// buffer only while there is something to copy, if from can be waited for
// without.
func pump(to io.Writer, from io.Reader, count *atomic.Int64, w *silenceWatch) error {
	var b borrowed
	defer b.takeBack()
	lent, canLend := from.(lentReader)
	if !canLend {
		lent = &lending{from: from}
	}
	for {
		n, err := lent.ReadLent(&b)
		if n > 0 {
			w.moved()
			if _, err := to.Write(b.lend()[:n]); err != nil {
				return err
			}
			count.Add(int64(n))
		}
		b.takeBack()
		if err == io.EOF {
			if half, ok := to.(interface{ CloseWrite() error }); ok {
				return half.CloseWrite()
			}
			return io.EOF // there is no half-close: the end of one is the end of both
		}
		if err != nil {
			return err
		}
	}
}

// lentReader is a connection that can be waited for without a buffer. ReadLent
// has l lend one once there is something to read, which is then in it, and take
// it back if there was nothing after all.
type lentReader interface {
	ReadLent(l lender) (int, error)
}

// lending makes a lentReader of any: it waits with a little, and with a whole
// buffer only behind a read that filled what it had.
type lending struct {
	from  io.Reader
	spare [tlsWait]byte
	bulk  bool
}

func (r *lending) ReadLent(l lender) (n int, err error) {
	if r.bulk {
		n, err = r.from.Read(l.lend())
	} else if n, err = r.from.Read(r.spare[:]); n > 0 {
		copy(l.lend(), r.spare[:n])
	}
	r.bulk = n >= len(r.spare)
	return n, err
}

// borrowed is a lender of copyBuffers, one at a time.
type borrowed struct{ buf *[]byte }

func (b *borrowed) lend() []byte {
	if b.buf == nil {
		b.buf = copyBuffers.Get().(*[]byte)
	}
	return *b.buf
}

func (b *borrowed) takeBack() {
	if b.buf != nil {
		copyBuffers.Put(b.buf)
		b.buf = nil
	}
}

// tlsWait is what a direction of a tunnel over TLS waits with: crypto/tls wants
// to be asked with a buffer.
const tlsWait = 512

// readLentTLS reads from c, over raw, into spare, and what more there is into
// what l lends.
func readLentTLS(c *tls.Conn, raw *rawTCP, spare []byte, l lender) (int, error) {
	n, err := c.Read(spare)
	if n == 0 {
		return 0, err
	}
	buf := l.lend()
	copy(buf, spare[:n])
	if n < len(spare) || err != nil || raw == nil {
		return n, err
	}
	raw.dry = true
	for n < len(buf) {
		more, err := c.Read(buf[n:])
		n += more
		if err != nil { // for now, or one that stays
			break
		}
	}
	raw.dry = false
	return n, nil
}

const copyBuffer = 32 << 10

// copyBuffers hold the bytes of bodies and tunnels on their way.
var copyBuffers = sync.Pool{New: func() any {
	b := make([]byte, copyBuffer)
	return &b
}}

// silenceWatch calls a function once nothing moved for a time.
type silenceWatch struct {
	last    atomic.Int64  // when something moved, in nanoseconds since the epoch
	besides *atomic.Int64 // when something moved elsewhere that counts too; nil: nothing does
	limit   time.Duration
	expired func()

	mu      sync.Mutex // guards the following fields
	timer   *time.Timer
	stopped bool
}

// watchSilence begins to watch; a limit of 0 has it wait for ever.
func watchSilence(limit time.Duration, expired func()) *silenceWatch {
	return watchSilenceBesides(nil, limit, expired)
}

// watchSilenceBesides is watchSilence where besides, in nanoseconds since the
// epoch, counts too.
func watchSilenceBesides(besides *atomic.Int64, limit time.Duration, expired func()) *silenceWatch {
	w := &silenceWatch{besides: besides, limit: limit, expired: expired}
	w.moved()
	if limit > 0 {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.timer = time.AfterFunc(limit, w.check)
	}
	return w
}

func (w *silenceWatch) moved() { w.last.Store(time.Now().UnixNano()) }

func (w *silenceWatch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	last := w.last.Load()
	if w.besides != nil {
		last = max(last, w.besides.Load())
	}
	if left := w.limit - time.Since(time.Unix(0, last)); left > 0 {
		w.timer.Reset(left)
		return
	}
	w.expired()
}

func (w *silenceWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}
