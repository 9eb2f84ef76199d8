package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// asker is a connection on which requests are sent and answers come.
type asker interface {
	// write sends a request and returns what its answer will be known by.
	write() (id uint64, err error)
	// read waits for an answer, checks it and returns whose it is. It may run
	// while write does.
	read() (id uint64, err error)
	state() tls.ConnectionState // zero without TLS
	close()
}

// lane gives an asker its requests: at most limit are under way, others wait
// their turn. A latency counts from when a request was to be sent, not from when
// its turn came, so that a slow answer is not left out of the latencies of those
// that had to wait for it.
type lane struct {
	asker
	limit int
	again bool // each answer is followed by the next request at once

	mu      sync.Mutex // guards what follows, and write
	waiting []time.Time
	under   map[uint64]time.Time
}

// send sends a request that is due at that time, as soon as it may.
func (l *lane) send(at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.under) >= l.limit {
		l.waiting = append(l.waiting, at)
		return nil
	}
	return l.sendLocked(at)
}

func (l *lane) sendLocked(at time.Time) error {
	id, err := l.write()
	if err != nil {
		return err
	}
	l.under[id] = at
	return nil
}

// run takes answers until the connection is closed.
func (l *lane) run(w *loadWorker) error {
	for {
		id, err := l.read()
		if err != nil {
			return err
		}
		at, err := l.answered(id)
		if err != nil {
			return err
		}
		w.did(1, at)
	}
}

// answered returns when the request was due, and sends the next one.
func (l *lane) answered(id uint64) (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.under[id]
	if !ok {
		return at, fmt.Errorf("an answer to request %d, which nobody sent", id)
	}
	delete(l.under, id)
	switch {
	case len(l.waiting) > 0:
		next := l.waiting[0]
		l.waiting = l.waiting[1:]
		return at, l.sendLocked(next)
	case l.again:
		return at, l.sendLocked(time.Now())
	}
	return at, nil
}

// laneLoad is a load of HTTP by lanes: as fast as they go, or at a constant rate
// that no answer holds up.
type laneLoad struct {
	service          service
	dial             func(ctx context.Context, e *edge, streams int) (asker, error)
	clients, streams int
	rate             float64 // requests per second of all lanes; 0: as fast as they go
}

// measure implements a row.
func (l laneLoad) measure(ctx context.Context, e *edge, ph phases) (sample, error) {
	lanes, err := l.open(ctx, e)
	defer func() {
		for _, lane := range lanes {
			lane.close()
		}
	}()
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pacing sync.WaitGroup
	defer pacing.Wait()
	defer cancel()
	paced := make(chan error, 1)
	pacing.Go(func() { paced <- l.start(ctx, lanes) })
	load := socketLoad{service: l.service, workers: l.clients, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error {
			lane := lanes[w.index]
			defer context.AfterFunc(ctx, lane.close)()
			return lane.run(w)
		}}
	s, err := load.measure(ctx, e, ph)
	cancel()
	if err := errors.Join(err, <-paced); err != nil {
		return sample{}, err
	}
	if state := lanes[0].state(); state.Version != 0 {
		s.TLS = tlsWords(state)
	}
	return s, nil
}

// open makes the connections; those that stand are returned also on error.
func (l laneLoad) open(ctx context.Context, e *edge) ([]*lane, error) {
	var lanes []*lane
	for range l.clients {
		a, err := l.dial(ctx, e, l.streams)
		if err != nil {
			return lanes, err
		}
		lanes = append(lanes, &lane{asker: a, limit: l.streams, again: l.rate == 0, under: make(map[uint64]time.Time)})
	}
	return lanes, nil
}

// start has the lanes filled once, or goes on to send at the load's rate until
// ctx ends.
func (l laneLoad) start(ctx context.Context, lanes []*lane) error {
	if l.rate > 0 {
		return pace(ctx, l.rate, func(i int, at time.Time) error { return lanes[i%len(lanes)].send(at) })
	}
	for _, lane := range lanes {
		for range l.streams {
			if err := lane.send(time.Now()); err != nil {
				return endOf(err)
			}
		}
	}
	return nil
}

// pace calls send with 0, 1, 2... at a constant rate until ctx ends or send
// fails, and with the times at which it was to be called: where it is late, it
// catches up. It sleeps in the kernel, which is exact to microseconds where the
// runtime's timers may be late by a millisecond.
func pace(ctx context.Context, rate float64, send func(i int, at time.Time) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("ask for exact timers: %w", err)
	}
	// 0 is the thread's own default again.
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
	start := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		at := start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if wait := time.Until(at); wait > 0 {
			ts := unix.NsecToTimespec(int64(wait))
			// Cut short by a signal it is early, by less than it would be late.
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
		}
		if err := send(i, at); err != nil {
			return endOf(err)
		}
	}
	return nil
}

// endOf returns nil for the error of a connection that this side has closed,
// which is how a load ends.
func endOf(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
