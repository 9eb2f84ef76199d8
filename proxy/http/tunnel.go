package http

import (
	"context"
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
	if end, why := x.conn.cutBy(); end != "" {
		return &failure{class: end, err: why}
	}
	return nil
}

// pump copies until from ends, then ends the sending direction of to.
func pump(to io.Writer, from io.Reader, count *atomic.Int64, w *silenceWatch) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			w.moved()
			if _, err := to.Write((*buf)[:n]); err != nil {
				return err
			}
			count.Add(int64(n))
		}
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

const copyBuffer = 32 << 10

// copyBuffers hold the bytes of bodies and tunnels on their way.
var copyBuffers = sync.Pool{New: func() any {
	b := make([]byte, copyBuffer)
	return &b
}}

// silenceWatch calls a function once nothing moved for a time.
type silenceWatch struct {
	last    atomic.Int64 // when something moved, in nanoseconds since the epoch
	limit   time.Duration
	expired func()

	mu      sync.Mutex // guards the following fields
	timer   *time.Timer
	stopped bool
}

// watchSilence begins to watch; a limit of 0 has it wait for ever.
func watchSilence(limit time.Duration, expired func()) *silenceWatch {
	w := &silenceWatch{limit: limit, expired: expired}
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
	if left := w.limit - time.Since(time.Unix(0, w.last.Load())); left > 0 {
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
