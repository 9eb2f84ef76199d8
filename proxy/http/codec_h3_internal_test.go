package http

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestH3WatchBehindASlowHead has a head take a while. The exchange is looked after
// as soon as others, and not when the head would have had to end.
func TestH3WatchBehindASlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{cfg: Config{Limits: Limits{}.withDefaults()}}
		c := newH3Conn(&conn{server: s}, nil)
		c.timer = time.AfterFunc(time.Hour, c.watch)
		defer c.timer.Stop()
		slow := &h3Stream{c: c}
		if !c.enter(slow, time.Now()) {
			t.Fatal("the connection is over")
		}
		time.Sleep(time.Second) // of the test's own clock
		now := time.Now()
		slow.begin(now)
		c.mu.Lock()
		defer c.mu.Unlock()
		if wait := c.due.Sub(now); wait != watchAfter {
			t.Errorf("the exchange is looked at after %v, want %v", wait, watchAfter)
		}
	})
}

// TestH3GoneBehindASlowHead has the client be told to go while the head of a
// request is on the way, which came before that. The connection stays until it is
// answered.
func TestH3GoneBehindASlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{cfg: Config{Limits: Limits{}.withDefaults()}}
		c := newH3Conn(&conn{server: s}, nil)
		c.warned, c.next, c.rejected = time.Now(), 8, 8
		answered := time.Now()
		c.serving = 1
		time.Sleep(time.Minute) // of the test's own clock
		if c.gone(0, answered) {
			t.Error("the connection is hung up under a request that is not complete")
		}
		c.serving = 0
		if !c.gone(0, answered) {
			t.Error("the connection is kept though nothing can come any more")
		}
	})
}
