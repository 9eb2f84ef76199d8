package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// socketLoad is a load of raw TCP: workers that each repeat some work on
// connections of their own.
type socketLoad struct {
	service service
	workers int
	unit    float64       // units of the row per count of a worker
	costIn  time.Duration // what a sample's cost counts in
	work    func(ctx context.Context, w *loadWorker) error
}

// loadWorker is one of a load's workers, at work until ctx ends.
type loadWorker struct {
	index     int // from 0
	addr      netip.AddrPort
	recording *atomic.Bool    // the window is open
	latency   []time.Duration // of what was done in the window; the worker's own until it ends
	count     atomic.Int64    // of all it did
	_         [64]byte        // keeps the next worker's count off this cache line
}

// did counts n and, in the window, notes how long that took since start.
func (w *loadWorker) did(n int64, start time.Time) {
	w.count.Add(n)
	if w.recording.Load() {
		w.latency = append(w.latency, time.Since(start))
	}
}

// messageSize is the length of what is echoed.
const messageSize = 64

// newMessage returns a message that nobody sends by accident.
func newMessage() []byte { return bytes.Repeat([]byte{0xa5}, messageSize) }

// pingPong is connections that each send 64 bytes and wait for their echo.
func pingPong(connections int) socketLoad {
	return socketLoad{service: serviceEcho, workers: connections, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error {
			c, err := w.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			return pingPongOn(c, w)
		}}
}

// pingPongOn sends 64 bytes on c and waits for their echo, again and again.
func pingPongOn(c net.Conn, w *loadWorker) error {
	message, buf := newMessage(), make([]byte, messageSize)
	for {
		message[0]++ // an echo of the last message is not this one's
		start := time.Now()
		if err := echo(c, message, buf); err != nil {
			return err
		}
		w.did(1, start)
	}
}

// connectEchoClose is as many connections at once, each of which lasts for one
// echo of 64 bytes.
func connectEchoClose(atOnce int) socketLoad {
	return socketLoad{service: serviceEcho, workers: atOnce, unit: 1, costIn: time.Microsecond,
		work: func(ctx context.Context, w *loadWorker) error {
			message, buf := newMessage(), make([]byte, messageSize)
			for {
				message[0]++
				start := time.Now()
				c, err := w.dial(ctx)
				if err != nil {
					return err
				}
				stop := context.AfterFunc(ctx, func() { c.Close() })
				err = echo(c, message, buf)
				stop()
				if err = errors.Join(err, c.Close()); err != nil {
					return err
				}
				w.did(1, start)
			}
		}}
}

// bulk is connections that receive as fast as they can.
func bulk(connections int) socketLoad {
	const gbit = 1e9 / 8 // bytes
	return socketLoad{service: serviceBlast, workers: connections, unit: 1 / gbit, costIn: time.Millisecond,
		work: func(ctx context.Context, w *loadWorker) error {
			c, err := w.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			buf := make([]byte, 256<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return err
				}
				w.count.Add(int64(n))
			}
		}}
}

func (w *loadWorker) dial(ctx context.Context) (net.Conn, error) { return dialTCP(ctx, w.addr) }

// measure runs the load around a window and counts what was done within.
func (l socketLoad) measure(ctx context.Context, e *edge, ph phases) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var recording atomic.Bool
	workers := make([]loadWorker, l.workers)
	errs := make([]error, l.workers)
	var running sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		w.index, w.addr, w.recording = i, e.addrs[l.service], &recording
		running.Go(func() {
			if err := l.work(ctx, w); ctx.Err() == nil {
				errs[i] = err
			}
		})
	}
	var marks [][]int64
	w, err := observe(ctx, e.root, ph, func() {
		marks = append(marks, counts(workers))
		recording.Store(len(marks) == 1)
	})
	cancel()
	running.Wait()
	if err = errors.Join(append(errs, err)...); err != nil {
		return sample{}, err
	}
	return l.sample(w, marks[0], marks[1], workers)
}

func counts(workers []loadWorker) []int64 {
	all := make([]int64, len(workers))
	for i := range workers {
		all[i] = workers[i].count.Load()
	}
	return all
}

// sample adds up the workers' counts. A worker that did nothing at all is a
// connection that hangs, which would leave the more for the others.
func (l socketLoad) sample(w window, before, after []int64, workers []loadWorker) (sample, error) {
	var sum int64
	var latency []time.Duration
	idle := 0
	for i := range workers {
		if after[i] == before[i] {
			idle++
		}
		sum += after[i] - before[i]
		latency = append(latency, workers[i].latency...)
	}
	if idle > 0 {
		return sample{}, fmt.Errorf("%d of %d workers got nothing done in the window", idle, len(workers))
	}
	return perUnit(w, float64(sum)*l.unit, l.costIn, latency), nil
}
