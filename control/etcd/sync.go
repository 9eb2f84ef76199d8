package etcd

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// syncs are those who wait for the watch to have passed on what etcd has.
type syncs struct {
	mu      sync.Mutex
	ask     func() // has etcd asked how far it is; nil: there is no stream
	now     int64  // up to where all was passed on
	waiting []*syncWaiter
}

type syncWaiter struct {
	rev  int64
	done chan struct{}
}

// askAgain is the pause between questions that etcd leaves unanswered, as it
// does while a watcher is behind.
const askAgain = 20 * time.Millisecond

// Sync returns once the running watch has passed on, to both of its handlers,
// all that etcd had when it was called: what they know then is no older than the
// call. The error is that of ctx, or of etcd.
func (c *Client) Sync(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	now, err := c.get(ctx, conn, c.prefix, clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("ask etcd for its revision: %w", err)
	}
	// Where nothing was written since the watch began, etcd answers no question.
	w := &syncWaiter{now.Header.Revision, make(chan struct{})}
	if c.syncs.add(w) {
		return nil
	}
	defer c.syncs.remove(w)
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		c.syncs.question()
		select {
		case <-w.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the watch to reach revision %d: %w", w.rev, ctx.Err())
		case <-again.C:
		}
	}
}

// add adds w to those who wait, unless that is not necessary.
func (s *syncs) add(w *syncWaiter) (reached bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.rev <= s.now {
		return true
	}
	s.waiting = append(s.waiting, w)
	return false
}

func (s *syncs) remove(w *syncWaiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(x *syncWaiter) bool { return x == w })
}

// question has etcd asked, if there is a stream.
func (s *syncs) question() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ask != nil {
		s.ask()
	}
}

// follow has questions asked by ask; nil: there is no stream any more. What was
// passed on then is no older than it was, unless etcd itself is.
func (s *syncs) follow(ask func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ask, s.now = ask, 0
}

// reached tells those who wait for no more than rev.
func (s *syncs) reached(rev int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = max(s.now, rev)
	s.waiting = slices.DeleteFunc(s.waiting, func(w *syncWaiter) bool {
		if w.rev > rev {
			return false
		}
		close(w.done)
		return true
	})
}
