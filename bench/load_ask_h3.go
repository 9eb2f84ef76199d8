package main

import (
	"context"
	"crypto/tls"
	"sync"
)

// askH3 is a connection of HTTP/3, with a goroutine for each request that may be
// under way.
type askH3 struct {
	*h3conn
	sent          uint64
	due, answered chan uint64
	failed        chan error
	ctx           context.Context // ends with close
	cancel        context.CancelFunc
	asking        sync.WaitGroup
}

func dialAskH3(ctx context.Context, e *edge, streams int) (asker, error) {
	c, err := dialH3(ctx, e)
	if err != nil {
		return nil, err
	}
	a := &askH3{h3conn: c, due: make(chan uint64, streams), answered: make(chan uint64, streams), failed: make(chan error, streams)}
	a.ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for range streams {
		a.asking.Go(func() {
			if err := a.ask(e); err != nil {
				a.failed <- err
			}
		})
	}
	return a, nil
}

// ask sends what is due.
func (a *askH3) ask(e *edge) error {
	once, err := a.asks(a.ctx, e.addrs[serviceH3])
	if err != nil {
		return err
	}
	for {
		select {
		case <-a.ctx.Done():
			return nil
		case id := <-a.due:
			if err := once(); err != nil {
				return err
			}
			a.answered <- id
		}
	}
}

func (a *askH3) write() (uint64, error) {
	a.sent++
	a.due <- a.sent // has room: no more are under way than goroutines
	return a.sent, nil
}

func (a *askH3) read() (uint64, error) {
	select {
	case id := <-a.answered:
		return id, nil
	case err := <-a.failed:
		return 0, err
	case <-a.ctx.Done():
		return 0, a.ctx.Err()
	}
}

func (a *askH3) state() tls.ConnectionState { return a.conn.ConnectionState().TLS }

func (a *askH3) close() {
	a.cancel()
	a.h3conn.close()
	a.asking.Wait()
}
