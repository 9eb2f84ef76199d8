package http

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// life is how an exchange is given up by others than its own goroutine: because
// the client went away, the backend took too long, or the node stops.
type life struct {
	base context.Context // what context returns is made of; nil: context.Background()

	// owe, unless nil, has tooSlow be called after limit; 0 takes that back.
	owe    func(limit time.Duration)
	headed atomic.Bool // a response head has come
	// cut, unless nil, has a write end that waits for the client, if one does;
	// limit is how long nothing moved.
	cut func(limit time.Duration)

	mu     sync.Mutex // guards the following fields
	cause  error      // why the exchange was given up
	up     interrupter
	ctx    context.Context
	cancel context.CancelCauseFunc
	slow   *time.Timer // runs while the backend owes a response head
}

// interrupter is what an exchange waits for: interrupt has the wait end soon.
type interrupter interface{ interrupt() }

var errClientLeft = errors.New("the client closed the connection")

// reset makes l ready for another exchange, once end was called and nobody else
// has a hold on l.
func (l *life) reset() {
	lower(&l.headed)
	l.cause, l.up, l.slow = nil, nil, nil
	if l.ctx != nil {
		l.ctx, l.cancel = nil, nil
	}
}

// abandon gives the exchange up. The first cause stays.
func (l *life) abandon(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abandonLocked(cause)
}

// abandonLocked needs l.mu.
func (l *life) abandonLocked(cause error) {
	if l.cause != nil {
		return
	}
	l.cause = cause
	if l.up != nil {
		l.up.interrupt()
	}
	if l.cancel != nil {
		l.cancel(cause)
	}
}

// abandoned returns why the exchange was given up; nil: it was not.
func (l *life) abandoned() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// attach has up be interrupted when the exchange is given up, until detach.
func (l *life) attach(up interrupter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = up
	if l.cause != nil {
		up.interrupt()
	}
}

// detach reports whether the exchange goes on.
func (l *life) detach() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = nil
	return l.cause == nil
}

// context returns a context that ends when the exchange is given up or over.
func (l *life) context() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		base := l.base
		if base == nil {
			base = context.Background()
		}
		l.ctx, l.cancel = context.WithCancelCause(base)
		if l.cause != nil {
			l.cancel(l.cause)
		}
	}
	return l.ctx
}

// expectHead gives the backend limit, from now on, to send a response head; 0
// has it take its time. Once headCame it does nothing.
func (l *life) expectHead(limit time.Duration) {
	if l.headed.Load() {
		return
	}
	if l.owe != nil {
		l.owe(limit)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slow != nil {
		l.slow.Stop()
		l.slow = nil
	}
	if limit > 0 {
		var timer *time.Timer
		timer = time.AfterFunc(limit, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.slow == timer && !l.headed.Load() { // else another try is under way
				l.abandonLocked(errFirstByte)
			}
		})
		l.slow = timer
	}
}

// tooSlow is called when the time for a response head is over.
func (l *life) tooSlow() {
	if !l.headed.Load() {
		l.abandon(errFirstByte)
	}
}

// headCame says that there is a response head.
func (l *life) headCame() { l.headed.Store(true) }

// headLost says that there is none after all: another try is made.
func (l *life) headLost() { l.headed.Store(false) }

// revive has the exchange go on that was given up for lack of a response head,
// for another try. It reports false where it was given up for anything else.
// Nobody else waits for its context by then.
func (l *life) revive() bool {
	l.expectHead(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == errFirstByte {
		l.cause, l.ctx, l.cancel = nil, nil, nil
	}
	return l.cause == nil
}

// end lets go of what was made for the exchange.
func (l *life) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel(nil)
	}
	if l.slow != nil {
		l.slow.Stop()
	}
}
